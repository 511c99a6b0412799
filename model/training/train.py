"""The training loop: a step is crops in, loss, gradients, both optimisers, the moving average.

options ──> setup ──> [ step, step, step … ] ──> finish ──> a model that the zoo serves
                         │ every few minutes: validation, checkpoint
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import DataLoader

from model.checkpoint import save as save_model
from model.errors import CheckpointMismatch
from model.network import TCM
from model.training.checkpoints import RunState, fill_parameters, load_state, save_state
from model.training.data import Crops, Indexes, find_images, split_validation
from model.training.device import Place, find_place
from model.training.ema import Average
from model.training.loss import Loss, rate_distortion
from model.training.options import Options
from model.training.prior import prior_loss
from model.training.progress import Reporter
from model.training.quantiles import settle_quantiles
from model.training.rates import ChannelRates, bearable_rates, channel_rates, parameter_groups, read_rates
from model.training.schedule import Schedule
from model.training.setup import loading_processes, make_net, make_view, shut_gates
from model.training.validate import load_validation, validate

log = logging.getLogger(__name__)


@dataclass
class _Run:
    """What the loop works on; `view` shares `net`'s parameters and may be a short-cut through it."""

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


def train(options: Options, *, quiet: bool = False) -> Path:
    """Train a model and write it as `<save>/<name>.safetensors`.

    Ctrl-C or SIGTERM ends the run early and in order: checkpoint written, model written.

    Args:
        options: everything that decides the run.
        quiet: no live line.

    Returns:
        The finished model's file.
    """
    if not options.resume and (options.save / "checkpoint").exists():
        raise ValueError(f"{options.save} holds a run: go on with it (--resume), or choose another folder (--save)")
    place = find_place(options.precision)
    training, kept = split_validation(find_images(options.data), options.validation)
    crops = Crops(training, options.crop, options.seed, options.cache_mb << 20)
    run = _prepare(options, place, training)
    images = load_validation(kept, options.config.alignment, options.metric) if place.first else []
    with Reporter(options.save, quiet=quiet or not place.first) as report, _Interrupt() as interrupt:
        report.record("start", run.step, {"model": options.model_name, "photographs": len(training)})
        _loop(run, _batches(crops, run), images, report, interrupt)
        path = _finish(run, images, report)
    place.leave()
    return path


def _prepare(options: Options, place: Place, training: list[Path]) -> _Run:
    torch.manual_seed(options.seed)  # the same initial weights in every process
    net = make_net(options, training)
    view = make_view(net, options)
    for network in (net, view):
        place.prepare(network)
    lowered = place.lower(view)
    channels, rates = _balance(options, place, view, lowered, training) if options.balance else (None, {})
    run = _Run(
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
        measured.parent.mkdir(parents=True, exist_ok=True)
        measured.write_text(json.dumps(rates, indent=1))
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


def _batches(crops: Crops, run: _Run) -> Iterator[Tensor]:
    o, place = run.options, run.place
    workers = loading_processes(o, place)
    return iter(
        DataLoader(
            crops,
            batch_size=o.batch,
            sampler=Indexes(run.step, o.batch, place.rank, place.processes),
            num_workers=workers,
            pin_memory=place.device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )
    )


def _loop(run: _Run, batches: Iterator[Tensor], images: list[Tensor], report: Reporter, stop: _Interrupt) -> None:
    o, place = run.options, run.place
    begun, before = time.monotonic(), run.seconds
    saved, recent = begun, _Recent()
    while not place.agree(stop.asked or run.schedule.done(run.step, run.seconds) >= 1):
        loss, norm = _take_step(run, place.put(next(batches)))
        run.seconds = before + time.monotonic() - begun
        recent.add(loss, norm)
        if place.first:
            figures = recent.figures(o.batch * place.processes)
            report.line(run.step, run.schedule.done(run.step, run.seconds), run.seconds, figures)
            if run.step % o.log_every == 0:
                rate = run.schedule.factor(run.step, run.seconds)
                report.record("train", run.step, {**figures, "rate": rate, "seconds": run.seconds})
                recent = _Recent()
            if time.monotonic() - saved >= o.save_every:
                _save(run)
                _validate(run, images, report)
                saved = time.monotonic()
    if place.first:
        _save(run)


def _take_step(run: _Run, x: Tensor) -> tuple[Loss, float]:
    """One step on images (B, 3, crop, crop). Its noise depends on seed, step and process alone."""
    o, place = run.options, run.place
    torch.manual_seed(hash((o.seed, run.step, place.rank)) & 0x7FFF_FFFF)
    factor = run.schedule.factor(run.step, run.seconds)
    for group in run.main.param_groups:
        group["lr"] = group["base"] * factor
    loss = (
        prior_loss(run.view, x, o.lmbda) if o.part == "entropy" else rate_distortion(run.view(x), x, o.lmbda, o.metric)
    )
    run.main.zero_grad()
    run.auxiliary.zero_grad()
    loss.total.backward()  # type: ignore[no-untyped-call]
    place.share_gradients(run.view)
    parameters = [p for group in run.main.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, o.clip))
    if math.isfinite(norm):
        held = run.channels.before() if run.channels else []
        run.main.step()
        if run.channels:
            run.channels.after(held)
        run.net.aux_loss().backward()  # type: ignore[no-untyped-call]
        run.auxiliary.step()
        run.average.update(run.step)
    else:
        log.warning("step %d left out: its gradient is not finite", run.step)
    run.step += 1
    return loss, norm


def _validate(run: _Run, images: list[Tensor], report: Reporter) -> None:
    if images:
        with run.average.applied():
            result = validate(run.view, images, run.options.lmbda, run.options.metric, run.place)
        report.record("validation", run.step, dataclasses.asdict(result))


def _save(run: _Run) -> None:
    state = RunState(
        step=run.step,
        seconds=run.seconds,
        optimisers=[run.main.state_dict(), run.auxiliary.state_dict()],
        weights=dict(run.net.named_parameters()),
        average=run.average.weights,
        setting=run.setting,
    )
    save_state(run.options.save / "checkpoint", state)


def _resume(run: _Run) -> None:
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


def _finish(run: _Run, images: list[Tensor], report: Reporter) -> Path:
    """Write the averaged weights as a model, validated as it will be served."""
    o = run.options
    path = o.save / f"{o.model_name}.safetensors"
    if run.place.first:
        _validate(run, images, report)
        with run.average.applied():
            settle_quantiles(run.net.entropy_bottleneck)
            if not o.attention:
                shut_gates(run.net)
            info = save_model(
                run.net.cpu(), path, name=o.model_name, lmbda=o.lmbda, metric=o.metric, half=o.half, rounding=o.rounding
            )
        report.record("finished", run.step, {"file": str(path), "fingerprint": info.fingerprint})
    return path


class _Recent:
    """Averages over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.steps, self.since = 0, time.monotonic()
        self.sums = dict.fromkeys(("bpp", "PSNR", "loss", "gradient"), 0.0)

    def add(self, loss: Loss, norm: float) -> None:
        self.steps += 1
        for name, value in zip(self.sums, (loss.bpp.item(), loss.psnr, loss.total.item(), norm), strict=True):
            self.sums[name] += value

    def figures(self, images_per_step: int) -> dict[str, float]:
        averages = {name: value / self.steps for name, value in self.sums.items()}
        return {**averages, "images/s": self.steps * images_per_step / max(time.monotonic() - self.since, 1e-9)}


class _Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request to end after this step."""

    asked = False

    def __enter__(self) -> _Interrupt:
        try:
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: nothing to catch
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])
