"""The network that a run starts from, and the view of it that the run trains."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from model.config import TCMConfig
from model.errors import CheckpointMismatch
from model.info import info_of
from model.network import TCM
from model.state_dict import fill, read_state_dict
from model.threads import cores
from model.training.coarse import shorten, shortest
from model.training.data import Crops
from model.training.device import Place
from model.training.layers import bias_of, conv_of
from model.training.options import Options
from model.training.regress import fit_synthesis
from model.training.rescale import rescale_for
from model.training.spread import spread_latents
from model.training.start import GATE, LEAST_DEVIATION, block_transform
from model.training.synthesis import check_kept, open_channels, synthesis_view
from model.training.widen import widen_latents

_SHORTCUTS = {"all": 0, "middle": 1, "coarse": 2}
"""Outer stages of g_a and g_s that each part leaves out."""
_SHUT = -30.0  # a gate's bias: sigmoid 1e-13
_SAMPLE_SEED = 99


def make_net(options: Options, photographs: list[Path]) -> TCM:
    """A network at its start: random, the block transform, or another model's weights."""
    if options.init_from is not None:
        weights = read_state_dict(options.init_from)
        net = fill(weights)
        _check_widths(net.config, options)
        info = info_of(options.init_from)
        if options.keeps_bitstreams:
            check_kept(options, info, half=any(weight.dtype == torch.float16 for weight in weights.values()))
        if info is not None and info.metric == options.metric == "mse":  # their λ are of one kind
            rescale_for(net, info.lmbda, options.lmbda)
        if (net.config.M, net.config.slices) != (options.config.M, options.config.slices):
            if options.metric != "mse":
                raise ValueError("a network is widened by a block transform, which weighs squared errors: for mse")
            net = _widened(net, options, photographs)
        if options.spread:
            net = _spread(net, options, photographs)
        if options.keeps_bitstreams:
            open_channels(net)
        elif options.attention:
            open_gates(net)
    else:
        net = TCM(options.config)
        if options.start == "block-transform":
            block_transform(net, torch.cat(list(_sample(options, photographs))), options.lmbda)
            if options.spread:
                net = _spread(net, options, photographs)
    net.rounding = options.rounding
    if options.fit_synthesis:
        view = shortest(net.eval(), attention=options.attention)
        fit_synthesis(view, _sample(options, photographs))
    return net.train()


def _check_widths(old: TCMConfig, options: Options) -> None:
    """Told before the costly part of the start: widening changes M and slices, spreading the support, nothing else."""
    changed = {"M", "slices"} | ({"max_support"} if options.spread else set())
    wanted = options.config
    reached = dataclasses.replace(old, **{name: getattr(wanted, name) for name in changed})
    names = [field.name for field in dataclasses.fields(wanted)]
    different = [name for name in names if getattr(reached, name) != getattr(wanted, name)]
    if different:
        listed = ", ".join(f"{name} {getattr(reached, name)}, not {getattr(wanted, name)}" for name in different)
        raise CheckpointMismatch(f"{options.init_from}: has other widths than asked for: {listed}")


def _widened(old: TCM, options: Options, photographs: list[Path]) -> TCM:
    """A network of the wanted M and slices that knows what `old` knows; every other width must be the same."""
    new = TCM(dataclasses.replace(old.config, M=options.config.M, slices=options.config.slices))
    crops = torch.cat(list(_sample(options, photographs)))
    block_transform(new, crops, options.lmbda)
    with torch.no_grad():
        latents = torch.cat([shorten(new, _SHORTCUTS["coarse"]).g_a(part) for part in torch.split(crops, 8)])
    widen_latents(old, new, latents.std(dim=(0, 2, 3)).clamp(min=LEAST_DEVIATION))
    return new


@torch.no_grad()
def _spread(old: TCM, options: Options, photographs: list[Path]) -> TCM:
    """The same network with the channels of y dealt out anew to the slices, which have to learn again."""
    new = TCM(dataclasses.replace(old.config, max_support=options.config.max_support))
    view = make_view(old.eval(), options)
    y = torch.cat([view.g_a(part) for part in _sample(options, photographs)])
    spread_latents(old, new, y)
    return new


def make_view(net: TCM, options: Options) -> TCM:
    """What is trained: the network, or a shorter way through it that shares its parameters."""
    if options.keeps_bitstreams:
        return synthesis_view(net, shortest(net, synthesis=False))
    if options.part == "all" and options.attention:
        return net
    if options.part == "entropy":  # g_a only answers: as short as what has learnt allows
        return shortest(net, attention=options.attention)
    return shorten(net, _SHORTCUTS[options.part], attention=options.attention)


@torch.no_grad()
def shut_gates(net: TCM) -> None:
    """Close the gated branch of every slice attention, where it was left out of training."""
    for i in range(net.config.slices):
        for kind in ("mean", "scale"):
            last = conv_of(net, f"atten_{kind}.{i}.0.conv_b.3")
            nn.init.zeros_(last.weight)
            nn.init.constant_(bias_of(last), _SHUT)


@torch.no_grad()
def open_gates(net: TCM) -> None:
    """Let gates that `shut_gates` closed learn again."""
    for i in range(net.config.slices):
        for kind in ("mean", "scale"):
            bias = bias_of(conv_of(net, f"atten_{kind}.{i}.0.conv_b.3"))
            bias[bias <= _SHUT] = GATE


def loading_processes(options: Options, place: Place) -> int:
    """Worker processes for the data: none beside a CPU run, which needs its cores; most of a GPU machine's."""
    if options.workers is not None:
        return options.workers
    local = int(os.environ.get("LOCAL_WORLD_SIZE", place.processes))  # processes on this machine
    return 0 if place.device.type == "cpu" else max(2, min(16, cores() // local - 1))


def _sample(options: Options, photographs: list[Path]) -> Iterator[Tensor]:
    crops = Crops(photographs, options.crop, _SAMPLE_SEED, cache_bytes=0)
    for start in range(0, options.sample, 8):
        yield torch.stack([crops[i] for i in range(start, start + 8)])
