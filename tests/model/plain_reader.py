"""A reader of .tcm files in plain Python, written from docs/bitstream.md: whatever the page left out, it would lack.

It shares nothing with the codec but the network, which the page takes from the paper. Docstrings name the sections of
the page; names are the page's.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import TCMConfig
from model.network import TCM


class Refused(Exception):
    """A file that a reader must not show."""


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), a byte a step."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_OF_BYTE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_OF_BYTE = [_crc_of_byte(byte) for byte in range(256)]


def little_endian(numbers: Sequence[int]) -> bytes:
    """Numbers as 32-bit integers."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


# ---- The file


@dataclass(frozen=True)
class File:
    """What a file says, its metadata inflated and its alpha channel as it lies there."""

    grey: bool
    name: str
    fingerprint: str
    width: int
    height: int
    sections: dict[str, bytes]
    payload: bytes


class _Fields:
    """The bytes between version and checksum, field by field."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 4

    def take(self, count: int) -> bytes:
        if count > self.left():
            raise Refused("a field reaches past the end")
        self._place += count
        return self._data[self._place - count : self._place]

    def left(self) -> int:
        return len(self._data) - self._place

    def varint(self) -> int:
        number = 0
        for i in range(5):
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if i and not byte:
                    break
                return number
        raise Refused("a varint is not in its shortest form")


def read_file(data: bytes) -> File:
    """The file: magic and version, then the CRC, then the fields."""
    if data[:4] != b"\x89TC\x01" or len(data) < 8:
        raise Refused("no file of version 1")
    if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Refused("damaged")
    fields = _Fields(data[:-4])
    flags, length = fields.take(2)
    name = fields.take(length)
    if flags >= 32 or not 1 <= length <= 63 or not all(0x20 <= byte < 0x7F for byte in name):
        raise Refused("flags or a name that are none")
    fingerprint = fields.take(6).hex()
    width, height = fields.varint(), fields.varint()
    if not (1 <= width <= 1 << 20 and 1 <= height <= 1 << 20):
        raise Refused("sides that are none")
    present = [section for section, flag in (("alpha", 2), ("icc", 4), ("exif", 8), ("xmp", 16)) if flags & flag]
    lengths = [fields.varint() for _ in present]
    payload_length = fields.varint()
    if sum(lengths) + payload_length != fields.left():
        raise Refused("lengths that do not add up")
    sections = {section: fields.take(length) for section, length in zip(present, lengths, strict=True)}
    for section in sections.keys() - {"alpha"}:
        sections[section] = _inflated(sections[section], 1, 4 << 20)
    payload = fields.take(payload_length)
    return File(bool(flags & 1), name.decode(), fingerprint, width, height, sections, payload)


def _inflated(data: bytes, least: int, most: int) -> bytes:
    """One zlib stream, of so many bytes, and nothing behind it."""
    stream = zlib.decompressobj()
    try:
        block = stream.decompress(data, most + 1)
    except zlib.error:
        raise Refused("no zlib stream") from None
    if not least <= len(block) <= most or not stream.eof or stream.unused_data:
        raise Refused("no zlib stream of so many bytes")
    return block


def read_alpha(section: bytes, width: int, height: int) -> list[bytes]:
    """The file, alpha: the rows of the channel."""
    if len(section) == 1:
        return [section * width] * height
    chunks = list(_chunks(section))
    header = struct.pack(">II", width, height) + b"\x08\0\0\0\0"
    kinds = [kind for kind, _ in chunks]
    if kinds[:1] != [b"IHDR"] or set(kinds[1:-1]) != {b"IDAT"} or kinds[-1] != b"IEND" or len(chunks) > 16384:
        raise Refused("other chunks")
    if chunks[0][1] != header or chunks[-1][1]:
        raise Refused("another header or end")
    size = height * (width + 1)
    lines = _inflated(b"".join(body for _, body in chunks[1:-1]), size, size)
    rows = [bytes(width)]
    for start in range(0, size, width + 1):
        rows.append(_unfiltered(lines[start], lines[start + 1 : start + 1 + width], rows[-1]))
    return rows[1:]


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise Refused("no PNG")
    place = 8
    while place < len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4], "big")
        if end + 4 > len(png) or zlib.crc32(png[place + 4 : end]) != int.from_bytes(png[end : end + 4], "big"):
            raise Refused("a damaged chunk")
        yield png[place + 4 : place + 8], png[place + 8 : end]
        place = end + 4


def _unfiltered(kind: int, line: bytes, above: bytes) -> bytes:
    """A row of a PNG of one byte a sample (PNG specification, section 9)."""
    row, left, corner = bytearray(), 0, 0
    for value, up in zip(line, above, strict=True):
        if kind == 0:
            guess = 0
        elif kind == 1:
            guess = left
        elif kind == 2:
            guess = up
        elif kind == 3:
            guess = (left + up) // 2
        elif kind == 4:
            guess = min((left, up, corner), key=lambda one: abs(left + up - corner - one))
        else:
            raise Refused("a filter that is none")
        left, corner = (value + guess) & 0xFF, up
        row.append(left)
    return bytes(row)


# ---- The alphabets


class Alphabet(NamedTuple):
    """The first symbol, and the cumulative frequencies from 0 to 65536: the last interval is the escape."""

    low: int
    edges: Sequence[int]


def _alphabet(low: int, masses: Sequence[float]) -> Alphabet:
    n = len(masses)
    return Alphabet(low, [*(i + math.floor(m * (65536 - n) + 0.5) for i, m in enumerate(masses)), 65536])


def _gaussian(scale: float) -> Alphabet:
    reach = math.ceil(5 * scale)
    below = [0.5 * math.erfc(-(v - 0.5) / scale / math.sqrt(2)) for v in range(-reach, reach + 2)]
    return _alphabet(-reach, [mass - below[0] for mass in below])


def _uniform(size: int) -> Alphabet:
    return _alphabet(0, [i / size for i in range(size + 1)])


def _geometric(mean: float) -> Alphabet:
    size, q = max(2, math.ceil(8 * mean)), mean / (1 + mean)
    return _alphabet(0, [1 - q**i for i in range(size + 1)])


SCALES = [math.exp(math.log(0.11) + k * (math.log(256) - math.log(0.11)) / 63) for k in range(64)]
GAUSSIANS = [_gaussian(scale) for scale in SCALES]
UNIFORM_20, UNIFORM_64 = _uniform(20), _uniform(64)
GEOMETRIC = [_geometric(2.0 ** (k - 6)) for k in range(14)]


# ---- The payload


class Stream:
    """The payload, a stream: a state and words, and the symbols that have been read from it."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 6 or len(data) % 2:
            raise Refused("a stream of a length that is none")
        self._state = int.from_bytes(data[:6], "little")
        if self._state < 1 << 32:
            raise Refused("a first state that is none")
        self._words = iter(struct.unpack(f"<{len(data) // 2 - 3}H", data[6:]))
        self._symbols: list[int] = []

    def _interval(self, edges: Sequence[int]) -> int:
        slot = self._state % 65536
        i = bisect_right(edges, slot) - 1
        self._state = (edges[i + 1] - edges[i]) * (self._state // 65536) + slot - edges[i]
        if self._state < 1 << 32:
            word = next(self._words, None)
            if word is None:
                raise Refused("a stream that ends before its symbols")
            self._state = self._state * 65536 + word
        return i

    def _bits(self, count: int) -> int:
        return self._interval(range(0, 65537, 65536 >> count))

    def symbol(self, alphabet: Alphabet) -> int:
        """The next symbol."""
        low, edges = alphabet
        n = len(edges) - 1
        i = self._interval(edges)
        symbol = low + i if i < n - 1 else self._escaped(low, n)
        self._symbols.append(symbol)
        return symbol

    def _escaped(self, low: int, n: int) -> int:
        length = self._bits(5)
        e = 1 << length >> 1
        for place in range(0, length - 1, 16):
            e |= self._bits(min(16, length - 1 - place)) << place
        symbol = low - (e + 1) // 2 if e % 2 else low + n - 1 + e // 2
        if abs(symbol) >= 1 << 30:
            raise Refused("a symbol beyond the largest")
        return symbol

    def finish(self) -> None:
        """After the last symbol: all words have been read, and the state is the checksum of the symbols."""
        if next(self._words, None) is not None or self._state != (1 << 32) + crc32c(little_endian(self._symbols)):
            raise Refused("other symbols than were written")


class Payload:
    """The payload, of an image whose y and z have so many elements together."""

    def __init__(self, data: bytes, elements: int) -> None:
        count = max(1, min(64, elements // (1 << 17)))
        place = 4 * (count - 1)
        if len(data) < place:
            raise Refused("a payload without its streams")
        lengths = struct.unpack(f"<{count - 1}I", data[:place])
        if place + sum(lengths) > len(data):
            raise Refused("streams past the end")
        self.streams = []
        for length in (*lengths, len(data) - place - sum(lengths)):
            self.streams.append(Stream(data[place : place + length]))
            place += length

    def part(self, alphabets: Sequence[Alphabet]) -> list[int]:
        """The symbols of a part, given the alphabet of each."""
        m, count = len(alphabets), len(self.streams)
        runs = [range(m * k // count, m * (k + 1) // count) for k in range(count)]
        return [stream.symbol(alphabets[j]) for stream, run in zip(self.streams, runs, strict=True) for j in run]

    def finish(self) -> None:
        """After the last part."""
        for stream in self.streams:
            stream.finish()


# ---- The guard

SERVING = [0, 4, *range(6, 64)]


@functools.cache
def steps(way: int) -> list[float]:
    """The guard: where a way has the 59 steps."""
    logs = [math.log(SCALES[a]) for a in SERVING]
    placed = []
    for k in range(59):
        h = (way * 0x9E3779B1 + k * 0x85EBCA77) & 0xFFFFFFFF
        h ^= h >> 15
        h = h * 0x2C1B3C6D & 0xFFFFFFFF
        h ^= h >> 12
        p = h >> 26 if way else 31
        r = (97 + p) / 256
        placed.append(math.exp((1 - r) * logs[k] + r * logs[k + 1]))
    return placed


def read_guard(payload: Payload, elements: int) -> list[int]:
    """The guard of a slice of so many elements: the way of each group."""
    more, d = payload.part([GEOMETRIC[10], UNIFORM_20])
    groups = more + 1
    if not 1 <= groups <= max(1, elements // 64) or not 0 <= d <= 19:
        raise Refused("a guard that is none")
    ways = payload.part([GEOMETRIC[d if d < 12 else d - 6]] * groups)
    if d >= 12:
        low_parts = payload.part([UNIFORM_64] * groups)
        if not all(0 <= low < 64 for low in low_parts):
            raise Refused("a low part that is none")
        ways = [64 * high + low for high, low in zip(ways, low_parts, strict=True)]
    if not all(0 <= way < 65536 for way in ways):
        raise Refused("a way that is none")
    return ways


def alphabets_of(sigmas: Sequence[float], ways: Sequence[int]) -> list[Alphabet]:
    """The guard: the alphabet of each element of a slice."""
    placed = [steps(way) for way in ways]
    return [GAUSSIANS[SERVING[bisect_left(placed[e % len(ways)], sigma)]] for e, sigma in enumerate(sigmas)]


# ---- The weights


@dataclass(frozen=True)
class Weights:
    """The weights: the network in float32, the medians and alphabets of z by channel, and which weights they are."""

    fingerprint: str
    net: TCM
    medians: torch.Tensor
    z: list[Alphabet]


def read_weights(path: Path) -> Weights:
    """The weights: a safetensors file, and the one beside it from which it differs."""
    metadata, own = _stored(path)
    config = TCMConfig.from_json(metadata["config"])
    others = [_stored(other)[1] for other in path.parent.glob("*.safetensors")] if "differs_from" in metadata else []
    lines = own
    for whole in others:
        if _fingerprint(whole) == metadata["differs_from"]:
            lines = whole | own
    stored = {name: data for name, (_, data) in lines.items()}
    cdf, start, low = (
        struct.unpack(f"<{len(table) // 4}i", table)
        for table in (stored[f"tables.z.{part}"] for part in ("cdf", "start", "low"))
    )
    z = [Alphabet(low[c], cdf[start[c] : start[c + 1]]) for c in range(len(low))]
    tensors = {name: _tensor(line, data) for name, (line, data) in lines.items()}
    medians = tensors["entropy_bottleneck.quantiles"][:, 0, 1].view(1, -1, 1, 1)
    net = TCM(config).eval()
    unknown = net.load_state_dict(tensors, strict=False).unexpected_keys
    assert all(name.startswith("tables.z.") for name in unknown)
    return Weights(_fingerprint(lines), net, medians, z)


Stored = dict[str, tuple[str, bytes]]
"""By a tensor's name: the line of the fingerprint, and its bytes."""


def _stored(path: Path) -> tuple[dict[str, str], Stored]:
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    metadata = header.pop("__metadata__")
    stored = {}
    for name, tensor in header.items():
        first, end = tensor["data_offsets"]
        kind = {"F16": "float16", "F32": "float32", "I32": "int32"}[tensor["dtype"]]
        stored[name] = f"{name} torch.{kind} {tuple(tensor['shape'])}\n", data[begin + first : begin + end]
    return metadata, stored


def _fingerprint(stored: Stored) -> str:
    digest = hashlib.sha256()
    for _, (line, data) in sorted(stored.items()):
        digest.update(line.encode() + data)
    return digest.digest()[:6].hex()


def _tensor(line: str, data: bytes) -> torch.Tensor:
    _, kind, shape = line.split(maxsplit=2)
    sides = [int(side) for side in shape.strip("(),\n").split(",") if side.strip()]
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, kind.removeprefix("torch."))).view(sides)


# ---- The way back


@dataclass(frozen=True)
class Picture:
    """What a reader shows.

    Attributes:
        samples: (H, W, 3), or (H, W) of a greyscale image.
        alpha: its rows, or None.
        symbols: those of z, then those of y, in reading order.
    """

    file: File
    samples: NDArray[np.int32]
    alpha: list[bytes] | None
    symbols: list[int] = field(repr=False)


@torch.inference_mode()
def decode(data: bytes, weights: Weights) -> Picture:
    """The way back, from a file to its picture."""
    file, net = read_file(data), weights.net
    if file.fingerprint != weights.fingerprint:
        raise Refused("other weights")
    c = net.config
    w, h = (-(-side // 128) * 128 // 16 for side in (file.width, file.height))
    of_z = (h // 4) * (w // 4)
    payload = Payload(file.payload, c.M * h * w + len(weights.z) * of_z)
    symbols = payload.part([alphabet for alphabet in weights.z for _ in range(of_z)])
    z_hat = torch.tensor(symbols, dtype=torch.float32).view(1, -1, h // 4, w // 4) + weights.medians
    of_means, of_scales = net.h_mean_s(z_hat), net.h_scale_s(z_hat)
    done: list[torch.Tensor] = []
    for i in range(c.slices):
        before = done[: c.max_support]
        support = net.atten_mean[i](torch.cat([of_means, *before], dim=1))
        mu = net.cc_mean_transforms[i](support)
        sigma = net.cc_scale_transforms[i](net.atten_scale[i](torch.cat([of_scales, *before], dim=1)))
        of_slice = payload.part(alphabets_of(sigma.flatten().tolist(), read_guard(payload, sigma.numel())))
        symbols += of_slice
        y_hat = torch.tensor(of_slice, dtype=torch.float32).view(mu.shape) + mu
        done.append(y_hat + 0.5 * torch.tanh(net.lrp_transforms[i](torch.cat([support, y_hat], dim=1))))
    payload.finish()
    x_hat = net.g_s(torch.cat(done, dim=1))[0, :, : file.height, : file.width]
    samples = torch.round(255 * x_hat.clamp(0, 1)).to(torch.int32).permute(1, 2, 0).numpy()
    alpha = read_alpha(file.sections["alpha"], file.width, file.height) if "alpha" in file.sections else None
    return Picture(file, (samples.sum(axis=2) + 1) // 3 if file.grey else samples, alpha, symbols)
