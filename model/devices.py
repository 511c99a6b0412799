"""Where the networks run, and what a full device says."""

from __future__ import annotations

import errno
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from model.errors import DeviceLost, OutOfMemory

_S = TypeVar("_S")
_T = TypeVar("_T")


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{device!r} is no device: auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"{device!r} is no device that is served: auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{device!r} asked for, but {torch.cuda.device_count()} CUDA devices are here")
    return chosen


def use_exact_arithmetic(device: torch.device) -> None:
    """Full float32 for what writer and reader must agree on: no TF32 in this process."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def lock_of(device: torch.device) -> threading.RLock:
    """Whoever works on a GPU holds it: streams, and what libraries keep for each, are shared by all of a process.

    On a CPU each caller has its own.
    """
    if device.type != "cuda":
        return threading.RLock()
    return _lock(index_of(device))


def index_of(gpu: torch.device) -> int:
    """Which one it is, named or not."""
    return torch.cuda.current_device() if gpu.index is None else gpu.index


def by_index(device: torch.device) -> torch.device:
    """The device, a GPU with its index: without one it is another for a thread that works on another."""
    return torch.device("cuda", index_of(device)) if device.type == "cuda" else device


@functools.cache
def _lock(_: int) -> threading.RLock:
    return threading.RLock()


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """What does not say where it happens happens on this device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield


def side_by_side(device: torch.device, first: Callable[[], _S], second: Callable[[], _T]) -> tuple[_S, _T]:
    """Both results. On a GPU the two are computed at the same time, without gradients: alone each leaves half idle."""
    if device.type != "cuda" or torch.is_grad_enabled():
        return first(), second()
    here, beside = torch.cuda.current_stream(device), _second_stream(device)
    beside.wait_stream(here)
    try:
        with torch.cuda.stream(beside):
            other = second()
        return first(), other
    finally:
        here.wait_stream(beside)


@functools.cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


_FULL = (
    "can't allocate memory",
    "Cannot allocate memory",
    "out of memory",
    "OUT_OF_MEMORY",
    "_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "bad_alloc",
)
"""How torch's CPU allocator, the system, CUDA and its libraries say it, where torch has no class for it."""


def tells_of_memory(error: Exception) -> bool:
    """Whether it says that there was not enough."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return said or of_system or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextmanager
def memory_errors(
    device: torch.device, advice: str = "smaller images need less, and so do smaller batches"
) -> Iterator[None]:
    """Turn a failed allocation, or a device that has failed for good, into a named error.

    Raises:
        OutOfMemory: the device, or the machine, has no memory left.
        DeviceLost: the device does nothing any more.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if tells_of_memory(error):
            raise OutOfMemory(f"{device} has not enough memory left for this: {advice}") from error
        if not (isinstance(error, OSError) or _answers(device)):
            raise DeviceLost(f"{device} does nothing any more: {error}") from error
        raise


def _answers(device: torch.device) -> bool:
    """Whether it still does the least. Some errors of CUDA spoil everything that the process asks of it afterwards."""
    try:
        return torch.ones(1, device=device).item() == 1
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False
