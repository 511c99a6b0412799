"""The service with a codec that does nothing: what is left is the service's own time. For `service_load.py`."""

# ruff: noqa: ARG002 - it has the signatures of a codec
from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.codec import Codec
from model.container import Container
from model.latent_coder import Analysis
from model.pixels import Picture, Pixels
from model.stages import Heartbeat, Stages, unwatched
from model.zoo import ZooEntry
from service.command import run


class NoCodec:
    """As much of a codec as the service sees: no network, no symbols; every picture comes back grey."""

    memory_bytes = 0

    def __init__(self, entry: ZooEntry) -> None:
        self.info = entry.info
        self._latents = self

    def payload(self, _: Analysis, stages: Stages) -> bytes:
        return b""

    def warm_up(self, width: int, height: int) -> None:
        pass

    def padded(self, width: int, height: int) -> tuple[int, int]:
        return width + -width % 128, height + -height % 128

    def analyse(
        self, pictures: Sequence[Picture], *, stages: Stages, heartbeat: Heartbeat = unwatched
    ) -> list[Analysis]:
        return [Analysis(np.empty(0, np.int32), np.empty(0, np.int16), [], 1) for _ in pictures]

    def pack(self, picture: Picture, analysis: Analysis, *, name: str, stages: Stages) -> bytes:
        return Codec.pack(self, picture, analysis, name=name, stages=stages)  # type: ignore[arg-type]

    def synthesise(
        self, containers: Sequence[Container], *, stages: Stages, heartbeat: Heartbeat = unwatched
    ) -> list[Pixels]:
        return [np.full((*reversed(self.padded(c.width, c.height)), 3), 128, np.uint8) for c in containers]

    def unpack(self, container: Container, padded: Pixels) -> Picture:
        return Codec.unpack(self, container, padded)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


def load(entry: ZooEntry, *_: Any) -> NoCodec:
    return NoCodec(entry)


if __name__ == "__main__":
    Codec.load = load  # type: ignore[assignment, method-assign]
    sys.exit(run(["--preload", "none", *sys.argv[1:]]))
