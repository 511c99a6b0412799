"""Who works when: image files in a few threads, the device on one thing at a time, the event loop never.

The handlers' handle is `encode`, `inspect` and `decode`; that requests share the device is this module's business
alone. Cancelling one of them takes its work out of the queue; work that has begun is finished and thrown away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from model.codec import Codec
from model.container import Container, read_container
from model.pixels import Picture, read_image, write_image
from model.stages import Stages
from model.zoo import ZooEntry
from service.metrics import Metrics
from service.pool import Pool

T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """A bitstream, and the size of its picture."""

    data: bytes
    width: int
    height: int

    @property
    def bits_per_pixel(self) -> float:
        """Of the whole file."""
        return 8 * len(self.data) / (self.width * self.height)


class Scheduler:
    """The queue before the device.

    Args:
        pool: the models.
        metrics: where the queue is measured.
        workers: threads for image files.
        max_pixels: the second gate for size.
    """

    def __init__(self, pool: Pool, metrics: Metrics, *, workers: int, max_pixels: int) -> None:
        self._pool, self._metrics, self._max_pixels = pool, metrics, max_pixels
        self._files = ThreadPoolExecutor(workers, "files")
        self._device = ThreadPoolExecutor(1, "device")

    async def encode(self, data: bytes, entry: ZooEntry, *, keep_metadata: bool = True, stages: Stages) -> Encoded:
        """An image file as a bitstream of this model."""

        def read() -> Picture:
            return read_image(data, self._max_pixels, keep_metadata=keep_metadata)

        def work(codec: Codec) -> bytes:
            return codec.encode_picture(picture, stages=stages)

        picture = await self._in_thread("read_image", read, stages)
        bitstream = await self._on_device(entry, picture.width * picture.height, work, stages)
        return Encoded(bitstream, picture.width, picture.height)

    async def inspect(self, data: bytes, *, stages: Stages) -> Container:
        """A bitstream, checked and taken apart."""
        return await self._in_thread("read_bitstream", lambda: read_container(data, self._max_pixels), stages)

    async def decode(self, container: Container, entry: ZooEntry, file_format: str, *, stages: Stages) -> bytes:
        """The image file of a bitstream, with the model that it was written with."""

        def work(codec: Codec) -> Picture:
            return codec.decode_container(container, stages=stages)

        picture = await self._on_device(entry, container.pixels, work, stages)
        return await self._in_thread("write_image", lambda: write_image(picture, file_format), stages)

    async def _in_thread(self, stage: str, work: Callable[[], T], stages: Stages) -> T:
        def timed() -> T:
            with stages(stage):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._files, timed)

    async def _on_device(self, entry: ZooEntry, pixels: int, work: Callable[[Codec], T], stages: Stages) -> T:
        """Wait for the model and for the device, then work. The model is held until the work has really ended."""
        with stages("model"):
            resident = await self._pool.acquire(entry)
        place = _Place(self._metrics, pixels)

        def begin() -> T:
            stages["queue"] = place.leave()
            return work(resident.codec)

        def ended(_: Future[T]) -> None:
            place.leave()  # if it was cancelled while it waited
            loop.call_soon_threadsafe(self._pool.release, resident)

        loop = asyncio.get_running_loop()
        future = self._device.submit(begin)
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Finish what has begun, drop what waits."""
        for executor in (self._files, self._device):
            executor.shutdown(cancel_futures=True)


class _Place:
    """A place in the queue, taken when made."""

    def __init__(self, metrics: Metrics, pixels: int) -> None:
        self._metrics, self._pixels = metrics, pixels
        self._since, self._waiting = time.perf_counter(), True
        metrics.queue_depth.inc()
        metrics.queue_pixels.inc(pixels)

    def leave(self) -> float:
        """Seconds waited; only the first leave counts."""
        waited = time.perf_counter() - self._since
        if self._waiting:
            self._waiting = False
            self._metrics.queue_depth.dec()
            self._metrics.queue_pixels.dec(self._pixels)
            self._metrics.queue_wait.observe(waited)
        return waited
