"""ŷ and ẑ <-> symbols, for a batch of pictures: the writer's and the reader's half of the slice loop.

What writer and reader must agree on all happens here, in float32; what the transforms around it compute may differ.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import guard
from model.checkpoint import ModelInfo
from model.container import Container
from model.entropy import Coder, stream_count
from model.folded import FoldedTransform, fold
from model.latents import SharedPath, code_slices
from model.network import TCM
from model.reader import Reader
from model.rounding import choose_symbols
from model.stages import Heartbeat, Stages, unwatched
from model.tables import Tables, gaussian_tables, guard_tables

Symbols = NDArray[np.int32]
Indexes = NDArray[np.int16]


@dataclass(frozen=True)
class Analysis:
    """What is coded for one picture.

    Attributes:
        z: symbols of z, flattened, and `z_tables` the index of the table of each.
        y: for each slice the symbols, flattened, and the σ of each.
        streams: that they are cut into.
    """

    z: Symbols
    z_tables: Indexes
    y: list[tuple[Symbols, NDArray[np.float32]]]
    streams: int

    def parts(self) -> list[tuple[Symbols, Indexes]]:
        """Symbols and the indexes of their tables, in reading order: z, then each slice of y behind its guard."""
        parts = [(self.z, self.z_tables)]
        drifts = guard.tolerances(self.z, [sigmas for _, sigmas in self.y])
        for (symbols, sigmas), drift in zip(self.y, drifts, strict=True):
            ways = guard.choose(sigmas, drift)
            parts.extend([*guard.to_parts(ways), (symbols, guard.scale_indexes(sigmas, ways))])
        return parts


class _NothingLeft(Exception):
    """No file of the batch can be read any further."""


class LatentCoder:
    """The entropy model of one network.

    Attributes:
        retries: files whose symbols came out in float64 only.
    """

    def __init__(self, net: TCM, info: ModelInfo, z_tables: Tables, device: torch.device) -> None:
        self.retries = 0
        self._net, self._info, self._device = net, info, device
        self._coder = Coder(gaussian_tables() + guard_tables() + z_tables)
        self._path = fold(net)
        self._medians = net.medians()
        self._wide: TCM | None = None

    def own_tensors(self) -> list[Tensor]:
        """Weights beside the network's."""
        return [tensor for transform in self._folded() for tensor in transform.own_tensors()]

    def _folded(self) -> Iterator[FoldedTransform]:
        for each in (self._path.cc_mean_transforms, self._path.cc_scale_transforms, self._path.lrp_transforms):
            yield from (transform for transform in each if isinstance(transform, FoldedTransform))

    def close(self) -> None:
        """Give back what was made while working."""
        self._wide = None
        for transform in self._folded():
            transform.forget()

    def payload(self, analysis: Analysis, stages: Stages) -> bytes:
        """The entropy-coded symbols of one picture; needs no device."""
        with stages("guard"):
            parts = analysis.parts()
        with stages("entropy"):
            return self._coder.encode(parts, analysis.streams)

    def write(self, y: Tensor, z: Tensor, stages: Stages, heartbeat: Heartbeat = unwatched) -> list[Analysis]:
        """The symbols of each picture, and what their tables follow from, of y (B, M, h, w) and z.

        They leave the device at the end: until then nothing waits for it.
        """
        z_symbols = torch.round(z - self._medians)
        z_tables = self._z_indexes(z_symbols.shape[2] * z_symbols.shape[3])
        streams = stream_count(y[0].numel() + z_symbols[0].numel())
        slices = self._info.config.slices
        y_slices, y_symbols = y.chunk(slices, dim=1), list[Tensor]()

        def code(i: int, mean: Tensor, scale: Tensor) -> Tensor:
            heartbeat()
            y_symbols.append(choose_symbols(y_slices[i] - mean, scale, self._info.rounding))
            return y_symbols[-1] + mean

        with stages("slices"):
            scales = code_slices(self._path, z_symbols + self._medians, code).scales
            rows = zip(_rows(z_symbols), _rows(torch.cat(y_symbols, dim=1)), _scales(scales), strict=True)
            return [
                Analysis(
                    of_z,
                    z_tables,
                    list(zip(of_y.reshape(slices, -1), sigmas.reshape(slices, -1), strict=True)),
                    streams,
                )
                for of_z, of_y, sigmas in rows
            ]

    def read(
        self,
        containers: Sequence[Container],
        height: int,
        width: int,
        stages: Stages,
        heartbeat: Heartbeat = unwatched,
    ) -> tuple[list[Reader], Tensor]:
        """ŷ (B, M, height, width) with the readers, which know what is wrong with a file."""
        readers, y_hat = self._read(containers, height, width, self._path, stages, heartbeat)
        for b, reader in enumerate(readers):
            if reader.mismatch:  # what the guard does not forgive may be this machine's float32
                with stages("retry"):
                    (again,), wide = self._read([containers[b]], height, width, self._float64(), Stages(), heartbeat)
                if not again.error:
                    self.retries += 1
                    readers[b], y_hat[b] = again, wide[0].to(y_hat.dtype)
        return readers, y_hat

    def _float64(self) -> TCM:
        if self._wide is None:
            self._wide = copy.deepcopy(self._net).to(self._device, torch.float64)
        return self._wide

    def _read(
        self,
        containers: Sequence[Container],
        h: int,
        w: int,
        path: TCM | SharedPath,
        stages: Stages,
        heartbeat: Heartbeat,
    ) -> tuple[list[Reader], Tensor]:
        """As `read`, in any precision; a file that is wrong is zeros from where that shows."""
        c = self._info.config
        in_z, in_slice = c.hyper_channels * (h // 4) * (w // 4), c.slice_channels * h * w
        streams = stream_count(in_z + c.slices * in_slice)
        readers = [Reader(self._coder, self._info, container, streams) for container in containers]

        def code(_: int, mean: Tensor, scale: Tensor) -> Tensor:
            heartbeat()
            sigmas = _scales(scale)
            with stages("entropy"):
                symbols = [
                    reader.symbols(guard.scale_indexes(sigma, reader.guard(in_slice)))
                    for reader, sigma in zip(readers, sigmas, strict=True)
                ]
            if all(reader.error for reader in readers):
                raise _NothingLeft  # a hostile file costs no more than it must
            return self._symbols_to_device(symbols, mean.shape).to(mean.dtype) + mean

        with stages("slices"):
            with stages("entropy"):
                z_symbols = [reader.symbols(self._z_indexes((h // 4) * (w // 4))) for reader in readers]
            z_hat = self._symbols_to_device(z_symbols, (len(readers), c.hyper_channels, h // 4, w // 4)) + self._medians
            try:
                y_hat = code_slices(path, z_hat.to(next(path.h_mean_s.parameters()).dtype), code).y_hat
            except _NothingLeft:
                return readers, z_hat.new_zeros(len(readers), c.M, h, w)
        for reader in readers:
            reader.finish()
        return readers, y_hat

    def _symbols_to_device(self, symbols: Sequence[Symbols], shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack(symbols)).to(self._device).float().view(*shape)

    def _z_indexes(self, positions: int) -> Indexes:
        """The table of each element of z: one a channel, behind all others."""
        count = len(self._coder.tables)
        return np.repeat(np.arange(count - self._info.config.hyper_channels, count, dtype=np.int16), positions)


def _rows(symbols: Tensor) -> list[Symbols]:
    """The symbols of each item of a batch, flattened, on the CPU."""
    return list(symbols.to(torch.int32).flatten(1).contiguous().cpu().numpy())


def _scales(scales: Tensor) -> list[NDArray[np.float32]]:
    """σ by item of the batch, flattened, on the CPU."""
    return list(scales.float().flatten(1).contiguous().cpu().numpy())
