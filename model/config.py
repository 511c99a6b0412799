"""The widths of a TCM network: given by name, read from metadata, or worked out from the shapes of a state dict."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from model.errors import CheckpointMismatch

MAX_WIDTH = 4096  # bounds what a foreign file's metadata can make us allocate


@dataclass(frozen=True)
class TCMConfig:
    """Every width of the network. The defaults are the published Small.

    Attributes:
        N: width of one half of a mixed block (the paper's C/2): 64 Small, 96 Medium, 128 Large.
        M: channels of the latent y.
        hyper_channels: channels of the hyper-latent z.
        head_dim: head widths of the three stages of g_a, then of g_s.
        hyper_head_dim: head width in h_a, h_mean_s and h_scale_s.
        slices: groups of channels that y is coded in, one after another.
        max_support: how many decoded slices a slice may look at.
        depth: mixed blocks a stage, plain and shifted in turn.
        slice_widths: the two inner widths of each slice transform.
        attention_width: inner width of each slice attention.
        attention_head_dim: head width in the slice attentions.
        window: window side in g_a, g_s and the slice attentions.
        hyper_window: window side in the hyper transforms.
    """

    N: int = 64
    M: int = 320
    hyper_channels: int = 192
    head_dim: tuple[int, int, int, int, int, int] = (8, 16, 32, 32, 16, 8)
    hyper_head_dim: int = 32
    slices: int = 5
    max_support: int = 5
    depth: int = 2
    slice_widths: tuple[int, int] = (224, 128)
    attention_width: int = 128
    attention_head_dim: int = 16
    window: int = 8
    hyper_window: int = 4

    def __post_init__(self) -> None:
        numbers = [*dataclasses.astuple(self)[:3], *self.head_dim, *dataclasses.astuple(self)[4:8]]
        numbers += [*self.slice_widths, self.attention_width, self.attention_head_dim, self.window, self.hyper_window]
        if not all(isinstance(n, int) and 1 <= n <= MAX_WIDTH for n in numbers):
            raise ValueError(f"every width of a TCM lies in 1..{MAX_WIDTH}: {self}")
        if len(self.head_dim) != 6 or len(self.slice_widths) != 2:
            raise ValueError(f"head_dim has six numbers and slice_widths two: {self}")
        if self.M % self.slices:
            raise ValueError(f"M={self.M} cannot be cut into {self.slices} slices")
        if self.max_support >= self.slices - 1:  # what is never reached is written in one way, as `from_shapes` does
            object.__setattr__(self, "max_support", max(self.slices - 1, 5))
        if self.window % 2 or self.hyper_window % 2:
            raise ValueError("window sides are even: a shift is half a window")

    @property
    def slice_channels(self) -> int:
        """Channels of one slice of y."""
        return self.M // self.slices

    @property
    def alignment(self) -> int:
        """Sides of an image are padded to a multiple of this many pixels.

        Every map must be cut into whole windows (stride 16 with `window`, stride 32 with `hyper_window`) and z needs
        stride 64: 128 for the published windows.
        """
        return math.lcm(16 * self.window, 32 * self.hyper_window, 64)

    def support(self, i: int) -> int:
        """Decoded slices that slice `i` looks at."""
        return min(i, self.max_support)

    @property
    def least_parameters(self) -> int:
        """No such network has fewer; most have about twice as many."""
        width, inside, (inner, narrow) = 2 * self.N, self.attention_width, self.slice_widths
        strided = 9 * (3 * width + 2 * width * width + width * (self.M + self.hyper_channels))
        mixed = 9 * self.depth * 38 * self.N**2  # in nine stages
        of_a_slice = 88 * inside * max(inside - 4, 0) + 27 * (self.M * inner + inner * narrow)
        return strided + mixed + self.slices * of_a_slice

    def to_json(self) -> str:
        """For the metadata of a weights file."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TCMConfig:
        """The inverse of `to_json`.

        Raises:
            ValueError: the text is not the configuration of a TCM.
        """
        try:
            fields = json.loads(text)
            fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
            return cls(**fields)
        except (TypeError, AttributeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not the configuration of a TCM: {error}") from None

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> TCMConfig:
        """Work every width out from the names and shapes of a state dict.

        Raises:
            CheckpointMismatch: the shapes are not those of any TCM; the message names the first one missing.
        """

        def shape(name: str) -> tuple[int, ...]:
            try:
                return shapes[name]
            except KeyError:
                raise CheckpointMismatch("not a TCM checkpoint", missing=[name]) from None

        def head_dim(prefix: str, width: int) -> int:
            return width // shape(f"{prefix}.msa.relative_position_params")[0]

        def count(pattern: str) -> int:
            return len({m.group(1) for name in shapes if (m := re.match(pattern, name))})

        try:
            n = shape("g_a.1.trans_block.ln1.weight")[0]
            stages = [re.match(r"g_([as])\.(\d+)\.trans_block\.ln1\.weight", name) for name in shapes]
            blocks = len([m for m in stages if m and m.group(1) == "a"])
            depth = max(blocks // 3, 1)
            first = [f"g_{side}.{1 + stage * (depth + 1)}.trans_block" for side in "as" for stage in range(3)]
            attention = "atten_mean.0.0.non_local_block.block_1"
            width = shape(f"{attention}.ln1.weight")[0]
            slices = count(r"cc_mean_transforms\.(\d+)\.")
            m = shape(f"h_mean_s.{depth + 1}.0.weight")[0] // 4
            last_support = shape(f"cc_mean_transforms.{slices - 1}.0.weight")[1] - m
            # as in the published five slices, where nothing is cut: what is never reached counts as unbounded
            reached = last_support // max(m // max(slices, 1), 1)
            return cls(
                N=n,
                M=m,
                hyper_channels=shape(f"h_a.{depth + 1}.weight")[0],
                head_dim=tuple(head_dim(prefix, n) for prefix in first),  # type: ignore[arg-type]
                hyper_head_dim=head_dim("h_a.1.trans_block", n),
                slices=slices,
                max_support=max(reached, 5) if reached >= slices - 1 else reached,
                depth=depth,
                slice_widths=(shape("cc_mean_transforms.0.0.weight")[0], shape("cc_mean_transforms.0.2.weight")[0]),
                attention_width=width,
                attention_head_dim=head_dim(attention, width),
                window=(shape("g_a.1.trans_block.msa.relative_position_params")[1] + 1) // 2,
                hyper_window=(shape("h_a.1.trans_block.msa.relative_position_params")[1] + 1) // 2,
            )
        except (ValueError, ZeroDivisionError, IndexError) as error:
            raise CheckpointMismatch(f"not a TCM checkpoint: {error}") from None


SIZES: dict[str, TCMConfig] = {
    "xs": TCMConfig(
        N=32,
        M=256,
        hyper_channels=96,
        head_dim=(16,) * 6,
        hyper_head_dim=16,
        slices=8,
        max_support=7,
        slice_widths=(96, 64),
        attention_width=64,
    ),
    "s": TCMConfig(N=64),
    "m": TCMConfig(N=96),
    "l": TCMConfig(N=128),
}
"""Named sizes: the embedded `xs` and the paper's Small, Medium and Large."""
