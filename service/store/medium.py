"""What a bitstream can lie in: the few blocking calls that the store is made of, the same for every medium.

An object is named by the SHA-256 of its bytes. Whoever writes one twice writes the same bytes, so that writers never
have to agree about anything, in one process or in many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

ID_PATTERN = r"^[0-9a-f]{64}$"
SUFFIX = ".tcm"
MAX_OBJECT_BYTES = 256 << 20
"""No .tcm of the largest picture comes near it; what is larger is damaged, and not read."""


class MediumFailed(Exception):
    """The medium refused, or could not be reached. The message is for the operator."""


@dataclass(frozen=True)
class Meta:
    """What is known of an object without reading it.

    Attributes:
        id: hex of its SHA-256.
        size: bytes.
        stored: when it was last written, seconds since 1970.
    """

    id: str
    size: int
    stored: float


class Medium(Protocol):
    """Where objects lie. Every call blocks, and raises `MediumFailed` or OSError where the medium fails."""

    @property
    def url(self) -> str:
        """As the setting names it."""

    def write(self, digest: str, data: bytes) -> None:
        """Keep an object. When this returns it is durable; until then nobody sees any of it."""

    def read(self, digest: str) -> bytes | None:
        """The bytes that lie there, unchecked, and none of them if they are too many; None where nothing lies."""

    def stat(self, digest: str) -> Meta | None:
        """What is known of an object; None where there is none."""

    def delete(self, digest: str) -> None:
        """Remove an object; nothing happens where there is none."""

    def expire(self, digest: str, before: float) -> bool:
        """Remove an object if it was last written before this moment, and say whether it was removed."""

    def entries(self) -> Iterator[Meta]:
        """Every object, in no order that one may rely on."""

    def sweep(self, before: float, *, dry_run: bool = False) -> int:
        """Remove what killed writers left before this moment; how many pieces that were, or would be."""


def identify(data: bytes) -> str:
    """The hexadecimal SHA-256 of these bytes, which is their id."""
    return hashlib.sha256(data).hexdigest()


def place(digest: str) -> str:
    """Where an object lies below the root; the same in every medium, so that stores can be copied as they are."""
    return f"{digest[:2]}/{digest}{SUFFIX}"
