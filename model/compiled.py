"""numba's njit for loops that take in code of other files.

What numba compiles is kept on disk, and compiled anew when the loop's own file has changed. Here it is too when one of
the others has: layouts and constants that two files must agree on would part else, without a word.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numba

_njit: Any = numba.njit


def compiled(*others: ModuleType) -> Callable[..., Callable[[Callable[..., Any]], Any]]:
    """An njit without the GIL, kept on disk as long as these modules' files stay as they are."""
    texts = b"".join(Path(str(module.__file__)).read_bytes() for module in others)
    version = hashlib.sha256(texts).hexdigest()[:8]

    def njit(*signature: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        def compile_(function: Callable[..., Any]) -> Any:
            function.__qualname__ += f"_{version}"  # by which numba names its file
            try:
                loop = _njit(nogil=True, cache=True, **options)(function)
            except RuntimeError:
                _warn("no folder that numba knows can be written to")
                loop = _njit(nogil=True, **options)(function)
            if not hasattr(loop, "compile"):  # NUMBA_DISABLE_JIT
                return loop
            _save_if_possible(loop)
            for one in signature:
                loop.compile(one)
            if signature:
                loop.disable_compile()
            return loop

        return compile_

    return njit


def _save_if_possible(loop: Any) -> None:
    """A full disk, say, makes the next start slow, and this one no failure."""
    cache = getattr(loop, "_cache", None)
    save = getattr(cache, "save_overload", None)
    if cache is None or save is None:
        return

    def try_to_save(*arguments: Any) -> None:
        try:
            save(*arguments)
        except OSError as error:
            _warn(str(error))

    cache.save_overload = try_to_save


@functools.cache
def _warn(reason: str) -> None:
    advice = "every start compiles them anew, unless NUMBA_CACHE_DIR names a folder with room"
    warnings.warn(f"compiled loops cannot be kept ({reason}): {advice}", RuntimeWarning, stacklevel=3)
