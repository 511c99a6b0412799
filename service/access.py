"""Who may read a stored bitstream: whoever has a signed URL of it, or a key with the scope `decode`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Security
from fastapi.security import HTTPAuthorizationCredentials
from starlette.requests import Request

from service import auth
from service.context import Here
from service.errors import InvalidSignature, UrlExpired
from service.keys import Scope

PROBLEMS = (*auth.PROBLEMS, InvalidSignature, UrlExpired)
"""What a route that is read with `Reader` can answer."""

YEAR = 31_536_000


@dataclass(frozen=True)
class Access:
    """How a request may read.

    Attributes:
        shared: whether a cache may give the answer to others; with an API key it may not.
        seconds: that the request's address is good for; None without an end.
    """

    shared: bool
    seconds: int | None = None

    def cache_control(self, remaining: float | None) -> str:
        """The header of that name, for an object that lives so long, None for ever.

        What an id names never changes; but no cache may serve it when address or object are gone.
        """
        ends = [YEAR, *(int(end) for end in (remaining, self.seconds) if end is not None)]
        return f"{'public' if self.shared else 'private'}, max-age={min(ends)}, immutable"


async def _read(
    request: Request,
    here: Here,
    expires: Annotated[
        int | None, Query(description="Of a signed URL: its end, seconds since 1970.", examples=[1798761600])
    ] = None,
    key: Annotated[str | None, Query(description="Of a signed URL: the id of the key that signed it.")] = None,
    signature: Annotated[str | None, Query(description="Of a signed URL.")] = None,
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(auth.BEARER)] = None,
    _api_key: Annotated[str | None, Security(auth.API_KEY)] = None,
) -> Access:
    if here.signing and signature is not None:
        if expires is None or key is None:
            raise InvalidSignature("a signed URL has `expires`, `key` and `signature`")
        here.signing.check(request.scope["path"], expires, key, signature)
        return Access(shared=True, seconds=max(0, expires - int(time.time())))
    if here.keys:
        auth.authorise(request, here, Scope.DECODE)
        return Access(shared=False)
    if here.signing:
        raise InvalidSignature("this address is read with a signed URL only, and this one carries no signature")
    return Access(shared=True)


Reader = Annotated[Access, Security(_read)]
