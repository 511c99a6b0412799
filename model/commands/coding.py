"""`tcm encode`, `tcm decode`, `tcm info`."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model import errors
from model.commands.common import (
    TOLD,
    Device,
    Json,
    MaxPixels,
    ModelDir,
    exit_code,
    one_line_errors,
    reason,
    say,
    stderr,
    stdout,
)
from model.container import DEFAULT_MAX_PIXELS, MAGIC

_Paths = Annotated[list[str], typer.Argument(metavar="IN… OUT", help="Files, then where to; - is standard in or out.")]


def _targets(paths: list[str], suffix: str) -> list[tuple[str, str]]:
    """(in, out) of each file: like `cp`, the last path is a file for one input and a folder for several."""
    if len(paths) < 2:
        raise typer.BadParameter("say where to: IN OUT, or IN… FOLDER")
    *inputs, out = paths
    if out.endswith(("/", os.sep)) and not Path(out).is_dir():
        raise typer.BadParameter(f"{out} is not a folder: make it first")
    if len(inputs) == 1 and not Path(out).is_dir():
        if out != "-" and not Path(out).absolute().parent.is_dir():
            raise typer.BadParameter(f"{Path(out).parent} is not a folder: make it first")
        return [(inputs[0], out)]
    if not Path(out).is_dir():
        raise typer.BadParameter(f"{out} is not a folder, and there are several files to put there")
    if "-" in inputs:
        raise typer.BadParameter("standard input has no name to give a file in a folder")
    pairs = [(path, str(Path(out) / (Path(path).stem + suffix))) for path in inputs]
    doubled = {target for _, target in pairs if [t for _, t in pairs].count(target) > 1}
    if doubled:
        raise typer.BadParameter(f"several inputs would become {', '.join(sorted(doubled))}")
    return pairs


def _read(path: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()


def _write(path: str, data: bytes) -> None:
    """All of it or nothing: an interrupted run leaves no half file. A pipe or a device is written to as it is."""
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if Path(path).exists() and not Path(path).is_file():
        Path(path).write_bytes(data)
        return
    target = Path(os.path.realpath(path))  # a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} is a link to {target}, whose folder is not there")
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    mode = target.stat().st_mode & 0o777 if target.exists() else None
    try:
        if mode is not None:  # whoever may not read it now may not read what takes its place
            part.touch(0o600)
        part.write_bytes(data)
        if mode is not None:
            part.chmod(mode)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _check(source: str, target: str, suffix: str, *, force: bool, folder: bool) -> None:
    """Refuse to lose what lies at the target; a name that was given by hand may be written over.

    But neither an image by a bitstream nor a bitstream by an image: `tcm encode *.png` of two files, without the
    folder, names the second as the target.
    """
    if not Path(target).is_file():
        return
    if source != "-" and Path(source).exists() and Path(source).samefile(target):
        raise FileExistsError("would be written over by what is made of it: say another name")
    if force:
        return
    if folder:
        raise FileExistsError(f"{target} is there already; --force replaces it")
    if suffix == ".tcm" and Path(target).suffix != suffix and not _is_bitstream(target):
        raise FileExistsError(f"{target} is there already, and no .tcm file; --force replaces it")
    if suffix != ".tcm" and Path(target).stat().st_size and _is_bitstream(target):
        raise FileExistsError(f"{target} is there already, and a .tcm file; --force replaces it")


def _is_bitstream(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) in (MAGIC, b"")


def _each(
    pairs: list[tuple[str, str]], verb: str, suffix: str, work: Callable[[bytes, str], bytes], *, force: bool, out: str
) -> None:
    """Do every file, with a progress bar for several; failures are told one by one and do not stop the others."""
    folder = Path(out).is_dir()
    codes = set()
    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    with Progress(*columns, console=stderr, disable=len(pairs) < 2 or not stderr.is_terminal) as progress:
        task = progress.add_task(verb, total=len(pairs), name="")
        for source, target in pairs:
            progress.update(task, name=source)
            try:
                _check(source, target, suffix, force=force, folder=folder)
                _write(target, work(_read(source), target))
            except TOLD as error:
                stderr.print(f"tcm: {source}: {reason(error)}")
                codes.add(exit_code(error))
            progress.advance(task)
    if codes:
        raise typer.Exit(codes.pop() if len(codes) == 1 else 1)


def encode(
    paths: _Paths,
    model: Annotated[str | None, typer.Option(help="A name from `tcm models`.", show_default=False)] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=6, help="1 (small) to 6 (fine): the model whose λ is nearest.", show_default=False),
    ] = None,
    metadata: Annotated[str, typer.Option(help="keep or strip ICC profile (then in sRGB), EXIF and XMP.")] = "keep",
    force: Annotated[bool, typer.Option(help="Replace files that are in OUT, or an OUT that is no .tcm.")] = False,
    device: Device = "auto",
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    model_dir: ModelDir = None,
) -> None:
    """Compress images to .tcm files."""
    if model is not None and quality is not None:
        raise typer.BadParameter("give --model or --quality, not both")
    if metadata not in ("keep", "strip"):
        raise typer.BadParameter("--metadata is keep or strip")
    pairs = _targets(paths, ".tcm")
    with one_line_errors():
        from model.codec import Codec
        from model.pixels import no_limit_of_pillow, read_image
        from model.zoo import Zoo

        no_limit_of_pillow()
        zoo = Zoo(model_dir)
        entry = zoo.default(model)
        if quality:
            entry = zoo.for_quality(quality, like=entry)
            if stderr.is_terminal:
                stderr.print(f"quality {quality} of the models here is {entry.name}")
        codec = Codec.load(entry, device)

        def work(data: bytes, _: str) -> bytes:
            return codec.encode_picture(read_image(data, max_pixels, keep_metadata=metadata == "keep"))

        _each(pairs, "encode", ".tcm", work, force=force, out=paths[-1])


def decode(
    paths: _Paths,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="png, webp, jpeg, avif or tiff; else by OUT's name.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace files that are in OUT, or an OUT that is a .tcm.")] = False,
    device: Device = "auto",
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    model_dir: ModelDir = None,
) -> None:
    """Bring images back from .tcm files."""
    if file_format is not None:
        file_format = _format_of(f"-.{file_format}")
    pairs = _targets(paths, f".{file_format or 'png'}")
    with one_line_errors():
        from model.codec import Codec
        from model.container import read_container
        from model.output import check_format, write_image
        from model.pixels import no_limit_of_pillow
        from model.zoo import Zoo

        no_limit_of_pillow()
        zoo = Zoo(model_dir)
        codecs: dict[str, Codec] = {}

        def work(data: bytes, target: str) -> bytes:
            wanted = file_format or _format_of(target)
            check_format(wanted)
            container = read_container(data, max_pixels)
            entry = zoo.by_fingerprint(container.fingerprint, container.model)
            if entry.info.fingerprint not in codecs:
                codecs[entry.info.fingerprint] = Codec.load(entry, device)
            picture = codecs[entry.info.fingerprint].decode_container(container)
            return write_image(picture, wanted)

        _each(pairs, "decode", "", work, force=force, out=paths[-1])


def _format_of(target: str) -> str:
    suffix = Path(target).suffix.lower().lstrip(".")
    return {"": "png", "jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)


def info(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help=".tcm files; - is standard input.")],
    as_json: Json = False,
) -> None:
    """Say what a .tcm file holds and which weights it needs, without them."""
    from model.container import MAX_SIDE, read_container

    rows: list[dict[str, Any]] = []
    codes = set()
    for path in files:
        try:
            data = _read(path)
            c = read_container(data, max_pixels=MAX_SIDE * MAX_SIDE)
        except (errors.ModelError, OSError) as error:
            stderr.print(f"tcm: {path}: {reason(error)}")
            codes.add(exit_code(error))
            continue
        rows.append(
            {
                "file": path,
                "model": c.model,
                "fingerprint": c.fingerprint,
                "width": c.width,
                "height": c.height,
                "colour": ("grey" if c.grey else "rgb") + (" + alpha" if c.alpha is not None else ""),
                "bytes": len(data),
                "payload_bytes": len(c.payload),
                "bits_per_pixel": round(8 * len(data) / c.pixels, 4),
                "metadata": [name for name in ("icc", "exif", "xmp") if getattr(c, name) is not None],
            }
        )
    with one_line_errors():
        for row in rows:
            _print(row, as_json=as_json)
    if codes:
        raise typer.Exit(codes.pop() if len(codes) == 1 else 1)


def _print(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(row))
        return
    table = Table(show_header=False, box=None)
    for key, value in row.items():
        table.add_row(key.replace("_", " "), ", ".join(value) or "none" if isinstance(value, list) else str(value))
    stdout.print(table)
