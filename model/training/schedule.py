"""How fast to learn when: by epochs and milestones as in the paper, by steps, or by the clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When a run ends, and the factor on its learning rates until then.

    Exactly one of `minutes`, `steps` and `epochs` decides the end.

    Attributes:
        minutes: of training, those before a resume included; the rate follows the clock.
        steps: optimiser steps in all.
        epochs: passes over the data; with milestones the rate is a tenth from each of them on.
        milestones: epochs.
        steps_per_epoch: of this data and batch.
        warmup: steps in which the rate rises from zero.
        cool_from: share of a run by minutes or steps after which the rate falls, along half a cosine.
        floor: what it falls to.
    """

    minutes: float | None = None
    steps: int | None = None
    epochs: int | None = None
    milestones: Sequence[int] = ()
    steps_per_epoch: int = 1
    warmup: int = 0
    cool_from: float = 0.5
    floor: float = 0.02

    def __post_init__(self) -> None:
        if sum(end is not None for end in (self.minutes, self.steps, self.epochs)) != 1:
            raise ValueError("a run ends after --minutes, --steps or --epochs: give one of the three")
        if not 0 <= self.cool_from < 1 or not 0 <= self.floor <= 1:
            raise ValueError("--cool-from lies in [0, 1) and --floor in [0, 1]")

    def done(self, step: int, seconds: float) -> float:
        """Share of the run behind us, 1 and more when it has ended.

        Args:
            step: steps taken.
            seconds: of training.
        """
        if self.minutes is not None:
            return seconds / 60 / self.minutes if self.minutes > 0 else 1.0
        total = self.steps if self.steps is not None else (self.epochs or 0) * self.steps_per_epoch
        return step / total if total > 0 else 1.0

    def factor(self, step: int, seconds: float) -> float:
        """What to multiply every learning rate with."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.epochs is not None:
            epoch = step / self.steps_per_epoch
            return float(warm * 0.1 ** sum(epoch >= milestone for milestone in self.milestones))
        cooled = max(0.0, min(1.0, (self.done(step, seconds) - self.cool_from) / (1 - self.cool_from)))
        return warm * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * cooled)))
