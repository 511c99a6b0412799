"""A stand-in for torch's graphs and allocators, which keeps the rules of torch 2.11 or 2.14."""

from __future__ import annotations

import contextlib
import gc
import threading
from types import SimpleNamespace

import torch


class Allocator:
    """One of two. A pool ends with its last graph, and is told of each recording's begin and end."""

    def __init__(self) -> None:
        self.graphs: dict[object, int] = {}
        self.under_way: list[object] = []

    def begin(self, pool: object) -> None:
        if self.graphs.get(pool, 1) < 1 or pool in self.under_way:
            raise RuntimeError("INTERNAL ASSERT FAILED")
        self.graphs[pool] = self.graphs.get(pool, 0) + 1
        self.under_way.append(pool)

    def end(self, pool: object) -> None:
        if pool not in self.under_way:
            raise RuntimeError("not currently recording")
        self.under_way.remove(pool)


class Cuda:
    """What the code under test asks of torch.cuda and torch._C."""

    def __init__(self) -> None:
        cuda = self
        self.device, self.host = Allocator(), Allocator()
        self.sees_to_it = False  # a graph, as of torch 2.14, that the allocators are told even if it fails
        self.spoilt = self.refuses = False
        self.stale = False  # an error that the next launch gives
        self.terminated = False  # the process, by what a graph's destructor throws
        self.recorded_by: list[str] = []
        self.collects: list[bool] = []
        self.workspaces_cleared = 0
        self.emptied: list[str] = []

        class Graph:
            under_way = untold = holds = False  # for CUDA; for the allocators; the pool

            def capture_begin(self, pool: object, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local"
                self.pool = pool
                cuda.device.begin(pool)
                cuda.host.begin(pool)
                self.untold, self.holds = True, cuda.sees_to_it
                if cuda.refuses:
                    raise RuntimeError("operation not permitted")
                self.under_way = True
                cuda.recorded_by.append(threading.current_thread().name)
                cuda.collects.append(gc.isenabled())

            def capture_end(self) -> None:
                cuda.stale |= not self.under_way
                self.under_way = False
                spoilt, cuda.spoilt = cuda.spoilt, False
                if cuda.stale or (spoilt and not cuda.sees_to_it):
                    raise RuntimeError("operation failed due to a previous error during capture")
                self.tell()
                if spoilt:
                    raise RuntimeError("operation failed due to a previous error during capture")
                self.holds = True

            def tell(self) -> None:
                cuda.device.end(self.pool)
                cuda.host.end(self.pool)
                self.untold = False

            def replay(self) -> None:
                cuda.kernel()

            def reset(self) -> None:
                if self.untold and cuda.sees_to_it:
                    self.tell()
                if self.holds:
                    cuda.device.graphs[self.pool] -= 1
                    cuda.host.graphs[self.pool] -= 1
                self.holds = False

            def __del__(self) -> None:
                try:
                    self.reset()
                except RuntimeError:
                    cuda.terminated = True

        class Event:
            def __init__(self, **_: object) -> None:
                pass

            def record(self) -> None:
                pass

        self.cuda = SimpleNamespace(
            CUDAGraph=Graph,
            Event=Event,
            OutOfMemoryError=torch.OutOfMemoryError,
            synchronize=lambda _: None,
            mem_get_info=lambda _: (9, 9),
            memory_reserved=lambda _: 0,
            empty_cache=lambda: self.emptied.append("device"),
            stream=lambda _: contextlib.nullcontext(),
            Stream=lambda _: None,
            graph_pool_handle=object,
        )
        self._C = SimpleNamespace(
            _cuda_endAllocateToPool=lambda _, pool: self.device.end(pool),
            _cuda_clearCublasWorkspaces=self.clear,
            _host_emptyCache=lambda: self.emptied.append("host"),
        )

    OutOfMemoryError = torch.OutOfMemoryError

    def clear(self) -> None:
        self.workspaces_cleared += 1

    def kernel(self) -> None:
        if self.stale:
            self.stale = False
            raise RuntimeError("operation failed due to a previous error during capture")

    @staticmethod
    def empty_like(tensor: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.empty_like(tensor)

    @property
    def recording(self) -> bool:
        return bool(self.device.under_way)


class Gpu:
    """A device as the code under test sees it; tensors stay where they are."""

    type, index = "cuda", 0
