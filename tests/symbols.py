"""What a codec reads from files: the symbols, as one SHA-256 for each file, and the pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np

from model import Codec
from model.container import Container
from model.reader import Reader


@dataclass(frozen=True)
class Decoded:
    """One file.

    Attributes:
        sha256: over the symbols of z and y, in reading order, as 32-bit little-endian integers.
        rgb: the picture (H, W, 3).
    """

    sha256: str
    rgb: np.ndarray


def decoded(codec: Codec, containers: Sequence[Container]) -> list[Decoded]:
    """Read files of one padded size together; fails where one cannot be read."""
    order: list[Reader] = []
    sums = []

    done = Reader.done

    def noted(reader, succeeded, symbols):
        done(reader, succeeded, symbols)
        if not any(reader is known for known in order):
            order.append(reader)
            sums.append(hashlib.sha256())
        place = next(i for i, known in enumerate(order) if known is reader)
        sums[place].update(symbols.astype("<i4").tobytes())

    with mock.patch.object(Reader, "done", noted):
        results = codec.synthesise(containers)
    for result in results:
        if isinstance(result, Exception):
            raise result
    assert len(order) == len(containers), "a file was read a second time, in float64"
    return [
        Decoded(one.hexdigest(), codec.unpack(container, padded).rgb)
        for one, container, padded in zip(sums, containers, results, strict=True)
    ]
