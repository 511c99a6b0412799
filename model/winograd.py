"""3x3 convolutions in float32 with 16 products for 36, on CPUs: Winograd's F(2x2, 3x3) (Lavin, Gray, CVPR 2016).

    tiles of 4x4 pixels, 2 apart ── Bᵀ·d·B ──> 16 matrices (tiles, C) ── each · (C, K) ──> 16 of (tiles, K)
        ── Aᵀ·m·A, + bias + plus, activation ──> 2x2 pixels a tile

Compiled by numba. A thread takes so few tiles at a time that their matrices stay in its cache from end to end, which no
library's matrix product can be told to; what it computes depends neither on the threads nor on the batch. The same for
GPUs is in model/kernels.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import vectors, winograd_steps
from model.compiled import compiled
from model.kernels import Activation, winograd_weights
from model.threads import each
from model.vectors import LANES, gelu, has
from model.winograd_steps import PANEL, TILES, collect, multiply, spread

_FAST = has("avx512f") or (has("avx2") and has("fma"))  # on others it was never measured
_CACHE = 1 << 16  # elements of the matrices of the tiles that are taken at a time, 256 KB
_FEW = 1 << 20  # products that are not worth a thread

_NONE, _LEAKY_RELU, _RELU, _GELU = range(4)
_ACTIVATIONS = {"none": _NONE, "leaky_relu": _LEAKY_RELU, "relu": _RELU, "gelu": _GELU}


def suits(channels: int, given: int, height: int, width: int) -> bool:
    """Whether it is made for convolutions of such maps, and faster than others on this processor."""
    return _FAST and not (channels % LANES or given % PANEL or height % 2 or width % 2)


def weights_of(weight: Tensor) -> Tensor:
    """Weights (K, C, 3, 3) of a convolution as `conv3x3` wants them: 16 matrices, K in panels, (16, ·, C, ·)."""
    given, channels = weight.shape[:2]
    return winograd_weights(weight).view(16, channels, given // PANEL, PANEL).transpose(1, 2).contiguous()


def conv3x3(
    x: Tensor, weights: Tensor, bias: Tensor | None, activation: Activation = "none", plus: Tensor | None = None
) -> Tensor:
    """act(conv(x) + bias + plus) of a 3x3 convolution with zeros around.

    Args:
        x: (B, H, W, C) in float32 on the CPU, contiguous, that `suits`.
        weights: `weights_of` the layer's.
        bias: (K,).
        activation: act; the exact GELU to 1e-7.
        plus: (B or 1, H, W, K), contiguous.

    Returns:
        (B, H, W, K).
    """
    b, height, width, channels = x.shape
    given = weights.shape[1] * PANEL
    out, nothing = x.new_empty(b, height, width, given), x.new_zeros(given)
    bias = nothing if bias is None else bias.contiguous()
    added = nothing[:0] if plus is None else plus.view(-1)
    arrays = [t.numpy() for t in (x, weights.view(-1), bias, added, out)]
    tiles = b * height * width // 4
    threads = max(1, min(torch.get_num_threads(), 16 * tiles * channels * given // _FEW))
    share = -(-tiles // (threads * TILES)) * TILES

    def some(k: int) -> None:
        _convolve(*arrays, _ACTIVATIONS[activation], k * share, min(tiles, (k + 1) * share))

    each(some, range(threads), urgent=True)
    return out


# ---- compiled

_njit = compiled(vectors, winograd_steps)
_options: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}


@_njit(**_options)
def _convolve(x, weights, bias, plus, out, activation, begin, end):  # type: ignore[no-untyped-def]  # numba infers
    """Tiles `begin` to `end` of all, which go through each map row by row."""
    channels, given = x.shape[3], out.shape[3]
    at_once = max(1, _CACHE // (16 * (channels + given) * TILES)) * TILES
    before, behind = at_once * channels, at_once * given  # elements of one of the 16 matrices
    matrices = np.zeros(16 * before, np.float32)
    products = np.empty(16 * behind, np.float32)
    edge = np.empty(16 * channels, np.float32)
    for first in range(begin, end, at_once):
        last = min(first + at_once, end)
        _scatter(x, matrices, before, edge, first, last)
        for k in range(16):
            for given_from in range(0, given, PANEL):
                panel = (k * given + given_from) * channels
                for tile in range(0, last - first, TILES):
                    start, to = k * before + tile * channels, k * behind + tile * given + given_from
                    multiply(matrices, start, channels, weights, panel, products, to, given)
        _gather(products, behind, bias, plus, out, activation, first, last)


@_njit(**_options)
def _scatter(x, matrices, step, edge, first, last):  # type: ignore[no-untyped-def]
    """Bᵀ·d·B of some tiles of x, (B, H, W, C)."""
    _, height, width, channels = x.shape
    pixels = x.reshape(-1)
    to = 0
    for tile in range(first, last):
        row, column = divmod(tile, width // 2)
        item, row = divmod(row, height // 2)
        top, left = 2 * row - 1, 2 * column - 1
        if row and column and top + 4 <= height and left + 4 <= width:
            at = ((item * height + top) * width + left) * channels
            for c in range(0, channels, LANES):
                spread(pixels, at + c, width * channels, channels, matrices, to + c, step)
        else:
            _cut(x[item], top, left, edge)
            for c in range(0, channels, LANES):
                spread(edge, c, 4 * channels, channels, matrices, to + c, step)
        to += channels


@_njit(**_options)
def _cut(x, top, left, out):  # type: ignore[no-untyped-def]
    """4x4 pixels of x (H, W, C), with zeros around."""
    height, width, channels = x.shape
    for k in range(16):
        pixel = out[k * channels : (k + 1) * channels]
        y, across = top + k // 4, left + k % 4
        inside = 0 <= y < height and 0 <= across < width
        for c in range(channels):
            pixel[c] = x[y, across, c] if inside else np.float32(0)


@_njit(**_options)
def _gather(products, step, bias, plus, out, activation, first, last):  # type: ignore[no-untyped-def]
    """act(Aᵀ·m·A + bias + plus) of some tiles, into out, (B, H, W, K)."""
    width, given = out.shape[2:]
    pixels = out.reshape(-1)
    line = width * given
    at = 0
    for tile in range(first, last):
        row, column = divmod(tile, width // 2)
        to = 2 * (row * line + column * given)  # rows of tiles lie two lines apart, in the next map, too
        for k in range(0, given, LANES):
            collect(products, at + k, step, bias, k, pixels, to + k, line, given)
        for start in (to, to + line):
            two = pixels[start : start + 2 * given]
            if plus.size:
                _add(two, plus[start % plus.size :])
            _activate(two, activation)
        at += given


@_njit(**_options)
def _add(x, plus):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        x[i] += plus[i]


@_njit(**_options)
def _activate(x, activation):  # type: ignore[no-untyped-def]
    if activation == _LEAKY_RELU:
        for i in range(x.size):
            x[i] = max(x[i], np.float32(0.01) * x[i])
    elif activation == _RELU:
        for i in range(x.size):
            x[i] = x[i] if not x[i] < 0 else np.float32(0)  # which keeps what is no number
    elif activation == _GELU:
        for i in range(x.size):
            x[i] = gelu(x[i])
