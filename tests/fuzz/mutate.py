"""Hostile files from sound ones: what chance does to bytes, and what a writer does who knows the format.

Every choice comes from one `random.Random`, so a case is its number, and hypothesis or atheris can stand in for chance.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import google_crc32c

CRC_BYTES = 4
SIZES = (0, 1, 2, 63, 64, 127, 128, 129, 255, 256, 257, 512, 4096, 65_535, 1 << 20, (1 << 20) + 1, (1 << 31) - 1,
         1 << 31, (1 << 32) - 1, 1 << 32, (1 << 35) - 1)  # fmt: skip
"""Sides and lengths at the edges of what a field, a limit or an integer holds."""
NAMES = (b"", b"a", b"a" * 63, b"a" * 64, b"a" * 255, b"\0", b"../../etc/passwd", b"tcm\n", b"\xff\xfe", b"%s%n")


# ---- chance


def truncate(rng: Random, data: bytes) -> bytes:
    """The end is missing."""
    return data[: rng.randrange(len(data) + 1)]


def flip(rng: Random, data: bytes) -> bytes:
    """One to eight bits."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwrite(rng: Random, data: bytes) -> bytes:
    """A run of zeros, ones or noise."""
    start = rng.randrange(len(data) + 1)
    length = min(rng.choice((1, 2, 4, 8, 64, 1000)), len(data) - start)
    run = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return data[:start] + run + data[start + length :]


def remove(rng: Random, data: bytes) -> bytes:
    """A run is missing."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 3, 4, 16, 200)) :]


def insert(rng: Random, data: bytes) -> bytes:
    """A run of noise is too many."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 16, 200))) + data[start:]


def repeat(rng: Random, data: bytes) -> bytes:
    """A run comes twice."""
    start = rng.randrange(len(data) + 1)
    end = start + rng.choice((1, 2, 8, 64, 1000))
    return data[:end] + data[start:]


def swap(rng: Random, data: bytes) -> bytes:
    """Two halves of the rest change places."""
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


CHANCE = (truncate, flip, overwrite, remove, insert, repeat, swap)


def damage(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """One to three accidents, or the beginning of one file and the end of another."""
    if other and rng.random() < 0.1:
        return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(CHANCE)(rng, data)
    return data


def damaged_image(rng: Random, files: Sequence[bytes]) -> bytes:
    """One of these image files with accidents in it; in every other PNG its checksums fit again, as in a forged one."""
    data = damage(rng, rng.choice(files), rng.choice(files))
    return _sealed_png(data) if data.startswith(b"\x89PNG") and rng.random() < 0.5 else data


def _sealed_png(data: bytes) -> bytes:
    out, place = bytearray(data), 8
    while place + 12 <= len(out):
        end = place + 8 + int.from_bytes(out[place : place + 4], "big")
        out[end : end + 4] = zlib.crc32(out[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(out)


# ---- a writer who knows the format


@dataclass
class Layout:
    """A .tcm file field by field, as bytes that nobody has checked."""

    magic: bytes
    version: bytes
    flags: int
    name_length: bytes
    name: bytes
    fingerprint: bytes
    width: bytes
    height: bytes
    lengths: list[bytes] = field(default_factory=list)
    payload_length: bytes = b""
    sections: list[bytes] = field(default_factory=list)
    payload: bytes = b""

    @classmethod
    def of(cls, data: bytes) -> Layout:
        """Take a sound file apart."""
        place = 6 + data[5] + 6
        fields = cls(data[:3], data[3:4], data[4], data[5:6], data[6 : 6 + data[5]], data[place - 6 : place], b"", b"")
        numbers = []
        for _ in range(3 + (fields.flags >> 1).bit_count()):
            end = place + next(i for i in range(5) if data[place + i] < 0x80) + 1
            numbers.append(data[place:end])
            place = end
        fields.width, fields.height, *fields.lengths, fields.payload_length = numbers
        for length in fields.lengths:
            fields.sections.append(data[place : place + value(length)])
            place += value(length)
        fields.payload = data[place:-CRC_BYTES]
        return fields

    def honest(self) -> Layout:
        """With the lengths that its sections have."""
        lengths = [varint(len(section)) for section in self.sections]
        return dataclasses.replace(self, lengths=lengths, payload_length=varint(len(self.payload)))

    def sealed(self) -> bytes:
        """The file, its checksum computed over whatever its fields say."""
        body = b"".join((
            self.magic, self.version, bytes([self.flags & 0xFF]), self.name_length, self.name, self.fingerprint,
            self.width, self.height, *self.lengths, self.payload_length, *self.sections, self.payload,
        ))  # fmt: skip
        return seal(body)


def seal(body: bytes) -> bytes:
    """A body with its checksum."""
    return body + google_crc32c.value(body).to_bytes(CRC_BYTES, "little")


def varint(number: int, *, longest: bool = False) -> bytes:
    """LEB128; `longest` pads it beyond its shortest form."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes([*out[:-1], out[-1] | 0x80, 0]) if longest else bytes(out)


def value(encoded: bytes) -> int:
    """The number that a varint holds."""
    return sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(encoded))


def _size(rng: Random) -> bytes:
    number = rng.choice(SIZES) if rng.random() < 0.6 else rng.randrange(1, 1 << rng.randint(1, 21))
    return varint(number, longest=rng.random() < 0.05)


def lie_of_size(rng: Random, file: Layout, _: Layout) -> Layout:
    """Another width or height, from one more to the largest integer."""
    width, height = file.width, file.height
    if rng.random() < 0.5:  # near the truth, so that the padded size may stay
        near = [varint(max(0, value(side) + rng.randint(-3, 3))) for side in (width, height)]
        return dataclasses.replace(file, width=near[0], height=near[1])
    sides = rng.choice(((_size(rng), height), (width, _size(rng)), (_size(rng), _size(rng)), (height, width)))
    return dataclasses.replace(file, width=sides[0], height=sides[1])


def lie_of_length(rng: Random, file: Layout, _: Layout) -> Layout:
    """Lengths of sections that are too small, too large, or overflow a sum."""
    lengths = list(file.lengths)
    if lengths and rng.random() < 0.6:
        lengths[rng.randrange(len(lengths))] = _size(rng)
        return dataclasses.replace(file, lengths=lengths)
    return dataclasses.replace(file, payload_length=_size(rng))


def move_boundary(rng: Random, file: Layout, _: Layout) -> Layout:
    """Lengths that add up, of sections cut elsewhere."""
    parts = [*file.sections, file.payload]
    whole = b"".join(parts)
    cuts = sorted(rng.randrange(len(whole) + 1) for _ in file.sections)
    edges = [0, *cuts, len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    return dataclasses.replace(file, sections=pieces[:-1], payload=pieces[-1]).honest()


def lie_of_flags(rng: Random, file: Layout, _: Layout) -> Layout:
    """Sections that are not there, or are not announced."""
    return dataclasses.replace(file, flags=file.flags ^ (1 << rng.randrange(8)))


def rename(rng: Random, file: Layout, other: Layout) -> Layout:
    """Another model, other weights, another version."""
    kind = rng.randrange(4)
    if kind == 0:
        name = rng.choice(NAMES)
        return dataclasses.replace(file, name=name, name_length=bytes([len(name)]))
    if kind == 1:
        return dataclasses.replace(file, name_length=rng.randbytes(1))
    if kind == 2:
        return dataclasses.replace(file, fingerprint=rng.choice((rng.randbytes(6), other.fingerprint, bytes(6))))
    return dataclasses.replace(file, version=rng.randbytes(1), magic=rng.choice((file.magic, rng.randbytes(3))))


def change_section(rng: Random, file: Layout, other: Layout) -> Layout:
    """A bomb, nothing, noise, damage or another's section, with an honest length."""
    if not file.sections:
        return change_payload(rng, file, other)
    sections = list(file.sections)
    i = rng.randrange(len(sections))
    sections[i] = rng.choice((
        lambda: b"",
        lambda: zlib.compress(bytes(rng.choice((1 << 22, (1 << 22) + 1, 1 << 24))), 9),
        lambda: rng.randbytes(rng.choice((1, 2, 50, 3000))),
        lambda: damage(rng, sections[i]),
        lambda: rng.choice([*other.sections, b"\0"]),
        lambda: sections[i] + sections[i],
        lambda: zlib.compress(damage(rng, zlib.decompress(sections[i]))) if _deflated(sections[i]) else b"\x07",
    ))()  # fmt: skip
    return dataclasses.replace(file, sections=sections).honest()


def _deflated(section: bytes) -> bool:
    try:
        zlib.decompress(section)
    except zlib.error:
        return False
    return True


def change_payload(rng: Random, file: Layout, other: Layout) -> Layout:
    """Symbols that nobody wrote."""
    payload = rng.choice((
        lambda: damage(rng, file.payload, other.payload),
        lambda: damage(rng, file.payload[:64]) + file.payload[64:],
        lambda: flip(rng, file.payload),
        lambda: rng.randbytes(rng.choice((0, 1, 5, 6, 7, 8, 100, 5000))),
        lambda: rng.choice((b"\0", b"\xff")) * rng.choice((6, 7, 500, 20_000)),
        lambda: other.payload,
        lambda: file.payload + rng.randbytes(2),
        lambda: file.payload[: -2 * rng.randint(1, 3)],
    ))()  # fmt: skip
    return dataclasses.replace(file, payload=payload).honest()


KNOWING: Sequence[Callable[[Random, Layout, Layout], Layout]] = (
    lie_of_size, lie_of_length, move_boundary, lie_of_flags, rename, change_section, change_payload, change_payload,
)  # fmt: skip


def hostile(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A hostile file made of sound ones: a sixth by chance, the others with a checksum that fits."""
    data, other = rng.choice(seeds), rng.choice(seeds)
    kind = rng.randrange(6)
    if kind == 0:
        return damage(rng, data, other)
    if kind == 1:
        return seal(damage(rng, data[:-CRC_BYTES], other[:-CRC_BYTES]))
    file = Layout.of(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        file = rng.choice(KNOWING)(rng, file, Layout.of(other))
    return file.sealed()
