"""Attention inside the windows of a map, compiled for CPUs: windows are addressed where they lie, not copied.

torch's fused kernel wants every window, shifted or not, cut out and put back, and is slow for heads of 8 channels.
Here the lanes of a vector are the queries of a window, so every loop runs over memory in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import extending, types
from numpy.typing import NDArray
from torch import Tensor

from model import vectors
from model.compiled import compiled
from model.threads import each
from model.vectors import as_bits, as_float, exp

SIDE = 8
_LENGTH = SIDE * SIDE
_GROUP = 8  # channels, or keys, that one pass over a row of scores takes in
_FEW = 32  # windows that are not worth a second thread


def suits(window: int, head_dim: int) -> bool:
    """Whether the kernel is made for such an attention."""
    return window == SIDE and head_dim % _GROUP == 0


def attend(qkv: Tensor, bias: NDArray[np.float32], *, shift: int, last: bool) -> Tensor:
    """softmax(q·kᵀ/√d + bias)·v in each window of some rows of windows.

    Args:
        qkv: (8·rows, W, 3·heads·d) in float32 or bfloat16, contiguous, on the CPU.
        bias: (kinds, heads, keys, queries): of inner windows; if shifted, also of those of the last column, the last
            row and both, in this order.
        shift: columns by which windows are shifted; the last window takes up the first columns again.
        last: these rows end with the map's last row of windows.

    Returns:
        (8·rows, W, heads·d) in the precision of `qkv`.
    """
    height, width, channels = qkv.shape
    out = torch.empty((height, width, channels // 3), dtype=qkv.dtype)
    rows, arrays = height // SIDE, (_array(qkv), _array(out))
    threads = min(torch.get_num_threads(), rows) if rows * width // SIDE > _FEW else 1

    def some(k: int) -> None:
        _attend(*arrays, bias, shift, last, rows * k // threads, rows * (k + 1) // threads)

    each(some, range(threads), urgent=True)
    return out


def _array(x: Tensor) -> NDArray[Any]:
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


# ---- float32 and bfloat16

overload: Any = extending.overload


def _widen(x):  # type: ignore[no-untyped-def]
    """A float32, or the bits of a bfloat16, as float32."""
    raise NotImplementedError


@overload(_widen, inline="always")
def _(x):  # type: ignore[no-untyped-def]
    if x == types.uint16:
        return lambda x: as_float(np.uint32(np.uint32(x) << np.uint32(16)))
    return lambda x: x


def _store(out, i, x):  # type: ignore[no-untyped-def]
    """The inverse of `_widen`, rounded to the nearest."""
    raise NotImplementedError


@overload(_store, inline="always")
def _(out, i, x):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if out.dtype == types.uint16:

        def narrow(out, i, x):  # type: ignore[no-untyped-def]
            bits = as_bits(x)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            out[i] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return narrow

    def keep(out, i, x):  # type: ignore[no-untyped-def]
        out[i] = x

    return keep


_njit = compiled(vectors)
_options: dict[str, Any] = {
    "error_model": "numpy", "fastmath": {"contract", "nsz", "nnan", "arcp"}
}  # fmt: skip


@_njit(**_options)
def _score(scores, most, bias, query, key, step, head_dim):  # type: ignore[no-untyped-def]
    """Scores (keys, queries) of one head, and the largest of each query."""
    for i in range(_LENGTH):
        most[i] = np.float32(-3e38)
    for j in range(_LENGTH):
        s = scores[j * _LENGTH : (j + 1) * _LENGTH]
        b = bias[j * _LENGTH : (j + 1) * _LENGTH]
        for i in range(_LENGTH):
            s[i] = b[i]
        for d in range(0, head_dim, _GROUP):
            k = key[j * step + d : j * step + d + _GROUP]
            q = query[d * _LENGTH : (d + _GROUP) * _LENGTH]
            k0, k1, k2, k3, k4, k5, k6, k7 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
            for i in range(_LENGTH):
                s[i] += (
                    k0 * q[i] + k1 * q[_LENGTH + i] + k2 * q[2 * _LENGTH + i] + k3 * q[3 * _LENGTH + i]
                    + k4 * q[4 * _LENGTH + i] + k5 * q[5 * _LENGTH + i] + k6 * q[6 * _LENGTH + i]
                    + k7 * q[7 * _LENGTH + i]
                )  # fmt: skip
        for i in range(_LENGTH):
            most[i] = max(most[i], s[i])


@_njit(**_options)
def _weigh(scores, most, total):  # type: ignore[no-untyped-def]
    """Scores -> weights, and the inverse of each query's sum of them."""
    for i in range(_LENGTH):
        total[i] = np.float32(0)
    for j in range(_LENGTH):
        s = scores[j * _LENGTH : (j + 1) * _LENGTH]
        for i in range(_LENGTH):
            weight = exp(s[i] - most[i])
            s[i] = weight
            total[i] += weight
    for i in range(_LENGTH):
        total[i] = np.float32(1) / total[i]


@_njit(**_options)
def _mix(mixed, weights, inverse, value, step, head_dim):  # type: ignore[no-untyped-def]
    """The values of one head, weighted: (channels, queries)."""
    for d in range(head_dim):
        m = mixed[d * _LENGTH : (d + 1) * _LENGTH]
        for i in range(_LENGTH):
            m[i] = np.float32(0)
        for j in range(0, _LENGTH, _GROUP):
            w = weights[j * _LENGTH : (j + _GROUP) * _LENGTH]
            v = value[j * step + d : (j + _GROUP) * step]
            v0, v1, v2, v3 = v[0], v[step], v[2 * step], v[3 * step]
            v4, v5, v6, v7 = v[4 * step], v[5 * step], v[6 * step], v[7 * step]
            for i in range(_LENGTH):
                m[i] += (
                    v0 * w[i] + v1 * w[_LENGTH + i] + v2 * w[2 * _LENGTH + i] + v3 * w[3 * _LENGTH + i]
                    + v4 * w[4 * _LENGTH + i] + v5 * w[5 * _LENGTH + i] + v6 * w[6 * _LENGTH + i]
                    + v7 * w[7 * _LENGTH + i]
                )  # fmt: skip
        for i in range(_LENGTH):
            m[i] *= inverse[i]


@_njit(**_options)
def _attend(qkv, out, bias, shift, last, first_row, end_row):  # type: ignore[no-untyped-def]
    height, width, step = qkv.shape
    channels, heads = step // 3, bias.shape[1]
    head_dim = channels // heads
    scale = np.float32(head_dim**-0.5)
    window = np.empty(_LENGTH * step, np.float32)
    query = np.empty(head_dim * _LENGTH, np.float32)
    scores = np.empty(_LENGTH * _LENGTH, np.float32)
    mixed = np.empty(channels * _LENGTH, np.float32)
    most = np.empty(_LENGTH, np.float32)
    total = np.empty(_LENGTH, np.float32)
    for row in range(first_row, end_row):
        for column in range(width // SIDE):
            kind = 0
            if shift:
                kind = 2 * (last and row == height // SIDE - 1) + (column == width // SIDE - 1)
            for i in range(_LENGTH):
                pixel = qkv[row * SIDE + i // SIDE, (column * SIDE + i % SIDE + shift) % width]
                copy = window[i * step : (i + 1) * step]
                for c in range(step):
                    copy[c] = _widen(pixel[c])  # type: ignore[no-untyped-call]
            for h in range(heads):
                at = h * head_dim
                for i in range(_LENGTH):
                    for d in range(head_dim):
                        query[d * _LENGTH + i] = window[i * step + at + d] * scale
                _score(scores, most, bias[kind, h].reshape(-1), query, window[channels + at :], step, head_dim)
                _weigh(scores, most, total)
                _mix(mixed[at * _LENGTH :], scores, total, window[2 * channels + at :], step, head_dim)
            for i in range(_LENGTH):
                pixel = out[row * SIDE + i // SIDE, (column * SIDE + i % SIDE + shift) % width]
                for c in range(channels):
                    _store(pixel, c, mixed[c * _LENGTH + i])  # type: ignore[no-untyped-call]
