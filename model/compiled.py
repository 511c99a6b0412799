"""numba's njit for loops that take in code of other files.

What numba compiles is kept on disk, and compiled anew when the loop's own file has changed. Here it is too when one of
the others has: layouts and constants that two files must agree on would part else, without a word.
"""

from __future__ import annotations

import hashlib
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
            return _njit(*signature, nogil=True, cache=True, **options)(function)

        return compile_

    return njit
