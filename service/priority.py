"""Who may wait: the threads that compute. The event loop answers probes and refusals beside them, on the same cores."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICE = 5


_SECONDS_OF_PYTHON = 0.001


def prefer_event_loop() -> None:
    """Let the event loop have the interpreter's lock sooner when another thread runs Python: once for the process."""
    sys.setswitchinterval(_SECONDS_OF_PYTHON)


def give_way() -> None:
    """Let the calling thread, and those that it starts, run behind the event loop. On Linux, and nowhere else."""
    if not hasattr(os, "SCHED_BATCH"):
        return
    with contextlib.suppress(OSError):  # a sandbox may forbid it; then it is only slower
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
