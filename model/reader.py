"""The symbols of one file, part by part, as one of a batch: what is wrong with it costs its neighbours nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from model import guard
from model.container import Container
from model.entropy import Coder, Decoder, SymbolMismatch
from model.errors import CorruptBitstream, IncompatibleModel, ModelError
from model.info import ModelInfo
from model.threads import each

Job = Callable[[], bool]


class Reader:
    """Gives zeros once the symbols have turned out not to be the writer's; `error` says why.

    Attributes:
        error: what is wrong with the file, as far as it has been read.
        mismatch: it is that its symbols do not come out, which other arithmetic may mend.
    """

    def __init__(self, coder: Coder, info: ModelInfo, container: Container, streams: int) -> None:
        self._info, self._container = info, container
        self.mismatch = self._computed = False
        self._decoder: Decoder | None = None
        self.error: ModelError | None = None
        if container.fingerprint != info.fingerprint:
            self.error = IncompatibleModel(
                f"needs model {container.model!r} with weights {container.fingerprint}; "
                f"this is {info.name!r} with weights {info.fingerprint}: Codec.load_for(data) loads what a file needs"
            )
            return
        try:
            self._decoder = coder.decoder(container.payload, streams)
        except SymbolMismatch as mismatch:
            self._fail(mismatch)

    def _fail(self, mismatch: SymbolMismatch) -> None:
        self._decoder = None
        if not self._computed:  # what comes before any σ depends on nobody's arithmetic
            self.error = CorruptBitstream(f"its payload is none of a picture of its size: {mismatch}")
            return
        self.mismatch = True
        file, here = self._container, self._info
        self.error = IncompatibleModel(
            f"the file is sound, but its symbols cannot be reproduced here: {file.model!r} with weights "
            f"{file.fingerprint} wrote it, {here.name!r} with weights {here.fingerprint} read it: {mismatch}"
        )

    def z_jobs(self, tables: NDArray[np.int16], out: NDArray[np.int32]) -> list[Job]:
        """The symbols of z, of these tables, into `out`: in parts (`Decoder.jobs`), behind which `done` is due."""
        return [] if self._decoder is None else self._decoder.jobs(out, tables.__getitem__)

    def guard(self, elements: int) -> NDArray[np.int32]:
        """The ways of the groups of the next slice, of so many elements: before its symbols."""
        if self._decoder is not None:
            try:
                return guard.read(self._decoder, elements)
            except SymbolMismatch as mismatch:
                self._fail(mismatch)
        return np.zeros(1, np.int32)

    def slice_jobs(self, sigmas: NDArray[np.float32], ways: NDArray[np.int32], out: NDArray[np.int32]) -> list[Job]:
        """The symbols of a slice, of these σ and the ways of their groups, likewise."""
        if self._decoder is None:
            return []
        self._computed = True
        return self._decoder.jobs(out, lambda run: guard.scale_indexes(sigmas, ways, run))

    def done(self, succeeded: Sequence[bool], out: NDArray[np.int32]) -> None:
        """What came of the jobs."""
        if not all(succeeded):
            self._fail(SymbolMismatch("a stream ended before its symbols did"))
        if self._decoder is None:
            out[:] = 0

    def finish(self) -> None:
        """Check that everything was read and that the symbols are the writer's."""
        if self._decoder is not None:
            try:
                self._decoder.finish()
            except SymbolMismatch as mismatch:
                self._fail(mismatch)


def read_all(readers: Sequence[Reader], jobs: Sequence[list[Job]], out: Sequence[NDArray[np.int32]]) -> None:
    """The next symbols of all files, given the jobs of each, shared out among the cores in one go."""
    results = iter(each(lambda job: job(), [job for of_file in jobs for job in of_file], urgent=True))
    for reader, of_file, symbols in zip(readers, jobs, out, strict=True):
        reader.done([next(results) for _ in of_file], symbols)
