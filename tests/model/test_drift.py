"""Files decode to the same symbols on a machine whose arithmetic differs four times as much as any seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import Codec, Zoo, guard
from model.container import read_container
from model.evaluation.drift import add_noise, drift, runs, symbols_of
from model.pixels import from_pil

LEAST_NOISE = 2e-6
EMBEDDED = [entry.name for entry in Zoo().entries() if entry.embedded]


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module", params=EMBEDDED)
def model(request):
    return Codec.load(request.param, "cpu")


@pytest.fixture(scope="module")
def measured(model, photo):
    return drift(list(runs(model.net, symbols_of(model.net, as_tensor(photo)))))


def test_the_format_forgives_four_times_the_largest_drift(measured):
    assert 0 < 4 * measured.log_scale <= guard.DRIFT


def test_noise_four_times_as_large_as_any_drift_changes_no_symbol(model, measured, photographs):
    """The checksum of the symbols is part of every stream, so a decode that succeeds has the writer's symbols."""
    noise = {name: max(4 * amount, LEAST_NOISE) for name, amount in measured.modules.items()}
    for seed, path in enumerate(photographs[:2] if len(photographs) < 10 else photographs):
        data = model.encode(Image.open(path).convert("RGB"))
        handles = add_noise(model.net, noise, seed)
        try:
            readable = model.synthesise([read_container(data)])[0]
        finally:
            for handle in handles:
                handle.remove()
        assert not isinstance(readable, Exception), f"{path.name}: {readable}"
        assert model.retries == 0, f"{path.name} came out in float64 only"


def test_every_way_of_reading_gives_the_same_picture(photo):
    writer = Codec.load("tcm-xs-mse-0.013", "cpu")
    data = writer.encode(photo)
    expected = np.asarray(writer.decode(data)).astype(int)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            np.testing.assert_allclose(np.asarray(writer.decode(data)), expected, atol=1)
    finally:
        torch.set_num_threads(threads)
    with sdpa_kernel(SDPBackend.MATH):
        np.testing.assert_allclose(np.asarray(writer.decode(data)), expected, atol=1)
    container = read_container(data)
    for padded in writer.synthesise([container] * 8):
        np.testing.assert_allclose(writer.unpack(container, padded).rgb, expected, atol=1)


def test_a_reader_beyond_the_guard_retries_in_float64(photo):
    writer, reader = (Codec.load("tcm-xs-mse-0.013", "cpu") for _ in range(2))
    data = writer.encode(photo)
    expected = np.asarray(writer.decode(data)).astype(int)
    handles = add_noise(reader.net, dict.fromkeys(_names(reader), 1e-2), seed=0)  # only float32 is this far off
    picture = reader.decode(data)
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(np.asarray(picture), expected, atol=1)
    assert reader.retries == 1
    assert writer.retries == 0


def _names(codec):
    from model.evaluation.drift import shared_modules

    return shared_modules(codec.net)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EMBEDDED)
def test_cpu_and_gpu_read_each_other(name, photographs):
    cpu, gpu = Codec.load(name, "cpu"), Codec.load(name, "cuda")
    for path in photographs:
        image = Image.open(path).convert("RGB")
        for writer, reader in ((cpu, gpu), (gpu, cpu)):
            data = read_container(writer.encode_picture(from_pil(image)))
            theirs, ours = reader.decode_container(data), writer.decode_container(data)
            assert np.abs(theirs.rgb.astype(int) - ours.rgb.astype(int)).mean() < 0.5
        assert cpu.retries == gpu.retries == 0
