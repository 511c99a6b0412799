"""`tcm train`: the options of a run on the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model import environment
from model.commands.common import one_line_errors, stderr
from model.config import SIZES, TCMConfig
from model.info import Metric
from model.training.options import NOMINAL_ROUNDING, Options, Part, Precision, Start

Size = Literal["xs", "s", "m", "l"]
"""Names in `model.config.SIZES`."""


def train(
    data: Annotated[Path, typer.Argument(help="Folder of images; subfolders count.", exists=True, file_okay=False)],
    save: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log, finished model.")] = Path(
        "runs/train"
    ),
    size: Annotated[Size, typer.Option(help="Widths by name.")] = "s",
    n: Annotated[
        int | None, typer.Option("--N", help="Width of one half of a mixed block, instead of the size's.")
    ] = None,
    m: Annotated[int | None, typer.Option("--M", help="Channels of y, instead of the size's.")] = None,
    hyper: Annotated[int | None, typer.Option(help="Channels of z, instead of the size's.")] = None,
    slices: Annotated[int | None, typer.Option(help="Slices of y, instead of the size's.")] = None,
    width: Annotated[
        list[str] | None,
        typer.Option(help="Any other width, as NAME=NUMBER or NAME=NUMBER,NUMBER (see model/config.py); repeatable."),
    ] = None,
    lmbda: Annotated[float, typer.Option("--lmbda", "--lambda", help="λ: more is better quality.")] = 0.013,
    metric: Annotated[Metric, typer.Option(help="Distortion that is minimised.")] = "mse",
    name: Annotated[str | None, typer.Option(help="Of the finished model; by default tcm-SIZE-METRIC-λ.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data (50 where nothing else ends the run).")
    ] = None,
    milestones: Annotated[str, typer.Option(help="Epochs after which the rate is a tenth.")] = "45,48",
    steps: Annotated[int | None, typer.Option(help="End after this many steps instead.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="End after this time instead; the rate follows the clock.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Crops a step and process.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of a crop in pixels.")] = 256,
    lr: Annotated[float, typer.Option(help="Adam's rate.")] = 1e-4,
    lr_aux: Annotated[float, typer.Option(help="Rate of the auxiliary Adam.")] = 1e-3,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient; 0: any.")] = 1.0,
    warmup: Annotated[int, typer.Option(help="Steps in which the rate rises from zero.")] = 0,
    cool_from: Annotated[
        float, typer.Option(help="Share of a run by steps or minutes from which the rate falls.")
    ] = 0.5,
    floor: Annotated[float, typer.Option(help="Share of the rate that it falls to.")] = 0.02,
    average: Annotated[float, typer.Option(help="Decay of the moving average of the weights.")] = 0.998,
    start: Annotated[
        Start,
        typer.Option("--start-from", "--start", help="What an untrained network is; torchrun needs the long name."),
    ] = "random",
    init_from: Annotated[Path | None, typer.Option(help="Start from this model; another λ's is rescaled.")] = None,
    spread: Annotated[
        bool, typer.Option(help="Deal y's channels out to the slices anew, few strong ones first; slices learn again.")
    ] = False,
    fit_synthesis: Annotated[bool, typer.Option(help="Fit g_s by least squares first.")] = False,
    balance: Annotated[float, typer.Option(help="Rates by what each layer bears; 0: one rate for all.")] = 0.0,
    part: Annotated[
        Part,
        typer.Option(
            help="What learns; `coarse` and `middle` need a block-transform start, "
            "`synthesis` improves the pictures of a model's files as they are."
        ),
    ] = "all",
    attention: Annotated[bool, typer.Option(help="Use the gated branch of the slice attentions.")] = True,
    rounding: Annotated[
        float | None,
        typer.Option(
            help="Choose symbols by their rate, an error of one step worth so many bits "
            f"({NOMINAL_ROUNDING:.2f} suits); by default to the nearest."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the run's folder.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order, crops and noise.")] = 0,
    validation: Annotated[int, typer.Option(help="Photographs kept out of training to measure on.")] = 8,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 300.0,
    workers: Annotated[int | None, typer.Option(help="Loading processes; by default by the machine.")] = None,
    precision: Annotated[Precision, typer.Option(help="auto: bf16 on a GPU that has it.")] = "auto",
    half: Annotated[bool, typer.Option(help="Store the finished model in float16 (always for xs).")] = False,
    threads: Annotated[int | None, typer.Option(help="Of torch on a CPU; by default all cores.")] = None,
) -> None:
    """Train a model on a folder of images. Several GPUs: torchrun -m model.training, with the same options."""
    environment.prepare()  # torchrun does not come through `tcm`
    with one_line_errors():
        import torch

        from model.pixels import no_limit_of_pillow
        from model.training.interrupt import Interrupted
        from model.training.train import train as run

        no_limit_of_pillow()
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        if threads is not None and threads < 0:
            raise ValueError(f"--threads is a number from 0 on (all cores), not {threads}")
        if threads:
            torch.set_num_threads(threads)
        widths: dict[str, Any] = {"N": n, "M": m, "hyper_channels": hyper, "slices": slices}
        widths = {k: v for k, v in widths.items() if v is not None} | _widths(width or [])
        config = dataclasses.replace(SIZES[size], **widths)
        options = Options(
            data=data,
            save=save,
            lmbda=lmbda,
            metric=metric,
            config=config,
            name=name,
            size=size,
            half=half or size == "xs",
            epochs=50 if epochs is None and steps is None and minutes is None else epochs,
            milestones=_milestones(milestones),
            steps=steps,
            minutes=minutes,
            warmup=warmup,
            cool_from=cool_from,
            floor=floor,
            batch=batch,
            crop=crop,
            lr=lr,
            lr_aux=lr_aux,
            clip=clip,
            average=average,
            balance=balance,
            start=start,
            init_from=init_from,
            spread=spread,
            fit_synthesis=fit_synthesis,
            part=part,
            rounding=rounding,
            attention=attention,
            resume=resume,
            seed=seed,
            validation=validation,
            save_every=save_every,
            workers=workers,
            precision=precision,
        )
        try:
            typer.echo(run(options))
        except Interrupted as end:  # a script must not go on with half a run
            with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
                stderr.print(f"tcm: {end}")
            raise typer.Exit(end.exit_code) from None


def _milestones(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"--milestones are epochs, as in 45,48, not {text!r}") from None


def _widths(words: list[str]) -> dict[str, int | tuple[int, ...]]:
    """The widths of `--width NAME=NUMBER`.

    Raises:
        ValueError: a word of another form, or a name that is no width.
    """
    known = {field.name: isinstance(field.default, tuple) for field in dataclasses.fields(TCMConfig)}
    found: dict[str, int | tuple[int, ...]] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise ValueError(f"--width {word}: widths are {', '.join(known)}")
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            raise ValueError(f"--width {word}: {value!r} is no number") from None
        found[name] = numbers if known[name] else numbers[0]
    return found
