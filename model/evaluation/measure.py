"""The loop over coders and images: real files, timed, one record each, kept so that a run can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import DeviceLost, ModelError, OutOfMemory
from model.evaluation.coders import Coder, TCMCoder
from model.evaluation.metrics import ms_ssim, psnr
from model.kinds import SUFFIXES
from model.pixels import Picture, read_image

_ESTIMATED = 3 * 4_000_000
"""Samples of an image whose likelihoods are looked at: that takes all of the network at once."""


@dataclass(frozen=True)
class Record:
    """One image through one setting of one coder.

    Attributes:
        coder: name of the curve.
        setting: of the coder: a model, or a quality.
        image: file name.
        digest: of the image file, so that a changed one is measured anew.
        pixels: width times height.
        size: of the compressed file, bytes.
        psnr: dB.
        ms_ssim: 0 to 1, or None for small images.
        encode_s: seconds.
        decode_s: seconds.
        estimated_bits: of the network's likelihoods; None for other codecs.
    """

    coder: str
    setting: str
    image: str
    digest: str
    pixels: int
    size: int
    psnr: float
    ms_ssim: float | None
    encode_s: float
    decode_s: float
    estimated_bits: float | None = None

    @property
    def bits_per_pixel(self) -> float:
        """Of the whole file."""
        return 8 * self.size / self.pixels

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes a measurement the same."""
        return self.coder, self.setting, self.digest


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name.

    Raises:
        ValueError: there are none.
    """
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no images")
    return found


def load_records(path: Path) -> dict[tuple[str, str, str], Record]:
    """What an earlier run has measured; a last line that was cut off is left out."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = Record(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        records[record.key] = record
    return records


class _LeftOut(Exception):
    """An image that cannot be measured, and why."""


@contextlib.contextmanager
def _left_out(what: str) -> Iterator[None]:
    try:
        yield
    except (OutOfMemory, DeviceLost):
        raise
    except (ModelError, OSError, ValueError) as error:
        raise _LeftOut(f"{what}: {error}") from None


def _read(path: Path) -> tuple[str, Picture]:
    """Digest of an image file, with a letter for grey, which was once measured as colour; and its pixels alone."""
    with _left_out(path.name):
        data = path.read_bytes()
        picture = read_image(data)
        letter = "g" if picture.grey else ""
        return hashlib.sha256(data).hexdigest()[:16] + letter, Picture(picture.rgb, grey=picture.grey)


def measure(
    coders: Sequence[Coder],
    images: Iterable[Path],
    results: Path,
    advance: Callable[[str], None] = lambda _: None,
    skipped: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """Measure every image with every coder, appending to `results` what is not there already.

    An image that cannot be read, or that one of the coders cannot code, is left out for all of them: the curves are
    means over the same images.

    Args:
        advance: told the image's name after each measurement.
        skipped: told why an image is left out.

    Raises:
        ValueError: all of them were.
        OSError: the results cannot be written.
    """
    known = load_records(results)
    records = []
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a+b") as end:
        if end.tell() and end.seek(-1, os.SEEK_END) >= 0 and end.read() != b"\n":
            end.write(b"\n")  # behind a record that was cut off
    with results.open("a") as log:
        for path in images:
            of_image: list[Record] = []
            try:
                digest, picture = _read(path)
                for coder in coders:
                    record = known.get((coder.name, coder.setting, digest))
                    if record is None:
                        with _left_out(f"{path.name}: {coder.setting}"):
                            record = _measure_one(coder, path.name, digest, picture)
                        log.write(json.dumps(dataclasses.asdict(record)) + "\n")
                        log.flush()
                    of_image.append(dataclasses.replace(record, image=path.name))  # it may have had another then
                    advance(path.name)
            except _LeftOut as why:
                skipped(str(why))
                continue
            records += of_image
    if not records:
        raise ValueError("not one of the images could be measured")
    return records


def _measure_one(coder: Coder, name: str, digest: str, picture: Picture) -> Record:
    pixels, start = picture.rgb, time.perf_counter()
    data = coder.encode(picture)
    encoded = time.perf_counter()
    back = coder.decode(data)
    decoded = time.perf_counter()
    return Record(
        coder=coder.name,
        setting=coder.setting,
        image=name,
        digest=digest,
        pixels=pixels.shape[0] * pixels.shape[1],
        size=len(data),
        psnr=psnr(pixels, back),
        ms_ssim=ms_ssim(pixels, back),
        encode_s=encoded - start,
        decode_s=decoded - encoded,
        estimated_bits=coder.estimate(pixels) if isinstance(coder, TCMCoder) and pixels.size <= _ESTIMATED else None,
    )
