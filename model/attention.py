"""Window attention, plain and shifted, on channels-last maps (TCM paper, section 3.2; Swin Transformer).

Maps are (B, H, W, C) here. A transformer block cuts its map into windows once, works on windows throughout and joins
them at the end, so that attention, layer norms and the MLP all see contiguous channels. Without gradients nothing is
cut: on CPUs it goes through the map in bands of windows, which stay in the cache (model/windows.py), on GPUs a kernel
reads the windows where they lie (model/kernels.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model import fused, kernels, windows

_FEW_SCORES = 1 << 24  # up to here the naive form is the faster one in training, on a CPU by far
_BAND = 1 << 21  # activations of the MLP that a band may have: they stay in the cache
_GRADIENT_SHARE = 16  # one window in so many gives the relative bias its gradient in training


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, window², C), windows in raster order. H and W must be multiples of `window`."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, (h // window) * (w // window), window * window, c)


def join_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: (B, windows, window², C) -> (B, height, width, C)."""
    b, _, _, c = x.shape
    x = x.view(b, height // window, width // window, window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)


def _relative_index(window: int) -> Tensor:
    """Where the bias of each pair (i, j) of a window lies in the flattened (2w-1)² table: (w², w²), int64."""
    position = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = position[:, :, None] - position[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def border_windows(rows: int, columns: int, window: int) -> tuple[Tensor, Tensor]:
    """The windows of a shifted map that hold pixels from both sides of the roll, and which pairs they may not mix.

    Returns:
        The raster indexes of the last row and last column of windows, (n,), and for each a mask (n, w², w²) that is
        True where row i and column j of the window come from different sides of the roll.
    """
    side = torch.arange(window) >= window - window // 2
    lower = side[:, None].expand(window, window).reshape(-1)
    right = side[None, :].expand(window, window).reshape(-1)
    crosses_rows = lower[:, None] != lower[None, :]
    crosses_columns = right[:, None] != right[None, :]
    indexes, masks = [], []
    for row in range(rows):
        for column in range(columns):
            last_row, last_column = row == rows - 1, column == columns - 1
            if last_row or last_column:
                indexes.append(row * columns + column)
                masks.append((crosses_rows & last_row) | (crosses_columns & last_column))
    return torch.tensor(indexes), torch.stack(masks)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """Attention for training on few windows: all scores in memory, the exact gradient of the mask.

    Args:
        q: queries (windows, heads, w², head_dim); k and v alike.
        attn_mask: what is added to the scores, (1 or windows, heads, w², w²).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return torch.softmax(scores + attn_mask, dim=-1).to(v.dtype) @ v


def sampled_bias_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """Attention for training, whose mask gets an unbiased gradient from a random sixteenth of the windows.

    No fused kernel gives the gradient of a mask, and the naive form that does keeps all scores in memory. Here the
    fused kernel serves q, k and v, and a naive pass over a few windows adds nothing to the value and, times the inverse
    of their share, the mask's gradient.

    Args:
        q: queries (windows, heads, w², head_dim); k and v alike.
        attn_mask: what is added to the scores, (1 or windows, heads, w², w²).
    """
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask.detach())
    windows = q.shape[0]
    count = -(-windows // _GRADIENT_SHARE)
    chosen = torch.randint(windows, (count,), device=q.device)
    mask = attn_mask if attn_mask.shape[0] == 1 else attn_mask[chosen]
    scores = q[chosen].detach() @ k[chosen].detach().transpose(-2, -1) * q.shape[-1] ** -0.5
    naive = (scores + mask.to(scores.dtype)).softmax(dim=-1) @ v[chosen].detach()
    return out.index_add(0, chosen, ((naive - naive.detach()) * (windows / count)).to(out.dtype))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias by relative position.

    Bias and mask are folded into one additive mask for the fused kernel. Only the last row and the last column of a
    shifted map need a mask, so those windows are computed once more with theirs: a few per cent of work, instead of
    a mask for every window.
    """

    def __init__(self, dim: int, head_dim: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"attention of width {dim} cannot be cut into heads of {head_dim}")
        self.dim, self.heads, self.head_dim, self.window, self.shifted = dim, dim // head_dim, head_dim, window, shifted
        self.embedding_layer = nn.Linear(dim, 3 * dim)
        self.relative_position_params = nn.Parameter(torch.zeros(self.heads, 2 * window - 1, 2 * window - 1))
        self.linear = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_params, std=0.02)
        self._index: dict[torch.device, Tensor] = {}
        self._folded: dict[tuple[object, ...], tuple[Tensor, Tensor | None, Tensor | None]] = {}
        self._tables: tuple[tuple[object, ...], NDArray[np.float32]] | None = None

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """(B, rows·columns, w², C) -> the same shape."""
        b, n, length, c = x.shape
        bias, border, border_mask = self._masks(rows, columns)
        qkv = self.embedding_layer(x).view(b, n, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, n, heads, w², head_dim)
        out = self._attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias).view(b, n, length, c)
        if border is not None and border_mask is not None:
            q, k, v = (t[:, border].flatten(0, 1) for t in (q, k, v))
            mask = border_mask.expand(b, *border_mask.shape).flatten(0, 1)
            out = out.index_copy(1, border, self._attend(q, k, v, mask).view(b, -1, length, c))
        return self.linear(out)  # type: ignore[no-any-return]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        attend: Callable[..., Tensor] = F.scaled_dot_product_attention
        if mask.requires_grad:
            few = q.shape[0] * mask[0].numel() <= _FEW_SCORES
            attend = naive_attention if few else sampled_bias_attention
        out = attend(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).reshape(q.shape[0], -1, self.dim)

    def bias(self) -> Tensor:
        """The bias of every pair of a window: (heads, w², w²)."""
        device = self.relative_position_params.device
        if device not in self._index:
            self._index[device] = _relative_index(self.window).to(device)
        return self.relative_position_params.flatten(1)[:, self._index[device]]

    def _masks(self, rows: int, columns: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Bias (1, heads, w², w²), border windows (n,), and their mask (n, heads, w², w²)."""
        parameter = self.relative_position_params
        if (torch.is_grad_enabled() and parameter.requires_grad) or parameter.is_inference():
            return self._fold(rows, columns)  # nothing tells when such a parameter has changed
        key = (rows, columns, *_state(parameter))
        if key not in self._folded:
            if len(self._folded) >= 8:  # shapes seen lately; a service sees few
                self._folded.pop(next(iter(self._folded)))
            with torch.inference_mode(False), torch.no_grad():  # so that training may use what serving has cached
                self._folded[key] = self._fold(rows, columns)
        return self._folded[key]

    def _fold(self, rows: int, columns: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        bias = self.bias()
        if not self.shifted:
            return bias[None], None, None
        border, crosses = border_windows(rows, columns, self.window)
        mask = bias[None].masked_fill(crosses.to(bias.device)[:, None], float("-inf"))
        return bias[None], border.to(bias.device), mask

    def tables(self) -> NDArray[np.float32]:
        """The bias as `windows.attend` reads it: (1 or 4 kinds of windows, heads, keys, queries)."""
        parameter = self.relative_position_params
        if parameter.is_inference():
            return self._make_tables()
        key = _state(parameter)
        if self._tables is None or self._tables[0] != key:
            self._tables = (key, self._make_tables())
        return self._tables[1]

    def _make_tables(self) -> NDArray[np.float32]:
        bias = self.bias().detach().float()[None]
        if self.shifted:  # one window, then the two of a row, of a column, and the last of four
            _, crosses = border_windows(2, 2, self.window)
            masks = torch.stack([torch.zeros_like(crosses[0]), *crosses])
            bias = bias.masked_fill(masks[:, None], float("-inf"))
        return np.ascontiguousarray(bias.transpose(-1, -2).numpy())


def _state(parameter: Tensor) -> tuple[object, ...]:
    """Differs when the parameter does."""
    return parameter.device, parameter.dtype, parameter.data_ptr(), parameter._version


class TransformerBlock(nn.Module):
    """x + msa(ln1 x), then x + mlp(ln2 x); the shifted kind works on the map rolled by half a window."""

    def __init__(self, dim: int, head_dim: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.ln1 = nn.LayerNorm(dim)
        self.msa = WindowAttention(dim, head_dim, window, shifted=shifted)
        self.ln2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape, in channels-last memory."""
        _, _, height, width = x.shape
        half = self.window // 2
        x = x.permute(0, 2, 3, 1)
        if self.fuses(x):
            return self.into(x, torch.empty_like(x, memory_format=torch.contiguous_format)).permute(0, 3, 1, 2)
        if self.shifted:
            x = x.roll((-half, -half), (1, 2))
        x = split_windows(x, self.window)
        x = x + self.msa(self.ln1(x), height // self.window, width // self.window)
        x = x + self.mlp(self.ln2(x))
        x = join_windows(x, self.window, height, width)
        if self.shifted:
            x = x.roll((half, half), (1, 2))
        return x.permute(0, 3, 1, 2)

    def fuses(self, x: Tensor) -> bool:
        """Whether `into` works here, now, for such a map (B, H, W, C)."""
        if x.dtype != self.ln1.weight.dtype:
            return False
        if fused.on_gpu(x):
            return kernels.suits_attention(self.window, self.msa.head_dim)
        return windows.suits(self.window, self.msa.head_dim) and fused.available(x)

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        """The block on a map (B, H, W, C) -> `out`, other memory of the same shape, maybe a run of a map's channels."""
        return self._at_once(x.contiguous(), out) if fused.on_gpu(x) else self._in_bands(x, out)

    def _at_once(self, x: Tensor, out: Tensor) -> Tensor:
        msa, up, down = self.msa, cast("nn.Linear", self.mlp[0]), cast("nn.Linear", self.mlp[2])
        normed = kernels.layer_norm(x, self.ln1.weight, self.ln1.bias)
        qkv = fused.linear(normed, msa.embedding_layer.weight, msa.embedding_layer.bias)
        shift = self.window // 2 if self.shifted else 0
        mixed = kernels.attend(qkv, msa.relative_position_params, msa.heads, self.window, shift=shift)
        x = fused.linear(mixed, msa.linear.weight, msa.linear.bias, plus=x)
        normed = kernels.layer_norm(x, self.ln2.weight, self.ln2.bias)
        hidden = fused.linear(normed, up.weight, up.bias, activation="gelu")
        return kernels.finish(fused.linear(hidden, down.weight, None), down.bias, plus=x, out=out)

    def _in_bands(self, x: Tensor, out: Tensor) -> Tensor:
        """A band of windows at a time."""
        _, height, width, channels = x.shape
        half = self.window // 2 if self.shifted else 0
        step = max(1, _BAND // (4 * channels * width * self.window)) * self.window
        for image, into in zip(x, out, strict=True):
            for top in range(0, height, step):
                end = top + step
                if end < height or not half:
                    rows = slice(top + half, end + half)
                    into[rows] = self._band(image[rows].contiguous(), half, last=False)
                else:  # rolled: the map's first rows come last
                    band = self._band(torch.cat((image[top + half :], image[:half])), half, last=True)
                    into[top + half :], into[:half] = band[:-half], band[-half:]
        return out

    def _band(self, x: Tensor, shift: int, *, last: bool) -> Tensor:
        """(rows, W, C) -> the same shape."""
        msa, up, down = self.msa, cast("nn.Linear", self.mlp[0]), cast("nn.Linear", self.mlp[2])
        qkv = fused.linear(self.ln1(x), msa.embedding_layer.weight, msa.embedding_layer.bias)
        mixed = windows.attend(qkv, msa.tables(), shift=shift, last=last)
        x = fused.linear(mixed, msa.linear.weight, msa.linear.bias, plus=x)
        hidden = fused.linear(self.ln2(x), up.weight, up.bias, activation="gelu")
        return fused.linear(hidden, down.weight, down.bias, plus=x)


def in_kernels(net: nn.Module) -> bool:
    """Whether no attention of a network needs masks made for a shape, which come and go, where kernels can be had."""
    blocks = [module for module in net.modules() if isinstance(module, TransformerBlock)]
    return all(kernels.suits_attention(b.window, b.msa.head_dim) for b in blocks)
