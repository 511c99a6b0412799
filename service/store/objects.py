"""Bitstreams in a bucket of any S3-compatible store, through obstore: BUCKET/PREFIX/ab/ab12….tcm.

Credentials, endpoint and region come from the environment, as for every other client: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION, or the role of the machine.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from model.container import MEDIA_TYPE
from service.store.medium import ID_PATTERN, MAX_OBJECT_BYTES, SUFFIX, MediumFailed, Meta, place

if TYPE_CHECKING:
    from obstore import ObjectMeta

_ID = re.compile(ID_PATTERN)
_RETRIES = 2


class Objects:
    """A bucket as a medium. An upload is one request, so that it is there whole or not at all.

    Args:
        url: s3://bucket/prefix.
        seconds: after which one call is given up, its retries included.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._there = False  # the bucket, for all that is known
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        limit = timedelta(seconds=seconds)
        with _failing():
            self._store = S3Store.from_url(
                url,
                client_options={
                    "timeout": limit,
                    "connect_timeout": min(limit, timedelta(seconds=3)),
                    "allow_http": endpoint.startswith("http://"),  # who names such an endpoint means it
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": limit},
            )

    @property
    def url(self) -> str:
        """As the setting names it."""
        return self._url

    def write(self, digest: str, data: bytes) -> None:
        """Keep an object; one that lies there, even damaged, is replaced, and its age begins anew."""
        with _failing():
            attributes = {"Content-Type": MEDIA_TYPE}
            obstore.put(self._store, place(digest), data, use_multipart=False, attributes=attributes)

    def read(self, digest: str) -> bytes | None:
        """The bytes that lie there."""
        with _failing():
            try:
                found = obstore.get(self._store, place(digest))
                return bytes(found.bytes()) if found.meta["size"] <= MAX_OBJECT_BYTES else b""
            except FileNotFoundError:
                self._check()
                return None

    def stat(self, digest: str) -> Meta | None:
        """What is known of an object."""
        with _failing():
            try:
                return _meta(digest, obstore.head(self._store, place(digest)))
            except FileNotFoundError:
                self._check()
                return None

    def delete(self, digest: str) -> None:
        """Remove an object."""
        with _failing(), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, place(digest))

    def expire(self, digest: str, before: float) -> bool:
        """Remove an object that is older than this. S3 has no test-and-delete: one written just now may go, too."""
        meta = self.stat(digest)
        if meta is None or meta.stored >= before:
            return False
        self.delete(digest)
        return True

    def entries(self) -> Iterator[Meta]:
        """Every object, by rising id."""
        with _failing():
            for page in obstore.list(self._store):
                for found in page:
                    path = PurePosixPath(found["path"])
                    if path.suffix == SUFFIX and _ID.fullmatch(path.stem):
                        yield _meta(path.stem, found)

    def sweep(self, before: float, *, dry_run: bool = False) -> int:  # noqa: ARG002
        """Nothing: an upload leaves no parts."""
        return 0

    def _check(self) -> None:
        """That there is a bucket: in one that is not there, a slip of the pen, everything would seem deleted."""
        if self._there:
            return
        try:
            next(iter(obstore.list(self._store, chunk_size=1)), None)
        except BaseError as error:
            if "<Code>NoSuchBucket</Code>" in str(error):
                raise MediumFailed(f"there is no bucket {urlsplit(self._url).netloc}") from error
            return  # who may not list is not told
        self._there = True


def _meta(digest: str, found: ObjectMeta) -> Meta:
    return Meta(digest, found["size"], found["last_modified"].timestamp())


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except (BaseError, ValueError) as error:
        raise MediumFailed(str(error).partition("\n")[0]) from error
