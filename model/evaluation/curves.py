"""Rate-distortion curves: means over a set of images, the published ones, and the distance between two."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import bjontegaard

from model.evaluation.measure import Record


@dataclass(frozen=True)
class Point:
    """Means over all images at one setting, as the field averages: bits per pixel, and dB, image by image.

    Seconds are medians: the first image pays for what all others find warm. There is no MS-SSIM where an image is too
    small to have one.
    """

    setting: str
    bits_per_pixel: float
    psnr: float
    ms_ssim: float | None
    encode_s: float
    decode_s: float
    images: int
    estimate_error: float | None
    """Of the likelihoods' bits against the real ones, relative, over all images."""


Curves = dict[str, list[Point]]

PUBLISHED = {  # paper, figures 7 to 9 and the authors' tables: (bits per pixel, dB)
    "Kodak": {
        "TCM Large": ((.155, 30.07), (.194, 30.85), (.300, 32.59), (.443, 34.33), (.625, 36.15), (.880, 38.07)),
        "TCM Medium": ((.158, 29.88), (.195, 30.62), (.295, 32.38), (.439, 34.15), (.623, 36.10), (.882, 37.98)),
        "TCM Small": ((.161, 29.99), (.198, 30.57), (.306, 32.42), (.455, 34.18), (.628, 36.01), (.899, 37.96)),
    },
    "CLIC": {
        "TCM Large": ((.120, 31.84), (.151, 32.56), (.221, 34.13), (.328, 35.62), (.451, 37.13), (.649, 38.75)),
        "TCM Small": ((.124, 31.83), (.145, 32.40), (.223, 34.02), (.333, 35.49), (.453, 37.04), (.653, 38.61)),
    },
    "Tecnick": {
        "TCM Large": ((.128, 32.06), (.158, 32.81), (.221, 34.35), (.318, 35.79), (.428, 37.23), (.605, 38.70)),
        "TCM Small": ((.133, 31.95), (.159, 32.59), (.223, 34.11), (.320, 35.61), (.427, 37.10), (.610, 38.66)),
    },
}  # fmt: skip


def curves(records: Sequence[Record]) -> Curves:
    """The curve of each coder, by rising rate."""
    found: Curves = {}
    by_setting = sorted(records, key=lambda r: (r.coder, r.setting))
    for (coder, setting), group in itertools.groupby(by_setting, key=lambda r: (r.coder, r.setting)):
        found.setdefault(coder, []).append(_mean(setting, list(group)))
    return {coder: sorted(points, key=lambda p: p.bits_per_pixel) for coder, points in found.items()}


def _mean(setting: str, records: list[Record]) -> Point:
    similarities = [r.ms_ssim for r in records if r.ms_ssim is not None]
    estimates = [r.estimated_bits for r in records if r.estimated_bits is not None]
    real = sum(8 * r.size for r in records if r.estimated_bits is not None)
    return Point(
        setting=setting,
        bits_per_pixel=fmean(r.bits_per_pixel for r in records),
        psnr=fmean(r.psnr for r in records),
        ms_ssim=fmean(similarities) if len(similarities) == len(records) else None,
        encode_s=median(r.encode_s for r in records),
        decode_s=median(r.decode_s for r in records),
        images=len(records),
        estimate_error=sum(estimates) / real - 1 if estimates else None,
    )


def bd_rate(anchor: Sequence[Point], test: Sequence[Point]) -> float | None:
    """Bjøntegaard delta rate of `test` against `anchor` over their common range of PSNR, per cent; less is better.

    None where the curves have fewer than two points, no common range, or a point that has more bits and no more dB.
    Interpolated by pchip, as JVET does.
    """
    if min(len(anchor), len(test)) < 2:
        return None
    if any(not a.psnr < b.psnr < math.inf for curve in (anchor, test) for a, b in itertools.pairwise(curve)):
        return None
    if max(p.psnr for p in test) <= anchor[0].psnr or test[0].psnr >= max(p.psnr for p in anchor):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that curves overlap in part: the table says over which range
        return float(
            bjontegaard.bd_rate(
                [p.bits_per_pixel for p in anchor],
                [p.psnr for p in anchor],
                [p.bits_per_pixel for p in test],
                [p.psnr for p in test],
                method="pchip",
                require_matching_points=False,
            )
        )
