"""`tcm store`: list, verify and clean the store of the service, and sign URLs of what is in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model.commands.common import Json, one_line_errors, say, stderr, stdout
from service import durations
from service.store.medium import Medium, MediumFailed, Meta

app = typer.Typer(help="List, verify and clean the store of the service; sign URLs.", no_args_is_help=True)

DAMAGED = 1
SECONDS = 60.0
"""After which one call to a remote store is given up."""
LEFTOVER = 3600
"""Seconds after which a half-written file belongs to a writer that is no more."""

Address = Annotated[
    str | None,
    typer.Option("--store", envvar="TCM_STORE", help="As in TCM_STORE of the service.", show_default=False),
]
Ttl = Annotated[
    str | None, typer.Option(envvar="TCM_STORE_TTL", help="As in TCM_STORE_TTL: 12h, 30d, 8w.", show_default=False)
]


@contextlib.contextmanager
def _medium(address: str | None) -> Iterator[Medium]:
    """The store that was named; its failures are said in one line, too."""
    from service.store.address import check, open_medium

    medium = open_medium(check(address) if address else None, SECONDS, make=False)
    if medium is None:
        raise ValueError("there is no store: --store (TCM_STORE) is `none`")
    try:
        yield medium
    except MediumFailed as error:
        raise OSError(f"{medium.url}: {error}") from None


def _progress(entries: Sequence[Meta], what: str) -> Iterator[Meta]:
    """The entries, with a bar where somebody looks at it."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        yield from progress.track(entries)


def _row(meta: Meta, ttl: int | None) -> dict[str, object]:
    expires = None if ttl is None else _moment(meta.stored + ttl)
    return {"id": meta.id, "bytes": meta.size, "stored": _moment(meta.stored), "expires": expires}


def _moment(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # later than any calendar goes
        return None


def _count(number: int) -> str:
    return f"{number:,} bitstream{'' if number == 1 else 's'}"


@app.command()
def ls(
    store: Address = None,
    ttl: Ttl = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one object a line.")] = False,
) -> None:
    """List what is stored, and how long it still lives."""
    with one_line_errors(), _medium(store) as medium:
        seconds = durations.parse(ttl) if ttl else None
        if as_json:
            for meta in medium.entries():
                say(json.dumps(_row(meta, seconds)))
            return
        table = Table(box=None)
        table.add_column("id", no_wrap=True, min_width=64)  # to be copied
        for column in ("bytes", "stored", "lives"):
            table.add_column(column, justify="right" if column == "bytes" else "left")
        count = size = 0
        for meta in medium.entries():
            count, size = count + 1, size + meta.size
            left = None if seconds is None else meta.stored + seconds - time.time()
            lives = "for ever" if left is None else f"{durations.show(left)} more" if left > 0 else "no more"
            stored = (_moment(meta.stored) or "?").replace("T", " ")[: len("2026-01-01 00:00")]
            table.add_row(meta.id, f"{meta.size:,}", stored, lives)
        stdout.print(table)
        stderr.print(f"{_count(count)}, {decimal(size)} in {medium.url}")


@app.command()
def verify(store: Address = None, as_json: Json = False) -> None:
    """Read every bitstream and compare it with its id; exit code 1 if any is damaged."""
    with one_line_errors(), _medium(store) as medium:
        from model.container import read_container
        from model.errors import ModelError
        from service.store.medium import identify

        damaged, count, size = [], 0, 0
        for meta in _progress(list(medium.entries()), "verifying"):
            try:
                data = medium.read(meta.id)
            except (OSError, MediumFailed) as error:  # of this one: what the others are is still worth to know
                damaged.append({"id": meta.id, "bytes": meta.size, "reason": f"cannot be read: {error}"})
                continue
            if data is None:
                continue  # deleted meanwhile
            count, size = count + 1, size + len(data)
            reason = None if identify(data) == meta.id else "its bytes are not those that were stored"
            if reason is None:
                try:
                    read_container(data, max_pixels=1 << 40)
                except ModelError as error:  # its bytes are those that were stored
                    reason = f"no readable bitstream: {error}"
            if reason:
                damaged.append({"id": meta.id, "bytes": len(data), "reason": reason})
        if as_json:
            rows = {"store": medium.url, "bitstreams": count, "bytes": size, "damaged": damaged}
            say(json.dumps(rows, indent=2))
        else:
            for one in damaged:
                say(f"{one['id']}  {one['reason']}")
    if not as_json:
        stderr.print(f"{_count(count)}, {decimal(size)} in {medium.url}: {len(damaged) or 'none'} damaged")
    if damaged:
        raise typer.Exit(DAMAGED)


@app.command()
def gc(
    store: Address = None,
    ttl: Ttl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove bitstreams whose time to live is over, and what killed writers left. Safe beside running services."""
    with one_line_errors(), _medium(store) as medium:
        before = time.time() - (durations.parse(ttl) if ttl else float("inf"))
        expired = [meta for meta in medium.entries() if meta.stored < before]
        removed = [meta for meta in _progress(expired, "removing") if dry_run or medium.expire(meta.id, before)]
        parts = medium.sweep(time.time() - LEFTOVER, dry_run=dry_run)
        size = sum(meta.size for meta in removed)
        if as_json:
            rows = {
                "store": medium.url,
                "removed": [meta.id for meta in removed],
                "bytes": size,
                "leftovers": parts,
                "dry_run": dry_run,
            }
            say(json.dumps(rows, indent=2))
            return
    verb = "would go" if dry_run else "removed"
    stderr.print(f"{_count(len(removed))}, {decimal(size)} {verb} from {medium.url}; {parts or 'no'} leftovers")
    if not ttl:
        stderr.print("no --ttl (TCM_STORE_TTL): every bitstream lives for ever")


@app.command()
def sign(
    id: Annotated[str, typer.Argument(help="Of the bitstream: the SHA-256 of its bytes.")],  # noqa: A002
    image: Annotated[bool, typer.Option("--image", help="Its picture instead of its bytes.")] = False,
    lasts: Annotated[str, typer.Option("--for", help="How long the URL is good: 15m, 12h, 7d.")] = "1h",
    base: Annotated[str, typer.Option(help="What comes before the path, e.g. https://images.example.org.")] = "",
    key: Annotated[
        str | None, typer.Option(help="The id of the key; the first of TCM_SIGNING_KEYS if unsaid.", show_default=False)
    ] = None,
) -> None:
    """Sign a URL that reads one bitstream until its time is over. The keys are in TCM_SIGNING_KEYS."""
    with one_line_errors():
        from service.signing import SigningKeys
        from service.store.medium import ID_PATTERN

        if not re.fullmatch(ID_PATTERN, id):
            raise ValueError(f"an id has 64 hexadecimal digits in lower case, not {id!r}")
        if base and not base.startswith(("http://", "https://")):
            raise ValueError(f"--base begins with https:// or http://, not {base!r}")
        # of the environment only: an option would be seen in the list of processes
        keys = SigningKeys(os.environ.get("TCM_SIGNING_KEYS", ""))
        path = f"/v1/bitstreams/{id}" + ("/image" if image else "")
        signed = keys.sign(path, int(time.time()) + durations.parse(lasts), key)
        say(base.rstrip("/") + signed)
