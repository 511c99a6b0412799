"""Standard streams that a shell has closed (`>&-`): a file that is opened later must not become one of them."""

from __future__ import annotations

import os
import sys


def open_what_is_closed() -> None:
    """Give their numbers to nothing: for this process, and for those that it starts."""
    # what is asked for on a closed standard output must fail, not vanish: that one is open for reading alone
    for name, mode, flag in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, flag)
            os.set_inheritable(file, True)
            setattr(sys, name, os.fdopen(file, mode))
