"""What a run works on: made from its options, kept in a checkpoint, and taken up again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Adam

from model.errors import CheckpointMismatch
from model.network import TCM
from model.training.adam import load_named_state, named_state
from model.training.checkpoints import RunState, fill_parameters, load_state, save_state
from model.training.data import Crops
from model.training.device import Place
from model.training.ema import Average
from model.training.loss import rate_distortion
from model.training.options import Options
from model.training.quantiles import settle_quantiles
from model.training.rates import (
    ChannelRates,
    bearable_rates,
    capped,
    channel_rates,
    latent_deviation,
    parameter_groups,
    read_rates,
    write_rates,
)
from model.training.schedule import Schedule
from model.training.setup import make_net, make_view


@dataclass
class Run:
    """What the loop works on; `view` shares `net`'s parameters and may be a short-cut through it.

    `left_out` counts the latest steps in a row whose gradient was not finite.
    """

    options: Options
    place: Place
    net: TCM
    view: TCM
    main: Adam
    auxiliary: Adam
    average: Average
    schedule: Schedule
    channels: ChannelRates | None
    setting: str
    step: int = 0
    seconds: float = 0.0
    left_out: int = 0


def prepare_run(options: Options, place: Place, training: list[Path]) -> Run:
    """A run before its first step, or where its checkpoint left it.

    Raises:
        CheckpointUnreadable: there is none to go on from, or it is damaged.
        CheckpointMismatch: it is of a run with other settings, or the model to start from has other widths.
    """
    setting = options.setting(training, place.processes)
    state = _state_of(options, setting) if options.resume else None
    torch.manual_seed(options.seed)  # the same initial weights in every process
    net = make_net(options, training) if state is None else _restored(options, state)
    view = make_view(net, options)
    for network in (net, view):
        place.prepare(network)
    lowered = place.lower(view)
    channels, rates = _balance(options, place, view, lowered, training, state) if options.balance else (None, {})
    run = Run(
        options=options,
        place=place,
        net=net,
        view=lowered.train(),
        main=Adam(parameter_groups(view, options.lr, rates), fused=True),
        auxiliary=Adam([net.entropy_bottleneck.quantiles], lr=options.lr_aux),
        average=Average(net, options.average),
        schedule=options.schedule(len(training), place.processes),
        channels=channels,
        setting=setting,
    )
    if state is not None:
        _go_on(run, state)
    return run


def _state_of(options: Options, setting: str) -> RunState:
    """The run's checkpoint, of the same setting."""
    state = load_state(options.save / "checkpoint")
    before, now = _flat(state.setting), _flat(setting)
    changed = [f"{name} {before.get(name)} → {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        raise CheckpointMismatch(
            f"{options.save}: was trained otherwise ({', '.join(changed)}): start a run of its own"
        )
    return state


def _flat(setting: str) -> dict[str, object]:
    parts = json.loads(setting)
    widths = parts.pop("config")
    return {**parts, **widths}


def _restored(options: Options, state: RunState) -> TCM:
    """The network of a checkpoint; what a view of it short-cuts has not learnt, and is in it as it started."""
    net = TCM(options.config)
    fill_parameters(net, state.weights)
    net.rounding = options.rounding
    return net.train()


def _balance(
    options: Options, place: Place, view: TCM, lowered: TCM, photographs: list[Path], state: RunState | None
) -> tuple[ChannelRates, dict[str, float]]:
    """Rates by channel and by layer: those of the run that goes on, or measured on a few crops.

    `view` has the names of its layers, `lowered` computes.
    """
    measured = options.save / "rates.json"
    known = state is not None and measured.exists()
    deviation = state.deviation if state is not None else None
    by_layer = options.part != "entropy"
    if deviation is None or (by_layer and not known):
        sample = Crops(photographs, options.crop, options.seed)
        x = place.put(torch.stack([sample[i] for i in range(16)]))
        if not options.keeps_bitstreams:
            settle_quantiles(view.entropy_bottleneck)
        lowered.eval()
    if deviation is None:
        with torch.no_grad():
            deviation = latent_deviation(lowered.g_a(x))
    channels = channel_rates(view, deviation.to(place.device))
    if not by_layer:
        return channels, {}

    def loss() -> float:
        return float(rate_distortion(lowered(x[:3]), x[:3], options.lmbda, options.metric).total)

    if known:
        rates = read_rates(measured)
    else:
        rates = bearable_rates(view, loss, options.balance)
        rates = dict(zip(rates, place.mean(list(rates.values())), strict=True))
        if place.first:
            write_rates(measured, rates)
    return channels, capped(rates, options.lr)


def save_run(run: Run) -> None:
    """Write its checkpoint."""
    state = RunState(
        step=run.step,
        seconds=run.seconds,
        optimisers=[named_state(optimiser, run.net) for optimiser in (run.main, run.auxiliary)],
        weights=dict(run.net.named_parameters()),
        average=run.average.weights,
        setting=run.setting,
        deviation=run.channels.deviation if run.channels else None,
    )
    save_state(run.options.save / "checkpoint", state)


def _go_on(run: Run, state: RunState) -> None:
    """Put a run where its checkpoint left it, with the rates that are asked for now."""
    run.average.load(state.average)
    for optimiser, stored in zip((run.main, run.auxiliary), state.optimisers, strict=True):
        load_named_state(optimiser, run.net, stored)
    run.step, run.seconds = state.step, state.seconds
