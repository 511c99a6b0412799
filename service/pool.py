"""The resident models: loaded when first asked for, gone when the memory budget needs their room."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from model.codec import Codec
from model.errors import DeviceLost, OutOfMemory
from model.zoo import ZooEntry
from service.errors import ModelUnavailable
from service.metrics import Metrics
from service.priority import give_way
from service.watchdog import Watchdog

log = structlog.get_logger()

_BYTES_A_PARAMETER = 7  # about, of a model to come; what it really takes is counted when it is there
_ON_A_CPU = ((128, 128),)  # nothing depends on the size there, but loops are compiled when first called
_SLOWEST_DISK = 1e6  # bytes a second


@dataclass
class Resident:
    """A loaded model.

    Attributes:
        entry: which one.
        codec: what works.
        memory: bytes of its weights, and of what has been made of them so far.
        users: requests that hold it; while there are any, it stays.
        served: requests that have held it.
    """

    entry: ZooEntry
    codec: Codec
    memory: int
    users: int = 0
    served: int = 0


_Key = tuple[str, float | None]


def _key(entry: ZooEntry) -> _Key:
    """The weights, and what else decides about the symbols that they write."""
    return entry.info.fingerprint, entry.info.rounding


class Pool:
    """Residents by their weights. Belongs to the event loop: only loading leaves it.

    Args:
        device: where the models run.
        memory_budget: bytes of weights; a model in use is never evicted, so that the budget may be passed for a while.
        metrics: where loads and evictions are counted.
        watchdog: notices a load that hangs.
        warm_up: width and height of pictures that a model is made ready for when it is loaded; on a CPU any of them
            makes it ready for all.
    """

    def __init__(
        self,
        device: str,
        memory_budget: int | None,
        metrics: Metrics,
        watchdog: Watchdog,
        warm_up: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.device = device
        self._warm_up = _ON_A_CPU if warm_up and device == "cpu" else warm_up
        self._budget = memory_budget
        self._metrics, self._watchdog = metrics, watchdog
        self._residents: OrderedDict[_Key, Resident] = OrderedDict()  # the least recently used first
        self._loads: dict[_Key, asyncio.Task[None]] = {}
        self._awaited: Counter[_Key] = Counter()  # requests on their way to each
        self._loading = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, "load", give_way)
        self._gauge()

    def resident(self, entry: ZooEntry) -> Resident | None:
        """The model, if it is loaded."""
        return self._residents.get(_key(entry))

    async def acquire(self, entry: ZooEntry) -> Resident:
        """The model, loaded if need be, and held until `release`.

        Raises:
            ModelUnavailable: it could not be loaded.
            DeviceLost: nor can any other: the device does nothing any more, and the watchdog knows.
        """
        key = _key(entry)
        self._awaited[key] += 1  # so that it is not evicted between its load and our waking up
        try:
            while (resident := self._residents.get(key)) is None:
                if key not in self._loads:  # one load for all who ask meanwhile
                    self._loads[key] = asyncio.create_task(self._load(entry))
                await asyncio.shield(self._loads[key])  # which goes on if the first of them gives up
        finally:
            self._awaited[key] -= 1
        self._residents.move_to_end(key)
        resident.users += 1
        self._gauge()
        return resident

    def release(self, resident: Resident) -> None:
        """One user less."""
        resident.users -= 1
        resident.served += 1
        if resident.served & (resident.served - 1) == 0:  # the 1st, 2nd, 4th …: it grows with its first pictures
            resident.memory = resident.codec.memory_bytes
        self._make_room()

    async def _load(self, entry: ZooEntry) -> None:
        start = time.perf_counter()
        try:
            async with self._loading:
                self._make_room(entry.info.parameters * _BYTES_A_PARAMETER)
                loop = asyncio.get_running_loop()
                codec = await loop.run_in_executor(self._loader, self._load_watched, entry)
                resident = self._residents[_key(entry)] = Resident(entry, codec, codec.memory_bytes)
        except Exception as error:
            self._metrics.model_load_failures.labels(entry.name).inc()
            if isinstance(error, DeviceLost):
                self._watchdog.lose(str(error))
                raise
            raise ModelUnavailable(f"model {entry.name!r} is installed, but could not be loaded") from error
        finally:
            del self._loads[_key(entry)]
        seconds = time.perf_counter() - start
        self._metrics.model_load_duration.observe(seconds)
        self._make_room()  # it may have taken more than was thought
        log.info(
            "model loaded",
            model=entry.name,
            weights=entry.info.fingerprint,  # earlier ones have the same name
            seconds=round(seconds, 3),
            memory=resident.memory,
        )

    def _load_watched(self, entry: ZooEntry) -> Codec:
        size = entry.info.parameters * _BYTES_A_PARAMETER
        with self._watchdog.watch(f"loading model {entry.name!r}", size / _SLOWEST_DISK):
            codec = Codec.load(entry, self.device)
            try:
                for width, height in self._warm_up:
                    codec.warm_up(width, height)
            except OutOfMemory as error:  # what is asked of it may be smaller
                log.warning("not warmed up", model=entry.name, error=str(error))
            return codec

    def _make_room(self, wanted: int = 0) -> None:
        """Evict idle models, the least recently used first, until `wanted` more bytes keep the budget."""
        for key, resident in list(self._residents.items()):
            if self._budget is None or self._memory() + wanted <= self._budget:
                break
            if resident.users == 0 and not self._awaited[key]:
                del self._residents[key]
                self._loader.submit(resident.codec.close)  # it waits for the device, and loads wait for it
                self._metrics.model_evictions.labels(resident.entry.name).inc()
                weights = resident.entry.info.fingerprint
                log.info("model evicted", model=resident.entry.name, weights=weights, memory=resident.memory)
        self._gauge()

    def _memory(self) -> int:
        return sum(resident.memory for resident in self._residents.values())

    def _gauge(self) -> None:
        self._metrics.models_loaded.set(len(self._residents))
        self._metrics.device_memory.labels(self.device).set(self._memory())

    def close(self) -> None:
        """Wait for a load in progress."""
        self._budget = None  # nobody leaves any more
        self._loader.shutdown(cancel_futures=True)
