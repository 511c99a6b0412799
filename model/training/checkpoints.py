"""The state of a run on disk: written whole or not at all, and read without unpickling anything but tensors.

A checkpoint is a folder of two files that belong together: `weights.safetensors` (the network, and its average under
`average.`) and `optimiser.pt` (both optimisers and the counters, loaded with `weights_only=True`). They are written
beside the old folder, which is then replaced in one rename.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.errors import CheckpointUnreadable, reason

_AVERAGE = "average."
_WEIGHTS, _OPTIMISER = "weights.safetensors", "optimiser.pt"


@dataclass(frozen=True)
class RunState:
    """Where a run stood.

    Attributes:
        step: optimiser steps taken.
        seconds: of training, this and earlier sittings.
        optimisers: the states of Adam and of the auxiliary Adam (`model.training.adam`).
        weights: the network's parameters.
        average: their moving average.
        setting: what the run must agree on to be resumed (λ, widths, seed …), as text.
        deviation: of the channels of y at the start, where it was balanced.
    """

    step: int
    seconds: float
    optimisers: list[dict[str, Any]]
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    setting: str
    deviation: Tensor | None = None


def places(folder: Path) -> tuple[Path, Path, Path]:
    """Where a checkpoint may lie after a kill at any time, in the order in which it is looked for."""
    return folder, folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")


def save_state(folder: Path, state: RunState) -> None:
    """Write a checkpoint; whoever kills the process now or later finds the old one or the new one, whole.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    _, fresh, stale = places(folder)
    part = folder.with_name(folder.name + ".part")  # of which only what is whole gets a name that is read
    if fresh.exists() and not folder.exists():  # a kill hit between the renames
        fresh.rename(folder)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _write(part, state)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch covers it with its own
        raise OSError(f"{folder}: cannot be written ({getattr(cause, 'strerror', None) or cause})") from None
    shutil.rmtree(fresh, ignore_errors=True)
    part.rename(fresh)
    shutil.rmtree(stale, ignore_errors=True)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def _write(folder: Path, state: RunState) -> None:
    tensors = {**state.weights, **{_AVERAGE + name: value for name, value in state.average.items()}}
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, folder / _WEIGHTS)
    rest = {name: getattr(state, name) for name in ("optimisers", "step", "seconds", "setting", "deviation")}
    with (folder / _OPTIMISER).open("wb") as file:
        torch.save(rest, file)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def load_state(folder: Path) -> RunState:
    """Read a checkpoint, or the one before it if a kill hit between the two renames.

    Raises:
        CheckpointUnreadable: there is none, or it is damaged.
    """
    for place in places(folder):
        if (place / _WEIGHTS).exists() and (place / _OPTIMISER).exists():
            break
    else:
        raise CheckpointUnreadable(f"{folder}: no checkpoint of a training run")
    try:
        tensors = load_file(place / _WEIGHTS)
        rest = torch.load(place / _OPTIMISER, map_location="cpu", weights_only=True)
        return RunState(
            step=int(rest["step"]),
            seconds=float(rest["seconds"]),
            optimisers=rest["optimisers"],
            weights={name: value for name, value in tensors.items() if not name.startswith(_AVERAGE)},
            average={n.removeprefix(_AVERAGE): value for n, value in tensors.items() if n.startswith(_AVERAGE)},
            setting=str(rest["setting"]),
            deviation=rest.get("deviation"),
        )
    except Exception as error:  # noqa: BLE001  # torch and safetensors raise what they please on damaged files
        raise CheckpointUnreadable(f"{place}: damaged ({reason(error)})") from None


@torch.no_grad()
def fill_parameters(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy stored weights into a network of the same widths."""
    for name, parameter in net.named_parameters():
        parameter.copy_(weights[name])
