"""The symbols of one file, part by part, as one of a batch: what is wrong with it costs its neighbours nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model import guard
from model.checkpoint import ModelInfo
from model.container import Container
from model.entropy import Coder, Decoder, SymbolMismatch
from model.errors import IncompatibleModel


class Reader:
    """Gives zeros once the symbols have turned out not to be the writer's; `error` says why.

    Attributes:
        error: what is wrong with the file, as far as it has been read.
        mismatch: it is that its symbols do not come out.
    """

    def __init__(self, coder: Coder, info: ModelInfo, container: Container, streams: int) -> None:
        self._info, self._container = info, container
        self.mismatch = False
        self._decoder: Decoder | None = None
        self.error: IncompatibleModel | None = None
        if container.fingerprint != info.fingerprint:
            self.error = IncompatibleModel(
                f"needs model {container.model!r} with weights {container.fingerprint}; "
                f"this is {info.name!r} with weights {info.fingerprint}"
            )
            return
        try:
            self._decoder = coder.decoder(container.payload, streams)
        except SymbolMismatch as mismatch:
            self._fail(mismatch)

    def _fail(self, mismatch: SymbolMismatch) -> None:
        self.mismatch = True
        self._decoder = None
        file, here = self._container, self._info
        self.error = IncompatibleModel(
            f"the file is sound, but its symbols cannot be reproduced here: {file.model!r} with weights "
            f"{file.fingerprint} wrote it, {here.name!r} with weights {here.fingerprint} read it: {mismatch}"
        )

    def z_symbols(self, indexes: NDArray[np.int16], out: NDArray[np.int32]) -> None:
        """The symbols of z, of these tables, into `out`."""
        self._read(out, indexes.__getitem__)

    def slice_symbols(self, sigmas: NDArray[np.float32], out: NDArray[np.int32]) -> None:
        """The symbols of the next slice, given the σ of each, flattened, into `out`; its guard stands before them."""
        if self._decoder is not None:
            try:
                ways = guard.read(self._decoder, len(sigmas))
            except SymbolMismatch as mismatch:
                self._fail(mismatch)
        self._read(out, lambda run: guard.scale_indexes(sigmas, ways, run))

    def _read(self, out: NDArray[np.int32], indexes: Callable[[slice], NDArray[np.int16]]) -> None:
        if self._decoder is not None:
            try:
                return self._decoder.read_into(out, indexes)
            except SymbolMismatch as mismatch:
                self._fail(mismatch)
        out[:] = 0
        return None

    def finish(self) -> None:
        """Check that everything was read and that the symbols are the writer's."""
        if self._decoder is not None:
            try:
                self._decoder.finish()
            except SymbolMismatch as mismatch:
                self._fail(mismatch)
