"""The store, as handlers use it: verified on read, bounded in time, and every failure has its name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import product
from typing import TypeVar

import structlog

from service.errors import BitstreamNotFound, DamagedBitstream, StoreDisabled, StoreUnavailable
from service.metrics import Metrics
from service.store.medium import Medium, MediumFailed, Meta, identify
from service.threads import Threads

log = structlog.get_logger()
T = TypeVar("T")

CALLS = 32
"""At a time. A medium that hangs takes so many threads, and no more."""
MOST_WRITES = 64
"""Begun or waiting. Each has its bytes in memory, and no place among the requests any more."""


class Store:
    """Bitstreams by the SHA-256 of their bytes.

    Args:
        medium: where they lie; None where this service keeps none.
        metrics: where calls, failures and damage are counted.
        seconds: after which a call is given up.
        ttl: seconds that an object lives after it was last written; None for ever.
    """

    def __init__(self, medium: Medium | None, metrics: Metrics, *, seconds: float, ttl: float | None) -> None:
        self._medium, self._metrics, self._seconds, self._ttl = medium, metrics, seconds, ttl
        self._threads = Threads(CALLS, seconds)
        self._writing = 0
        if medium:  # what appears late has no zero to rise from
            for op, reason in (*product(("write", "read", "stat", "delete"), ("error", "timeout")), ("write", "full")):
                metrics.store_failures.labels(op, reason)
                metrics.store_duration.labels(op)

    @property
    def url(self) -> str | None:
        """Where it is."""
        return self._medium.url if self._medium else None

    async def put(self, data: bytes) -> str:
        """Keep a bitstream, durably; the same bytes are the same object. Returns its id.

        Raises:
            StoreDisabled: this service has no store.
            StoreUnavailable: the medium failed, did not answer in time, or has too many to write already.
        """
        self.require_room()
        medium = self._open()

        def write() -> str:
            digest = identify(data)
            medium.write(digest, data)
            return digest

        self._writing += 1
        try:
            return await self._call("write", write)
        finally:
            self._writing -= 1

    async def stat(self, digest: str) -> Meta:
        """What is known of an object that is there.

        Raises:
            BitstreamNotFound: there is none, or its time is over.
            StoreDisabled, StoreUnavailable: as in `put`.
        """
        medium = self._open()
        meta = await self._call("stat", lambda: medium.stat(digest))
        if meta is None or self.remaining(meta) == 0:
            raise _not_found(digest)
        return meta

    async def get(self, digest: str) -> bytes:
        """The bytes of an object, whose SHA-256 is what was asked for. Whether its time is over, `stat` says.

        Raises:
            DamagedBitstream: other bytes lie there.
            BitstreamNotFound, StoreDisabled, StoreUnavailable: as in `stat`.
        """
        medium = self._open()

        def read() -> tuple[bytes | None, bool]:
            data = medium.read(digest)
            return data, data is None or identify(data) == digest

        data, sound = await self._call("read", read)
        if data is None:
            raise _not_found(digest)
        if not sound:
            self._metrics.store_damaged.inc()
            log.error("damaged bitstream", id=digest, bytes=len(data), store=medium.url)
            raise DamagedBitstream(f"the bytes that are stored as {digest} are others; store the bitstream anew")
        return data

    async def delete(self, digest: str) -> None:
        """Remove an object, sound or damaged, and one whose time is over, which may not be so elsewhere or for ever.

        Raises:
            BitstreamNotFound, StoreDisabled, StoreUnavailable: as in `stat`.
        """
        medium = self._open()
        meta = await self._call("stat", lambda: medium.stat(digest))
        if meta is None:
            raise _not_found(digest)
        if self._ttl is not None and self.remaining(meta) == 0:
            before = time.time() - self._ttl
            await self._call("delete", lambda: medium.expire(digest, before))  # not what is stored anew meanwhile
            raise _not_found(digest)
        await self._call("delete", lambda: medium.delete(digest))

    def remaining(self, meta: Meta) -> float | None:
        """Seconds that an object still has, 0 where its time is over; None where it lives for ever.

        Never more than a new one has: another clock may have stored it in what is the future here.
        """
        return None if self._ttl is None else min(self._ttl, max(0.0, meta.stored + self._ttl - time.time()))

    def require(self) -> None:
        """Say at once where there is no store, before anything is done in vain.

        Raises:
            StoreDisabled: this service has no store.
        """
        self._open()

    def require_room(self) -> None:
        """Say at once where nothing can be written, before an image is encoded in vain.

        Raises:
            StoreDisabled: this service has no store.
            StoreUnavailable: it has too many to write already.
        """
        self._open()
        if self._writing >= MOST_WRITES:
            self._metrics.store_failures.labels("write", "full").inc()
            raise StoreUnavailable(f"the medium has {self._writing} bitstreams to write; try again later")

    def _open(self) -> Medium:
        if self._medium is None:
            raise StoreDisabled("this service keeps no bitstreams: its setting TCM_STORE is `none`")
        return self._medium

    async def _call(self, op: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._threads.run(work)
        except (MediumFailed, OSError) as error:  # of which TimeoutError is one
            reason = "timeout" if isinstance(error, TimeoutError) else "error"
            self._metrics.store_failures.labels(op, reason).inc()
            log.error("store failed", op=op, reason=reason, error=str(error), store=self.url)
            told = "does not answer" if reason == "timeout" else "fails"
            raise StoreUnavailable(f"the medium {told}; try again later") from error
        finally:
            self._metrics.store_duration.labels(op).observe(time.perf_counter() - start)


def _not_found(digest: str) -> BitstreamNotFound:
    return BitstreamNotFound(f"no bitstream {digest} is stored here")
