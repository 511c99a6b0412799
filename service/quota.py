"""How often each caller may ask for work: a token bucket each, 429 for who has emptied it."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict

from starlette.types import Scope

from service.admission import asks_for_work
from service.errors import QuotaExceeded
from service.identity import Record

_MOST_CALLERS = 10_000  # remembered; the one not seen for longest is forgotten, and its bucket is full again


class Quota:
    """The buckets. Belongs to the event loop.

    Args:
        per_minute: requests that flow into a bucket.
        burst: requests that it holds.
    """

    def __init__(self, per_minute: int, burst: int) -> None:
        self._per_second, self._burst = per_minute / 60, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def spend(self, scope: Scope) -> None:
        """Count a request, if it asks for work.

        Raises:
            QuotaExceeded: its caller has none left; the problem says when there will be one again.
        """
        if not asks_for_work(scope):
            return
        who = caller(scope)
        now = time.monotonic()
        tokens, then = self._buckets.pop(who, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._per_second)
        spent = tokens >= 1
        self._buckets[who] = (tokens - spent, now)
        if len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)
        if not spent:
            seconds = math.ceil((1 - tokens) / self._per_second)
            raise QuotaExceeded(
                f"{round(60 * self._per_second)} requests a minute are your share; try again in {seconds} s",
                headers={"Retry-After": str(seconds)},
            )


def caller(scope: Scope) -> str:
    """The name on the caller's key, which all keys share that replace one another, or its network address."""
    key = Record.of(scope).key
    return f"key {key.name}" if key else _network(scope["client"][0] if scope.get("client") else "")


def _network(address: str) -> str:
    """An IPv6 host owns its /64: it is one caller."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    ip = getattr(ip, "ipv4_mapped", None) or ip  # as a socket for both kinds says it
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else str(ip)
