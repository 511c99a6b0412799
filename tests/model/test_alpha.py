"""The alpha channel: what the writer writes comes back, and a PNG that is anything else to the last byte is refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from model.alpha import decode_alpha, encode_alpha
from model.container import read_container
from model.errors import CorruptBitstream
from tests import bombs
from tests.golden.files import FOLDER

RAMP = np.arange(35, dtype=np.uint8).reshape(5, 7)
ROWS = b"".join(b"\0" + row.tobytes() for row in RAMP)
STREAM = zlib.compress(ROWS, 9)
END = (b"IEND", b"")
HEADER = (b"IHDR", struct.pack(">IIBBBBB", 7, 5, 8, 0, 0, 0, 0))


def png(*chunks: tuple[bytes, bytes], wrong: bytes = b"") -> bytes:
    """A PNG of these chunks; the checksum of those of the kind `wrong` does not fit."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (kind == wrong))
        for kind, body in chunks
    )


def rows(stream: bytes) -> bytes:
    return png(HEADER, (b"IDAT", stream), END)


def header(width: int = 7, height: int = 5, depth: int = 8, kind: int = 0, rest: bytes = b"\0\0\0") -> bytes:
    samples = {0: 1, 2: 3, 3: 1, 4: 2}[kind]
    lines = bytes((1 + (width * depth * samples + 7) // 8) * height)
    head = struct.pack(">IIBB", width, height, depth, kind) + rest
    return png((b"IHDR", head), bombs.idat(lines), END)


@settings(max_examples=200)
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 255)))
def test_every_channel_comes_back(alpha):
    height, width = alpha.shape
    np.testing.assert_array_equal(decode_alpha(encode_alpha(alpha), width, height), alpha)


def test_pillows_limit_of_pixels_is_not_that_of_a_file(monkeypatch):
    """Whoever allows larger files than Pillow's 89 or 179 megapixels had alpha in none of them."""
    data = encode_alpha(RAMP)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(decode_alpha(data, 7, 5), RAMP)


def test_memory_that_runs_out_is_no_damage(monkeypatch):
    """Found by review: a sound file was called corrupt."""

    def no_memory(*_):
        raise MemoryError

    data = encode_alpha(np.arange(64, dtype=np.uint8).reshape(8, 8))
    monkeypatch.setattr("model.alpha.PngImageFile", no_memory)
    with pytest.raises(MemoryError):
        decode_alpha(data, 8, 8)


@pytest.mark.parametrize("side", [300, 1000])
def test_channels_of_several_chunks_come_back(side):
    alpha = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    data = encode_alpha(alpha)
    assert data.count(b"IDAT") > 1
    np.testing.assert_array_equal(decode_alpha(data, side, side), alpha)


def test_the_golden_channels_are_read():
    channels = [c for c in (read_container(path.read_bytes()) for path in FOLDER.glob("*.tcm")) if c.alpha is not None]
    assert channels
    for container in channels:
        assert decode_alpha(container.alpha, container.width, container.height).any()


@given(st.lists(st.integers(0, len(STREAM)), max_size=60))
def test_rows_may_be_cut_into_any_chunks(cuts):
    pieces = [STREAM[a:b] for a, b in pairwise([0, *sorted(cuts), len(STREAM)])]
    data = png(HEADER, *[(b"IDAT", piece) for piece in pieces], END)
    np.testing.assert_array_equal(decode_alpha(data, 7, 5), RAMP)


def test_a_channel_of_one_value_may_be_a_png():
    assert (decode_alpha(png(HEADER, bombs.idat(bytes(40)), END), 7, 5) == 0).all()


@pytest.mark.parametrize("count", [*range(5), 6])
def test_other_rows_than_the_image_has_are_refused(count):
    """Found by an independent reader: rows that were missing became transparent ones."""
    with pytest.raises(CorruptBitstream, match="rows of its image"):
        decode_alpha(rows(zlib.compress((ROWS * 2)[: 8 * count])), 7, 5)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        STREAM[:-1],
        STREAM[:-4],
        STREAM[:-1] + bytes([STREAM[-1] ^ 1]),
        STREAM + b"\0",
        STREAM + STREAM,
        STREAM[2:-4],
        zlib.compress(ROWS[:-1]),
        zlib.compress(ROWS + b"\0"),
    ],
    ids=["none", "cut", "no-adler", "wrong-adler", "a-byte-behind", "two", "raw", "a-byte-less", "a-byte-more"],
)
def test_no_stream_of_the_rows_is_refused(stream):
    with pytest.raises(CorruptBitstream, match="rows of its image"):
        decode_alpha(rows(stream), 7, 5)


def test_chunks_behind_the_rows_are_refused():
    with pytest.raises(CorruptBitstream, match="rows of its image"):
        decode_alpha(png(HEADER, (b"IDAT", STREAM), (b"IDAT", b"kept by nobody"), END), 7, 5)


@pytest.mark.parametrize(
    "data",
    [
        *(header(depth=depth) for depth in (1, 2, 4, 16)),
        *(header(kind=kind) for kind in (2, 3, 4)),
        *(header(rest=bytes(one)) for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 0), (0, 0))),
        header(5, 7),
        header(7, 6),
        header(width=0),
    ],
    ids=[
        "1-bit", "2-bit", "4-bit", "16-bit", "colour", "palette", "grey-alpha", "compression", "filter", "interlace",
        "long", "short", "turned", "higher", "no-width",
    ],
)  # fmt: skip
def test_other_headers_are_refused(data):
    with pytest.raises(CorruptBitstream, match="another size than its image, or is not plain grey"):
        decode_alpha(data, 7, 5)


@pytest.mark.parametrize(
    "data",
    [
        *(png(HEADER, (b"IDAT", STREAM), END, wrong=kind) for kind in (b"IHDR", b"IDAT", b"IEND")),
        b"\x89PNG\r\n\x1a\r" + png(HEADER, (b"IDAT", STREAM), END)[8:],
        png(HEADER, (b"IDAT", STREAM), (b"IEND", b"kept by nobody")),
        png(HEADER, (b"IDAT", STREAM)),
        png(HEADER, (b"IDAT", STREAM), END, END),
        png(HEADER, END),
        png(HEADER, HEADER, (b"IDAT", STREAM), END),
        png((b"IDAT", STREAM), END),
        png(HEADER, (b"IDAT", STREAM), (b"tEXt", b"k\0v"), END),
        png(HEADER, (b"IDAT", STREAM), END) + b"\0",
        png(HEADER),
        png(),
    ],
    ids=[
        "crc-of-header", "crc-of-rows", "crc-of-end", "signature", "full-end", "no-end", "two-ends", "no-rows",
        "two-headers", "no-header", "comment", "a-byte-behind", "header-alone", "nothing",
    ],
)  # fmt: skip
def test_other_chunks_are_refused(data):
    with pytest.raises(CorruptBitstream, match="nothing but pixels"):
        decode_alpha(data, 7, 5)


def test_a_filter_that_is_none_is_refused():
    with pytest.raises(CorruptBitstream, match="cannot be read"):
        decode_alpha(rows(zlib.compress(b"\5" + ROWS[1:])), 7, 5)


@given(st.data())
def test_a_flipped_bit_is_refused(data):
    sound = encode_alpha(RAMP)
    broken = bytearray(sound)
    broken[data.draw(st.integers(0, len(sound) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptBitstream):
        decode_alpha(bytes(broken), 7, 5)


def test_a_bomb_is_inflated_no_further_than_the_image_is_large():
    bomb = rows(zlib.compress(bytes(1 << 26), 9))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptBitstream, match="rows of its image"):
            decode_alpha(bomb, 7, 5)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
