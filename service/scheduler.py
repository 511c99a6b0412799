"""Who works when: a request passes three stages, each on threads of its own, and the event loop sees it through.

              files in                  device                      files out
    encode    read_image      ──>       codec.analyse      ──>      codec.pack
    decode    read_container  ──>       codec.synthesise   ──>      codec.unpack, write_image

While the device works on a batch, the images of the next one are read and the symbols of the last one are coded.
Between them a request waits: for a thread (`read_wait`, `write_wait`), or for the device (`queue`).
The handlers' handle is `encode`, `inspect` and `decode`; that requests share the device, and batches, is nobody else's
business. Cancelling one of them takes its work out of the queue, and off the device before its next tile or slice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from model.container import Container, read_container, seen_pixels, write_container
from model.latent_coder import Analysis
from model.output import SLOW_FORMATS, write_image
from model.pixels import Picture, Pixels
from model.sandbox import Reading, Sandbox
from model.stages import Stages
from model.zoo import ZooEntry
from service.admission import Admission, Place
from service.device import Abandoned, Device
from service.errors import DeadlineExceeded
from service.lifetime import deadline
from service.metrics import Metrics
from service.pool import Pool, Resident
from service.priority import give_way
from service.queue import Item, Kind
from service.watchdog import Watchdog

T = TypeVar("T")

_GRACE = 0.5
"""Seconds that reading an image may still take when nobody waits for it: most end in time, and keep their process."""
_FILE_SECONDS = 600
"""That reading or writing the largest file may take on a slow machine, beyond the setting `hang_seconds`."""


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
    """The way of a request through the three stages.

    Args:
        pool: the models.
        metrics: where stages and the queue are measured.
        admission: who is let in.
        watchdog: notices work that hangs.
        device: that works on batches.
        workers: threads that read images, as many that take bitstreams apart, as many that write files, and half as
            many that write those of formats that take long.
        max_pixels: the second gate for size.
        image_seconds: of processor time for one image file.

    Attributes:
        closed: whether everything has ended that was ever begun.
    """

    def __init__(
        self,
        pool: Pool,
        metrics: Metrics,
        admission: Admission,
        watchdog: Watchdog,
        device: Device,
        *,
        workers: int,
        max_pixels: int,
        image_seconds: float,
    ) -> None:
        self.admission, self.closed = admission, False
        self._pool, self._metrics, self._watchdog, self._max_pixels = pool, metrics, watchdog, max_pixels
        # sets of threads: what leaves the device must not queue behind what has just arrived
        self._images_in = ThreadPoolExecutor(workers, "images-in", give_way)
        self._bitstreams_in = ThreadPoolExecutor(workers, "bitstreams-in", give_way)  # quick, however slow images are
        self._images = Sandbox(max_pixels, image_seconds)
        self._device = device
        self._files_out = ThreadPoolExecutor(workers, "files-out", give_way)
        # begun, they cannot be ended: whoever asks for many of these and leaves keeps nobody else waiting
        self._slow_out = ThreadPoolExecutor(max(1, workers // 2), "slow-files-out", give_way)

    async def encode(self, data: bytes, entry: ZooEntry, *, keep_metadata: bool = True, stages: Stages) -> Encoded:
        """An image file as a bitstream of this model.

        Raises:
            UnsupportedImage, CorruptImage, TooManyPixels: as `model.pixels.read_image` does.
            Saturated, Draining, WorkerLost, NotReady: there is no place for it, see `Admission.enter`.
            ModelUnavailable: the model could not be loaded.
            DeadlineExceeded: it would have been done too late.
            OutOfMemory, DeviceLost: the device has no memory left, or does nothing any more.
        """
        with self.admission.place() as place:
            return await self._encode(data, entry, place, keep_metadata, stages)

    async def _encode(self, data: bytes, entry: ZooEntry, place: Place, keep_metadata: bool, stages: Stages) -> Encoded:
        picture = await self._read_image(data, place, keep_metadata, stages)
        resident = await self._acquire("encode", entry, stages)
        codec = resident.codec
        kind = Kind("encode", codec.analyse, codec.padded(picture.width, picture.height))
        analysis: Analysis = await self._on_device(resident, Item(kind, picture, stages, deadline()))

        def write(timed: Stages) -> bytes:
            return codec.pack(picture, analysis, name=entry.name, stages=timed)

        bitstream = await self._in_thread(self._files_out, "encode", write, stages)
        return Encoded(bitstream, picture.width, picture.height)

    async def _read_image(self, data: bytes, place: Place, keep_metadata: bool, stages: Stages) -> Picture:
        reading = Reading()

        def read(timed: Stages) -> Picture:
            with timed("read_image"):
                return self._images.read_image(
                    data, self._max_pixels, keep_metadata=keep_metadata, announce=place.claim, reading=reading
                )

        try:
            return await self._in_thread(self._images_in, "encode", read, stages)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(_GRACE, reading.give_up)
            raise

    async def inspect(self, data: bytes, *, stages: Stages) -> Container:
        """A bitstream, checked and taken apart.

        Raises:
            UnsupportedBitstream, CorruptBitstream, TooManyPixels: as `model.container.read_container` does.
        """

        def read(timed: Stages) -> Container:
            with timed("read_bitstream"):
                return read_container(data, self._max_pixels)

        return await self._in_thread(self._bitstreams_in, "decode", read, stages)

    async def stripped(self, container: Container, *, stages: Stages) -> bytes:
        """The bitstream without its EXIF and XMP."""

        def write(timed: Stages) -> bytes:
            with timed("container"):
                return write_container(container.stripped())

        return await self._in_thread(self._bitstreams_in, "encode", write, stages)

    async def decode(self, container: Container, entry: ZooEntry, file_format: str, *, stages: Stages) -> bytes:
        """The image file of a bitstream, with the model that it was written with.

        Raises:
            CorruptBitstream, IncompatibleModel: as `Codec.decode` does.
            OutputLimit: the format cannot hold so large a picture.
            Saturated, Draining, WorkerLost, NotReady, ModelUnavailable, DeadlineExceeded, OutOfMemory, DeviceLost: as
                `encode` does.
        """
        with self.admission.place() as place:
            place.claim(seen_pixels(container.width, container.height))
            return await self._decode(container, entry, file_format, stages)

    async def _decode(self, container: Container, entry: ZooEntry, file_format: str, stages: Stages) -> bytes:
        resident = await self._acquire("decode", entry, stages)
        codec = resident.codec
        kind = Kind("decode", codec.synthesise, codec.padded(container.width, container.height))
        padded: Pixels = await self._on_device(resident, Item(kind, container, stages, deadline()))

        def write(timed: Stages) -> bytes:
            with timed("write_image"):
                return write_image(codec.unpack(container, padded), file_format)

        threads = self._slow_out if file_format in SLOW_FORMATS else self._files_out
        return await self._in_thread(threads, "decode", write, stages)

    async def _in_thread(self, threads: Executor, op: str, work: Callable[[Stages], T], stages: Stages) -> T:
        wait = "write_wait" if threads in (self._files_out, self._slow_out) else "read_wait"

        def measured() -> T:
            with self._measured(op, stages) as timed, self._watchdog.watch(f"a file of {op}", _FILE_SECONDS):
                timed.add(wait, asked, time.perf_counter())
                return work(timed)

        asked = time.perf_counter()
        return await asyncio.get_running_loop().run_in_executor(threads, measured)

    async def _acquire(self, op: str, entry: ZooEntry, stages: Stages) -> Resident:
        with self._measured(op, stages) as timed, timed("model"):
            return await self._pool.acquire(entry)

    async def _on_device(self, resident: Resident, item: Item) -> Any:
        """Wait for the item's turn, then for its batch. The model is held until that has really ended."""

        def ended(_: Future[Any]) -> None:
            loop.call_soon_threadsafe(self._pool.release, resident)

        loop = asyncio.get_running_loop()
        item.future.add_done_callback(ended)
        self._device.put(item)
        try:
            return await asyncio.wrap_future(item.future)
        except asyncio.CancelledError:
            item.abandoned = True
            raise
        except Abandoned:
            raise DeadlineExceeded("it could not have been done before its deadline, and was not begun") from None

    @contextmanager
    def _measured(self, op: str, stages: Stages) -> Iterator[Stages]:
        """Stages of one step of a request: shown to its client, and counted."""
        timed = Stages()
        try:
            yield timed
        finally:
            stages.join(timed)
            self._metrics.stages(op, timed)

    def give_up(self, reason: str) -> None:
        """Tell all who wait for the device that it is lost."""
        self._device.give_up(reason)

    def close(self) -> None:
        """Finish what has begun, drop what waits."""
        self._images_in.shutdown(cancel_futures=True)
        self._bitstreams_in.shutdown(cancel_futures=True)
        self._images.close()
        self.closed = self._device.close()
        self._files_out.shutdown(cancel_futures=True)
        self._slow_out.shutdown(cancel_futures=True)
