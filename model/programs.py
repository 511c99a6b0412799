"""What a device does between two looks of the host: run step by step, on a GPU from the second time on as CUDA graphs.

A program is a generator. It is given a tensor and yields a `Pause` wherever a stage ends; where the pause has outputs,
the host looks at them and sends the next tensor. On a GPU a few hundred kernels lie between two pauses, most of them
shorter than it takes to launch one. So the second time that a program is given a shape it is recorded, pause by pause,
and from then on replayed: one launch a pause. The first time it runs as it is, which also compiles and caches all that
cannot be while recording.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast
from weakref import WeakSet

import torch
from numpy.typing import NDArray
from torch import Tensor

from model import fused
from model.devices import index_of, memory_errors
from model.errors import OutOfMemory
from model.recording import Pause, Program, Recording, RecordingFailed, Steps, has_run, may_record
from model.stages import Heartbeat, Stages, unwatched

_T = TypeVar("_T")

_KEPT = 64
"""Recordings of a runner; each holds its graphs' nodes (a few MB), what it is given and what it gives."""
_SEEN = 256
_OFTEN = 4
"""Runs of a shape before it takes the place of another one's recording."""
_LARGEST = 4_000_000
"""Pixels that are worth recording: larger work outlasts its launches."""


Arrival = Callable[[], list[NDArray[Any]]]
"""Waits for what is on its way to the host."""


_runners: WeakSet[Runner] = WeakSet()
_runners_lock = threading.Lock()  # of the set alone: those of other devices come while one device's are looked through


def forget_all(device: torch.device) -> bool:
    """Give back the memory of everybody's recordings on a device, of which the caller holds the lock; whether any were.

    And what nobody uses, even if there were none.
    """
    if device.type != "cuda":
        return False
    with _runners_lock:
        runners = list(_runners)
    gpus = [runner for runner in runners if runner.device.type == "cuda"]
    found = [runner.forget() for runner in gpus if index_of(runner.device) == index_of(device)]
    give_back_unused()
    return any(found)


def give_back_unused() -> None:
    """Memory of GPUs, and of the host for them, that torch keeps for what comes next: a large picture's, too."""
    torch.cuda.empty_cache()
    if empty_host_cache := getattr(torch._C, "_host_emptyCache", None):
        empty_host_cache()


def with_room(device: torch.device, work: Callable[[], _T]) -> _T:
    """Do it on a device of which the caller holds the lock.

    Where memory runs out, once more without what is recorded; where something cannot be recorded, without recording it.
    That ends: what could not be recorded never is again, and what was forgotten is not recorded within the same work,
    which runs a program of a shape once on each runner.

    Raises:
        OutOfMemory: there is not enough even so.
        DeviceLost: the device does nothing any more.
    """
    while True:
        try:
            with memory_errors(device):
                return work()
        except RecordingFailed:
            continue
        except OutOfMemory:
            if not forget_all(device):
                raise


class Runner:
    """Runs programs on one device, one at a time; two runners on a device may do so in turn.

    Args:
        device: where.
        record: whether to record them, if that is a GPU.
    """

    def __init__(self, device: torch.device, *, record: bool = True) -> None:
        self.device = device
        self._record = record and device.type == "cuda"
        self._seen: OrderedDict[object, int] = OrderedDict()
        self._recordings: OrderedDict[object, Recording] = OrderedDict()
        self._pool: Any = None  # of memory: recordings share it, since one runs at a time
        self._untold = list[tuple[Stages, str, torch.cuda.Event, torch.cuda.Event]]()  # times of stages that may go on
        with _runners_lock:
            _runners.add(self)

    def run(self, name: object, program: Program, pixels: int, stages: Stages, heartbeat: Heartbeat = unwatched) -> Run:
        """Begin; `name` tells programs apart, and `pixels` says how much there is to do.

        What a run gives, as far as it is still on the device, is lost when the next one begins.
        """
        may = self._record and pixels <= _LARGEST and fused.wanted()
        return Run(self, name, program, stages, heartbeat, record=may)

    def recording(self, key: object, program: Program) -> Recording | None:
        """A recording of a program for a shape, maybe a new one: once it has run to its end, or often if many have."""
        found = self._recordings.get(key)
        if not (found and found.whole) and not may_record(self.device):
            return None
        if found:
            self._recordings.move_to_end(key)
            return found
        full = len(self._recordings) >= _KEPT
        if self._seen.get(key, 0) < (_OFTEN if full else 1):
            return None
        if full:
            evicted, _ = self._recordings.popitem(last=False)
            self._seen.pop(evicted, None)
        if self._pool is None or not self._recordings:  # a pool ends with the last of its graphs
            self._pool = torch.cuda.graph_pool_handle()
        self._recordings[key] = Recording(self.device, self._pool, program)
        return self._recordings[key]

    def ended(self, key: object) -> None:
        """A program ran to its end unrecorded: all that it needs has been compiled and made."""
        has_run(self.device)
        self._seen[key] = self._seen.pop(key, 0) + 1
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)

    def give_up(self, key: object) -> None:
        """Never again record what could not be recorded."""
        self._recordings.pop(key, None)
        self._pool = None  # in which, after such a failure, nothing may be recorded any more
        self._seen[key] = -sys.maxsize

    def forget(self) -> bool:
        """Give back the memory of all recordings, until a shape has been seen again; whether there were any."""
        any_kept = bool(self._recordings)
        self._recordings.clear()
        self._seen = OrderedDict((key, count) for key, count in self._seen.items() if count < 0)
        self._pool = None
        return any_kept

    def to_host(self, tensors: Sequence[Tensor]) -> Arrival:
        """Tensors as arrays: their way begins now, and does not wait for what the device is given later."""
        untold, self._untold = self._untold, []
        if self.device.type != "cuda":
            arrays = [tensor.contiguous().numpy() for tensor in tensors]
            return lambda: arrays
        copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record()

        def arrive() -> list[NDArray[Any]]:
            there.synchronize()
            for stages, stage, begin, end in untold:
                stages.took(stage, begin.elapsed_time(end) / 1000)
            return [copy.numpy() for copy in copies]

        return arrive

    def measured(self, stages: Stages, stage: str, begin: torch.cuda.Event, end: torch.cuda.Event) -> None:
        """What the device was given between two events belongs to a stage; told when results have come to the host."""
        self._untold.append((stages, stage, begin, end))

    def to_be_given(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor on the host to fill and send: in memory that the device reads without the processor's help."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self.device.type == "cuda")


class Run:
    """One run of a program."""

    def __init__(
        self, runner: Runner, name: object, program: Program, stages: Stages, heartbeat: Heartbeat, *, record: bool
    ) -> None:
        self._runner, self._name, self._program, self._record = runner, name, program, record
        self._stages, self._heartbeat = stages, heartbeat
        self._recording: Recording | None = None
        self._steps: Steps | None = None
        self._place, self._key = 0, cast("object", None)

    def send(self, given: Tensor) -> tuple[Tensor, ...]:
        """Give the program its next tensor; gives the outputs of the pause that has some, on the device."""
        answer: Tensor | None = given
        while True:
            pause = self._timed(answer)
            if pause.outputs:
                return pause.outputs
            answer = None

    def _timed(self, given: Tensor | None) -> Pause:
        if self._runner.device.type != "cuda":
            start = time.perf_counter()
            pause = self._step(given)
            self._stages.took(pause.stage, time.perf_counter() - start)
            return pause
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        pause = self._step(given)
        end.record()
        self._runner.measured(self._stages, pause.stage, begin, end)
        return pause

    def _step(self, given: Tensor | None) -> Pause:
        if not self._place and given is not None:
            self._key = (self._name, given.shape, given.dtype)
            self._recording = self._runner.recording(self._key, self._program) if self._record else None
        self._place += 1
        if self._recording is not None:
            self._heartbeat()
            try:
                return self._recording.step(self._place - 1, given)
            except torch.OutOfMemoryError:
                raise  # who holds the device forgets what is recorded
            except Exception as error:  # whatever it is, the program as it is may not meet it
                self._runner.give_up(self._key)
                if self._place > 1:
                    raise RecordingFailed(f"{self._name} could not be recorded: {error}") from error
                self._recording = None
        if given is not None:
            given = given.to(self._runner.device, non_blocking=True)
        if self._steps is None:
            assert given is not None  # noqa: S101 - a program begins with a tensor
            self._steps = self._program(given, self._heartbeat)
            pause = next(self._steps)
        else:
            pause = self._steps.send(given)
        if pause.last and self._record:
            self._runner.ended(self._key)
        return pause
