"""Winograd's steps on vectors of 16 channels, inside compiled loops (model/winograd.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from model.vectors import LANES, VECTOR, everywhere, has, load, store

alloca: Any = cgutils.alloca_once

TILES, VECTORS = (8, 2) if has("avx512f") else (6, 1)
"""That a step of the product takes: as many as have their sums in registers."""

PANEL = VECTORS * LANES
"""Channels that a step of the product gives."""


def _bt(builder: Any, d: list[Any]) -> list[Any]:
    """Bᵀ·d of four values."""
    differences = [(d[0], d[2]), (d[2], d[1]), (d[1], d[3])]
    first, third, fourth = (builder.fsub(a, b) for a, b in differences)
    return [first, builder.fadd(d[1], d[2]), third, fourth]


def _at(builder: Any, m: list[Any]) -> list[Any]:
    """Aᵀ·m of four values."""
    plus, minus = builder.fadd(m[1], m[2]), builder.fsub(m[1], m[2])
    return [builder.fadd(m[0], plus), builder.fsub(minus, m[3])]


def _both_ways(transform: Callable[[Any, list[Any]], list[Any]], builder: Any, values: list[Any]) -> list[Any]:
    """Of 4x4 values, row by row: their columns, then their rows."""
    columns = [transform(builder, values[j::4]) for j in range(4)]
    return [value for row in zip(*columns, strict=True) for value in transform(builder, list(row))]


def _times(builder: Any, value: Any, k: int) -> Any:
    return builder.mul(value, value.type(k))


def _spread(_typing: Any, pixels: Any, at: Any, line: Any, pixel: Any, out: Any, to: Any, step: Any) -> Any:
    """Bᵀ·d·B of the 4x4 pixels from pixels[at] on, `line` and `pixel` apart, into out[to], out[to + step] and on."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pixels_, at_, line_, pixel_, out_, to_, step_ = arguments
        places = [
            builder.add(builder.add(at_, _times(builder, line_, i)), _times(builder, pixel_, j))
            for i in range(4)
            for j in range(4)
        ]
        values = [load(context, builder, pixels, pixels_, place) for place in places]
        for k, value in enumerate(_both_ways(_bt, builder, values)):
            store(context, builder, out, out_, builder.add(to_, _times(builder, step_, k)), value)
        return context.get_dummy_value()

    return types.void(pixels, at, line, pixel, out, to, step), generate


spread: Any = intrinsic(_spread)


def _multiply(_typing: Any, a: Any, at: Any, line: Any, b: Any, place: Any, out: Any, to: Any, step: Any) -> Any:
    """TILES rows a[at:] of length `line`, times the panel b[place:], into rows out[to:] that lie `step` apart."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        a_, at_, line_, b_, place_, out_, to_, step_ = arguments
        rows = [builder.add(at_, _times(builder, line_, t)) for t in range(TILES)]
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        sums = [[alloca(builder, VECTOR) for _ in range(VECTORS)] for _ in rows]
        for row in sums:
            for total in row:
                builder.store(zero, total)
        with cgutils.for_range(builder, line_) as loop:
            panel = builder.add(place_, _times(builder, loop.index, PANEL))
            factors = [load(context, builder, b, b_, builder.add(panel, panel.type(v * LANES))) for v in range(VECTORS)]
            for start, row in zip(rows, sums, strict=True):
                value = everywhere(context, builder, a, a_, builder.add(start, loop.index))
                for factor, total in zip(factors, row, strict=True):
                    product = builder.fmul(value, factor, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        for t, row in enumerate(sums):
            start = builder.add(to_, _times(builder, step_, t))
            for v, total in enumerate(row):
                store(context, builder, out, out_, builder.add(start, start.type(v * LANES)), builder.load(total))
        return context.get_dummy_value()

    return types.void(a, at, line, b, place, out, to, step), generate


multiply: Any = intrinsic(_multiply)


def _collect(
    _typing: Any, products: Any, at: Any, step: Any, bias: Any, of: Any, out: Any, to: Any, line: Any, pixel: Any
) -> Any:
    """Aᵀ·m·A + bias[of] of products[at], products[at + step] and on, into the 2x2 pixels from out[to] on."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        products_, at_, step_, bias_, of_, out_, to_, line_, pixel_ = arguments
        values = [
            load(context, builder, products, products_, builder.add(at_, _times(builder, step_, k))) for k in range(16)
        ]
        added = load(context, builder, bias, bias_, of_)
        for k, value in enumerate(_both_ways(_at, builder, values)):
            place = builder.add(builder.add(to_, _times(builder, line_, k // 2)), _times(builder, pixel_, k % 2))
            store(context, builder, out, out_, place, builder.fadd(value, added))
        return context.get_dummy_value()

    return types.void(products, at, step, bias, of, out, to, line, pixel), generate


collect: Any = intrinsic(_collect)
