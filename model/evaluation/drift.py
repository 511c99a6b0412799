"""How far two machines' σ lie apart: the shared path run in many ways on the same symbols.

What the guard must forgive is the largest |Δ ln σ| between any two ways of computing it. Symbols are held fixed (they
are what the bitstream carries), so that a difference is one of arithmetic alone.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from model import guard
from model.codec import Codec
from model.latents import code_slices
from model.network import TCM, pad_to
from model.pixels import from_pil
from model.tables import SCALE_MAX, SCALE_MIN

Modules = dict[str, nn.Module]


def shared_modules(net: TCM) -> Modules:
    """Every module whose output writer and reader must agree on."""
    found: Modules = {"h_mean_s": net.h_mean_s, "h_scale_s": net.h_scale_s}
    for name in ("atten_mean", "atten_scale", "cc_mean_transforms", "cc_scale_transforms", "lrp_transforms"):
        found |= {f"{name}.{i}": module for i, module in enumerate(getattr(net, name))}
    return found


@dataclass(frozen=True)
class Symbols:
    """What a bitstream says of one image: ẑ without medians, and round(y - μ)."""

    z: Tensor
    y: Tensor


@torch.no_grad()
def symbols_of(net: TCM, x: Tensor) -> Symbols:
    """The symbols of images (B, 3, H, W) in [0, 1]."""
    y = net.g_a(pad_to(x, net.config.alignment))
    z = torch.round(net.h_a(y) - net.medians())
    slices = y.chunk(net.config.slices, dim=1)
    written: list[Tensor] = []

    def code(i: int, mean: Tensor, _: Tensor) -> Tensor:
        written.append(torch.round(slices[i] - mean))
        return written[-1] + mean

    code_slices(net, z + net.medians(), code)
    return Symbols(z, torch.cat(written, dim=1))


@dataclass(frozen=True)
class Run:
    """One way of computing: σ, and the output of each shared module."""

    scales: Tensor
    outputs: dict[str, Tensor]


@torch.no_grad()
def run(net: TCM, symbols: Symbols) -> Run:
    """The shared path on given symbols, in the network's own precision and place."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            outputs[name] = output.double().cpu()

        return hook

    medians = net.medians()
    z, y = (t.to(medians) for t in (symbols.z, symbols.y))
    slices = y.chunk(net.config.slices, dim=1)
    handles = [module.register_forward_hook(keep(name)) for name, module in shared_modules(net).items()]
    try:
        latents = code_slices(net, z + medians, lambda i, mean, _: slices[i] + mean)
    finally:
        for handle in handles:
            handle.remove()
    return Run(latents.scales.double().cpu(), outputs)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def runs(net: TCM, symbols: Symbols, devices: tuple[str, ...] = ("cpu",)) -> Iterator[tuple[str, Run]]:
    """The same symbols in every way at hand: threads, batch, layout, attention kernel, precision, device.

    The network comes back as it was given, on the CPU in float32.
    """
    one = Symbols(symbols.z[:1], symbols.y[:1])
    for device in devices:
        net.to(device)
        yield f"{device}, float32", run(net, one)
        if device == "cpu":
            for count in (1, 2, 3):
                with _threads(count):
                    yield f"cpu, {count} threads", run(net, one)
        for count in (2, 4, 8):
            many = Symbols(one.z.repeat(count, 1, 1, 1), one.y.repeat(count, 1, 1, 1))
            result = run(net, many)
            for item in (0, count - 1):
                outputs = {name: output[item : item + 1] for name, output in result.outputs.items()}
                yield f"{device}, item {item} of a batch of {count}", Run(result.scales[item : item + 1], outputs)
        net.to(memory_format=torch.channels_last)
        last = Symbols(*(t.contiguous(memory_format=torch.channels_last) for t in (one.z, one.y)))
        yield f"{device}, channels last", run(net, last)
        net.to(memory_format=torch.contiguous_format)
        with sdpa_kernel(SDPBackend.MATH):
            yield f"{device}, plain attention", run(net, one)
        net.double()
        yield f"{device}, float64", run(net, one)
        net.float()
    net.to("cpu")


@dataclass(frozen=True)
class Drift:
    """The largest differences between any two of several runs.

    Attributes:
        log_scale: |Δ ln σ| over the elements whose σ lies within the scale table.
        pair: the two ways that gave it.
        modules: largest difference of each module's output, in units of `_size` of the element.
    """

    log_scale: float
    pair: tuple[str, str]
    modules: dict[str, float]


def drift(found: list[tuple[str, Run]]) -> Drift:
    """Compare every two runs."""
    worst, pair = 0.0, ("", "")
    modules = dict.fromkeys(found[0][1].outputs, 0.0)
    for (name_a, a), (name_b, b) in itertools.combinations(found, 2):
        inside = (a.scales > SCALE_MIN) & (a.scales < SCALE_MAX) & (b.scales > 0)
        if inside.any():
            largest = float((a.scales[inside].log() - b.scales[inside].log()).abs().max())
            if largest > worst:
                worst, pair = largest, (name_a, name_b)
        for name in modules:
            difference = (a.outputs[name] - b.outputs[name]).abs() / _size(a.outputs[name])
            modules[name] = max(modules[name], float(difference.max()))
    return Drift(worst, pair, modules)


def guard_share(codec: Codec, image: Image.Image) -> float:
    """The part of an image's file that the guard takes, 0 to 1."""
    picture = from_pil(image)
    (whole,) = codec.analyse([picture])
    without = [part for part in whole.parts if not guard.is_guard(part[1])]
    size = len(codec.pack(picture, whole))
    return 1 - len(codec.pack(picture, replace(whole, parts=without))) / size


def _size(output: Tensor) -> Tensor:
    """What an element's error is relative to: itself, and the output's median, below which errors do not shrink."""
    return output.abs() + output.abs().median()


def add_noise(net: TCM, relative: dict[str, float], seed: int) -> list[RemovableHandle]:
    """Disturb the output of every shared module, each element by up to `relative` times its `_size`."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(amount: float) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            noise = torch.rand(output.shape, generator=generator).mul_(2).sub_(1).to(output)
            return output + noise * amount * _size(output)

        return hook

    return [module.register_forward_hook(disturb(relative[name])) for name, module in shared_modules(net).items()]
