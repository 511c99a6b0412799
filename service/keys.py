"""The API keys: random strings of which the server keeps only SHA-256, in a file that it follows.

A key reads `tcm_{id}_{secret}`. The id finds its entry; the secret has 256 random bits, so that a fast hash is as good
as a slow one: there is nothing to guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from service.metrics import Metrics
from service.threads import Threads

log = structlog.get_logger()
T = TypeVar("T")

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
POLL_SECONDS = 1.0
PATIENCE = 5.0
"""Seconds for one look at the file, whose medium may hang."""
_LOOKS = 4
"""That may hang at a time."""

_KEY = re.compile(r"tcm_([0-9a-f]{8})_[0-9a-f]{64}")
_NOBODY = "0" * 64  # compared with where the id is unknown, so that both cases do the same work


class Scope(StrEnum):
    """What a key is good for; none includes another."""

    ENCODE = "encode"
    DECODE = "decode"
    ADMIN = "admin"
    METRICS = "metrics"


class Key(BaseModel):
    """One entry of the file.

    Attributes:
        id: of the entry; no secret.
        name: whose it is. Two keys may share one, which is how a key is replaced without a gap.
        sha256: of the whole key, hexadecimal.
        expires: the first moment at which it is refused; None for never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(pattern=NAME_PATTERN)
    scopes: frozenset[Scope]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    created: AwareDatetime
    expires: AwareDatetime | None = None

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key]


def new_key(name: str, scopes: frozenset[Scope], expires: datetime | None) -> tuple[str, Key]:
    """The key itself, which is nowhere kept, and its entry."""
    key_id = secrets.token_hex(4)
    key = f"tcm_{key_id}_{secrets.token_hex(32)}"
    entry = Key(
        id=key_id,
        name=name,
        scopes=scopes,
        sha256=_digest(key),
        created=datetime.now(UTC).replace(microsecond=0),
        expires=expires,
    )
    return key, entry


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read(path: Path) -> list[Key]:
    """The entries of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file of keys, or two entries share an id.
    """
    try:
        data = path.read_bytes()
        keys = _File.model_validate_json(data).keys
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is no file of keys: {f'{where}: ' if where else ''}{first['msg']}") from None
    if len({key.id for key in keys}) < len(keys):
        raise ValueError(f"{path} has two keys with one id")
    json.loads(data, object_pairs_hook=lambda pairs: _each_once(path, [name for name, _ in pairs]))
    return keys


def _each_once(path: Path, names: list[str]) -> None:
    """Or the last would win, and a list of keys before it be gone without a word."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"{path} is no file of keys: {name!r} is given twice")


@contextlib.contextmanager
def edit(path: Path) -> Iterator[list[Key]]:
    """The entries, to be changed in place: written back at once or not at all, by one process at a time."""
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        keys = read(path) if path.exists() else []
        yield keys
        _write(path, keys)
        os.fsync(directory)
    finally:
        os.close(directory)


def _write(path: Path, keys: list[Key]) -> None:
    before = path.stat() if path.exists() else None
    rows = [key.model_dump(mode="json") | {"scopes": sorted(key.scopes)} for key in keys]
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as beside:
        try:
            os.fchmod(beside.fileno(), before.st_mode & 0o777 if before else 0o600)
            if before and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                _give_to(beside.fileno(), before)  # who wrote it first must go on reading it, whoever changes it
            beside.write(json.dumps({"keys": rows}, indent=2) + "\n")
            beside.flush()
            os.fsync(beside.fileno())
            Path(beside.name).replace(path)
        except BaseException:
            Path(beside.name).unlink(missing_ok=True)
            raise


def _give_to(descriptor: int, before: os.stat_result) -> None:
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except PermissionError as error:
        owner = f"{before.st_uid}:{before.st_gid}"
        raise PermissionError(f"it belongs to {owner}: change it as that user, or as root") from error


class Keys:
    """The keys of a file, as it is now. Belongs to the event loop; only reading the file leaves it.

    A file that can no longer be read changes nothing: the keys read last stay good, and log and metric say so.

    Raises:
        OSError: the file cannot be read to begin with.
        ValueError: it is no file of keys.
    """

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._path, self._metrics = path, metrics
        self._threads = Threads(_LOOKS, PATIENCE)
        self._stamp: tuple[int, ...] | None = _stamp(path)
        self._take(read(path))

    def find(self, presented: str) -> Key | None:
        """The entry of a key, expired or not; None where there is no such key."""
        match = _KEY.fullmatch(presented)
        if match is None:
            return None
        key = self._keys.get(match[1])
        same = hmac.compare_digest(_digest(presented), key.sha256 if key else _NOBODY)
        return key if same else None

    async def follow(self) -> None:
        """Take up every change of the file within about a second, for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self._reload()

    async def _reload(self) -> None:
        try:
            stamp = await self._look(_stamp)
            if stamp == self._stamp:
                return
            self._stamp = stamp  # before reading: a change meanwhile is seen next time
            keys = await self._look(read)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look may succeed
            if self._healthy:
                reason = str(error) or f"nothing came of it for {PATIENCE:g} s"
                log.error("keys file cannot be read, the earlier keys stay", reason=reason)
            if not isinstance(error, ValueError):
                self._stamp = None  # it may come back as it was
            self._say(healthy=False)
            return
        self._take(keys)
        log.info("keys read again", keys=len(keys))

    async def _look(self, work: Callable[[Path], T]) -> T:
        async with asyncio.timeout(PATIENCE):
            return await self._threads.run(lambda: work(self._path))

    def _take(self, keys: list[Key]) -> None:
        self._keys = {key.id: key for key in keys}
        self._say(healthy=True)

    def _say(self, *, healthy: bool) -> None:
        self._healthy = healthy
        self._metrics.keys_loaded.set(len(self._keys))
        self._metrics.keys_healthy.set(healthy)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with the file: its ctime too where its size and its mtime do not, as with `chmod` or `cp -p`."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no file")  # reading a pipe may never end
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
