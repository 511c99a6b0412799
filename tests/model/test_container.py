"""The .tcm file: everything comes back, little is spent, and no damaged or hostile file passes."""

from __future__ import annotations

import zlib
from dataclasses import replace

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.container import MAGIC, MAX_METADATA, Container, read_container, write_container
from model.errors import CorruptBitstream, ModelError, TooManyPixels, UnsupportedBitstream

blocks = st.none() | st.binary(min_size=1, max_size=200)
containers = st.builds(
    Container,
    model=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
    fingerprint=st.binary(min_size=6, max_size=6).map(bytes.hex),
    width=st.integers(1, 1 << 20),
    height=st.integers(1, 1 << 20),
    payload=st.binary(max_size=400),
    grey=st.booleans(),
    alpha=blocks,
    icc=blocks,
    exif=blocks,
    xmp=blocks,
)
PLAIN = Container("tcm-xs-mse-0.0035", "0123456789ab", 768, 512, bytes(20_000))
NO_LIMIT = 1 << 40
NOTHING = zlib.compress(b"")


def sealed(body: bytes) -> bytes:
    """A body with a valid checksum: what a hostile writer sends."""
    return body + google_crc32c.value(body).to_bytes(4, "little")


@given(containers)
def test_everything_comes_back(container):
    assert read_container(write_container(container), NO_LIMIT) == container


@pytest.mark.parametrize(
    ("width", "height", "payload", "spent"),
    [
        (768, 512, 20_000, 23),
        (1, 1, 100, 19),
        (16_383, 16_383, (1 << 21) - 1, 23),
        (16_384, 16_383, (1 << 21) - 1, 24),
        (16_383, 16_383, 1 << 21, 24),
    ],
)
def test_what_a_plain_photograph_spends_outside_its_payload(width, height, payload, spent):
    """As docs/bitstream.md has it: 40 bytes, said of any, was of names of 17 letters."""
    container = replace(PLAIN, width=width, height=height, payload=bytes(payload))
    assert len(write_container(container)) - payload == spent + len(PLAIN.model)


@given(containers, st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_is_named(container, place, flip):
    data = bytearray(write_container(container))
    data[place % len(data)] ^= flip
    with pytest.raises((CorruptBitstream, UnsupportedBitstream)):
        read_container(bytes(data), NO_LIMIT)


def test_every_truncation_is_named():
    data = write_container(Container("m", "00" * 6, 5, 4, b"payload", True, b"a", b"i", b"e", b"x"))
    for end in range(len(data)):
        with pytest.raises((CorruptBitstream, UnsupportedBitstream)):
            read_container(data[:end])
    with pytest.raises(CorruptBitstream):
        read_container(data + b"\0")


@settings(max_examples=300)
@given(st.binary(max_size=120))
def test_hostile_headers_with_valid_checksums(body):
    try:
        container = read_container(sealed(MAGIC + b"\x01" + body))
    except ModelError:
        return
    assert container.pixels <= 50_000_000


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", UnsupportedBitstream, "magic"),
        (b"\x89PNG\r\n\x1a\n", UnsupportedBitstream, "magic"),
        (sealed(MAGIC + b"\x02" + bytes(40)), UnsupportedBitstream, "version 2"),
        (sealed(MAGIC + b"\x01\x80\x01m" + bytes(6) + b"\x01\x01\x00"), UnsupportedBitstream, "flags"),
        (sealed(MAGIC + b"\x01\x00\x00" + bytes(6) + b"\x01\x01\x00"), CorruptBitstream, "name"),
        (sealed(MAGIC + b"\x01\x00\x01\n" + bytes(6) + b"\x01\x01\x00"), CorruptBitstream, "name"),
        (sealed(MAGIC + b"\x01\x00\x01m" + bytes(6) + b"\x00\x01\x00"), CorruptBitstream, "0x1"),
        (sealed(MAGIC + b"\x01\x00\x01m" + bytes(6) + b"\xff\xff\xff\xff\x0f\x01\x00"), CorruptBitstream, "cannot be"),
        (sealed(MAGIC + b"\x01\x00\x01m" + bytes(6) + b"\x81\x00\x01\x00"), CorruptBitstream, "shortest"),
        (
            sealed(MAGIC + b"\x01\x00\x01m" + bytes(6) + b"\x80\x80\x80\x80\x80\x01\x01\x00"),
            CorruptBitstream,
            "shortest",
        ),
        (sealed(MAGIC + b"\x01\x00\x01m" + bytes(6) + b"\x01\x01\x05abc"), CorruptBitstream, "add up"),
        (sealed(MAGIC + b"\x01\x00\x01m" + bytes(6) + b"\x01\x01\xff\xff\xff\xff\x0fabc"), CorruptBitstream, "add up"),
        (sealed(MAGIC + b"\x01\x04\x01m" + bytes(6) + b"\x01\x01\x03\x00abc"), CorruptBitstream, "inflated"),
        *(
            (
                sealed(MAGIC + b"\x01" + flag + b"\x01m" + bytes(6) + b"\x01\x01\x08\x00" + NOTHING),
                CorruptBitstream,
                "1 to",
            )
            for flag in (b"\x04", b"\x08", b"\x10")
        ),
    ],
)
def test_malformed_files_are_named(data, error, says):
    with pytest.raises(error, match=says):
        read_container(data)


def test_pixel_limit_counts_before_anything_is_decoded():
    data = write_container(Container("m", "00" * 6, 1 << 20, 1 << 20, b""))
    with pytest.raises(TooManyPixels, match="limit of 50000000"):
        read_container(data)


def test_a_metadata_bomb_is_refused():
    bomb = zlib.compress(bytes(MAX_METADATA + 1), 9)
    body = MAGIC + b"\x01\x04\x01m" + bytes(6) + b"\x01\x01"
    length = len(bomb)
    varint = bytes([length & 0x7F | 0x80, length >> 7])
    with pytest.raises(CorruptBitstream, match="metadata"):
        read_container(sealed(body + varint + b"\x00" + bomb))


@pytest.mark.parametrize("block", [b"", bytes(MAX_METADATA + 1)])
@pytest.mark.parametrize("section", ["icc", "exif", "xmp"])
def test_metadata_that_no_reader_takes_are_not_written(section, block):
    with pytest.raises(ValueError, match="1 to 4194304 bytes"):
        write_container(replace(PLAIN, **{section: block}))
    largest = replace(PLAIN, **{section: block[1:] or b"x"})
    assert read_container(write_container(largest)) == largest


def test_the_documented_example_is_what_is_written():
    """docs/bitstream.md walks through this file byte by byte."""
    data = write_container(Container("tiny", "0123456789ab", 300, 2, b"\xaa\xbb", grey=True))
    assert data.hex(" ") == "89 54 43 01 01 04 74 69 6e 79 01 23 45 67 89 ab ac 02 02 02 aa bb ff 91 72 bb"
