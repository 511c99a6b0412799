"""`tcm eval`."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model.commands.common import Device, ModelDir, check_place, one_line_errors, stderr, stdout

if TYPE_CHECKING:
    from model.evaluation.curves import Curves
    from model.evaluation.measure import Record

_AGREEMENT = 0.01  # of the likelihoods' bits with the real ones


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder of images.", exists=True, file_okay=False)],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Models to measure, each as --model NAME or --model FILE; else all.", show_default=False),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Measure JPEG, WebP, AVIF and JPEG XL beside them.")] = True,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curves here (.png, .svg, .pdf).", show_default=False)
    ] = None,
    published: Annotated[
        str | None, typer.Option(help="Kodak, CLIC or Tecnick: draw the paper's curves too.", show_default=False)
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Every measurement and mean.", show_default=False)
    ] = None,
    csv_out: Annotated[Path | None, typer.Option("--csv", help="Every measurement.", show_default=False)] = None,
    results: Annotated[
        Path, typer.Option(help="Where measurements are kept, so that a run goes on where it stopped.")
    ] = Path("runs/eval.jsonl"),
    per_image: Annotated[bool, typer.Option(help="Print each image, not only the means.")] = False,
    device: Device = "auto",
    model_dir: ModelDir = None,
) -> None:
    """Measure models on a folder of images: real bits per pixel, PSNR, MS-SSIM, times, BD-rates."""
    with one_line_errors():
        for out in (plot, json_out, csv_out):
            check_place(out)

        from model.codec import Codec
        from model.evaluation.coders import Coder, TCMCoder
        from model.evaluation.coders import peers as known_peers
        from model.evaluation.curves import PUBLISHED, curves
        from model.evaluation.measure import images_in, load_records, measure
        from model.evaluation.plot import check_picture
        from model.evaluation.plot import plot as draw
        from model.zoo import Zoo

        if published is not None and published not in PUBLISHED:
            raise ValueError(f"published curves are those of {', '.join(PUBLISHED)}")
        check_picture(plot)
        zoo = Zoo(model_dir)
        images = images_in(folder)
        names = model or [entry.name for entry in zoo.entries()]
        codecs = [Codec.load(name, device, zoo=zoo) for name in names]
        _check_names([codec.info.name for codec in codecs])
        coders: list[Coder] = [TCMCoder(codec) for codec in codecs]
        coders += known_peers() if peers else []
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
            task = progress.add_task("", total=len(coders) * len(images))
            known = load_records(results)
            records = measure(
                coders,
                images,
                results,
                advance=lambda name: progress.update(task, advance=1, description=name),
                skipped=lambda why: stderr.print(f"tcm: skipped {why}"),
            )
        if reused := sum(record.key in known for record in records):
            stderr.print(f"tcm: {reused} of {len(records)} measurements are from {results}")
        found = curves(records)
        if json_out:
            means = {name: [dataclasses.asdict(p) for p in points] for name, points in found.items()}
            everything = {
                "curves": means,
                "bd_rate": _bd_rates(found),
                "images": [dataclasses.asdict(r) for r in records],
            }
            json_out.write_text(json.dumps(_finite(everything), indent=1, allow_nan=False))
        if csv_out:
            with csv_out.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                writer = csv.DictWriter(file, [*dataclasses.asdict(records[0]), "bits_per_pixel"])
                writer.writeheader()
                writer.writerows({**dataclasses.asdict(r), "bits_per_pixel": r.bits_per_pixel} for r in records)
        if plot:
            draw(found, plot, f"{len(images)} images of {folder.name}", published)
        if per_image:  # behind the files: whoever reads this may stop
            _print_images(records)
        _print_curves(found)


def _check_names(names: list[str]) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"two of these models are called {twice[0]}, which one curve cannot show: measure them apart")


def _finite(value: Any) -> Any:
    """JSON has no number for the PSNR of a picture that came back as it was."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_curves(found: Curves) -> None:
    table = Table(box=None)
    for name in ("coder", "setting", "bits/pixel", "PSNR dB", "MS-SSIM", "encode s", "decode s", "estimate"):
        table.add_column(name, justify="left" if name in ("coder", "setting") else "right", no_wrap=True)
    apart = []
    for name, points in found.items():
        for p in points:
            similarity = f"{p.ms_ssim:.4f}" if p.ms_ssim is not None else "–"
            estimate = f"{p.estimate_error:+.2%}" if p.estimate_error is not None else "–"
            if p.estimate_error is not None and abs(p.estimate_error) > _AGREEMENT:
                apart.append(p.setting)
            row = (f"{p.bits_per_pixel:.4f}", f"{p.psnr:.3f}", similarity, f"{p.encode_s:.3f}", f"{p.decode_s:.3f}")
            table.add_row(name, p.setting, *row, estimate)
    stdout.print(table)
    stdout.print()
    for test, against in _bd_rates(found).items():
        for anchor, rate in against.items():
            stdout.print(f"BD-rate (PSNR) of {test} against {anchor}: {rate:+.1f} %")
    if any(p.ms_ssim is None for points in found.values() for p in points):
        stdout.print("No MS-SSIM: one of the images, at least, is too small for its five scales.")
    if any(p.psnr == math.inf for points in found.values() for p in points):
        stdout.print("A picture came back exactly as it was: its PSNR is no number, and such curves have no BD-rate.")
    if apart:
        stdout.print(
            f"The likelihoods' bits and the real ones differ by more than 1 %: {', '.join(apart)}", style="red"
        )


def _bd_rates(found: Curves) -> dict[str, dict[str, float]]:
    """Of each TCM family against each other codec."""
    from model.evaluation.coders import PEERS
    from model.evaluation.curves import bd_rate

    rates: dict[str, dict[str, float]] = {}
    for test in (name for name in found if name not in PEERS):
        for anchor in (name for name in found if name in PEERS):
            rate = bd_rate(found[anchor], found[test])
            if rate is not None:
                rates.setdefault(test, {})[anchor] = rate
    return rates


def _print_images(records: list[Record]) -> None:
    table = Table(box=None)
    for name in ("image", "coder", "setting", "bits/pixel", "PSNR dB"):
        table.add_column(name, no_wrap=True)
    for r in records:
        setting = re.sub(r"@.*", "", r.setting)
        table.add_row(r.image, r.coder, setting, f"{r.bits_per_pixel:.4f}", f"{r.psnr:.3f}")
    stdout.print(table)
