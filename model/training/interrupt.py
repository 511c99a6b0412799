"""How a run is asked to end early."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request to end after this step."""

    asked = False

    def __enter__(self) -> Interrupt:
        try:
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: nothing to catch
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])
