"""Who may do what: a key and its scopes, checked before the body of a request is read.

A route names what it asks for: `@router.post(…, dependencies=[auth.ENCODE])`. Without a keys file all are open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.requests import Request

from service.context import Context, Here
from service.errors import InsufficientScope, InvalidKey, KeyRequired
from service.identity import Record
from service.keys import Keys, Scope
from service.limits import check_length, declared_length

HEADER = "X-API-Key"
PROBLEMS = (KeyRequired, InvalidKey, InsufficientScope)
"""What a route that asks for a key can answer."""

_CHALLENGE = 'Bearer realm="tcm"'
# they declare the schemes in the OpenAPI document; `authorise` reads the headers itself
BEARER = HTTPBearer(scheme_name="bearer", description="A key made by `tcm keys new`.", auto_error=False)
API_KEY = APIKeyHeader(scheme_name="header", name=HEADER, description="The same, without `Bearer`.", auto_error=False)


def authorise(request: Request, here: Context, *scopes: Scope) -> None:
    """Let a request pass if its key has these scopes; with none, any key will do.

    The record of the request then has the key.

    Raises:
        BodyTooLarge: its declared length passes the limit; said first, since that costs nothing.
        KeyRequired: it has no key.
        InvalidKey: its key is unknown, revoked or expired.
        InsufficientScope: its key is for something else.
        QuotaExceeded: its caller has asked for too much of late.
    """
    check_length(declared_length(request.headers), here.settings.max_body_bytes)
    if here.keys is not None:
        _identify(request, here, here.keys, scopes)
    elif here.signing and Scope.ADMIN in scopes:  # everybody who has a signed URL knows what to ask for
        challenge = {"WWW-Authenticate": _CHALLENGE}
        raise KeyRequired("this server has no API keys, and deletes nothing for who has none", headers=challenge)
    if here.quota is not None:
        here.quota.spend(request.scope)


def _identify(request: Request, here: Context, keys: Keys, scopes: Sequence[Scope]) -> None:
    presented = _presented(request)
    if presented is None:
        raise KeyRequired(
            f"send an API key as `Authorization: Bearer …` or `{HEADER}: …`", headers={"WWW-Authenticate": _CHALLENGE}
        )
    key = Record.of(request.scope).key = keys.find(presented)
    if key is None or key.expired:
        wrong = "the API key is unknown or was revoked" if key is None else f"the API key {key.id} has expired"
        challenge = f'{_CHALLENGE}, error="invalid_token", error_description="{wrong}"'
        raise InvalidKey(wrong, headers={"WWW-Authenticate": challenge})
    here.metrics.count_key(key.name)
    missing = set(scopes) - key.scopes
    if missing:
        named = " ".join(sorted(missing))
        challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{named}"'
        raise InsufficientScope(
            f"the API key {key.id} lacks the scope {named}", headers={"WWW-Authenticate": challenge}
        )


def _presented(request: Request) -> str | None:
    if key := request.headers.get(HEADER):  # first: the other header may be a gateway's
        return key
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    return credentials.strip() or None if scheme.lower() == "bearer" else None


async def _require(
    request: Request,
    here: Here,
    wanted: SecurityScopes,
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
    _api_key: Annotated[str | None, Security(API_KEY)],
) -> None:
    authorise(request, here, *map(Scope, wanted.scopes))


ENCODE = Security(_require, scopes=[Scope.ENCODE])
DECODE = Security(_require, scopes=[Scope.DECODE])
ADMIN = Security(_require, scopes=[Scope.ADMIN])
ANY_KEY = Security(_require)
