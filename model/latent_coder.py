"""ŷ and ẑ <-> symbols, for a batch of pictures: the writer's and the reader's half of the slice loop.

What writer and reader must agree on all happens here, in float32; what the transforms around it compute may differ.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import fused, guard, guard_choice
from model.container import Container
from model.entropy import Coder, stream_count
from model.errors import CheckpointMismatch
from model.folded import FoldedTransform, fold
from model.info import ModelInfo
from model.latents import SharedPath, SlicePass
from model.network import TCM
from model.programs import Runner
from model.reader import Reader, read_all
from model.recording import Pause, Program, Steps
from model.rounding import choose_symbols
from model.stages import Heartbeat, Stages, unwatched
from model.tables import Tables, gaussian_tables, guard_tables
from model.threads import each
from model.tiles import STRIDE
from model.turns import Turns, in_turn

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
        drifts = guard_choice.drifts(self.z, [sigmas for _, sigmas in self.y])

        def guarded(part: tuple[tuple[Symbols, NDArray[np.float32]], float]) -> list[tuple[Symbols, Indexes]]:
            (symbols, sigmas), drift = part
            ways = guard_choice.choose(sigmas, drift)
            return [*guard.to_parts(ways), (symbols, guard.scale_indexes(sigmas, ways))]

        of_slices = each(guarded, list(zip(self.y, drifts, strict=True)))
        return [(self.z, self.z_tables), *(part for parts in of_slices for part in parts)]


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

    def own_tensors(self) -> list[Tensor]:
        """Weights beside the network's."""
        folded = list(self._folded())
        return [*(tensor for transform in folded for tensor in transform.own_tensors()), *fused.kept(folded)]

    def _folded(self) -> Iterator[FoldedTransform]:
        for kind in (self._path.cc_mean_transforms, self._path.cc_scale_transforms, self._path.lrp_transforms):
            yield from (transform for transform in kind if isinstance(transform, FoldedTransform))

    def close(self) -> None:
        """Give back what was made while working."""
        for transform in self._folded():
            transform.forget()

    def payload(self, analysis: Analysis, stages: Stages) -> bytes:
        """The entropy-coded symbols of one picture; needs no device.

        Raises:
            CheckpointMismatch: they are larger than any model's.
        """
        with stages("guard"):
            parts = analysis.parts()
        with stages("entropy"):
            try:
                return self._coder.encode(parts, analysis.streams)
            except ValueError as error:
                raise CheckpointMismatch(f"the weights of {self._info.name!r}: {error}") from None

    def writing(self, y: Tensor, z: Tensor, heartbeat: Heartbeat) -> Steps:
        """The part of a program that chooses the symbols of y (B, M, h, w) and z; for `analyses`.

        Nothing leaves the device before the end: until then nothing waits for it.
        """
        sound = torch.isfinite(z).all() & torch.isfinite(y).all()
        z_symbols = torch.round(z - self._medians)
        through = SlicePass(self._path, z_symbols + self._medians)
        symbols, scales = list[Tensor](), list[Tensor]()
        y_hat: Tensor | None = None
        for part in y.chunk(self._info.config.slices, dim=1):
            heartbeat()
            if y_hat is not None:  # the last slice is refined by nobody but the reader
                through.refine(y_hat)
            mean, scale = through.predict()
            symbols.append(choose_symbols(part - mean, scale, self._info.rounding))
            scales.append(scale)
            y_hat = mean + symbols[-1]  # in the memory format of the first, which all that follows is faster in
        whole = (z_symbols, torch.cat(symbols, dim=1))
        outputs = (sound, *(t.to(torch.int32).flatten(1) for t in whole), torch.cat(scales, dim=1).flatten(1))
        yield Pause("slices", outputs, last=True)

    def analyses(self, found: Sequence[NDArray[Any]]) -> list[Analysis]:
        """What is coded for each picture, from what `writing` gave.

        Raises:
            CheckpointMismatch: the network gives numbers that are not finite.
        """
        sound, z, y, scales = found
        if not sound:
            raise CheckpointMismatch(f"the weights of {self._info.name!r} give numbers that are not finite")
        config = self._info.config
        z_tables = self._z_indexes(z.shape[1] // config.hyper_channels)
        streams, slices = stream_count(y.shape[1] + z.shape[1]), config.slices
        return [
            Analysis(
                of_z, z_tables, list(zip(of_y.reshape(slices, -1), sigmas.reshape(slices, -1), strict=True)), streams
            )
            for of_z, of_y, sigmas in zip(z, y, scales, strict=True)
        ]

    def read(
        self,
        containers: Sequence[Container],
        height: int,
        width: int,
        runner: Runner,
        stages: Stages,
        heartbeat: Heartbeat = unwatched,
    ) -> Turns[tuple[list[Reader], Tensor]]:
        """ŷ (B, M, height, width) with the readers, which know what is wrong with a file."""
        program = self._reading(self._path)
        readers, y_hat = yield from self._read(containers, height, width, runner, program, stages, heartbeat)
        wide: Program | None = None
        for b, reader in enumerate(readers):
            if reader.mismatch:  # what the guard does not forgive may be this machine's float32
                wide = wide or self._reading(self._float64())
                plainly = Runner(self._device, record=False)
                once_more = self._read([containers[b]], height, width, plainly, wide, Stages(), heartbeat)
                with stages("retry"):
                    (((again,), exact),) = in_turn([once_more])
                if not again.error:
                    self.retries += 1
                    readers[b], y_hat[b] = again, exact[0].to(y_hat.dtype)
        return readers, y_hat

    def _float64(self) -> TCM:
        """Made when it is needed, and not kept: it is as large as two of these models, and in nobody's budget."""
        return copy.deepcopy(self._net).to(self._device, torch.float64)

    def _reading(self, path: TCM | SharedPath) -> Program:
        """The program that is given the symbols of z, then those of each slice: (B, ·) in reading order."""

        def program(z_symbols: Tensor, heartbeat: Heartbeat) -> Steps:
            z_hat = z_symbols.float() + self._medians
            through = SlicePass(path, z_hat.to(next(path.h_mean_s.parameters()).dtype))
            for _ in range(self._info.config.slices):
                heartbeat()
                mean, scale = through.predict()
                symbols = yield Pause("slices", (scale.float().flatten(1).contiguous(),))
                assert symbols is not None  # noqa: S101 - it was asked for
                through.refine(mean + symbols.view(mean.shape).to(mean.dtype))
            yield Pause("slices", (through.y_hat(),), last=True)

        return program

    def _read(
        self,
        containers: Sequence[Container],
        h: int,
        w: int,
        runner: Runner,
        program: Program,
        stages: Stages,
        heartbeat: Heartbeat,
    ) -> Turns[tuple[list[Reader], Tensor]]:
        """As `read`, in any precision; a file that is wrong is zeros from where that shows."""
        c = self._info.config
        in_z, in_slice = c.hyper_channels * (h // 4) * (w // 4), c.slice_channels * h * w
        streams = stream_count(in_z + c.slices * in_slice)
        readers = [Reader(self._coder, self._info, container, streams) for container in containers]
        z_tables = self._z_indexes((h // 4) * (w // 4))
        given = runner.to_be_given((len(readers), in_z), torch.int32)
        with stages("entropy"):
            rows = list(given.numpy())
            read_all(readers, [reader.z_jobs(z_tables, row) for reader, row in zip(readers, rows, strict=True)], rows)
        if all(reader.error for reader in readers):  # a hostile file costs no more than it must
            return readers, self._medians.new_zeros(len(containers), c.M, h, w)
        run = runner.run("read", program, len(readers) * h * w * STRIDE**2, stages, heartbeat)
        outputs = run.send(given.view(len(readers), c.hyper_channels, h // 4, w // 4))
        for _ in range(c.slices):
            sigmas_come = runner.to_host(outputs)
            yield
            with stages("entropy"):  # while the device is busy
                ways = [reader.guard(in_slice) for reader in readers]
            (sigmas,) = sigmas_come()
            given = runner.to_be_given((len(readers), in_slice), torch.int32)
            with stages("entropy"):
                rows = list(given.numpy())
                files = zip(readers, sigmas, ways, rows, strict=True)
                read_all(readers, [reader.slice_jobs(sigma, way, row) for reader, sigma, way, row in files], rows)
            if all(reader.error for reader in readers):
                return readers, self._medians.new_zeros(len(containers), c.M, h, w)
            outputs = run.send(given)
        for reader in readers:
            reader.finish()
        return readers, outputs[0]

    def _z_indexes(self, positions: int) -> Indexes:
        """The table of each element of z: one a channel, behind all others."""
        count = len(self._coder.tables)
        return np.repeat(np.arange(count - self._info.config.hyper_channels, count, dtype=np.int16), positions)
