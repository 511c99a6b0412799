"""`tcm bench`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from model.commands.common import Device, ModelDir, check_place, one_line_errors, stderr, stdout

if TYPE_CHECKING:
    from model.benchmark.speed import Speed
    from model.codec import Codec
    from model.zoo import Zoo


def bench(
    model: Annotated[
        list[str] | None, typer.Option(help="Models, each as --model NAME; else the default one.", show_default=False)
    ] = None,
    untrained: Annotated[
        list[str] | None, typer.Option(help="Sizes with random weights: xs, s, m, l.", show_default=False)
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT, each as --size; else 768x512.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Pictures at once, each as --batch; else 1.")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="auto, float32, bfloat16 or float16, each as --precision; else auto.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="For each of encode and decode.")] = 5.0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write everything here.", show_default=False)] = None,
    device: Device = "auto",
    model_dir: ModelDir = None,
) -> None:
    """Measure how fast models run here, stage by stage, and what part of the machine's peak they reach."""
    with one_line_errors():
        check_place(json_out)

        from model.benchmark.machine import describe, matrix_peak
        from model.benchmark.speed import measure
        from model.devices import pick_device
        from model.sizes import parse_size
        from model.zoo import Zoo

        sizes = [parse_size(text) for text in size or ["768x512"]]
        zoo, where = Zoo(model_dir), pick_device(device)
        names = [*(model or ([] if untrained else [zoo.default().name])), *(f"untrained {u}" for u in untrained or [])]
        machine = describe(where)
        stderr.print(machine)
        peaks: dict[str, float] = {}
        speeds: list[Speed] = []
        for name in names:
            for how in precision or ["auto"]:
                codec = _load(name, device, how, zoo)
                kind = str(codec.dtype).removeprefix("torch.")
                if kind not in peaks:
                    peaks[kind] = matrix_peak(where, codec.dtype)
                for width, height in sizes:
                    for count in batch or [1]:
                        found = measure(codec, width, height, count, seconds)
                        speeds.append(found)
                        times = f"{1000 * found.encode_s:.1f} and {1000 * found.decode_s:.1f} ms"
                        rates = f"{found.encode_rate:.1f} and {found.decode_rate:.1f} images/s"
                        stderr.print(f"  {name}, {kind}, {width}x{height}, batch {count}: {times}, {rates}: done")
        _print(speeds, peaks)
        if json_out:
            rows = [{**dataclasses.asdict(s), "part_of_peak": s.flop_rate / peaks[s.precision]} for s in speeds]
            json_out.write_text(json.dumps({"machine": machine, "matrix_peak": peaks, "speeds": rows}, indent=1))


def _load(name: str, device: str, precision: str, zoo: Zoo) -> Codec:
    from model.benchmark.untrained import untrained
    from model.codec import Codec

    if name.startswith("untrained "):
        return untrained(name.removeprefix("untrained "), device, precision)
    return Codec.load(name, device, precision, zoo)


def _print(speeds: list[Speed], peaks: dict[str, float]) -> None:
    table = Table(box=None)
    for column in (
        "model",
        "precision",
        "size",
        "batch",
        "encode ms",
        "decode ms",
        "images/s",
        "MP/s",
        "GB",
        "of peak",
    ):
        table.add_column(column, justify="left" if column in ("model", "precision") else "right", no_wrap=True)
    for s in speeds:
        each, pixels = (s.encode_rate, s.decode_rate), s.width * s.height / 1e6
        table.add_row(
            s.model, s.precision, f"{s.width}x{s.height}", str(s.batch),
            f"{1000 * s.encode_s:.1f}", f"{1000 * s.decode_s:.1f}", f"{each[0]:.1f} / {each[1]:.1f}",
            f"{each[0] * pixels:.2f} / {each[1] * pixels:.2f}", f"{s.peak_bytes / 1e9:.2f}",
            f"{s.flop_rate / peaks[s.precision]:.1%}",
        )  # fmt: skip
    stdout.print(table)
    stdout.print()
    for s in speeds:
        for what, stages in (("encode", s.encode_stages), ("decode", s.decode_stages)):
            told = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in stages.items())
            stdout.print(f"{s.model} {s.precision} {s.width}x{s.height} batch {s.batch}, {what}, ms: {told}")
    peaks_told = ", ".join(f"{kind} {peak / 1e9:.0f} GFLOP/s" for kind, peak in peaks.items())
    stdout.print(f"matrix product on this machine at best: {peaks_told}")
