"""Pictures of stored bitstreams: decoded once for all who ask at the same time, and kept in bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from model.container import Container
from model.stages import Stages
from model.zoo import Zoo
from service.metrics import Metrics
from service.negotiation import ImageFormat
from service.scheduler import Scheduler
from service.shared import SharedCache
from service.store.store import Store

_BITSTREAMS = 8
"""One part in so many of the memory is for bitstreams, which are about that much smaller than their pictures."""
_OVERHEAD = 1024
"""About the bytes that anything kept takes beside its content: those of tiny pictures are most of it."""


@dataclass(frozen=True)
class Reconstruction:
    """The image file of a stored bitstream.

    Attributes:
        data: the file.
        digest: its SHA-256.
        model: that decoded it.
    """

    data: bytes
    digest: bytes
    model: str


def _of_bitstream(container: Container) -> int:
    """Bytes, metadata inflated: a file of a few kilobytes may hold megabytes of them."""
    c = container
    return _OVERHEAD + sum(len(part) for part in (c.payload, c.alpha, c.icc, c.exif, c.xmp) if part is not None)


def _of_image(image: Reconstruction) -> int:
    return _OVERHEAD + len(image.data)


class Reconstructions:
    """What handlers ask for pictures.

    Args:
        store: where the bitstreams are.
        scheduler: that decodes them.
        zoo: the models.
        metrics: where it is counted who was served how.
        max_bytes: of pictures and bitstreams that are kept; 0 for none.
    """

    def __init__(self, store: Store, scheduler: Scheduler, zoo: Zoo, metrics: Metrics, max_bytes: int) -> None:
        self._store, self._scheduler, self._zoo, self._metrics = store, scheduler, zoo, metrics
        self._opened: SharedCache[Container] = SharedCache(max_bytes // _BITSTREAMS, _of_bitstream)
        self._images: SharedCache[Reconstruction] = SharedCache(max_bytes - max_bytes // _BITSTREAMS, _of_image)
        metrics.reconstruction_cache.set_function(lambda: self._opened.memory + self._images.memory)

    async def open(self, digest: str, stages: Stages) -> Container:
        """A stored bitstream, taken apart.

        Raises:
            BitstreamNotFound, DamagedBitstream, StoreUnavailable: as `Store.get` does.
            ModelError: as `Scheduler.inspect` does, where the server's limits have changed.
        """

        async def make() -> Container:
            with stages("store"):
                data = await self._store.get(digest)
            return await self._scheduler.inspect(data, stages=stages)

        container, _ = await self._opened.get(digest, make)
        return container

    async def image(
        self, digest: str, container: Container, wanted: ImageFormat, stages: Stages
    ) -> tuple[Reconstruction, str]:
        """The picture in this format, and whether it comes from the "cache", was "shared" or "made" now.

        Raises:
            IncompatibleModel: the weights that it needs are not here.
            Problem, ModelError: as `Scheduler.decode` does.
        """

        async def make() -> Reconstruction:
            entry = self._zoo.by_fingerprint(container.fingerprint, container.model)
            data = await self._scheduler.decode(container, entry, wanted.name, stages=stages)
            summed = await asyncio.to_thread(hashlib.sha256, data)
            return Reconstruction(data, summed.digest(), entry.name)

        image, source = await self._images.get((digest, wanted.name), make)
        self._metrics.reconstructions.labels(source).inc()
        return image, source

    def forget(self, digest: str) -> None:
        """Keep nothing of this bitstream."""
        self._opened.drop(lambda key: key == digest)
        self._images.drop(lambda key: key[0] == digest)
