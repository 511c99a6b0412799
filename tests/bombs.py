"""Image files that are small, and cost a decoder much more than they say."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def file_of(image: Image.Image, file_format: str, **options: object) -> bytes:
    """An honest image file."""
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of these chunks, whatever its header says."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def idat(rows: bytes) -> tuple[bytes, bytes]:
    """Pixels as they lie in a PNG."""
    return b"IDAT", zlib.compress(rows, 9)


def png_of_comments(count: int) -> bytes:
    """Each comment inflates to a mebibyte."""
    body = b"k\0\0" + zlib.compress(bytes(1 << 20), 9)
    return png(2, 2, *[(b"zTXt", body)] * count, idat(bytes(6)))


def png_of_profiles(count: int) -> bytes:
    """Each profile inflates to nearly a mebibyte, and replaces the one before."""
    body = b"k\0\0" + zlib.compress(bytes((1 << 20) - 1), 9)
    return png(2, 2, *[(b"iCCP", body)] * count, idat(bytes(6)))


def png_of_chunks(count: int) -> bytes:
    """Nothing but chunks that nobody knows."""
    return png(2, 2, *[(b"abCd", b"")] * count, idat(bytes(6)))


def png_of_raw_profile(size: int) -> bytes:
    """A text that says that it is EXIF in hexadecimal, and is nothing but zeros."""
    body = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n".ljust(size, b"0"), 9)
    return png(2, 2, (b"zTXt", body), idat(bytes(6)))


def jpeg_of_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, comes again and again."""
    data = file_of(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def jpeg_of_exif(count: int, size: int = 1) -> bytes:
    """EXIF in segments of a byte each."""
    data = file_of(Image.new("L", (8, 8)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 8 + size) + b"Exif\0\0" + bytes(size)
    return data[:2] + segment * count + data[2:]


def jpeg_of_padding(count: int) -> bytes:
    """Fill bytes between two markers."""
    data = file_of(Image.new("L", (8, 8)), "JPEG")
    return data[:2] + b"\xff" * count + data[2:]


def gif_of_canvas(width: int, height: int) -> bytes:
    """A frame of one pixel on a canvas of any size."""
    data = file_of(Image.new("P", (1, 1)), "GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def gif_of_frame(width: int, height: int) -> bytes:
    """A canvas of one pixel, and a frame that claims to be larger."""
    data = bytearray(file_of(Image.new("P", (1, 1)), "GIF"))
    place = data.index(b"\x2c", 13)
    data[place + 5 : place + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_of_comments(count: int) -> bytes:
    """Comments of one byte each, in front of the frame."""
    data = file_of(Image.new("P", (1, 1)), "GIF")
    place = 13 + 3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 13
    return data[:place] + b"\x21\xfe" + b"\1x" * count + b"\0" + data[place:]


def webp_of_canvas(width: int, height: int) -> bytes:
    """A frame of 16 pixels on a canvas of any size."""
    frame = Image.new("RGB", (4, 4))
    data = bytearray(file_of(frame, "WEBP", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def avif_of_lies(side: int, claimed: int) -> bytes:
    """An AVIF whose picture is larger than its container says."""
    data = file_of(Image.new("RGB", (side, side), "red"), "AVIF", speed=10, quality=10)
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", claimed, claimed) + data[place + 8 :]


def avif_of_boxes(count: int) -> bytes:
    """An honest AVIF, and in its directory any number of boxes that nobody knows."""
    data = file_of(Image.new("RGB", (64, 64), "red"), "AVIF", speed=10)
    meta = data.index(b"meta") - 4
    (size,) = struct.unpack_from(">L", data, meta)
    more = struct.pack(">L4s", 8, b"free") * count
    return data[:meta] + struct.pack(">L", size + len(more)) + data[meta + 4 : meta + size] + more + data[meta + size :]


def tiff(width: int, height: int, tags: dict[int, tuple[int, list[int] | bytes]], tail: bytes = b"") -> bytes:
    """A TIFF of these tags: number -> (type, values or bytes)."""
    fields: dict[int, tuple[int, list[int] | bytes]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1]), 277: (3, [1]),
    }  # fmt: skip
    fields |= tags
    place = 8 + 2 + 12 * len(fields) + 4
    entries, values = b"", b""
    for tag, (kind, content) in sorted(fields.items()):
        code = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B"}[kind]
        raw = content if isinstance(content, bytes) else struct.pack(f"<{len(content)}{code}", *content)
        count = len(raw) // struct.calcsize(code)
        inline = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", place + len(values))
        values += raw if len(raw) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, count) + inline
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + bytes(4) + values + tail


def honest_tiff(width: int, height: int, tags: dict[int, tuple[int, list[int] | bytes]], *strips: bytes) -> bytes:
    """A TIFF of these tags and of pixels in these strips, or planes."""
    lengths = {279: (4, [len(strip) for strip in strips])}
    pixels = b"".join(strips)
    start = len(tiff(width, height, tags | lengths | {273: (4, [0] * len(strips))}))
    places = [start + sum(len(strip) for strip in strips[:i]) for i in range(len(strips))]
    return tiff(width, height, tags | lengths | {273: (4, places)}, pixels)


def tiff_of_tiles(side: int, tile: int) -> bytes:
    """A small image in one compressed tile that claims to be huge."""
    body = zlib.compress(bytes(1 << 16))
    return tiff(side, side, {259: (3, [8]), 322: (4, [tile]), 323: (4, [tile]), 324: (4, [8]), 325: (4, [len(body)])},
                body)  # fmt: skip


def tiff_of_strips(count: int) -> bytes:
    """A strip for each row and many more, all of them the same bytes."""
    return tiff(1, 4, {273: (4, [8] * count), 278: (3, [1]), 279: (4, [1] * count)})


def tiff_of_overlaps(tags: int, size: int) -> bytes:
    """Many private tags that all claim the same bytes."""
    entries = sorted([(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
                      (278, 3, 1, 1), (279, 4, 1, 1)] + [(40_000 + i, 7, size, 8) for i in range(tags)])  # fmt: skip
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + bytes(size)


def tiff_of_rationals(count: int) -> bytes:
    """EXIF-like numbers, each of which is an object in Python."""
    place = 8 + 2 + 12 * 9 + 4
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
               (278, 3, 1, 1), (279, 4, 1, 1), (40_000, 5, count, place)]  # fmt: skip
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + b"\1\0\0\0\1\0\0\0" * count


def bmp(bits: int, compression: int = 0, masks: tuple[int, ...] = (), pixels: bytes = b"") -> bytes:
    """An honest BMP of eight by eight pixels, of so many bits each."""
    header = struct.pack("<LllHHLLllLL", 124, 8, 8, 1, bits, compression, 8 * bits, 2835, 2835, 0, 0)
    header += struct.pack(f"<{len(masks)}L", *masks).ljust(84, b"\0")
    return b"BM" + struct.pack("<LHHL", 138 + 8 * bits, 0, 0, 138) + header + pixels.ljust(8 * bits, b"\0")


def bmp_of_runs(side: int) -> bytes:
    """Run-length coding, one run a pixel."""
    honest = file_of(Image.new("P", (side, side)), "BMP")
    start = struct.unpack("<I", honest[10:14])[0]
    rows = (b"\1\0" * side + b"\0\0") * side + b"\0\1"
    return honest[:30] + struct.pack("<II", 1, len(rows)) + honest[38:start] + rows


def ppm_of_numbers(side: int) -> bytes:
    """Samples as text, of an odd greatest value."""
    return b"P3 %d %d 254\n" % (side, side) + b"1 " * (3 * side * side)


def noise(side: int) -> Image.Image:
    """Nothing that compresses."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8))
