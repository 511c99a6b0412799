"""How a run is asked to end early."""

from __future__ import annotations

import signal
from types import FrameType

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A run that a signal has ended early and in order.

    Attributes:
        exit_code: of the process, as a shell tells it: 128 and the number of the signal.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"interrupted at step {step}; --resume goes on")
        self.exit_code = 128 + number


class Interrupt:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request to end after this step.

    Attributes:
        number: of the signal that has come, or 0.
    """

    number = 0

    def __enter__(self) -> Interrupt:
        heeded = [s for s in _CAUGHT if signal.getsignal(s) is not signal.SIG_IGN]  # nohup has SIGHUP ignored
        try:
            self._before = {s: signal.signal(s, self._ask) for s in heeded}
        except ValueError:  # not the main thread: nothing to catch
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number
        signal.signal(number, self._before[signal.Signals(number)])
