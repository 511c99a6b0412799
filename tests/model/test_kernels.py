"""The CUDA kernels against torch, and recorded programs against those that are not; compiling needs no GPU."""

from __future__ import annotations

import dataclasses
import gc
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from model import Codec, fused, kernels, programs, recording
from model import codec as codec_module
from model.attention import TransformerBlock
from model.blocks import MixedBlock
from model.container import read_container
from model.devices import use_exact_arithmetic
from model.errors import IncompatibleModel, OutOfMemory
from model.layers import ResidualBlockUpsample, ResidualBlockWithStride, SubpelConv
from model.pixels import from_pil
from model.stages import Stages

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="torch was not built for CUDA")

KERNELS = {
    "layer_norm": {"TYPE": "bf16", "BIAS": "float", "C": 96, "LANES": 32},
    "attend": {"TYPE": "float", "BIAS": "float", "SIDE": 8, "D": 32, "HEADS": 2, "ALL": 4, "SCALE": "0.2f"},
    "finish": {
        "TYPE": "bf16", "BIAS": "bf16", "PLUS": "float", "OUT": "float", "C": 12, "HAS_BIAS": 1, "HAS_PLUS": 1,
    },
    "shuffle": {"TYPE": "bf16", "BIAS": "bf16", "OUT": "bf16", "C": 512},
    "normalise": {"TYPE": "bf16", "PLUS": "float", "INVERSE": 1},
    "scatter": {"C": 64, "HAS_BIAS": 0, "HAS_PLUS": 0},
    "gather": {"C": 64, "HAS_BIAS": 1, "HAS_PLUS": 1},
}  # fmt: skip


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_a_gpu(name, architecture):
    code = kernels.compile_kernel(name, architecture, (*KERNELS[name].items(), ("ACTIVATION", 3)))
    assert code[:4] == b"\x7fELF"


def test_what_does_not_compile_says_why():
    with pytest.raises(RuntimeError, match="BIAS"):
        kernels.compile_kernel("finish", "sm_90", (("TYPE", "float"),))


def close(found, wanted, dtype=torch.float32):
    """Up to what the precision rounds."""
    size = wanted.float().abs().max().item()
    error = (found.float() - wanted.float()).abs().max().item()
    assert error <= size * (5e-6 if dtype == torch.float32 else 1e-2), f"{error} of {size}"


def both_ways(layer, x):
    """A layer's output fused and singly, on the GPU."""
    with torch.inference_mode():
        quick = layer(x)
        with fused.nothing():
            return quick, layer(x)


DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def exact():
    use_exact_arithmetic(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("widths", [(64, 8, 8), (64, 16, 8), (128, 32, 8), (96, 8, 8), (64, 32, 4)])
def test_a_transformer_block_is_the_same_in_kernels(widths, shifted, dtype):
    torch.manual_seed(0)
    dim, head_dim, window = widths
    block = TransformerBlock(dim, head_dim, window, shifted=shifted).eval().to("cuda", dtype)
    nn.init.normal_(block.msa.relative_position_params)
    x = torch.randn(2, dim, 3 * window, 2 * window, device="cuda", dtype=dtype)
    assert fused.on_gpu(x) is False  # gradients are wanted here
    close(*both_ways(block, x), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: MixedBlock(64, 16, 8, shifted=True),
        lambda: ResidualBlockUpsample(64, 32, 2),
        lambda: ResidualBlockWithStride(64, 32, 2),
        lambda: SubpelConv(64, 3),
    ],
)
def test_blocks_are_the_same_in_kernels(make, dtype):
    torch.manual_seed(0)
    block = make().eval().to("cuda", dtype)
    close(*both_ways(block, torch.randn(2, block_width(block), 16, 24, device="cuda", dtype=dtype)), dtype)


def block_width(block):
    return 128 if isinstance(block, MixedBlock) else 64


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["none", "gelu", "relu", "leaky_relu"])
@pytest.mark.parametrize("size", [1, 3])
def test_convolutions_are_the_same_in_kernels(activation, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(40, 36, size, padding=size // 2).cuda()
    x, plus = torch.randn(3, 40, 6, 10, device="cuda"), torch.randn(1, 36, 6, 10, device="cuda")
    with torch.inference_mode():
        exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=size // 2) + plus
        wanted = fused._activate(exact, activation)
        close(fused.conv(layer, x, activation=activation, plus=plus), wanted)


@pytest.fixture(scope="module")
def on_gpu():
    return Codec.load("tcm-xs-mse-0.013", "cuda")


@pytest.mark.gpu
def test_a_recorded_program_does_what_it_did(on_gpu, photo):
    """The first picture of a size runs as it is, the second is recorded, others are replayed: each reads like any."""
    once = Codec.load("tcm-xs-mse-0.013", "cpu")
    for size in ((384, 256), (200, 100), (384, 256)):
        for turn in (0, 180, 90, 270, 0):
            picture = photo.rotate(turn).resize(size)
            for data in (on_gpu.encode(picture), once.encode(picture)):
                back, wanted = (np.asarray(codec.decode(data)).astype(int) for codec in (on_gpu, once))
                assert np.abs(back - wanted).mean() < 0.5
    assert on_gpu._runners[0]._recordings
    assert on_gpu.retries == once.retries == 0


@pytest.mark.gpu
def test_a_damaged_file_among_recorded_ones_fails_alone(on_gpu, photo):
    pictures = [photo, photo.rotate(180), photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    sound = [read_container(on_gpu.encode(picture)) for picture in pictures]
    other = dataclasses.replace(sound[0], fingerprint="0" * 12)
    for _ in range(3):
        alone = [on_gpu.synthesise([container])[0] for container in sound]
        found = on_gpu.synthesise([sound[0], other, *sound[1:]])
        assert isinstance(found[1], IncompatibleModel)
        for one, together in zip(alone, [found[0], *found[2:]], strict=True):
            assert np.abs(one.astype(int) - together).mean() < 0.5
    assert isinstance(on_gpu.synthesise([other])[0], IncompatibleModel)
    assert isinstance(on_gpu.synthesise([sound[0]])[0], np.ndarray)


@pytest.mark.gpu
def test_a_batch_in_halves_reads_like_any(photo, monkeypatch):
    """As it is, recorded, and replayed with other pictures: both halves without float64's help."""
    monkeypatch.setattr(codec_module, "_WORTH_HALVING", 1)
    codec, once = Codec.load("tcm-xs-mse-0.013", "cuda"), Codec.load("tcm-xs-mse-0.013", "cpu")
    for turn in (0, 180, 0):
        pictures = [photo.rotate(turn).crop((x, 0, x + 128, 128)) for x in (0, 60, 120, 180, 240)]
        files = [read_container(once.encode(picture)) for picture in pictures]
        found = codec.synthesise(files)
        for file, padded in zip(files, found, strict=True):
            wanted = once.decode_container(file).rgb.astype(int)
            assert np.abs(codec.unpack(file, padded).rgb - wanted).mean() < 0.5
    assert codec.retries == 0
    for runner, count in zip(codec._runners, (3, 2), strict=True):
        recorded = [(name, shape[0]) for name, shape, _ in runner._recordings]
        assert sorted(recorded, key=str) == sorted([("read", count), (("synthesise", codec.tiling), count)], key=str)


@pytest.mark.gpu
@pytest.mark.parametrize("place", [0, 2])
def test_a_recording_that_fails_in_one_half(photo, monkeypatch, place):
    """It runs as it is, then and from then on; what else this half does is recorded as ever."""
    monkeypatch.setattr(codec_module, "_WORTH_HALVING", 1)
    codec = Codec.load("tcm-xs-mse-0.013", "cuda")
    files = [read_container(codec.encode(photo.crop((x, 0, x + 128, 128)))) for x in (0, 60, 120, 180)]
    sound = codec.synthesise(files)
    record, fails = recording.Recording._record, iter([True])

    def failing(self, given):
        """What this half records first, the reader: what comes next has this pool, too, and may be at this place."""
        if self._pool == codec._runners[1]._pool and len(self._steps) == place and next(fails, False):
            raise RuntimeError("operation not permitted when stream is capturing")
        return record(self, given)

    monkeypatch.setattr(recording.Recording, "_record", failing)
    for _ in range(3):
        for one, wanted in zip(codec.synthesise(files), sound, strict=True):
            assert np.abs(one.astype(int) - wanted).mean() < 0.5
        monkeypatch.undo()
        monkeypatch.setattr(codec_module, "_WORTH_HALVING", 1)
    assert codec.retries == 0
    assert [name for name, *_ in codec._runners[1]._recordings] == [("synthesise", codec.tiling)]
    assert len(codec._runners[0]._recordings) >= 2


@pytest.mark.gpu
@pytest.mark.parametrize("spoil", [torch.cuda.synchronize, lambda: torch.zeros(1, device="cuda").item()])
def test_what_cuda_ends_while_it_is_recorded(spoil):
    """By what may not be recorded; all else of the runner, and of the process, goes on."""
    runner = programs.Runner(torch.device("cuda"))

    def program(spoilt):
        def steps(given, heartbeat):
            given = yield recording.Pause("a", (given @ given,))
            if spoilt and torch.cuda.is_current_stream_capturing():
                spoil()
            yield recording.Pause("b", (given @ given,), last=True)

        return steps

    def once(name, spoilt):
        run = runner.run(name, program(spoilt), 1, Stages())
        for _ in range(2):
            (out,) = run.send(torch.eye(64))
        return out.cpu()

    def all_of(name, spoilt):
        return programs.with_room(runner.device, lambda: once(name, spoilt))

    for name in ("spoilt", "sound", "other", "sound", "other"):
        for _ in range(3):
            assert torch.equal(all_of(name, name == "spoilt"), torch.eye(64))
    assert [name for name, *_ in runner._recordings] == ["sound", "other"]
    torch.cuda.empty_cache()


@pytest.mark.gpu
def test_a_recorded_model_outlives_another(photo):
    """What libraries keep for each stream was the first one's, and went with it (torch 2.12 and later)."""
    first, second = Codec.load("tcm-xs-mse-0.013", "cuda"), Codec.load("tcm-xs-mse-0.05", "cuda")
    for codec in (first, second):
        for _ in range(3):
            data = codec.encode(photo)
    wanted = np.asarray(second.decode(data)).astype(int)
    for _ in range(3):
        second.decode(data)
    first.close()
    del first
    gc.collect()
    torch.cuda.empty_cache()
    filled = torch.full((256 << 20,), 7, dtype=torch.uint8, device="cuda")  # where freed memory would be
    for _ in range(3):
        assert abs(len(second.encode(photo)) - len(data)) < 16
        assert np.abs(np.asarray(second.decode(data)) - wanted).mean() < 0.5
    assert bool((filled == 7).all())


@pytest.mark.gpu
def test_threads_take_turns_at_new_sizes(photo):
    """Libraries make a handle for each thread, which cannot be done while recording."""
    codec, sizes = Codec.load("tcm-xs-mse-0.013", "cuda"), []
    for _ in range(4):
        thread = threading.Thread(target=lambda: sizes.append(len(codec.encode(photo))))
        thread.start()
        thread.join()
    assert len(set(sizes)) == 1
    assert codec._runners[0]._seen[next(iter(codec._runners[0]._seen))] > 0


@pytest.mark.gpu
def test_what_is_on_its_way_to_the_host_does_not_wait_for_later_work():
    runner = programs.Runner(torch.device("cuda"))
    source = torch.arange(1000, device="cuda")
    source.clone().zero_()  # kernels are loaded at their first launch, which waits for the device
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    arrive = runner.to_host([source])
    torch.cuda._sleep(2_000_000_000)  # about a second
    source.zero_()
    busy = torch.cuda.Event()
    busy.record()
    (array,) = arrive()
    assert not busy.query()
    assert array[-1] == 999


@pytest.mark.gpu
def test_what_cannot_be_recorded_runs_as_it_is(photo, monkeypatch):
    codec = Codec.load("tcm-xs-mse-0.013", "cuda")
    tried = []

    def record(self, given):
        tried.append(given)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recording.Recording, "_record", record)
    files = [codec.encode(photo) for _ in range(4)]
    assert {len(data) for data in files} == {len(files[0])}
    assert len(tried) == 1


@pytest.mark.gpu
def test_more_sizes_than_are_kept_are_not_recorded_again_and_again(photo, monkeypatch):
    monkeypatch.setattr(programs, "_KEPT", 2)
    recorded = []
    record = recording.Recording._record
    monkeypatch.setattr(recording.Recording, "_record", lambda self, given: recorded.append(1) or record(self, given))
    codec = Codec.load("tcm-xs-mse-0.013", "cuda")
    for _ in range(6):
        for width in (128, 256, 384):
            codec.encode(photo.resize((width, 128)))
    steps = 3  # of the program that encodes
    assert 2 * steps <= len(recorded) <= 6 * steps


@pytest.mark.gpu
def test_two_models_may_be_recorded_at_once(photo):
    """One is loaded and made ready while the other works, as in the service."""
    first, others = Codec.load("tcm-xs-mse-0.013", "cuda"), []
    expected = [len(first.encode(photo)) for _ in range(3)][-1]
    loader = threading.Thread(target=lambda: others.append(Codec.load("tcm-xs-mse-0.013", "cuda").warm_up(384, 256)))
    loader.start()
    while loader.is_alive():
        assert abs(len(first.encode(photo)) - expected) < 16
    assert others == [None]


@pytest.mark.gpu
def test_the_gpu_costs_neither_bits_nor_quality(on_gpu, photographs):
    """Of half precision: 0.3 % and 0.02 dB at most, against float32 on the CPU."""
    exact = Codec.load("tcm-xs-mse-0.013", "cpu", "float32")
    bits, error = np.zeros(2), np.zeros(2)
    for path in photographs:
        image = Image.open(path).convert("RGB")
        for i, codec in enumerate((exact, on_gpu)):
            data = codec.encode(image)
            difference = np.asarray(codec.decode(data)).astype(float) - np.asarray(image)
            bits[i] += len(data)
            error[i] += np.log10(np.square(difference).mean()) * 10 / len(photographs)
    assert bits[1] / bits[0] < 1.003
    assert error[1] - error[0] < 0.02


@pytest.mark.gpu
def test_memory_that_runs_out_is_a_named_error_and_passes(on_gpu, photo):
    before = on_gpu.encode(photo)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(OutOfMemory):
            on_gpu.analyse([from_pil(photo.resize((2048, 2048)))] * 8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert abs(len(on_gpu.encode(photo)) - len(before)) < 16
