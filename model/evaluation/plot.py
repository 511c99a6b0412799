"""Rate-distortion curves as a picture."""

from __future__ import annotations

from pathlib import Path

from model.evaluation.curves import PUBLISHED, Curves
from model.evaluation.metrics import ms_ssim_db

_COLOURS = {"JPEG": "#999999", "WebP": "#4c9f70", "AVIF": "#d98c3f", "JPEG XL": "#8f6bb3"}


def check_picture(out: Path | None) -> None:
    """That such a picture can be drawn: said before the work, not after it.

    Raises:
        ValueError: its name ends in no format of pictures.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes().keys() - {"pgf"}  # which needs TeX
    if out is not None and out.suffix.lower().lstrip(".") not in known:
        raise ValueError(f"{out}: a picture is one of {', '.join(sorted(known))}")


def plot(curves: Curves, out: Path, title: str, published: str | None = None) -> None:
    """Draw PSNR and MS-SSIM against bits per pixel.

    Args:
        published: Kodak, CLIC or Tecnick: whose published TCM curves are drawn, dashed, beside the measured ones.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.2), constrained_layout=True)
    for name, points in curves.items():
        style = {"color": _COLOURS[name], "linewidth": 1.2} if name in _COLOURS else {"linewidth": 2.4}
        rates = [p.bits_per_pixel for p in points]
        left.plot(rates, [p.psnr for p in points], marker="o", markersize=4, label=name, **style)
        similar = [(p.bits_per_pixel, ms_ssim_db(p.ms_ssim)) for p in points if p.ms_ssim is not None]
        if similar:
            right.plot(*zip(*similar, strict=True), marker="o", markersize=4, label=name, **style)
    for name, pairs in PUBLISHED.get(published or "", {}).items():
        left.plot(*zip(*pairs, strict=True), "--", linewidth=1.2, label=f"{name} (published, {published})")
    for axes, label in ((left, "PSNR (dB)"), (right, "MS-SSIM (dB)")):
        axes.set(xlabel="bits per pixel", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:  # small images have no MS-SSIM
            axes.legend(loc="lower right")
    # a folder's name may have dollars, and bytes that are no text
    figure.suptitle(title.encode("utf-8", "backslashreplace").decode(), parse_math=False)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
