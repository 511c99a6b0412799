"""What may become of a hostile file: a named error, or exactly the picture that was written; else it is a find."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from model.codec import Codec
from model.container import Container, read_container, write_container
from model.entropy import Coder, SymbolMismatch
from model.errors import ModelError
from model.output import write_image
from model.pixels import Picture, from_pil, read_image, to_pil
from model.tables import SCALE_LEVELS, gaussian_tables, scale_table
from tests.fuzz.mutate import damage

MAX_PIXELS = 1 << 16
"""Of the pictures that are fuzzed, so that a lie of a header costs milliseconds."""


class Find(Exception):
    """Something that a hostile file must not bring about."""


class WholeCodec:
    """Container, entropy decoder, networks and the image file behind them.

    Args:
        codec: that wrote the seeds.
        seeds: sound files.
    """

    def __init__(self, codec: Codec, seeds: Sequence[bytes]) -> None:
        self._codec = codec
        self._written: dict[tuple[bytes, tuple[int, int]], NDArray[np.uint8]] = {}
        for seed in seeds:
            container = read_container(seed)
            self._written[self._key(container)] = codec.synthesise([container])[0]

    def _key(self, container: Container) -> tuple[bytes, tuple[int, int]]:
        return container.payload, self._codec.padded(container.width, container.height)

    def judge(self, data: bytes) -> str:
        """`decoded`, or the code of the named error.

        Raises:
            Find: other pixels than the writer's; any other exception is one, too.
        """
        try:
            container = read_container(data, MAX_PIXELS)
            picture = self._codec.decode_container(container)
        except ModelError as error:
            return error.code
        self._check(container, picture)
        return "decoded"

    def _check(self, container: Container, picture: Picture) -> None:
        if container.fingerprint != self._codec.info.fingerprint:
            raise Find(f"decoded with other weights than {container.fingerprint}")
        padded = self._written.get(self._key(container))
        if padded is None:
            raise Find("symbols that nobody wrote were taken for a picture")
        if not np.array_equal(picture.rgb, padded[: container.height, : container.width]):
            raise Find("other pixels than those that were written")
        again = read_image(write_image(picture, "png"))  # whatever its metadata are
        if not np.array_equal(again.rgb, from_pil(to_pil(picture)).rgb):
            raise Find("the image file holds other pixels than the picture")
        if (again.alpha is None) != (picture.alpha is None) or (
            picture.alpha is not None and again.alpha is not None and not np.array_equal(again.alpha, picture.alpha)
        ):
            raise Find("the image file has another alpha channel than the picture")


def container_only(data: bytes) -> str:
    """As `WholeCodec.judge`, of the container alone: what is read writes the same again."""
    try:
        container = read_container(data, MAX_PIXELS)
    except ModelError as error:
        return error.code
    if read_container(write_container(container), MAX_PIXELS) != container:
        raise Find("a container that does not come back")
    if container.pixels > MAX_PIXELS:
        raise Find("more pixels than the limit")
    return "read"


class EntropyDecoder:
    """The entropy decoder alone, of one and of several streams."""

    def __init__(self) -> None:
        self._coder = Coder(gaussian_tables())
        rng = np.random.default_rng(0)
        self.seeds: list[tuple[int, NDArray[np.int16], NDArray[np.int32], bytes]] = []
        for streams, count in ((1, 40), (1, 700), (2, 700), (7, 700), (64, 700)):
            indexes = np.clip(rng.normal(14, 9, count), 0, SCALE_LEVELS - 1).astype(np.int16)
            symbols = np.rint(rng.standard_normal(count) * scale_table()[indexes]).astype(np.int32)
            symbols[:: count // 5] += 100_000  # escapes
            self.seeds.append((streams, indexes, symbols, self._coder.encode([(symbols, indexes)], streams)))

    def judge(self, rng: Random) -> str:
        """One case: a seed's payload, damaged, and at times the indexes or the streams of another reader."""
        streams, indexes, symbols, payload = rng.choice(self.seeds)
        data = damage(rng, payload, rng.choice(self.seeds)[3])
        if rng.random() < 0.1:
            indexes = np.roll(indexes, rng.randrange(len(indexes)))
        if rng.random() < 0.1:
            streams = rng.choice((1, 2, 3, 64))
        try:
            decoder = self._coder.decoder(data, streams)
            cut = rng.randrange(len(indexes) + 1)
            read = np.concatenate([decoder.read(indexes[:cut].copy()), decoder.read(indexes[cut:].copy())])
            decoder.finish()
        except SymbolMismatch:
            return "symbol-mismatch"
        if not np.array_equal(read, symbols):
            raise Find("symbols that nobody wrote passed the checksum")
        return "decoded"


def image_file(data: bytes) -> str:
    """An image file: a picture of at most so many pixels, or a named error."""
    try:
        picture = read_image(data, MAX_PIXELS)
    except ModelError as error:
        return error.code
    shape = (picture.height, picture.width)
    if picture.rgb.dtype != np.uint8 or picture.rgb.shape != (*shape, 3) or not 0 < shape[0] * shape[1] <= MAX_PIXELS:
        raise Find(f"a picture of {picture.rgb.shape}, {picture.rgb.dtype}")
    bare = read_image(data, MAX_PIXELS, keep_metadata=False)
    if bare.rgb.shape != picture.rgb.shape or bare.grey != picture.grey or bare.icc or bare.exif or bare.xmp:
        raise Find("another picture without its metadata")
    if picture.alpha is not None and picture.alpha.shape != shape:
        raise Find(f"an alpha channel of {picture.alpha.shape} for {shape}")
    return "read"
