"""What a run says of itself: a live line, a JSON-lines log, and TensorBoard where it is installed."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from model.training.loss import Loss

log = logging.getLogger(__name__)


def _minutes(seconds: float) -> str:
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min" if seconds >= 90 else f"{seconds:.0f} s"


class Reporter:
    """Use as a context; `line` at every step, `record` for what is kept.

    Args:
        folder: of the run; `log.jsonl` and the TensorBoard files go there. None where another process speaks for it.
        quiet: no live line.
    """

    def __init__(self, folder: Path | None, *, quiet: bool = False) -> None:
        quiet = quiet or folder is None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._log = folder and (folder / "log.jsonl").open("a", encoding="utf-8")
        self._board = _tensorboard(folder) if folder else None
        self.console = Console(stderr=True, quiet=quiet, markup=False, emoji=False, highlight=False)
        self._progress = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self.console,
            disable=quiet,
        )
        self._task = self._progress.add_task("train", total=1.0, step=0, figures="", left="?")

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        with contextlib.suppress(OSError):
            if self._log:
                self._log.close()
        if self._board is not None:
            self._board.close()

    def line(self, step: int, done: float, seconds: float, figures: dict[str, float]) -> None:
        """Show where the run is.

        Args:
            step: steps taken.
            done: share of the run behind us.
            seconds: of training so far.
            figures: bpp, PSNR in dB, loss, images/s: shown as they are named.
        """
        shown = " ".join(f"{name} {value:.3g}" for name, value in figures.items() if name != "gradient")
        left = _minutes(seconds * (1 - done) / done) if done > 0 else "?"
        self._progress.update(self._task, completed=min(done, 1.0), step=step, figures=shown, left=left)

    def record(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Keep figures: one line of the log, one point of each TensorBoard curve; validations are printed too."""
        if not self._log:
            return
        kept = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in figures.items()}
        line = json.dumps({"kind": kind, "step": step, **kept}, allow_nan=False)  # JSON has no NaN
        try:
            self._log.write(line + "\n")
            self._log.flush()
        except OSError as error:  # a full disk; what is buffered is written with the next line
            log.warning("%s: %s", self._log.name, error.strerror)
        if self._board is not None:
            for name, value in figures.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        if kind != "train":
            shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
            try:
                self.console.print(f"{kind} at step {step}: {shown}", soft_wrap=not self.console.is_terminal)
            except OSError:  # the terminal is gone; the run is not
                self.console.quiet = True


class Recent:
    """Averages over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.steps, self.since = 0, time.monotonic()
        self.sums = dict.fromkeys(("bpp", "PSNR", "loss", "gradient"), 0.0)

    def add(self, loss: Loss, norm: float) -> None:
        """One step more, and the norm of its gradient."""
        self.steps += 1
        for name, value in zip(self.sums, (loss.bpp.item(), loss.psnr, loss.total.item(), norm), strict=True):
            self.sums[name] += value

    def figures(self, images_per_step: int) -> dict[str, float]:
        """Their means, and images a second."""
        averages = {name: value / self.steps for name, value in self.sums.items()}
        return {**averages, "images/s": self.steps * images_per_step / max(time.monotonic() - self.since, 1e-9)}


def _tensorboard(folder: Path) -> Any:  # a SummaryWriter, where tensorboard is installed
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    except ImportError:
        return None
