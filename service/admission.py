"""Who is let in: a bound on the requests and pixels that are inside, and what those refused are told.

A request takes its place before its body is read, says how many pixels it has as soon as its header is known, and
leaves when its answer begins, or when nothing is left but to store it. Who finds no place is refused at once: that
costs no parsing, no memory and no thread.
Unless somebody holds one whose body hardly comes: it is shown out.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answers import answer
from service.arrival import PACE, Arrival
from service.errors import Draining, NotReady, Problem, RequestTimeout, Saturated, WorkerLost
from service.identity import Record
from service.metrics import Metrics

_WORK = frozenset({"/v1/encode", "/v1/decode", "/v1/bitstreams"})
_MOST_SECONDS = 600  # that anyone is told to wait
_place: ContextVar[Place] = ContextVar("place")


def asks_for_work(scope: Scope) -> bool:
    """Whether a request is one for the device: a POST of an image or a bitstream."""
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _WORK


class Rate:
    """How fast the device works, of late. Any thread may call it."""

    _KEPT = 0.9  # of the past, with each batch

    def __init__(self) -> None:
        self._items = self._pixels = self._seconds = 0.0

    def add(self, items: int, pixels: int, seconds: float) -> None:
        """A batch was done."""
        kept = self._KEPT
        self._items, self._pixels, self._seconds = (
            kept * self._items + items,
            kept * self._pixels + pixels,
            kept * self._seconds + seconds,
        )

    def doubt(self) -> None:
        """Somebody was turned away because of this estimate: the next is judged a little more kindly."""
        self._seconds *= 0.95

    @property
    def pixels_per_second(self) -> float:
        """0 as long as nothing was measured."""
        return self._pixels / self._seconds if self._seconds else 0.0

    def seconds(self, pixels: float, items: int = 0) -> float:
        """What pixels will take, and items whose pixels are not known yet; 0 as long as nothing was measured."""
        if not self._pixels:
            return 0.0
        return (pixels + items * self._pixels / self._items) / self.pixels_per_second


class Place:
    """One request inside.

    Attributes:
        arrival: of its body, where one is to come.
        pixels: it has said that it has; None as long as it has not.
    """

    def __init__(self, admission: Admission, arrival: Arrival | None = None, *, exempt: bool = False) -> None:
        self._admission, self._exempt = admission, exempt
        self.arrival = arrival
        self.pixels: int | None = None
        self.left = False

    @property
    def behind(self) -> float:
        """Seconds that its body is behind what keeps a place; not positive where it is not."""
        return self.arrival.behind if self.arrival else 0.0

    @property
    def shown_out(self) -> bool:
        """Its body came too slowly; the request is about to end, and takes no other."""
        return self.arrival is not None and self.arrival.cut

    def claim(self, pixels: int) -> None:
        """Say how large the picture is, before it costs anything.

        Raises:
            Saturated: there is no room for so many; whoever is alone has room for any number.
        """
        if not self._exempt:
            self._admission.claim(self, pixels)

    def leave(self) -> None:
        """Make room. A second time does nothing."""
        if not self._exempt:
            self._admission.release(self)


class Admission:
    """The places. Any thread may call it.

    Args:
        max_items: requests that may be inside.
        max_pixels: of all of them together.

    Attributes:
        rate: of the device.
        closed: the process is about to end, nobody is let in.
        lost: why no work can be done any more.
        unfit: why none should be: a model has failed its trial.
    """

    def __init__(self, metrics: Metrics, *, max_items: int, max_pixels: int) -> None:
        self.rate = Rate()
        self.closed = False
        self.lost: str | None = None
        self.unfit: str | None = None
        self._metrics, self._max_items, self._max_pixels = metrics, max_items, max_pixels
        self._inside: set[Place] = set()
        self._pixels = 0
        self._lock = threading.Lock()
        metrics.places.set_function(lambda: len(self))
        metrics.device_rate.set_function(lambda: self.rate.pixels_per_second)

    def __len__(self) -> int:
        """Requests inside."""
        return len(self._inside)

    def enter(self, arrival: Arrival | None = None) -> Place:
        """A place, of whoever's body arrives so.

        Raises:
            Saturated: there is none; the problem says when to come again.
            Draining: this process is about to end.
            WorkerLost: it will never do any work again.
            NotReady: what it does cannot be trusted.
        """
        if self.lost:
            raise WorkerLost(self.lost)
        if self.unfit:
            raise NotReady(self.unfit, headers={"Retry-After": "1"})
        if self.closed:
            raise Draining("this server is being stopped; another takes its place")
        with self._lock:
            if len(self._inside) >= self._max_items and self._pixels < self._max_pixels:
                self._show_out()
            if len(self._inside) >= self._max_items or self._pixels >= self._max_pixels:
                raise self._saturated()
            place = Place(self, arrival)
            self._inside.add(place)
        return place

    @contextmanager
    def place(self) -> Iterator[Place]:
        """The place that the request in hand has; one of its own for work that has none yet."""
        place = _place.get(None)
        if place and (not place.left or place.shown_out):
            yield place
            return
        place = self.enter()
        try:
            yield place
        finally:
            place.leave()

    def leave(self) -> None:
        """Make room: what is left of the request in hand is not work for the device."""
        if place := _place.get(None):
            place.leave()

    @contextmanager
    def exempt(self) -> Iterator[None]:
        """For the service's own trial, which must not fail because others have taken the places."""
        token = _place.set(Place(self, exempt=True))
        try:
            yield
        finally:
            _place.reset(token)

    def claim(self, place: Place, pixels: int) -> None:
        """See `Place.claim`."""
        with self._lock:
            others = self._pixels - (place.pixels or 0)
            if others and others + pixels > self._max_pixels:
                raise self._saturated()
            if not place.left:
                self._pixels, place.pixels = others + pixels, pixels

    def release(self, place: Place) -> None:
        """See `Place.leave`."""
        with self._lock:
            self._inside.discard(place)
            if not place.left:
                self._pixels -= place.pixels or 0
            place.left = True

    def _show_out(self) -> None:
        """Whose body is furthest behind, if any is."""
        slowest = max(self._inside, key=lambda place: place.behind)
        if slowest.arrival and slowest.behind > 0:
            self._inside.discard(slowest)
            slowest.left = True  # it has no pixels yet
            slowest.arrival.end()

    def _saturated(self) -> Saturated:
        unknown = sum(place.pixels is None for place in self._inside)
        wait = self.rate.seconds(self._pixels, unknown)
        seconds = max(1, min(math.ceil(wait), _MOST_SECONDS))
        return Saturated(
            f"{len(self._inside)} requests are waiting or being worked on; try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )


class Gate:
    """ASGI middleware: who asks for work takes a place, or is refused before anything of the body is read."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self.app, self.admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if not asks_for_work(scope):
            await self.app(scope, receive, send)
            return
        record = Record.of(scope)
        record.route = scope["path"]  # so that who is refused before routing is counted where it belongs
        arrival, begun = Arrival(record), False
        try:
            place = self.admission.enter(arrival)
        except Problem as refusal:
            await answer(scope, refusal)(scope, receive, send)
            return
        token = _place.set(place)

        async def leaving(message: Message) -> None:
            nonlocal begun
            begun = True
            place.leave()  # when the answer begins: who reads it slowly keeps nobody out
            await send(message)

        try:
            await self.app(scope, receive, leaving)
        except asyncio.CancelledError:
            if begun or not arrival.cut:
                raise
            arrival.forget()
            slow = f"the body came at less than {PACE >> 10} KiB a second, and others wanted its place"
            await answer(scope, RequestTimeout(slow, headers={"Connection": "close"}))(scope, receive, send)
        finally:
            _place.reset(token)
            place.leave()
