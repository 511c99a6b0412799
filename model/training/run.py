"""What a run works on: made from its options, kept in a checkpoint, and taken up again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Adam

from model.errors import CheckpointMismatch
from model.network import TCM
from model.training.checkpoints import RunState, fill_parameters, load_state, save_state
from model.training.data import Crops
from model.training.device import Place
from model.training.ema import Average
from model.training.loss import rate_distortion
from model.training.options import Options
from model.training.quantiles import settle_quantiles
from model.training.rates import ChannelRates, bearable_rates, channel_rates, parameter_groups, read_rates, write_rates
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
    torch.manual_seed(options.seed)  # the same initial weights in every process
    net = make_net(options, training)
    view = make_view(net, options)
    for network in (net, view):
        place.prepare(network)
    lowered = place.lower(view)
    channels, rates = _balance(options, place, view, lowered, training) if options.balance else (None, {})
    run = Run(
        options=options,
        place=place,
        net=net,
        view=lowered.train(),
        main=Adam(parameter_groups(view, options.lr, rates), fused=True),
        auxiliary=Adam([net.entropy_bottleneck.quantiles], lr=options.lr_aux),
        average=Average(net, options.average),
        schedule=_schedule(options, len(training), place),
        channels=channels,
        setting=options.setting(training, place.processes),
    )
    if options.resume:
        _resume(run)
    return run


def _balance(
    options: Options, place: Place, view: TCM, lowered: TCM, photographs: list[Path]
) -> tuple[ChannelRates, dict[str, float]]:
    """Rates by channel and by layer, measured on a few crops with the weights that the run starts from.

    `view` has the names of its layers, `lowered` computes.
    """
    sample = Crops(photographs, options.crop, options.seed)
    x = place.put(torch.stack([sample[i] for i in range(16)]))
    settle_quantiles(view.entropy_bottleneck)
    lowered.eval()

    def loss() -> float:
        return float(rate_distortion(lowered(x[:3]), x[:3], options.lmbda, options.metric).total)

    with torch.no_grad():
        channels = channel_rates(view, lowered.g_a(x))
    if options.part == "entropy":
        return channels, {}
    measured = options.save / "rates.json"
    known = measured if options.resume and measured.exists() else options.rates_from
    if known is not None:
        rates = read_rates(known)
    else:
        rates = bearable_rates(view, loss, options.balance, options.lr)
        rates = dict(zip(rates, place.mean(list(rates.values())), strict=True))
    if place.first:
        write_rates(measured, rates)
    return channels, rates


def _schedule(options: Options, photographs: int, place: Place) -> Schedule:
    return Schedule(
        minutes=options.minutes,
        steps=options.steps,
        epochs=options.epochs,
        milestones=options.milestones,
        steps_per_epoch=max(1, photographs // (options.batch * place.processes)),
        warmup=options.warmup,
        cool_from=options.cool_from,
        floor=options.floor,
    )


def save_run(run: Run) -> None:
    """Write its checkpoint."""
    state = RunState(
        step=run.step,
        seconds=run.seconds,
        optimisers=[run.main.state_dict(), run.auxiliary.state_dict()],
        weights=dict(run.net.named_parameters()),
        average=run.average.weights,
        setting=run.setting,
    )
    save_state(run.options.save / "checkpoint", state)


def _resume(run: Run) -> None:
    state = load_state(run.options.save / "checkpoint")
    if state.setting != run.setting:
        raise CheckpointMismatch(f"{run.options.save}: was trained otherwise ({state.setting}): start a run of its own")
    fill_parameters(run.net, state.weights)
    run.average.load(state.average)
    for optimiser, stored in zip((run.main, run.auxiliary), state.optimisers, strict=True):
        rates = [{name: group[name] for name in group if name in {"lr", "base"}} for group in optimiser.param_groups]
        optimiser.load_state_dict(stored)
        for group, wanted in zip(optimiser.param_groups, rates, strict=True):
            group.update(wanted)  # those that were asked for now, not those of before
    run.step, run.seconds = state.step, state.seconds
