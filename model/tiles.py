"""g_a and g_s over a large picture in overlapping tiles, so that memory stays bounded whatever the picture's size.

Tiles start at multiples of a window of the latent (128 pixels), so every attention window of the whole picture is a
window of some tile. Each tile is computed with a margin that is thrown away; what a window beyond the margin would
have contributed is all that can differ from the untiled result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDE = 16
"""Pixels a latent element, each way."""


@dataclass(frozen=True)
class Tiling:
    """How a latent map is cut, in latent elements (16 pixels); both multiples of the attention window.

    Attributes:
        side: of the square that a tile contributes.
        margin: computed around it and thrown away.
    """

    side: int = 80
    margin: int = 8

    @classmethod
    def of(cls, window: int) -> Tiling:
        """For attention windows of that side: as above for the published ones, of 8."""
        return cls(max(cls.side // window, 1) * window, -(-cls.margin // window) * window)

    def spans(self, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Along one axis: first and end of what is kept, first and end of what is computed."""
        for start in range(0, length, self.side):
            end = min(start + self.side, length)
            yield start, end, max(start - self.margin, 0), min(end + self.margin, length)


def analyse(g_a: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling) -> Tensor:
    """y = g_a(x) for x (B, 3, H, W), H and W multiples of 128."""
    return _tiled(g_a, x, tiling, x.shape[2] // STRIDE, x.shape[3] // STRIDE, into=STRIDE, out=1)


def synthesise(g_s: Callable[[Tensor], Tensor], y_hat: Tensor, tiling: Tiling) -> Tensor:
    """x̂ = g_s(ŷ) for ŷ (B, M, h, w), h and w multiples of the window."""
    return _tiled(g_s, y_hat, tiling, y_hat.shape[2], y_hat.shape[3], into=1, out=STRIDE)


def _tiled(
    transform: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, rows: int, columns: int, *, into: int, out: int
) -> Tensor:
    """Apply `transform`, which maps `into` input elements a latent element to `out` output elements."""
    whole = tiling.side + 2 * tiling.margin
    if rows <= whole and columns <= whole:
        return transform(x)
    result: Tensor | None = None
    for top, bottom, above, below in tiling.spans(rows):
        for left, right, before, after in tiling.spans(columns):
            tile = transform(x[..., above * into : below * into, before * into : after * into].contiguous())
            if result is None:
                result = torch.empty((*tile.shape[:2], rows * out, columns * out), dtype=tile.dtype, device=tile.device)
            result[..., top * out : bottom * out, left * out : right * out] = tile[
                ...,
                (top - above) * out : (bottom - above) * out,
                (left - before) * out : (right - before) * out,
            ]
    assert result is not None  # noqa: S101 - rows and columns are positive
    return result
