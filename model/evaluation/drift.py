"""How far two machines' σ lie apart: the shared path run in many ways on the same symbols.

What the guard must forgive is the largest difference between any two ways of computing a σ. Symbols are held fixed
(they are what the bitstream carries), so that a difference is one of arithmetic alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from model import fused, guard
from model.codec import Codec
from model.devices import use_exact_arithmetic
from model.folded import fold
from model.latent_coder import Analysis
from model.latents import SharedPath, code_slices
from model.network import TCM, pad_to
from model.pixels import from_pil
from model.rounding import choose_symbols
from model.tables import SCALE_MAX, SCALE_MIN

Modules = dict[str, nn.Module]


def shared_modules(net: TCM | SharedPath) -> Modules:
    """Every module whose output writer and reader must agree on."""
    found: Modules = {"h_mean_s": net.h_mean_s, "h_scale_s": net.h_scale_s}
    kinds = ["cc_mean_transforms", "cc_scale_transforms", "lrp_transforms"]
    if isinstance(net, TCM):  # where it is folded, nothing is as wide as what an attention gives
        kinds += ["atten_mean", "atten_scale"]
    for name in kinds:
        found |= {f"{name}.{i}": module for i, module in enumerate(getattr(net, name))}
    return found


@dataclass(frozen=True)
class Symbols:
    """What a bitstream says of one image: ẑ without medians, and those of y."""

    z: Tensor
    y: Tensor


@torch.no_grad()
def symbols_of(net: TCM, x: Tensor, rounding: float | None = None) -> Symbols:
    """The symbols of images (B, 3, H, W) in [0, 1], chosen with the model's weight for rounding."""
    y = net.g_a(pad_to(x, net.config.alignment))
    z = torch.round(net.h_a(y) - net.medians())
    slices = y.chunk(net.config.slices, dim=1)
    written: list[Tensor] = []

    def code(i: int, mean: Tensor, scale: Tensor) -> Tensor:
        written.append(choose_symbols(slices[i] - mean, scale, rounding))
        return written[-1] + mean

    code_slices(net, z + net.medians(), code)
    return Symbols(z, torch.cat(written, dim=1))


@dataclass(frozen=True)
class Run:
    """One way of computing: σ, and the output of each shared module, on the CPU."""

    scales: Tensor
    outputs: dict[str, Tensor]


@torch.no_grad()
def run(net: TCM, symbols: Symbols, path: TCM | SharedPath | None = None) -> Run:
    """The shared path, by default the network itself, on given symbols; in the precision and place of the network."""
    path = path or net
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            outputs[name] = output.cpu()

        return hook

    medians = net.medians()
    z, y = (t.to(medians) for t in (symbols.z, symbols.y))
    slices = y.chunk(net.config.slices, dim=1)
    handles = [module.register_forward_hook(keep(name)) for name, module in shared_modules(path).items()]
    try:
        latents = code_slices(path, z + medians, lambda i, mean, _: slices[i] + mean)
    finally:
        for handle in handles:
            handle.remove()
    return Run(latents.scales.cpu(), outputs)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def all_devices() -> tuple[str, ...]:
    """The CPU, and CUDA where there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def runs(
    net: TCM, symbols: Symbols, devices: Sequence[str] | None = None, batches: Sequence[int] = (2, 8)
) -> Iterator[tuple[str, Run]]:
    """The same symbols of one image in every way at hand: threads, batch, layout, attention kernel, precision, device.

    The network comes back as it was given, on the CPU in float32.
    """
    for device in all_devices() if devices is None else devices:
        use_exact_arithmetic(torch.device(device))
        net.to(device)
        yield f"{device}, float32", run(net, symbols)
        if (path := fold(net)) is not net:
            yield f"{device}, folded", run(net, symbols, path)
        if device == "cpu":
            for count in {1, 2, 3} - {torch.get_num_threads()}:
                with _threads(count):
                    yield f"cpu, {count} threads" if count > 1 else "cpu, 1 thread", run(net, symbols)
        for count in batches:
            many = run(net, Symbols(symbols.z.repeat(count, 1, 1, 1), symbols.y.repeat(count, 1, 1, 1)))
            for item in (0, count - 1):
                outputs = {name: output[item : item + 1] for name, output in many.outputs.items()}
                yield f"{device}, in a batch of {count}", Run(many.scales[item : item + 1], outputs)
        net.to(memory_format=torch.channels_last)
        yield (
            f"{device}, channels last",
            run(net, Symbols(*(t.contiguous(memory_format=torch.channels_last) for t in (symbols.z, symbols.y)))),
        )
        net.to(memory_format=torch.contiguous_format)
        with fused.nothing():
            yield f"{device}, nothing fused", run(net, symbols)
            with sdpa_kernel(SDPBackend.MATH):
                yield f"{device}, plain attention", run(net, symbols)
        net.double()
        yield f"{device}, float64", run(net, symbols)
        net.float()
    net.to("cpu")


@dataclass
class Drift:
    """The largest differences between any two of the runs that it was shown, over any number of images.

    Attributes:
        sigma: |Δσ|/(1 + σ).
        log_scale: |Δ ln σ|.
        margin: how many times the difference the guard forgives, at the element where that is least.
        pair: the two ways that differ there.
        modules: difference of each module's output, relative to its size (`size_of`).
    """

    sigma: float = 0.0
    log_scale: float = 0.0
    margin: float = math.inf
    pair: tuple[str, str] = ("", "")
    modules: dict[str, float] = field(default_factory=dict)

    def add_image(self, found: Iterator[tuple[str, Run]], slices: int) -> None:
        """Take in the runs of one image, one after another: what is kept is the least and the largest of each value."""
        names: list[str] = []
        low: dict[str, Tensor] = {}
        high: dict[str, Tensor] = {}
        lowest, highest, written = (torch.empty(0) for _ in range(3))
        for name, one in found:
            values = {"": one.scales.double(), **one.outputs}
            if not names:
                written, low, high = one.scales, dict(values), dict(values)
                lowest, highest = (torch.zeros_like(one.scales, dtype=torch.int16) for _ in range(2))
            lowest[values[""] < low[""]] = len(names)  # by which run each σ came out smallest, and largest
            highest[values[""] > high[""]] = len(names)
            for key, value in values.items():
                low[key], high[key] = torch.minimum(low[key], value), torch.maximum(high[key], value)
            names.append(name)
        for key in low.keys() - {""}:
            apart = ((high[key] - low[key]) / size_of(low[key])).max()
            self.modules[key] = max(self.modules.get(key, 0.0), float(apart))
        each = (t.chunk(slices, dim=1) for t in (written, low[""], high[""], lowest, highest))
        for sigma, least, most, by_least, by_most in zip(*each, strict=True):
            coded = (most > SCALE_MIN) & (least < SCALE_MAX) & (least > 0)  # σ below the table is all the same
            if not coded.any():
                continue
            least, most = least[coded], most[coded]
            self.log_scale = max(self.log_scale, float((most / least).log().max()))
            apart = (most - least) / (1 + least)
            worst = int(apart.argmax())
            self.sigma = max(self.sigma, float(apart[worst]))
            margin = guard.forgiven(sigma.numpy()) / max(float(apart[worst]), 1e-12)
            if margin < self.margin:
                self.margin = margin
                self.pair = (names[int(by_least[coded][worst])], names[int(by_most[coded][worst])])


def guard_share(codec: Codec, image: Image.Image) -> float:
    """The part of an image's file that the guard takes, 0 to 1."""
    picture = from_pil(image)
    (whole,) = codec.analyse([picture])
    return 1 - len(codec.pack(picture, _Unguarded(**vars(whole)))) / len(codec.pack(picture, whole))


class _Unguarded(Analysis):
    """The same symbols in a file that nothing guards."""

    def parts(self) -> list[tuple[NDArray[np.int32], NDArray[np.int16]]]:
        return [part for part in super().parts() if not guard.is_guard(part[1])]


def size_of(output: Tensor) -> Tensor:
    """What an element's error is relative to: itself, and the output's median, below which errors do not shrink."""
    return output.abs() + output.abs().median()


def add_noise(net: TCM, relative: dict[str, float], seed: int) -> list[RemovableHandle]:
    """Disturb the output of every shared module, each element by up to `relative` times its `size_of`.

    Outputs in float64 are left alone: it is float32 that machines differ in, and copies of a module keep its hooks.
    """
    generator = torch.Generator().manual_seed(seed)

    def disturb(amount: float) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            if output.dtype == torch.float64:
                return output
            noise = torch.rand(output.shape, generator=generator).mul_(2).sub_(1).to(output)
            return output + noise * amount * size_of(output)

        return hook

    return [module.register_forward_hook(disturb(relative[name])) for name, module in shared_modules(net).items()]
