"""The training loop: a step is crops in, loss, gradients, both optimisers, the moving average.

options ──> setup ──> [ step, step, step … ] ──> finish ──> a model that the zoo serves
                         │ every few minutes: validation, checkpoint
"""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from model.checkpoint import save as save_model
from model.devices import memory_errors
from model.training.checkpoints import places
from model.training.data import Crops, Indexes, find_images, split_validation
from model.training.device import find_place
from model.training.interrupt import Interrupt, Interrupted
from model.training.loss import Loss, rate_distortion
from model.training.options import Options
from model.training.prior import prior_loss
from model.training.progress import Recent, Reporter
from model.training.quantiles import settle_quantiles
from model.training.run import Run, prepare_run, save_run
from model.training.setup import loading_processes, shut_gates
from model.training.validate import load_validation, validate

log = logging.getLogger(__name__)

_ACCIDENTS = 3  # steps left out in a row after which nothing is saved any more
_DIVERGED = 50  # … and after which the run is given up


def train(options: Options, *, quiet: bool = False) -> Path:
    """Train a model and write it as `<save>/<name>.safetensors`.

    Ctrl-C, SIGTERM or SIGHUP ends the run early and in order: checkpoint written, model written.

    Args:
        options: everything that decides the run.
        quiet: no live line.

    Returns:
        The finished model's file.

    Raises:
        Interrupted: a signal has ended it.
        ValueError: the folder holds a run that is not to be resumed, or a model of that name, or the run has diverged.
        OSError: there are no images, or at its end the run cannot be written; the model may be all the same.
        CheckpointUnreadable, CheckpointMismatch: as `prepare_run` does.
        OutOfMemory, DeviceLost: the device has no memory left, or does nothing any more.
    """
    if not options.resume and any(place.exists() for place in places(options.save / "checkpoint")):
        raise ValueError(f"{options.save} holds a run: go on with it (--resume), or choose another folder (--save)")
    if not options.resume and model_file(options).exists():
        raise ValueError(f"{model_file(options)} is there already: choose another name (--name) or folder (--save)")
    place = find_place(options.precision)
    training, kept = split_validation(find_images(options.data), options.validation)
    crops = Crops(training, options.crop, options.seed)
    images = load_validation(kept, options.config.alignment, options.metric) if place.first else []
    with memory_errors(place.device, "a smaller --batch or --crop needs less, and so do fewer --workers"):
        run = prepare_run(options, place, training)
        with Reporter(options.save if place.first else None, quiet=quiet) as report, Interrupt() as interrupt:
            report.record("start", run.step, {"model": options.model_name, "photographs": len(training)})
            batches = _batches(crops, run)
            try:
                number = _loop(run, batches, images, report, interrupt)
            finally:
                _end_loading(batches)
            lost = _save_last(run)
            path = _finish(run, images, report)  # it may find room where the checkpoint, which is larger, has not
    place.leave()
    if lost:
        raise lost
    if number:
        raise Interrupted(run.step, number)
    return path


def model_file(options: Options) -> Path:
    """Where the finished model is written."""
    return options.save / f"{options.model_name}.safetensors"


def _save_last(run: Run) -> OSError | None:
    """The run as it ends; why it cannot be written, if it cannot."""
    if run.place.first and run.left_out < _ACCIDENTS:
        try:
            save_run(run)
        except OSError as error:
            return error
    return None


def _batches(crops: Crops, run: Run) -> Iterator[Tensor]:
    o, place = run.options, run.place
    workers = loading_processes(o, place)
    _ = crops[0]  # what is wrong with all of them is said here, not by a process of many
    return iter(
        DataLoader(
            crops,
            batch_size=o.batch,
            sampler=Indexes(run.step, o.batch, place.rank, place.processes),
            num_workers=workers,
            pin_memory=place.device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_outlive_signals,
        )
    )


def _end_loading(batches: Iterator[Tensor]) -> None:
    """The processes heed no SIGTERM, by which torch would end them after an error, and then wait for them for ever."""
    if end := getattr(batches, "_shutdown_workers", None):
        end()


def _outlive_signals(_: int) -> None:
    """One to the whole group (torchrun, systemd, Slurm) must not end the loading before the run has been saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _loop(run: Run, batches: Iterator[Tensor], images: list[Tensor], report: Reporter, stop: Interrupt) -> int:
    """Steps until the schedule or a signal ends them; the number of that signal, or 0."""
    o, place = run.options, run.place
    begun, before = time.monotonic(), run.seconds
    saved, recent = begun, Recent()
    while True:
        run.seconds, number = place.largest([run.seconds, stop.number])  # all stop at one step, and cool by one clock
        if number or run.schedule.done(run.step, run.seconds) >= 1:
            break
        loss, norm = _take_step(run, place.put(next(batches)))
        run.seconds = before + time.monotonic() - begun
        recent.add(loss, norm)
        if place.first:
            figures = recent.figures(o.batch * place.processes)
            report.line(run.step, run.schedule.done(run.step, run.seconds), run.seconds, figures)
            if run.step % o.log_every == 0:
                rate = run.schedule.factor(run.step, run.seconds)
                report.record("train", run.step, {**figures, "rate": rate, "seconds": run.seconds})
                recent = Recent()
            if (paused := time.monotonic()) - saved >= o.save_every and run.left_out < _ACCIDENTS:
                try:
                    save_run(run)
                except OSError as error:  # a disk that is full now need not be so in a while
                    log.warning("%s: tried again in %.0f s", error, o.save_every)
                _validate(run, images, report)
                saved = time.monotonic()
                recent.since += saved - paused  # images a second are those of training
    return int(number)


def _take_step(run: Run, x: Tensor) -> tuple[Loss, float]:
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
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, o.clip or math.inf))
    if math.isfinite(norm):
        held = run.channels.before() if run.channels else []
        run.main.step()
        if run.channels:
            run.channels.after(held)
        if not o.keeps_bitstreams:
            run.net.aux_loss().backward()  # type: ignore[no-untyped-call]
            run.auxiliary.step()
        run.average.update(run.step)
        run.left_out = 0
    else:
        run.left_out += 1
        log.warning("step %d left out: its gradient is not finite", run.step)
        if run.left_out == _DIVERGED:
            raise ValueError(f"diverged at step {run.step - _DIVERGED + 1}: lower --lr")
    run.step += 1
    return loss, norm


def _validate(run: Run, images: list[Tensor], report: Reporter) -> None:
    if images:
        with run.average.applied():
            result = validate(run.view, images, run.options.lmbda, run.options.metric, run.place)
        report.record("validation", run.step, dataclasses.asdict(result))


def _finish(run: Run, images: list[Tensor], report: Reporter) -> Path:
    """Validate the averaged weights, and write them as a model."""
    o = run.options
    path = model_file(o)
    if run.place.first:
        _validate(run, images, report)
        with run.average.applied():
            if not o.keeps_bitstreams:
                settle_quantiles(run.net.entropy_bottleneck)
                if not o.attention:
                    shut_gates(run.net)
            info = save_model(
                run.net.cpu(), path, name=o.model_name, lmbda=o.lmbda, metric=o.metric, half=o.half, rounding=o.rounding
            )
        report.record("finished", run.step, {"file": str(path), "fingerprint": info.fingerprint})
    return path
