"""The .tcm file, application/vnd.tcm: header, sections, checksum. No tensors. Specified in docs/bitstream.md.

    magic  version  flags  name  fingerprint  width  height  lengths of the sections  sections  CRC-32C
    89 TC     01      1    1+n        6       varint varint          varints            bytes       4

The header says everything a reader must know before it allocates: whose weights it needs, how large the image is, and
how long each section is. A plain RGB photograph spends at most 23 bytes and its model's name outside its payload, as
long as its sides are below 16384 pixels and its payload is below 2 MiB.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import google_crc32c

from model.errors import CorruptBitstream, TooManyPixels, UnsupportedBitstream

MEDIA_TYPE = "application/vnd.tcm"
MAGIC = b"\x89TC"
VERSION = 1
MAX_SIDE = 1 << 20
DEFAULT_MAX_PIXELS = 50_000_000
SHORTEST_SIDE = 128
"""Pixels that a shorter side is padded to by the published windows, and counts as."""
MAX_METADATA = 4 << 20
"""Bytes of one block of metadata; larger ones are not kept."""

_GREY = 1
_SECTIONS = {"alpha": 2, "icc": 4, "exif": 8, "xmp": 16}
_DEFLATED = ("icc", "exif", "xmp")
_CRC_BYTES = 4
_LEVEL = 6  # of deflating: the ninth takes up to 40 times as long for blocks that are made for it
_FINGERPRINT_BYTES = 6
_MAX_NAME = 63


@dataclass(frozen=True)
class Container:
    """One .tcm file.

    Attributes:
        model: name of the model that wrote it.
        fingerprint: hex of the first bytes of its weights' SHA-256.
        width: of the image, pixels.
        height: of the image, pixels.
        payload: the entropy-coded latents, see `model.entropy`.
        grey: the image is greyscale.
        alpha: the coded alpha channel, see `model.alpha`.
        icc: colour profile.
        exif: EXIF block, its orientation already applied to the pixels.
        xmp: XMP packet.
    """

    model: str
    fingerprint: str
    width: int
    height: int
    payload: bytes
    grey: bool = False
    alpha: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    def stripped(self) -> Container:
        """The same image with EXIF and XMP left out. The profile stays: it says what the coded colours are."""
        return replace(self, exif=None, xmp=None)


def write_container(container: Container) -> bytes:
    """The bytes of a .tcm file.

    Raises:
        ValueError: a field that no file can hold.
    """
    name = container.model.encode("ascii")
    fingerprint = bytes.fromhex(container.fingerprint)
    if not 0 < len(name) <= _MAX_NAME or len(fingerprint) != _FINGERPRINT_BYTES:
        raise ValueError("a model name has 1 to 63 characters and a fingerprint 6 bytes")
    if not (0 < container.width <= MAX_SIDE and 0 < container.height <= MAX_SIDE):
        raise ValueError(f"sides lie in 1..{MAX_SIDE}")
    flags = _GREY if container.grey else 0
    lengths, bodies = b"", b""
    for section, bit in _SECTIONS.items():
        body: bytes | None = getattr(container, section)
        if body is not None:
            if section in _DEFLATED:
                if not 0 < len(body) <= MAX_METADATA:
                    raise ValueError(f"metadata have 1 to {MAX_METADATA} bytes a block")
                body = zlib.compress(body, _LEVEL)
            flags |= bit
            lengths += _varint(len(body))
            bodies += body
    data = b"".join(
        (
            MAGIC,
            bytes((VERSION, flags, len(name))),
            name,
            fingerprint,
            _varint(container.width),
            _varint(container.height),
            lengths,
            _varint(len(container.payload)),
            bodies,
            container.payload,
        )
    )
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(_CRC_BYTES, "little")


def read_container(data: bytes | bytearray | memoryview, max_pixels: int = DEFAULT_MAX_PIXELS) -> Container:
    """Parse and check a .tcm file; nothing is allocated that the file asks for.

    Raises:
        UnsupportedBitstream: it is no .tcm file, or one of a later version.
        CorruptBitstream: it is damaged or truncated, or its fields contradict each other.
        TooManyPixels: its image would be larger than `max_pixels`.
    """
    data = bytes(data)
    if len(data) < len(MAGIC) or not data.startswith(MAGIC):
        raise UnsupportedBitstream("not a .tcm file: it does not start with its magic number")
    reader = _Reader(data, len(MAGIC))
    version = reader.byte()
    if version != VERSION:
        raise UnsupportedBitstream(f"format version {version}; this reader knows version {VERSION}: update it")
    if len(data) < len(MAGIC) + _CRC_BYTES:
        raise CorruptBitstream("truncated: the file ends inside its header")
    # before any field is believed
    stored = int.from_bytes(data[-_CRC_BYTES:], "little")
    if google_crc32c.value(data[:-_CRC_BYTES]) != stored:
        raise CorruptBitstream("damaged or truncated: its checksum (CRC-32C) does not fit its bytes")
    flags = reader.byte()
    if flags & ~(_GREY | sum(_SECTIONS.values())):
        raise UnsupportedBitstream(f"flags {flags:#04x} that this reader does not know: update it")
    name = reader.take(reader.byte())
    if not 0 < len(name) <= _MAX_NAME or not name.isascii() or not name.decode("ascii").isprintable():
        raise CorruptBitstream("its model name is not one")
    fingerprint = reader.take(_FINGERPRINT_BYTES).hex()
    width, height = reader.varint(), reader.varint()
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise CorruptBitstream(f"an image of {width}x{height} pixels cannot be")
    present = [section for section, bit in _SECTIONS.items() if flags & bit]
    lengths = [reader.varint() for _ in present]
    payload_length = reader.varint()
    if reader.place + sum(lengths) + payload_length + _CRC_BYTES != len(data):
        raise CorruptBitstream("its sections do not add up to its length")
    check_pixels(width, height, max_pixels)
    sections = {section: reader.take(length) for section, length in zip(present, lengths, strict=True)}
    for section in _DEFLATED:
        if section in sections:
            sections[section] = _inflate(sections[section])
    return Container(
        model=name.decode("ascii"),
        fingerprint=fingerprint,
        width=width,
        height=height,
        payload=reader.take(payload_length),
        grey=bool(flags & _GREY),
        **sections,
    )


def seen_pixels(width: int, height: int) -> int:
    """Pixels of a picture as the networks see it: a side counts as 128 at least."""
    return max(width, SHORTEST_SIDE) * max(height, SHORTEST_SIDE)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """The limit of pixels, for an image and for the promise of one.

    Raises:
        TooManyPixels: more than `max_pixels`, or a strip so thin that the networks would see more than that: a side
            counts as 128 pixels at least; or a side is longer than a file can say.
    """
    if max(width, height) > MAX_SIDE:
        raise TooManyPixels(f"{width}x{height}: a side has at most {MAX_SIDE} pixels")
    if width * height > max_pixels:
        raise TooManyPixels(f"{width}x{height} = {width * height} pixels is over the limit of {max_pixels}")
    seen = seen_pixels(width, height)
    if seen > max(max_pixels, SHORTEST_SIDE**2):
        raise TooManyPixels(
            f"{width}x{height} counts as {seen} pixels, which is over the limit of {max_pixels}: "
            f"the networks work on squares of {SHORTEST_SIDE}"
        )


def _inflate(body: bytes) -> bytes:
    """A deflated section: not empty, and no longer than `MAX_METADATA`."""
    stream = zlib.decompressobj()
    try:
        block: bytes = stream.decompress(body, MAX_METADATA)
    except zlib.error:
        raise CorruptBitstream("its metadata cannot be inflated") from None
    if not block or not stream.eof or stream.unused_data:
        raise CorruptBitstream(f"its metadata are not one block of 1 to {MAX_METADATA} bytes")
    return block


class _Reader:
    """A place in the bytes that never passes their end."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise CorruptBitstream("truncated: a field reaches past the end of the file")
        self.place += count
        return self.data[self.place - count : self.place]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        """LEB128, at most five bytes, in its shortest form."""
        value = 0
        for i in range(5):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if byte == 0 and i > 0:
                    break
                return value
        raise CorruptBitstream("a number in its header is not in its shortest form")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
