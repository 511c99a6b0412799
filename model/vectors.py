"""What numba has no name for: bits of float32, vectors of 16 of them, and the functions that layers end in."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

LANES = 16
"""Of a vector: one register where there is AVX-512, two or four elsewhere."""

VECTOR = ir.VectorType(ir.FloatType(), LANES)
_ZERO, _NOWHERE = ir.Constant(ir.IntType(32), 0), ir.Constant(VECTOR, ir.Undefined)
_SMALLEST = -100.0  # of an exponent of 2: what is below counts as nothing, and no product becomes denormal


def has(feature: str) -> bool:
    """Whether the processor that numba compiles for, which need not be this one, has what LLVM calls so."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return f"+{feature}" in str(features).split(",")


# ---- in the bodies of intrinsics


def load(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    """16 elements of an array (its type, its value) of float32 from `place` on."""
    return builder.load(_pointer(context, builder, kind, array, place), align=4)


def store(context: Any, builder: Any, kind: Any, array: Any, place: Any, value: Any) -> None:
    """The inverse of `load`."""
    builder.store(value, _pointer(context, builder, kind, array, place), align=4)


def everywhere(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    """One element, 16 times."""
    one = builder.load(builder.gep(context.make_array(kind)(context, builder, array).data, [place]))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(builder.insert_element(_NOWHERE, one, _ZERO), _NOWHERE, lanes)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), VECTOR.as_pointer())


# ---- in compiled loops


def _as_float(_typing: Any, _bits: Any) -> Any:
    """The float32 of these 32 bits."""

    def cast(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), cast


as_float: Any = intrinsic(_as_float)


def _as_bits(_typing: Any, _value: Any) -> Any:
    """The 32 bits of a float32."""

    def cast(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), cast


as_bits: Any = intrinsic(_as_bits)


@numba.njit(inline="always")
def exp(x):  # type: ignore[no-untyped-def]  # numba infers
    """e^x for x <= 0, to 3e-7 of itself: 2^n by its bits, times a polynomial in the rest."""
    t = max(x * np.float32(1.44269504), np.float32(_SMALLEST))
    n = np.floor(t + np.float32(0.5))
    f = t - n
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1)
    return p * as_float(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@numba.njit(inline="always")
def gelu(x):  # type: ignore[no-untyped-def]
    """x·Φ(x) to 1e-7, as max(x, 0) - |x|·erfc(|x|/√2)/2, where nothing cancels."""
    a = abs(x)  # erfc is a polynomial in t, times that exponential
    t = np.float32(1) / (np.float32(1) + np.float32(0.28) * a)
    p = np.float32(-0.10755484)
    p = p * t + np.float32(0.39698982)
    p = p * t + np.float32(-0.24851771)
    p = p * t + np.float32(0.27818219)
    p = p * t + np.float32(0.06379150)
    p = p * t + np.float32(0.11710900)
    return max(x, np.float32(0)) - a * t * p * exp(np.float32(-0.5) * a * a)
