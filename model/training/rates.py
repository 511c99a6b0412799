"""Learning rates by layer and by channel, for networks whose start must not be upset.

Adam moves every weight by about its rate a step, whatever the size of what flows through it. After a block-transform
start the convolution that writes y bears 1e-2, the one that reads ŷ 2e-6: one rate for all either shakes the picture
apart or leaves most layers standing. So each layer of g_a and g_s gets a rate in proportion to what it bears (the
random step that costs a small, fixed rise of the loss), and within a layer what reads y moves by the rate over the
channel's deviation, what writes μ and σ by the rate times it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.network import TCM
from model.training.start import LEAST_DEVIATION

_UNIT_RISE = 1e-4  # of the loss, by one random step of a layer at balance 1
_FIRST_PROBE, _PROBE_GROWTH, _LAST_PROBE = 1e-4, 6.0, 3e-2
_CLEAR_RISE = 3e-3  # enough to be told from the rounding of y
_LATENT_LAYERS = ("g_s.0.subpel_conv.0", "g_s.0.upsample.0")
_LATENT_FACTOR = 4.0  # channels at unit scale bear more than the strongest one does


def parameter_groups(net: nn.Module, lr: float, rates: dict[str, float]) -> list[dict[str, object]]:
    """Groups for Adam, without the quantiles.

    Args:
        net: the network, or a view of it.
        lr: the rate of every layer that `rates` does not name.
        rates: by the name of a layer (`bearable_rates`).
    """
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in net.named_parameters():
        if not name.endswith("quantiles"):
            groups.setdefault(rates.get(_layer(name), lr), []).append(parameter)
    return [{"params": parameters, "lr": rate, "base": rate} for rate, parameters in groups.items()]


def _layer(name: str) -> str:
    """Parameters that share a rate: those of one module, or of one transformer block."""
    block, found, _ = name.partition(".trans_block.")
    return block + ".trans_block" if found else name.rpartition(".")[0]


@torch.no_grad()
def bearable_rates(net: nn.Module, loss: Callable[[], float], balance: float) -> dict[str, float]:
    """The rate that each layer of g_a and g_s bears, found by probing.

    Args:
        net: the network, or the view of it that is trained; unchanged afterwards.
        loss: of one fixed batch with the weights as they are, without noise.
        balance: how far to go: 1 is a rise of 1e-4 a layer and random step; 0.3 trained well.
    """
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if name.startswith(("g_a.", "g_s.")) and parameter.requires_grad:
            layers.setdefault(_layer(name), []).append(parameter)
    rest = loss()
    return {
        name: balance * _probe(parameters, loss, rest) * (_LATENT_FACTOR if name in _LATENT_LAYERS else 1)
        for name, parameters in layers.items()
    }


def capped(rates: dict[str, float], lr: float) -> dict[str, float]:
    """No layer gets more than `lr`; the one that writes y, whose unit is a quantiser step, four times as much."""
    last_analysis = f"g_a.{max((int(name.split('.')[1]) for name in rates if name.startswith('g_a.')), default=0)}"
    return {name: min(rate, 4 * lr if name == last_analysis else lr) for name, rate in rates.items()}


def read_rates(path: Path) -> dict[str, float]:
    """Rates by layer that a run has measured.

    Raises:
        ValueError: the file holds anything else.
    """
    try:
        rates = json.loads(path.read_text())
    except ValueError:
        rates = None
    if not isinstance(rates, dict) or not all(isinstance(r, float) and 0 <= r < math.inf for r in rates.values()):
        raise ValueError(f"{path}: not the rates of a run")
    return rates


def write_rates(path: Path, rates: dict[str, float]) -> None:
    """Keep them for `read_rates`; the file appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(json.dumps(rates, indent=1))
    unfinished.replace(path)


def _probe(parameters: list[nn.Parameter], loss: Callable[[], float], rest: float) -> float:
    """The size of a random step that raises the loss by `_UNIT_RISE`: the rise grows with the square."""
    kept = [p.detach().clone() for p in parameters]
    signs = [torch.randn_like(p).sign() for p in parameters]
    size = _FIRST_PROBE
    while True:
        both = 0.0
        for direction in (size, -size):
            for parameter, start, sign in zip(parameters, kept, signs, strict=True):
                parameter.copy_(start + direction * sign)
            both += loss() / 2
        for parameter, start in zip(parameters, kept, strict=True):
            parameter.copy_(start)
        rise = both - rest
        if rise >= _CLEAR_RISE or not math.isfinite(rise) or size * _PROBE_GROWTH > _LAST_PROBE:
            return size * math.sqrt(_UNIT_RISE / max(rise, 1e-6)) if math.isfinite(rise) else 0.0
        size *= _PROBE_GROWTH


@dataclass(frozen=True)
class ChannelRates:
    """Factors on the steps of some weights, broadcastable to them; used around an optimiser's step.

    They follow from the `deviation` of y's channels, which a checkpoint keeps.
    """

    deviation: Tensor
    weights: list[Tensor]
    factors: list[Tensor]

    @torch.no_grad()
    def before(self) -> list[Tensor]:
        """Copies of the weights, for `after`."""
        return [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def after(self, before: Iterable[Tensor]) -> None:
        """Shorten or lengthen the step just taken."""
        for weight, old, factor in zip(self.weights, before, self.factors, strict=True):
            weight.copy_(torch.lerp(old, weight, factor))


def latent_deviation(y: Tensor) -> Tensor:
    """Of each channel of the latents of a few crops, (B, M, h, w)."""
    return y.square().mean(dim=(0, 2, 3)).sqrt().clamp(min=LEAST_DEVIATION)


@torch.no_grad()
def channel_rates(net: TCM, deviation: Tensor) -> ChannelRates:
    """Factors by channel for what reads y or writes μ and σ.

    Args:
        net: the network.
        deviation: of the channels of y (`latent_deviation`).
    """
    parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    factors = {**_readers(net, 1 / deviation), **_writers(net, deviation)}
    factors = {name: factor for name, factor in factors.items() if name in parameters}
    return ChannelRates(deviation, [parameters[name] for name in factors], list(factors.values()))


def _readers(net: TCM, inverse: Tensor) -> dict[str, Tensor]:
    c = net.config
    everything = inverse.view(1, -1, 1, 1)
    names = ["h_a.0.conv1", "h_a.0.skip", "g_s.0.subpel_conv.0", "g_s.0.upsample.0"]
    factors = {f"{name}.weight": everything for name in names}
    for i, part in enumerate(inverse.chunk(c.slices)):
        before = torch.cat([torch.ones(c.M, device=inverse.device), inverse[: c.slice_channels * c.support(i)]])
        for kind in ("mean", "scale"):  # the second name is that of a view without the gated branch
            factors[f"atten_{kind}.{i}.0.in_conv.weight"] = before.view(1, -1, 1, 1)
            factors[f"atten_{kind}.{i}.0.weight"] = before.view(1, -1, 1, 1)
        refined = torch.cat([torch.ones(len(before), device=inverse.device), part])
        factors[f"lrp_transforms.{i}.0.weight"] = refined.view(1, -1, 1, 1)
    return factors


def _writers(net: TCM, deviation: Tensor) -> dict[str, Tensor]:
    factors: dict[str, Tensor] = {}
    for i, part in enumerate(deviation.chunk(net.config.slices)):
        for kind in ("mean", "scale"):
            factors[f"cc_{kind}_transforms.{i}.4.weight"] = part.view(-1, 1, 1, 1)
            factors[f"cc_{kind}_transforms.{i}.4.bias"] = part
    return factors
