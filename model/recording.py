"""A program's CUDA graphs for one shape: recorded pause by pause as far as it has ever come, and replayed."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.devices import index_of
from model.stages import Heartbeat, unwatched


class RecordingFailed(Exception):
    """A program could not be recorded to its end: it is to be run once more, as it is.

    No RuntimeError: whatever its cause was, it says nothing of the device.
    """


@dataclass(frozen=True)
class Pause:
    """The end of a stage.

    Attributes:
        stage: what has been done.
        outputs: what the host is to look at; without any, the program goes on by itself.
        last: nothing follows.
    """

    stage: str
    outputs: tuple[Tensor, ...] = ()
    last: bool = False


Steps = Generator[Pause, Tensor | None, None]
Program = Callable[[Tensor, Heartbeat], Steps]
"""(its first tensor, called between its steps) -> its pauses."""

_ready = threading.local()  # devices on which the thread has all that libraries make for each thread at its first use
_broken: list[torch.cuda.CUDAGraph] = []  # whose end torch's allocators have not heard of: they may still ask them


def has_run(device: torch.device) -> None:
    """This thread has run a program as it is."""
    _ready.devices = {*getattr(_ready, "devices", ()), index_of(device)}


def may_record(device: torch.device) -> bool:
    """Whether it has before: cuBLAS and cuDNN make a handle for each thread, which cannot be done while recording."""
    return index_of(device) in getattr(_ready, "devices", ())


@dataclass(frozen=True)
class _Step:
    """What was recorded up to one pause: the graph, where it reads what it is given, and the pause."""

    graph: torch.cuda.CUDAGraph
    given: Tensor | None
    pause: Pause


class Recording:
    """One program for one shape.

    Args:
        device: where it runs.
        pool: of memory, of which recordings that never run at the same time share one.
        program: what is recorded.
    """

    def __init__(self, device: torch.device, pool: Any, program: Program) -> None:
        self._device, self._pool, self._program = device, pool, program
        self._generator: Steps | None = None
        self._steps: list[_Step] = []

    @property
    def whole(self) -> bool:
        """Nothing is left to record."""
        return bool(self._steps) and self._steps[-1].pause.last

    def step(self, place: int, given: Tensor | None) -> Pause:
        """Do what lies before the pause at this place."""
        if place == len(self._steps):
            self._steps.append(self._record(given))
        step = self._steps[place]
        if step.given is not None and given is not None:
            step.given.copy_(given, non_blocking=True)
        step.graph.replay()
        return step.pause

    def _record(self, given: Tensor | None) -> _Step:
        if given is not None:
            given = torch.empty_like(given, device=self._device, pin_memory=False)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        if torch.cuda.mem_get_info(self._device)[0] < torch.cuda.memory_reserved(self._device):
            torch.cuda.empty_cache()  # while recording, what torch keeps cannot be given back
        with torch.cuda.stream(_recording_stream(self._device)), _no_collector(), _own_workspaces():
            with self._allocators_told(graph):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                pause = self._advance(given)
            except BaseException:  # is what tells that the recording has failed, and how
                with contextlib.suppress(RuntimeError):
                    self._end(graph)
                raise
            self._end(graph)
        return _Step(graph, given, pause)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording, once: a second time is an error that CUDA tells whatever is launched next."""
        with self._allocators_told(graph):
            graph.capture_end()

    @contextlib.contextmanager
    def _allocators_told(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Where this fails, the recording is at its end for them, too: else they never again give back what they keep.

        A graph of torch 2.14 tells them itself, at the latest when it is reset: told twice, its destructor would throw.
        """
        try:
            yield
        except RuntimeError:
            graph.reset()
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(index_of(self._device), self._pool)
                _broken.append(graph)  # the graph had told neither, and one of them cannot be told by hand
            raise

    def _advance(self, given: Tensor | None) -> Pause:
        if self._generator is None:
            assert given is not None  # noqa: S101 - a program begins with a tensor
            self._generator = self._program(given, unwatched)
            pause = next(self._generator)
        else:
            pause = self._generator.send(given)
        if pause.last:
            self._generator.close()  # so that the next recording has the memory of all but its outputs
        return pause


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """What it finds may be another's graphs, and to destroy those is not allowed while recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Graphs recorded meanwhile bring the memory that cuBLAS works in, each from its own pool.

    It is else kept by stream, in the pool of whoever recorded first, and freed (torch 2.12 and later) when any graph of
    that stream ends: all others would write into what is no longer theirs.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
