"""Files decode to the same symbols on a machine whose arithmetic differs four times as much as any seen."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.noise import disturbed, shared_modules
from bench.ways import Drift, runs, symbols_of
from model import Codec, Zoo, fused
from model.container import read_container
from model.differences import read_tensors
from model.info import ModelInfo
from model.pixels import from_pil
from model.tiles import Tiling
from tests.conftest import psnr
from tests.symbols import decoded

LEAST_NOISE = 2e-6
EMBEDDED = [entry.name for entry in Zoo().entries() if entry.embedded]
PUBLISHED = json.loads((Path(__file__).parents[2] / "docs" / "drift.json").read_text())


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module", params=EMBEDDED)
def model(request):
    return Codec.load(request.param, "cpu")


@pytest.fixture(scope="module")
def measured(model, photo):
    drift = Drift()
    symbols = symbols_of(model.net, as_tensor(photo), model.info.rounding)
    drift.add_image(runs(model.net, symbols, devices=("cpu",), batches=(2,)), symbols, model.info.config.slices)
    return drift


def test_the_format_forgives_four_times_the_largest_drift(measured):
    assert measured.sigma > 0
    assert measured.margin >= 4


def unlike_photographs(photo: Image.Image) -> dict[str, np.ndarray]:
    """Pictures whose z or σ are tens or thousands of times those of photographs."""
    rng = np.random.default_rng(0)
    grid = np.arange(256) // 4
    text = Image.new("L", (384, 256), "white")
    for top in range(0, 256, 12):
        ImageDraw.Draw(text).text((2, top), "The quick brown fox jumps over the lazy dog 0123456789", fill="black")
    return {
        "dithered": np.asarray(photo.convert("1").convert("L")),
        "black or white": rng.integers(0, 2, (256, 384)) * 255,
        "noise": rng.integers(0, 256, (256, 256)),
        "chequered": np.add.outer(grid, grid) % 2 * 255,
        "text": np.asarray(text),
    }


def test_pictures_unlike_photographs_drift_a_quarter_of_what_is_forgiven(model, photo):
    for name, grey in unlike_photographs(photo).items():
        drift = Drift()
        image = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        symbols = symbols_of(model.net, as_tensor(image), model.info.rounding)
        ways = runs(model.net, symbols, devices=("cpu",), batches=())
        drift.add_image(ways, symbols, model.info.config.slices)
        assert drift.margin >= 4, name


@pytest.mark.slow
def test_noise_four_times_as_large_as_any_drift_changes_no_symbol(model, measured, photographs):
    """In the reader alone. Drifts here and the published ones, which count processes held to older instruction sets."""
    published = published_for(model.info)
    assert set(measured.modules) == set(published)
    assert set(measured.modules) == set(shared_modules(model.net))
    noise = {name: 4 * max(amount, published.get(name, 0)) for name, amount in measured.modules.items()}
    for seed, path in enumerate(photographs[:2] if len(photographs) < 10 else photographs):
        picture = from_pil(Image.open(path).convert("RGB"))
        (analysis,) = model.analyse([picture])
        container = read_container(model.pack(picture, analysis))
        (expected,) = decoded(model, [container])
        with own_modules(model), disturbed(model.net, noise, LEAST_NOISE, seed):
            (found,) = decoded(model, [container])  # in float32
        assert found.sha256 == expected.sha256, path.name


def published_for(info: ModelInfo) -> dict[str, float]:
    """Of these weights, or of earlier ones whose σ is computed with the same tensors."""
    zoo = Zoo()
    entry = zoo.by_fingerprint(info.fingerprint)
    for fingerprint in [info.fingerprint, *zoo.also_read(entry)]:
        if fingerprint in PUBLISHED:
            tensors = [read_tensors(zoo.by_fingerprint(one).path) for one in (fingerprint, info.fingerprint)]
            for name in tensors[0]:
                if not name.startswith("g_s."):
                    assert torch.equal(tensors[0][name], tensors[1][name]), f"measure anew: {name} is another"
            return PUBLISHED[fingerprint]["modules"]
    raise AssertionError(f"docs/drift.json has nothing of {info.name}: python -m bench.drift … --write")


def own_modules(model):
    """The network's own modules compute the slices, not what was folded from them."""
    return mock.patch.object(model._latents, "_path", model.net)


def test_every_way_of_reading_gives_the_same_symbols_and_picture(model, photo):
    container = read_container(model.encode(photo))
    (expected,) = decoded(model, [container])

    def check(count: int = 1) -> None:
        for found in decoded(model, [container] * count):
            assert found.sha256 == expected.sha256
            assert psnr(found.rgb, expected.rgb) > 50  # g_s may run in bfloat16

    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            check()
    finally:
        torch.set_num_threads(threads)
    with fused.nothing(), sdpa_kernel(SDPBackend.MATH):
        check()
    check(8)
    with mock.patch.object(model._latents, "_path", model._latents._float64()):
        check()


def test_tiles_change_no_symbol(codec, photo):
    large = photo.resize((768, 512))
    tiled = Codec.load(codec.info.name, "cpu")
    tiled.tiling = Tiling(side=16, margin=8)
    for writer in (codec, tiled):
        container = read_container(writer.encode(large))
        (whole,), (pieces,) = decoded(codec, [container]), decoded(tiled, [container])
        assert whole.sha256 == pieces.sha256
        assert psnr(whole.rgb, pieces.rgb) > 45  # windows beyond a tile's margin


def test_alone_and_in_a_batch_gives_the_same_picture(codec, photo):
    pictures = [from_pil(photo.rotate(45 * k)) for k in range(8)]
    together = codec.analyse(pictures)
    for picture, analysis in zip(pictures, together, strict=True):
        ours, theirs = codec.encode_picture(picture), codec.pack(picture, analysis)
        (alone,), (batched,) = (decoded(codec, [read_container(data)]) for data in (ours, theirs))
        assert psnr(alone.rgb, batched.rgb) > 45  # a y in the middle between two integers may go either way


def test_a_reader_beyond_the_guard_retries_in_float64(photo):
    writer, reader = (Codec.load("tcm-xs-mse-0.013", "cpu") for _ in range(2))
    data = writer.encode(photo)
    expected = np.asarray(writer.decode(data)).astype(int)
    with own_modules(reader), disturbed(reader.net, dict.fromkeys(shared_modules(reader.net), 1e-2), 0, seed=0):
        picture = reader.decode(data)
    np.testing.assert_allclose(np.asarray(picture), expected, atol=1)
    assert reader.retries == 1
    assert writer.retries == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", EMBEDDED)
def test_cpu_and_gpu_read_each_other(name, photographs):
    cpu, gpu = Codec.load(name, "cpu"), Codec.load(name, "cuda")
    for path in photographs:
        image = Image.open(path).convert("RGB")
        for writer in (cpu, gpu):
            data = read_container(writer.encode_picture(from_pil(image)))
            (by_cpu,), (by_gpu,) = decoded(cpu, [data]), decoded(gpu, [data])
            assert by_cpu.sha256 == by_gpu.sha256, path.name
            assert np.abs(by_cpu.rgb.astype(int) - by_gpu.rgb).mean() < 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("name", EMBEDDED)
def test_the_gpu_drifts_a_quarter_of_what_is_forgiven(name, photo):
    codec, drift = Codec.load(name, "cpu"), Drift()
    symbols = symbols_of(codec.net, as_tensor(photo), codec.info.rounding)
    drift.add_image(runs(codec.net, symbols), symbols, codec.info.config.slices)
    assert drift.margin >= 4
