"""How far two machines' σ lie apart: the shared path run in many ways on the same symbols.

What the guard must forgive is the largest difference between any two ways of computing a σ. Symbols are held fixed
(they are what the bitstream carries), so that a difference is one of arithmetic alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.noise import shared_modules, watched_terms
from model import fused, guard, guard_choice
from model.codec import Codec
from model.devices import use_exact_arithmetic
from model.folded import fold
from model.latent_coder import Analysis
from model.latents import SharedPath, code_slices
from model.network import TCM, pad_to
from model.pixels import from_pil
from model.rounding import choose_symbols
from model.tables import SCALE_MAX, SCALE_MIN


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
    """One way of computing, on the CPU.

    Attributes:
        scales: σ, with all that has drifted before.
        outputs: of each shared module, given what the modules before it gave in the first way: drift of its own.
        terms: what each output's error is relative to (bench/noise.py); of the first way only.
    """

    scales: Tensor
    outputs: dict[str, Tensor]
    terms: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def run(
    net: TCM, symbols: Symbols, first: Mapping[str, Tensor] | None = None, path: TCM | SharedPath | None = None
) -> Run:
    """The shared path on given symbols, in the precision and place of the network.

    Args:
        net: the network, whose modules give the outputs.
        symbols: of one image or of copies of it.
        first: the outputs of the first way, which this is if they are not given.
        path: what computes σ, by default the network itself.
    """
    scales, outputs = _pass(net, path or net, symbols, {})
    if first is not None:
        return Run(scales, _pass(net, net, symbols, first)[1])
    with watched_terms(net) as terms:
        _pass(net, net, symbols, outputs)
    return Run(scales, outputs, terms)


def _pass(
    net: TCM, path: TCM | SharedPath, symbols: Symbols, forced: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """σ and the outputs of all modules, with `forced` in their place for what follows."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], Tensor | None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
            outputs[name] = output.cpu()
            return forced[name].to(output).expand_as(output) if name in forced else None

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
    return latents.scales.cpu(), outputs


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

    The first is the network's own modules, float32 on the CPU; what is served computes folded slices where that can be,
    so those that are not fused do without. The network comes back as it was given, on the CPU in float32.
    """
    first = run(net, symbols)
    yield "cpu, not folded", first

    def again(symbols: Symbols = symbols, path: TCM | SharedPath | None = None) -> Run:
        return run(net, symbols, first.outputs, path or served)

    for device in all_devices() if devices is None else devices:
        use_exact_arithmetic(torch.device(device))
        net.to(device)
        served = fold(net)
        yield f"{device}, float32", again()
        if device == "cpu":
            for count in {1, 2, 3} - {torch.get_num_threads()}:
                with _threads(count):
                    yield f"cpu, {count} threads" if count > 1 else "cpu, 1 thread", again()
        for count in batches:
            many = again(Symbols(symbols.z.repeat(count, 1, 1, 1), symbols.y.repeat(count, 1, 1, 1)))
            for item in (0, count - 1):
                outputs = {name: output[item : item + 1] for name, output in many.outputs.items()}
                yield f"{device}, in a batch of {count}", Run(many.scales[item : item + 1], outputs)
        net.to(memory_format=torch.channels_last)
        yield (
            f"{device}, channels last",
            again(Symbols(*(t.contiguous(memory_format=torch.channels_last) for t in (symbols.z, symbols.y)))),
        )
        net.to(memory_format=torch.contiguous_format)
        with fused.nothing():
            yield f"{device}, nothing fused", again(path=net)
            with sdpa_kernel(SDPBackend.MATH):
                yield f"{device}, plain attention", again(path=net)
        net.double()
        yield f"{device}, float64", again(path=net)
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
        modules: difference of each module's output, given the same input, relative to its terms.
    """

    sigma: float = 0.0
    log_scale: float = 0.0
    margin: float = math.inf
    pair: tuple[str, str] = ("", "")
    modules: dict[str, float] = field(default_factory=dict)

    def add_image(self, found: Iterator[tuple[str, Run]], symbols: Symbols, slices: int) -> None:
        """Take in the runs of one image, one after another: what is kept is the least and the largest of each value."""
        names: list[str] = []
        low: dict[str, Tensor] = {}
        high: dict[str, Tensor] = {}
        lowest, highest, written = (torch.empty(0) for _ in range(3))
        terms: dict[str, Tensor] = {}
        for name, one in found:
            values = {"": one.scales.double(), **one.outputs}
            if not names:
                written, low, high, terms = one.scales, dict(values), dict(values), one.terms
                lowest, highest = (torch.zeros_like(one.scales, dtype=torch.int16) for _ in range(2))
            lowest[values[""] < low[""]] = len(names)  # by which run each σ came out smallest, and largest
            highest[values[""] > high[""]] = len(names)
            for key, value in values.items():
                low[key], high[key] = torch.minimum(low[key], value), torch.maximum(high[key], value)
            names.append(name)
        for key in low.keys() - {""}:
            apart = ((high[key] - low[key]) / terms[key]).max()
            self.modules[key] = max(self.modules.get(key, 0.0), float(apart))
        each = (t.chunk(slices, dim=1) for t in (low[""], high[""], lowest, highest))
        sigmas = [sigma.numpy() for sigma in written.chunk(slices, dim=1)]
        drifts = guard_choice.drifts(symbols.z.to(torch.int32).numpy(), sigmas)
        for least, most, by_least, by_most, forgiven in zip(*each, drifts, strict=True):
            coded = (most > SCALE_MIN) & (least < SCALE_MAX) & (least > 0)  # σ below the table is all the same
            if not coded.any():
                continue
            least, most = least[coded], most[coded]
            self.log_scale = max(self.log_scale, float((most / least).log().max()))
            apart = (most - least) / (1 + least)
            worst = int(apart.argmax())
            self.sigma = max(self.sigma, float(apart[worst]))
            margin = forgiven / max(float(apart[worst]), 1e-12)
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
