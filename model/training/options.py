"""Everything that decides a training run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from model.config import SIZES, TCMConfig
from model.info import Metric, check_claims, check_name
from model.training.schedule import Schedule

NOMINAL_ROUNDING = 6 / math.log(2)
"""Bits that a squared quantiser step is worth where y is in units of its λ's own step, Δ² = 18/(ln 2·λ·255²)."""

Start = Literal["random", "block-transform"]
Part = Literal["all", "middle", "coarse", "entropy", "synthesis"]
Precision = Literal["auto", "fp32", "bf16"]

_LEAST = {
    "batch": 1, "crop": 1, "epochs": 0, "steps": 0, "minutes": 0, "warmup": 0, "lr": 0, "lr_aux": 0, "clip": 0,
    "balance": 0, "workers": 0, "seed": 0, "validation": 0, "save_every": 0, "log_every": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """One run; the defaults are the paper's recipe.

    Attributes:
        data: folder of images.
        save: folder of the run: checkpoint, log and finished model.
        lmbda: λ, the weight of the distortion.
        metric: "mse" (λ·255²·MSE) or "ms-ssim" (λ·(1 - MS-SSIM)).
        config: every width of the network.
        name: of the finished model; by default tcm-SIZE-METRIC-λ.
        size: the name of `config`, for `name`.
        half: store the finished model in float16.
        epochs, milestones, steps, minutes: when the run ends and how the rate falls (see `Schedule`).
        warmup, cool_from, floor: the shape of the rate (see `Schedule`).
        batch: crops a step and process.
        crop: side of a crop in pixels, a multiple of the network's alignment.
        lr: Adam's rate.
        lr_aux: rate of the auxiliary Adam, for the quantiles of z.
        clip: largest norm of the gradient; 0: any.
        average: decay of the moving average of the weights.
        balance: rates by layer and latent channel (see `rates`), or 0: one rate for all, as in the paper.
        start: random initial weights, or the block transform (see `start`).
        init_from: a model file to start from instead, of the same widths; another λ's is rescaled.
        spread: deal the channels of y out to the slices by strength, few strong ones first (see `spread`).
        fit_synthesis: before the first step, fit g_s by least squares (see `regress`).
        part: "all"; "entropy": transforms frozen; "coarse" and "middle": the two outer stages or the
            outermost one short-cut, the rest learns; "synthesis": g_s alone, bitstreams stay as they are.
        rounding: the weight that symbols are chosen with (see `model.rounding`), or None: to the nearest.
        attention: False leaves the gated branch of the slice attentions out, and shut in the finished model.
        resume: go on from the checkpoint in `save`.
        sample: crops that the block transform and the least squares look at.
        seed: of the initial weights, the order of the data, the crops and the noise.
        validation: photographs kept out of training to measure on.
        save_every, log_every: seconds between checkpoints, steps between lines of the log.
        workers: loading processes; None: none on a CPU, most cores on a GPU.
        precision: "fp32", "bf16", or "auto": bf16 on a GPU that has it (on a CPU it measured slower).
    """

    data: Path
    save: Path
    lmbda: float = 0.013
    metric: Metric = "mse"
    config: TCMConfig = field(default_factory=lambda: SIZES["s"])
    name: str | None = None
    size: str = "s"
    half: bool = False
    epochs: int | None = None
    milestones: tuple[int, ...] = (45, 48)
    steps: int | None = None
    minutes: float | None = None
    warmup: int = 0
    cool_from: float = 0.5
    floor: float = 0.02
    batch: int = 8
    crop: int = 256
    lr: float = 1e-4
    lr_aux: float = 1e-3
    clip: float = 1.0
    average: float = 0.998
    balance: float = 0.0
    start: Start = "random"
    init_from: Path | None = None
    spread: bool = False
    fit_synthesis: bool = False
    part: Part = "all"
    rounding: float | None = None
    attention: bool = True
    resume: bool = False
    sample: int = 256
    seed: int = 0
    validation: int = 8
    save_every: float = 300.0
    log_every: int = 50
    workers: int | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} is a number from {least} on, not {value}")
        if not 0 <= self.average <= 1:
            raise ValueError(f"--average lies in [0, 1], not {self.average}")
        self.schedule(photographs=1, processes=1)  # it has checks of its own
        if self.crop % self.config.alignment:
            raise ValueError(
                f"a crop's side is a multiple of {self.config.alignment} for these windows, not {self.crop}"
            )
        check_claims(self.model_name, self.lmbda, self.metric, self.rounding)
        check_name(self.model_name, self.lmbda, self.metric)
        if self.metric == "ms-ssim" and self.crop <= 160:
            raise ValueError("MS-SSIM has five scales: it needs crops above 160 pixels")
        if self.metric == "ms-ssim" and (self.start == "block-transform" or self.part == "entropy"):
            raise ValueError("the block transform and the part `entropy` weigh squared errors: they are for mse")
        if self.start == "block-transform" and self.init_from is not None:
            raise ValueError("a run starts as a block transform or from a model, not both")
        if self.keeps_bitstreams and self.init_from is None and not self.resume:
            raise ValueError("the part `synthesis` improves on a model: name it (--init-from)")
        if self.keeps_bitstreams and (self.spread or self.fit_synthesis):
            raise ValueError("the part `synthesis` leaves bitstreams as they are: no --spread, no --fit-synthesis")

    @property
    def keeps_bitstreams(self) -> bool:
        """Whether the finished model writes the symbols of the one that it starts from."""
        return self.part == "synthesis"

    @property
    def model_name(self) -> str:
        """What the finished model is called."""
        return self.name or f"tcm-{self.size}-{self.metric}-{self.lmbda:g}"

    def schedule(self, photographs: int, processes: int) -> Schedule:
        """When a run on so many photographs ends, and its rate until then."""
        return Schedule(
            minutes=self.minutes,
            steps=self.steps,
            epochs=self.epochs,
            milestones=self.milestones,
            steps_per_epoch=max(1, photographs // (self.batch * processes)),
            warmup=self.warmup,
            cool_from=self.cool_from,
            floor=self.floor,
        )

    def setting(self, photographs: Sequence[Path], processes: int) -> str:
        """What a resumed run must share with the one it goes on with, as text."""
        names = ("lmbda", "metric", "batch", "crop", "seed", "part", "attention", "rounding")
        kept = {name: getattr(self, name) for name in names} | {"processes": processes}
        if self.keeps_bitstreams:  # stored otherwise, what is to stay would be other numbers
            kept["half"] = self.half
        listed = "\n".join(path.relative_to(self.data).as_posix() for path in photographs)
        kept["photographs"] = hashlib.sha256(os.fsencode(listed)).hexdigest()[:16]
        return json.dumps({**kept, "config": dataclasses.asdict(self.config)}, sort_keys=True)
