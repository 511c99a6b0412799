"""CRC-32C of one 32-bit number more, inside compiled loops: the processor's instruction where it has one."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from model.vectors import has

BEFORE = 0xFFFFFFFF
"""The register before the first number; the CRC is the register's complement."""


def _tables() -> NDArray[np.uint32]:
    """CRC-32C of a byte, of a byte and one, two or three zeros behind it: (4, 256), for four bytes a step."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    tables = [table]
    for _ in range(3):
        tables.append((tables[-1] >> 8) ^ table[tables[-1] & 0xFF])
    return np.stack(tables)


_TABLES = _tables()


@numba.njit(nogil=True)
def by_table(register, number):  # type: ignore[no-untyped-def]  # numba infers
    """On any processor."""
    mixed = register ^ number
    return (
        _TABLES[3, mixed & np.uint32(0xFF)]
        ^ _TABLES[2, (mixed >> np.uint32(8)) & np.uint32(0xFF)]
        ^ _TABLES[1, (mixed >> np.uint32(16)) & np.uint32(0xFF)]
        ^ _TABLES[0, mixed >> np.uint32(24)]
    )


@intrinsic
def by_instruction(_typing: Any, _register: Any, _number: Any) -> Any:
    """By an instruction that x86 processors have had since 2011, and LLVM calls so on no other kind."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        function = ir.FunctionType(word, [word, word])
        step = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, function, "llvm.x86.sse42.crc32.32.32"
        )
        return builder.call(step, arguments)

    return types.uint32(types.uint32, types.uint32), generate


update: Any = by_instruction if has("crc32") else by_table
"""The register after one number more."""
