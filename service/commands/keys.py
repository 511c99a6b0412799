"""`tcm keys`: make, list and revoke the API keys of a file."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from model.commands.common import Json, one_line_errors, say, stderr, stdout
from service import keys
from service.keys import Scope

app = typer.Typer(help="Make, list and revoke API keys of the service.", no_args_is_help=True)

File = Annotated[
    Path,
    typer.Option(
        "--file",
        envvar="TCM_KEYS_FILE",
        callback=Path.expanduser,
        help="The file of keys, as in TCM_KEYS_FILE of the service.",
    ),
]

_UNITS = {"h": 1 / 24, "d": 1, "w": 7, "y": 365}


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose it is: shown in logs and metrics, counted by quotas.")],
    file: File,
    scope: Annotated[list[Scope] | None, typer.Option(help="What it is good for; encode and decode if unsaid.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="90d, 12h, 4w, 1y or a date, from which on it is refused.", show_default=False)
    ] = None,
) -> None:
    """Make a key and print it: this once, since only its hash is kept."""
    with one_line_errors():
        if not re.fullmatch(keys.NAME_PATTERN, name):
            raise ValueError(f"a key's name has 1 to 64 letters, digits, dots, hyphens or underscores: {name!r}")
        end = expiry(expires) if expires else None
        key, entry = keys.new_key(name, frozenset(scope or (Scope.ENCODE, Scope.DECODE)), end)
        with keys.edit(file) as entries:
            entries.append(entry)
            say(key)  # before it is written: one that nobody has seen is good for nothing
    until = f"until {entry.expires:%Y-%m-%d %H:%M} UTC" if entry.expires else "without an end"
    stderr.print(f"key {entry.id} of {name}: {', '.join(sorted(entry.scopes))}, {until}. It is not shown again.")


@app.command()
def ls(file: File, as_json: Json = False) -> None:
    """List the keys; nothing in the list is secret."""
    with one_line_errors():
        entries = keys.read(file)
        if as_json:
            rows = [
                entry.model_dump(mode="json", exclude={"sha256"})
                | {"scopes": sorted(entry.scopes), "expired": entry.expired}
                for entry in entries
            ]
            say(json.dumps(rows, indent=2))
            return
        table = Table(box=None)
        for column in ("id", "name", "scopes", "created", "expires"):
            table.add_column(column, no_wrap=True)
        for entry in entries:
            end = f"{entry.expires:%Y-%m-%d %H:%M}{' (expired)' if entry.expired else ''}" if entry.expires else "never"
            table.add_row(entry.id, entry.name, " ".join(sorted(entry.scopes)), f"{entry.created:%Y-%m-%d %H:%M}", end)
        stdout.print(table)


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="ID|NAME", help="One key by its id, or all keys of a name.")],
    file: File,
) -> None:
    """Take keys out of the file; a running service refuses them within a second or two."""
    with one_line_errors():
        keys.read(file)  # a file that is not there is an error, not to be made
        with keys.edit(file) as entries:
            gone = [entry for entry in entries if entry.id == which] or [e for e in entries if e.name == which]
            if not gone:
                raise ValueError(f"{file} has no key with the id or name {which!r}")
            entries[:] = [entry for entry in entries if entry not in gone]
    for entry in gone:
        stderr.print(f"key {entry.id} of {entry.name} is revoked")


def expiry(text: str) -> datetime:
    """The moment that `90d`, `12h`, `4w`, `1y` or a date (its midnight, UTC) mean.

    Raises:
        ValueError: they mean none, or one that is past.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    span = re.fullmatch(r"(\d{1,5})([hdwy])", text)
    try:
        end = now + timedelta(int(span[1]) * _UNITS[span[2]]) if span else datetime.fromisoformat(text)
        if not span and re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            end = datetime.combine(date.fromisoformat(text), time(), UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is neither a span such as 90d, 12h, 4w or 1y nor a date such as 2027-06-30"
        ) from None
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    if end <= now:
        raise ValueError(f"{text!r} is past")
    return end
