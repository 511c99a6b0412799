"""Writes the corpus: small hostile files, each named after what it must be answered with.

python -m tests.fuzz.corpus

Bitstreams are of the tiny test model; the tests give them the fingerprint of the weights at hand before they read them.
A file that a fuzzer has found joins them by hand, under the outcome that it should have had.
"""

from __future__ import annotations

import dataclasses
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

from PIL import Image

from model.checkpoint import save
from model.codec import Codec
from tests import bombs
from tests.conftest import make_tiny
from tests.fuzz import seeds
from tests.fuzz.mutate import Layout, varint

FOLDER = Path(__file__).parent / "corpus"


def adopted(data: bytes, fingerprint: str) -> bytes:
    """The file as if these weights had written it; one whose checksum or layout is wrong stays as it is."""
    try:
        layout = Layout.of(data)
    except (IndexError, ValueError, StopIteration):
        return data
    if layout.sealed() != data:
        return data
    return dataclasses.replace(layout, fingerprint=bytes.fromhex(fingerprint)).sealed()


def bitstreams(codec: Codec) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each .tcm."""
    plain, turned, wide, grey, translucent, opaque, described, _ = seeds.bitstreams(codec)
    kinds = {"plain": plain, "grey": grey, "translucent": translucent, "opaque": opaque, "described": described}
    for name, data in kinds.items():
        yield f"decoded--{name}", data
    file, other = Layout.of(plain), Layout.of(wide)
    change = dataclasses.replace
    yield "decoded--a-size-that-pads-alike", change(file, width=varint(128), height=varint(1)).sealed()
    yield "decoded--a-payload-of-another", change(file, payload=Layout.of(turned).payload).honest().sealed()
    yield "corrupt-bitstream--a-flip", plain[:60] + bytes([plain[60] ^ 4]) + plain[61:]
    yield "corrupt-bitstream--the-end-is-missing", plain[:-100]
    yield "corrupt-bitstream--no-width", change(file, width=b"\0").sealed()
    yield "corrupt-bitstream--a-number-too-long", change(file, width=b"\xe4\x80\x00").sealed()
    yield "corrupt-bitstream--a-number-without-end", change(file, height=b"\xff" * 9).sealed()
    yield "corrupt-bitstream--lengths-that-overflow", change(file, payload_length=varint((1 << 35) - 1)).sealed()
    yield "unsupported-bitstream--flags", change(file, flags=0x80).sealed()
    yield "unsupported-bitstream--version", change(file, version=b"\2").sealed()
    yield "too-many-pixels--vast", change(file, width=varint(1 << 20), height=varint(1 << 20)).sealed()
    yield "too-many-pixels--a-strip", change(file, width=varint(1), height=varint(1 << 20)).sealed()
    yield "corrupt-bitstream--nothing", change(file, payload=b"").honest().sealed()
    yield "corrupt-bitstream--zeros", change(file, payload=bytes(600)).honest().sealed()
    yield "corrupt-bitstream--ones", change(file, payload=b"\xff" * 600).honest().sealed()
    yield "corrupt-bitstream--noise", change(file, payload=Random(0).randbytes(1000)).honest().sealed()
    yield "incompatible-model--a-flip", change(file, payload=_flipped(file.payload)).honest().sealed()
    yield "incompatible-model--a-word-too-many", change(file, payload=file.payload + b"\0\0").honest().sealed()
    yield "incompatible-model--a-word-too-few", change(file, payload=file.payload[:-2]).honest().sealed()
    yield "corrupt-bitstream--another-padded-size", change(file, width=other.width).sealed()
    yield "incompatible-model--a-payload-of-another-size", change(file, payload=other.payload).honest().sealed()
    notes = Layout.of(described)
    bomb = zlib.compress(bytes((4 << 20) + 1), 9)
    yield "corrupt-bitstream--a-bomb", change(notes, sections=[bomb, *notes.sections[1:]]).honest().sealed()
    yield "corrupt-bitstream--no-deflate", change(notes, sections=[b"", *notes.sections[1:]]).honest().sealed()
    rows = bytes(90 * 101)
    for name, png in {
        "alpha-of-another-size": bombs.png(9, 9, bombs.idat(bytes(90))),
        "alpha-with-a-comment": bombs.png(100, 90, (b"tEXt", b"k\0v"), bombs.idat(rows)),
        "alpha-with-a-thousand-chunks": bombs.png(100, 90, *[(b"abCd", b"")] * 100, bombs.idat(rows)),
        "alpha-that-ends-early": bombs.png(100, 90, bombs.idat(rows[:5000])),
        "alpha-of-half-its-rows": bombs.png(100, 90, bombs.idat(rows[: 45 * 101])),
        "alpha-of-two-bits": bombs.png(100, 90, bombs.idat(bytes(90 * 26)), depth=2),
        "alpha-of-sixteen-bits": bombs.png(100, 90, bombs.idat(rows * 2), depth=16),
    }.items():
        yield f"corrupt-bitstream--{name}", change(Layout.of(translucent), sections=[png]).honest().sealed()


def _flipped(payload: bytes) -> bytes:
    return payload[:300] + bytes([payload[300] ^ 1]) + payload[301:]


def images() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image file."""
    yield "read--webp-polyglot", bombs.file_of(Image.new("RGB", (8, 8)), "WEBP") + b"<script>"
    yield "too-many-pixels--webp-canvas", bombs.webp_of_canvas(1 << 24, 255)
    yield "too-many-pixels--gif-canvas", bombs.gif_of_canvas(65_535, 65_535)
    yield "too-many-pixels--gif-frame", bombs.gif_of_frame(65_535, 65_535)
    yield "too-many-pixels--avif-header", bombs.avif_of_lies(64, 10_000)
    yield "corrupt-image--png-comments", bombs.png_of_comments(70)[:3000]
    yield "corrupt-image--tiff-tiles", bombs.tiff_of_tiles(64, 30_000)
    yield "corrupt-image--jpeg-without-pixels", bombs.file_of(Image.new("L", (8, 8)), "JPEG")[:200]
    yield "unsupported-image--svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    yield "unsupported-image--eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n(%pipe%id) (w) file\n"
    yield "unsupported-image--tiff-of-floats", bombs.file_of(Image.new("F", (4, 4), 0.5), "TIFF")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tcm-tiny-mse-0.01.safetensors"
        save(make_tiny(), path, name="tcm-tiny-mse-0.01", lmbda=0.01, metric="mse")
        codec = Codec.load(path, device="cpu")
    for kind, files in (("tcm", bitstreams(codec)), ("image", images())):
        (FOLDER / kind).mkdir(parents=True, exist_ok=True)
        for name, data in files:
            (FOLDER / kind / name).with_suffix(".tcm" if kind == "tcm" else ".bin").write_bytes(data)


if __name__ == "__main__":
    main()
