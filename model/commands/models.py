"""`tcm models`, `tcm import`, `tcm pull`, `tcm difference`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from model.commands.common import Json, ModelDir, NewModelDir, exit_code, one_line_errors, say, stderr, stdout
from model.errors import CheckpointUnreadable

if TYPE_CHECKING:
    from model.info import ModelInfo
    from model.zoo import Zoo


def models(
    as_json: Json = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read all of every file; exit code 5 if one is damaged.")
    ] = False,
    model_dir: ModelDir = None,
) -> None:
    """List the models that are installed here."""
    from model.zoo import Zoo

    with one_line_errors():
        zoo = Zoo(model_dir)
        damaged = _damaged(zoo) if check else []
        _list(zoo, as_json=as_json)
        for problem in damaged:
            stderr.print(f"tcm: {problem}")
        if check and (damaged or zoo.problems):
            raise typer.Exit(exit_code(CheckpointUnreadable("")))
        if check:
            stderr.print(f"{len(zoo.readable())} files are whole")


def _damaged(zoo: Zoo) -> list[str]:
    """What is wrong with the models' files; a listing looks at what they say of themselves alone."""
    from model.checkpoint import load
    from model.errors import CheckpointMismatch

    found = []
    for entry in zoo.readable():
        try:
            load(entry.path)
        except (CheckpointUnreadable, CheckpointMismatch, OSError) as error:
            found.append(str(error))
    return found


def _list(zoo: Zoo, *, as_json: bool) -> None:
    for problem in zoo.problems:
        stderr.print(f"tcm: skipped {problem}")
    for shadowed in zoo.shadowed:
        stderr.print(f"tcm: {shadowed}")
    default = zoo.default().name if zoo.entries() else None
    rows: list[dict[str, Any]] = [
        {
            "name": e.name,
            "lambda": e.info.lmbda,
            "metric": e.info.metric,
            "quality": e.quality,
            "N": e.info.config.N,
            "parameters": e.info.parameters,
            "bytes": e.size,
            "fingerprint": e.info.fingerprint,
            "also_read": zoo.also_read(e),
            "embedded": e.embedded,
            "default": e.name == default,
            "path": str(e.path),
        }
        for e in zoo.entries()
    ]
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    table = Table(box=None)
    for column in ("name", "λ", "metric", "quality", "N", "parameters", "MB", "weights", ""):
        numeric = column in ("λ", "quality", "N", "parameters", "MB")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"], f"{row['lambda']:g}", row["metric"], str(row["quality"] or "–"), str(row["N"]),
            f"{row['parameters'] / 1e6:.1f} M", f"{row['bytes'] / 1e6:.1f}", row["fingerprint"],
            "default" if row["default"] else "",
        )  # fmt: skip
    stdout.print(table)


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A published .pth.tar, or any state dict of a TCM.")],
    name: Annotated[str, typer.Option(help="What to call it, best like tcm-s-mse-0.013.")],
    lmbda: Annotated[float | None, typer.Option(help="λ; from the name where it says so.", show_default=False)] = None,
    metric: Annotated[
        str | None, typer.Option(help="mse or ms-ssim; from the name likewise.", show_default=False)
    ] = None,
    half: Annotated[bool, typer.Option(help="Store weights in half precision: half as large.")] = False,
    force: Annotated[bool, typer.Option(help="Replace a model of that name.")] = False,
    model_dir: NewModelDir = None,
) -> None:
    """Check a checkpoint and add it to the model directory. Nothing but tensors is ever read from it."""
    with one_line_errors():
        import torch

        from model.checkpoint import save
        from model.devices import memory_errors
        from model.info import check_name, info_of, standard_name
        from model.state_dict import fill, read_state_dict

        said, own = standard_name(name), info_of(checkpoint)
        if own is not None:  # one of ours: what it says of itself holds
            asked_for = (own.lmbda if lmbda is None else lmbda, metric or own.metric)
            for wanted in (said, asked_for):
                if wanted is not None and wanted != (own.lmbda, own.metric):
                    told, asked = f"λ={own.lmbda:g} for {own.metric}", f"λ={wanted[0]:g} for {wanted[1]}"
                    raise ValueError(f"{checkpoint} is a model of {told}, not of {asked}")
            lmbda, metric = own.lmbda, own.metric
        if said:
            lmbda, metric = said[0] if lmbda is None else lmbda, metric or said[1]
        if lmbda is None or metric is None:
            raise typer.BadParameter(f"{name} does not say λ and metric; give --lmbda and --metric")
        check_name(name, lmbda, metric)
        target = _target(name, model_dir, force=force, own=own)
        rounding = own.rounding if own else None
        with memory_errors(torch.device("cpu"), f"importing {checkpoint}, if it is not damaged"):
            weights = read_state_dict(checkpoint)
            half = half or (own is not None and any(value.dtype == torch.float16 for value in weights.values()))
            saved = save(fill(weights), target, name=name, lmbda=lmbda, metric=metric, half=half, rounding=rounding)
        stderr.print(
            f"{saved.name}: {saved.parameters / 1e6:.1f} M parameters, N={saved.config.N}, λ={saved.lmbda:g}, "
            f"weights {saved.fingerprint} -> {target}"
        )


def _target(name: str, model_dir: Path | None, *, force: bool, own: ModelInfo | None = None) -> Path:
    """Where a model of that name is to lie: not in place of what others need, but of the same weights."""
    from model.info import info_of
    from model.zoo import default_model_dir

    target = (model_dir or default_model_dir()) / f"{name}.safetensors"
    if target.exists() and not force:
        raise FileExistsError(f"{target} is there already; --force replaces it")
    there = info_of(target)
    if there is not None and not (own and own.fingerprint == there.fingerprint):
        for path in sorted(target.parent.glob("*.safetensors")):
            if (other := info_of(path)) is not None and other.differs_from == there.fingerprint:
                kept = f"{path.name} is what earlier weights had otherwise, and nothing without it"
                raise FileExistsError(f"{target} is needed: {kept}. Give the new one a name of its own")
    return target


def pull(
    name: Annotated[str, typer.Argument(help="tcm-s-mse-0.0025 … tcm-s-mse-0.05 (N=64), tcm-l-mse-0.05 (N=128).")],
    force: Annotated[bool, typer.Option(help="Replace a model of that name.")] = False,
    model_dir: NewModelDir = None,
) -> None:
    """Download one of the authors' checkpoints from their drive, and import it."""
    with one_line_errors():
        from model.pull import download

        _target(name, model_dir, force=force)  # before megabytes are downloaded in vain
        with download(name) as checkpoint:
            import_(checkpoint, name=name, force=force, model_dir=model_dir)


def difference(
    earlier: Annotated[Path, typer.Argument(help="The weights that wrote files, which are to stay readable.")],
    later: Annotated[Path, typer.Argument(help="The same model, trained further, where it is installed.")],
) -> None:
    """Keep earlier weights as what they have otherwise than later ones, in a small file beside those."""
    with one_line_errors():
        from model.differences import save_difference

        stderr.print(f"{earlier} can go: {save_difference(earlier, later)} reads its files, beside {later.name}")
