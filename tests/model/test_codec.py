"""An image in, a bitstream out, the image back: every kind and size of image, and no wrong picture."""

from __future__ import annotations

import gc
from dataclasses import replace
from unittest import mock
from weakref import ref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model import Codec
from model import tiles as tiling
from model.checkpoint import load, save
from model.container import read_container, write_container
from model.devices import pick_device
from model.errors import CheckpointMismatch, CorruptBitstream, IncompatibleModel, ModelError, OutOfMemory, UnknownModel
from model.latent_coder import LatentCoder
from model.pixels import from_pil
from model.stages import Stages
from model.zoo import Zoo
from tests.conftest import TINY, make_tiny, psnr

EMBEDDED = [entry.name for entry in Zoo().entries() if entry.embedded]


def test_a_photograph_comes_back(codec, photo):
    data = codec.encode(photo)
    back = codec.decode(data)
    assert back.size == photo.size
    assert back.mode == "RGB"
    assert psnr(photo, back) > 24
    assert 8 * len(data) / (photo.width * photo.height) < 2
    assert len(data) - len(read_container(data).payload) <= 40


def test_any_bytes_are_read_and_only_images_are_written(tiny_codec, photo):
    data = tiny_codec.encode(photo)
    for same in (bytearray(data), memoryview(data)):
        assert tiny_codec.decode(same).size == photo.size
    for wrong in ("photo.png", np.asarray(photo)):
        with pytest.raises(TypeError, match=r"a PIL image is needed \(Image.open"):
            tiny_codec.encode(wrong)


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("colour", [(255, 255, 255), (135, 166, 202), (0, 0, 0)])
def test_a_plain_picture_has_no_frame(name, colour):
    """Found by looking: weights trained on insides of photographs alone drew a grey line along a sky's edge."""
    codec = Codec.load(name, "cpu")
    for size in ((256, 256), (300, 200)):
        back = codec.decode(codec.encode(Image.new("RGB", size, colour)))
        error = np.abs(np.asarray(back).astype(float) - colour)
        for edge in (error[0], error[-1], error[:, 0], error[:, -1]):
            assert edge.mean() < 4


def test_real_bytes_are_what_the_likelihoods_promise(codec, photo):
    x = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        out = codec.net(x)
    bits = sum(-v.log2().sum().item() for v in out.likelihoods.values())
    payload = read_container(codec.encode(photo)).payload
    assert 8 * len(payload) == pytest.approx(bits, rel=0.01)


def test_the_decoder_shows_what_the_network_reconstructs(photo):
    codec = Codec.load("tcm-xs-mse-0.013", "cpu", "float32")
    x = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = (codec.net(x).x_hat[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    difference = np.abs(expected.astype(int) - np.asarray(codec.decode(codec.encode(photo))))
    assert difference.max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "1", "P", "CMYK", "I;16"])
def test_every_mode(codec, photo, mode):
    small = photo.crop((100, 60, 230, 130))
    if mode in ("LA", "RGBA"):
        image = small.convert("L" if mode == "LA" else "RGB")
        image.putalpha(Image.linear_gradient("L").resize(small.size))
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    else:
        image = small.convert(mode)
    back = codec.decode(codec.encode(image))
    expected = {"1": "L", "P": "RGB", "CMYK": "RGB", "I;16": "L"}.get(mode, mode)
    assert (back.mode, back.size) == (expected, image.size)
    if mode in ("LA", "RGBA"):
        np.testing.assert_array_equal(np.asarray(back)[..., -1], np.asarray(image)[..., -1])
    if mode not in ("1", "P"):  # dithered: noise to any codec at this rate
        assert psnr(from_pil(image).rgb, from_pil(back).rgb) > 24


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (333, 1), (8, 8), (127, 129), (128, 128), (129, 64), (1500, 20)])
def test_every_size_and_shape(codec, photo, size):
    image = photo.resize(size)
    back = codec.decode(codec.encode(image))
    assert back.size == size
    assert psnr(image, back) > 20


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_any_pixels_come_back_as_what_the_symbols_say(tiny_codec, width, height, seed):
    """Noise is the hardest image: every symbol must survive, whatever the picture looks like."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    data = tiny_codec.encode(Image.fromarray(pixels))
    assert tiny_codec.decode(data).size == (width, height)


def test_metadata_survive_or_are_stripped(codec, photo):
    image = photo.copy()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a description", 6
    image.info |= {"icc_profile": b"some profile " * 20, "exif": exif.tobytes(), "xmp": b"<xmp/>"}
    data = codec.encode(image)
    back = codec.decode(data)
    assert back.size == (image.height, image.width)  # orientation 6 is a quarter turn, now in the pixels
    assert back.info["icc_profile"] == b"some profile " * 20
    assert back.info["xmp"] == b"<xmp/>"
    assert back.getexif()[0x010E] == "a description"
    assert 0x0112 not in back.getexif()
    assert codec.decode(codec.encode(image, keep_metadata=False)).info == {}
    stripped = read_container(data).stripped()
    assert (stripped.icc, stripped.exif, stripped.xmp) == (b"some profile " * 20, None, None)
    assert len(write_container(stripped)) < len(data)


def test_a_batch_gives_what_each_gives_alone(codec, photo):
    pictures = [from_pil(photo.crop((x, 0, x + 128, 100))) for x in (0, 60, 200)]
    parts = codec.analyse(pictures)
    files = [read_container(codec.pack(picture, part)) for picture, part in zip(pictures, parts, strict=True)]
    together = codec.synthesise(files)
    for picture, file, padded in zip(pictures, files, together, strict=True):
        alone = codec.decode_container(file)
        np.testing.assert_allclose(alone.rgb.astype(int), codec.unpack(file, padded).rgb.astype(int), atol=1)
        assert psnr(picture.rgb, alone.rgb) > 22


def test_one_bad_file_of_a_batch_fails_alone(codec, tiny_codec, photo):
    files = [read_container(codec.encode(photo.crop((x, 0, x + 128, 100)))) for x in (0, 60)]
    foreign = read_container(tiny_codec.encode(photo.crop((0, 0, 128, 100))))
    damaged = replace(files[0], payload=files[0].payload[:200] + bytes(2) + files[0].payload[202:])
    cut = replace(files[1], payload=files[1].payload[:6])
    first, second, third, fourth, fifth = codec.synthesise([foreign, files[0], damaged, files[1], cut])
    assert isinstance(first, IncompatibleModel)
    assert isinstance(third, IncompatibleModel)
    assert isinstance(fifth, CorruptBitstream)
    for padded, file in ((second, files[0]), (fourth, files[1])):
        np.testing.assert_allclose(
            codec.decode_container(file).rgb.astype(int), codec.unpack(file, padded).rgb.astype(int), atol=1
        )


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_precision_of_the_transforms_costs_little_and_files_are_shared(photo, precision):
    """At most 0.02 dB and 0.3 % of the bits, and what one writes the other reads."""
    exact = Codec.load("tcm-xs-mse-0.013", "cpu", "float32")
    other = Codec.load("tcm-xs-mse-0.013", "cpu", precision)
    data, reference = other.encode(photo), exact.encode(photo)
    assert len(data) == pytest.approx(len(reference), rel=0.003)
    assert psnr(photo, other.decode(data)) == pytest.approx(psnr(photo, exact.decode(reference)), abs=0.02)
    assert psnr(exact.decode(data), other.decode(data)) > 45


@pytest.mark.parametrize("size", [(128 * 5, 128), (128 * 3, 128 * 4)])
def test_tiles_change_nothing_that_can_be_seen(tiny_weights, size):
    net = tiny_weights.net
    torch.manual_seed(0)
    x = torch.rand(1, 3, *size)
    cut = tiling.Tiling(side=8, margin=8)
    with torch.no_grad():
        y, tiled = net.g_a(x), tiling.analyse(net.g_a, x, cut)
        torch.testing.assert_close(tiled, y, rtol=0, atol=1e-3 * y.abs().max().item())
        x_hat = net.g_s(y.round())
        torch.testing.assert_close(tiling.synthesise(net.g_s, y.round(), cut), x_hat, rtol=0, atol=1e-3)


@pytest.mark.parametrize("window", [6, 12])
def test_tiles_are_of_whole_windows_whatever_their_size(tmp_path, window):
    """Of other windows than 2, 4, 8 and 16, pictures of more than one tile were a RuntimeError."""
    save(make_tiny(1, replace(TINY, window=window)), tmp_path / "a.safetensors", name="a", lmbda=1, metric="mse")
    codec = Codec.load(tmp_path / "a.safetensors", "cpu")
    wide = Image.radial_gradient("L").convert("RGB").resize((1700, 100))
    assert codec.decode(codec.encode(wide)).size == wide.size


def test_stages_add_up(codec, photo):
    stages = Stages()
    picture = from_pil(photo)
    (analysis,) = codec.analyse([picture], stages=stages)
    data = codec.pack(picture, analysis, stages=stages)
    assert list(stages) == ["g_a", "hyper", "slices", "guard", "entropy", "container"]
    stages = Stages()
    codec.synthesise([read_container(data)], stages=stages)
    assert set(stages) == {"slices", "entropy", "g_s"}
    assert all(seconds >= 0 for seconds in stages.values())


# ---- never a wrong picture


def test_another_models_file_is_named(codec, tiny_codec, photo):
    data = tiny_codec.encode(photo.resize((60, 40)))
    with pytest.raises(IncompatibleModel, match=rf"tcm-tiny-mse-0\.01.*{tiny_codec.info.fingerprint}"):
        codec.decode(data)


def test_sound_files_of_symbols_that_do_not_come_out_are_named(codec, photo):
    container = read_container(codec.encode(photo))
    half = len(container.payload) // 2
    for payload in (container.payload[:half], container.payload + bytes(2),
                    container.payload[:half] + b"\x55\xaa" + container.payload[half + 2 :]):  # fmt: skip
        data = write_container(replace(container, payload=payload))
        with pytest.raises(IncompatibleModel, match="cannot be reproduced"):
            codec.decode(data)


def test_payloads_that_no_arithmetic_can_read_are_corrupt(codec, photo):
    """Weights have no part in that: whoever is told so would look for them in vain."""
    container = read_container(codec.encode(photo))
    payloads = (b"", bytes(5), bytes(1000), container.payload[:7], container.payload[:6])  # the last ends within z
    with mock.patch.object(LatentCoder, "_float64") as costly:
        for wrong in [replace(container, width=3000), *(replace(container, payload=one) for one in payloads)]:
            with pytest.raises(CorruptBitstream, match="its payload"):
                codec.decode(write_container(wrong))
    assert not costly.called


def test_a_batch_is_of_one_padded_size(codec, photo):
    pictures = [from_pil(photo.crop((0, 0, side, side))) for side in (129, 128)]
    with pytest.raises(ValueError, match=r"\(128, 128\), \(256, 256\)"):
        codec.analyse(pictures)
    with pytest.raises(ValueError, match="one padded size"):
        codec.synthesise([read_container(codec.encode_picture(picture)) for picture in pictures])


def test_what_a_retry_takes_is_given_back(codec, photo):
    """Found by reading: one bad file left a copy of the model, twice as large, in nobody's budget."""
    container = read_container(codec.encode(photo))
    wrong = replace(container, payload=container.payload[:-2])
    kept, made = [], []

    def counted(self):
        made.append(1)
        network = float64(self)
        kept.append(ref(network))
        return network

    float64 = LatentCoder._float64
    with mock.patch.object(LatentCoder, "_float64", counted):
        assert all(isinstance(found, IncompatibleModel) for found in codec.synthesise([wrong, wrong]))
    assert len(made) == 1
    gc.collect()
    assert kept[0]() is None


def test_a_reader_that_computes_other_scales_says_so(tmp_path, tiny_file, photo):
    """What another GPU may do, made large: the symbols' checksum must catch it."""
    writer, reader = Codec.load(tiny_file, "cpu"), Codec.load(tiny_file, "cpu")
    data = writer.encode(photo.resize((100, 80)))
    assert reader.decode(data).size == (100, 80)
    with torch.no_grad():
        reader.net.cc_scale_transforms[2][-1].bias.mul_(1.01)
    with pytest.raises(IncompatibleModel, match="cannot be reproduced"):
        reader.decode(data)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_damage_is_always_named(tiny_codec, place, flip):
    data = bytearray(tiny_codec.encode(Image.new("RGBA", (30, 20), (10, 200, 30, 77))))
    data[place % len(data)] ^= flip
    with pytest.raises(ModelError):
        tiny_codec.decode(bytes(data))


def test_names_and_devices_that_are_not_there():
    with pytest.raises(UnknownModel):
        Codec.load("tcm-huge")
    with pytest.raises(ValueError, match="no device"):
        pick_device("quantum")
    with pytest.raises(ValueError, match="CUDA devices"):
        pick_device("cuda:99")


@pytest.mark.parametrize(("weight", "said"), [(3e38, "not finite"), (1e10, "too large")])
def test_weights_that_explode_are_named(tmp_path, photo, weight, said):
    net = make_tiny()
    with torch.no_grad():
        net.g_a[-1].weight.fill_(weight)
    save(net, tmp_path / "a.safetensors", name="a", lmbda=1, metric="mse")
    with pytest.raises(CheckpointMismatch, match=said):
        Codec(load(tmp_path / "a.safetensors"), torch.device("cpu")).encode(photo)


def test_weights_for_which_there_is_no_memory_are_named(tiny_file, monkeypatch):
    said = "unable to mmap 37852904 bytes from file: Cannot allocate memory (12)"
    monkeypatch.setattr("model.codec.load", mock.Mock(side_effect=RuntimeError(said)))
    with pytest.raises(OutOfMemory, match=tiny_file.name):
        Codec.load(tiny_file, "cpu")


@pytest.mark.gpu
def test_the_gpu_reads_what_the_cpu_wrote_and_the_reverse(photo):
    cpu, gpu = Codec.load("tcm-xs-mse-0.013", "cpu"), Codec.load("tcm-xs-mse-0.013", "cuda")
    by_cpu, by_gpu = cpu.encode(photo), gpu.encode(photo)
    for data in (by_cpu, by_gpu):
        assert psnr(gpu.decode(data), cpu.decode(data)) > 50
    # the rate decides about many symbols, and turns with the last digits of y: another file, as good
    assert abs(psnr(cpu.decode(by_gpu), photo) - psnr(cpu.decode(by_cpu), photo)) < 0.05
    assert abs(len(by_gpu) / len(by_cpu) - 1) < 0.005


def test_work_can_be_given_up_between_its_steps(tiny_file, photo):
    """Before each tile and each slice; the codec is as good as before."""
    codec = Codec(load(tiny_file), torch.device("cpu"), tiling=tiling.Tiling(side=8, margin=8))
    picture = from_pil(photo.resize((512, 256)))  # 4x2 tiles
    written = codec.pack(picture, codec.analyse([picture])[0])
    container = read_container(written)

    def give_up():
        beats.append(None)
        if len(beats) == until:
            raise TimeoutError

    for work in (
        lambda: codec.analyse([picture], heartbeat=give_up),
        lambda: codec.synthesise([container], heartbeat=give_up),
    ):
        beats, until = [], 1000
        work()
        assert len(beats) == 8 + codec.info.config.slices
        for end in (1, len(beats)):
            beats, until = [], end
            with pytest.raises(TimeoutError):
                work()
    assert codec.encode_picture(picture) == written
