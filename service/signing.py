"""Signed URLs: whoever has one may read one bitstream, or its picture, until its time is over.

What is signed is the path, the end and the id of the key: HMAC-SHA256 over the three, a line feed between, in
hexadecimal, as `?expires=…&key=…&signature=…`. Several keys are active at once, so that one is replaced without
breaking URLs: put the new one second, first when every replica knows it, and take the old one out when its last URL has
ended.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from urllib.parse import urlencode

from service.errors import InvalidSignature, UrlExpired

MIN_SECRET = 32
"""Characters; `openssl rand -hex 32` makes 64."""

_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")


class SigningKeys:
    """The active keys.

    Args:
        text: `id:secret,id:secret`; the first one signs.

    Raises:
        ValueError: it is not that. The message repeats no secret.
    """

    def __init__(self, text: str) -> None:
        self._secrets: dict[str, bytes] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, _, secret = part.partition(":")
            if not _KEY_ID.fullmatch(key) or len(secret) < MIN_SECRET or key in self._secrets:
                raise ValueError(
                    "signing keys are id:secret,id:secret; ids differ and have 1 to 32 letters, digits, hyphens or "
                    f"underscores; a secret has at least {MIN_SECRET} characters (openssl rand -hex 32)"
                )
            self._secrets[key] = secret.encode()
        if not self._secrets:
            raise ValueError("there is no signing key; one reads id:secret")

    def sign(self, path: str, expires: int, key: str | None = None) -> str:
        """The path with its signature.

        Args:
            path: from the root of the service.
            expires: seconds since 1970.
            key: the id of the key; the first one where none is named.

        Raises:
            ValueError: there is no such key.
        """
        key = key or next(iter(self._secrets))
        if key not in self._secrets:
            raise ValueError(f"there is no signing key {key!r}; active are: {', '.join(self._secrets)}")
        query = {"expires": expires, "key": key, "signature": _signature(self._secrets[key], path, expires, key)}
        return f"{path}?{urlencode(query)}"

    def check(self, path: str, expires: int, key: str, signature: str) -> None:
        """Let a signature pass.

        Raises:
            InvalidSignature: it was not made by an active key, or for something else.
            UrlExpired: it was good once.
        """
        secret = self._secrets.get(key, b"")
        expected = _signature(secret, path, expires, key)
        same = hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))
        if not (same and secret):
            raise InvalidSignature("the signature does not belong to this address, end and key, or the key has gone")
        if expires <= time.time():
            raise UrlExpired("the time of this signed URL is over; ask whoever gave it to you for a new one")


def _signature(secret: bytes, path: str, expires: int, key: str) -> str:
    return hmac.new(secret, f"{path}\n{expires}\n{key}".encode(), hashlib.sha256).hexdigest()
