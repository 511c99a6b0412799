"""`tcm`: encode, decode and look into .tcm files; list, import and fetch models. Others join by entry point.

Exit codes: 0 done; 1 several different failures; 2 wrong use; 3 an image that cannot be read; 4 a bitstream that cannot
be read; 5 a model that is not here or does not fit; 6 a file that cannot be opened or written; 7 out of memory, a
device that does nothing any more, or no network.
"""

from __future__ import annotations

import gc
import inspect
import io
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from model import environment
from model.stdio import open_what_is_closed

_GROUP = "tcm.commands"
_OWN = [
    EntryPoint("encode", "model.commands.coding:encode", _GROUP),
    EntryPoint("decode", "model.commands.coding:decode", _GROUP),
    EntryPoint("info", "model.commands.coding:info", _GROUP),
    EntryPoint("models", "model.commands.models:models", _GROUP),
    EntryPoint("import", "model.commands.models:import_", _GROUP),
    EntryPoint("pull", "model.commands.models:pull", _GROUP),
    EntryPoint("difference", "model.commands.models:difference", _GROUP),
]

app = typer.Typer(
    name="tcm",
    help="Learned image compression with TCM (CVPR 2023).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=(__doc__ or "").split("\n\n", 1)[-1].replace("\n", " "),
)
app.callback()(lambda: None)  # a tool of several commands, even where only one is loaded


def _join(name: str, command: Callable[..., Any] | typer.Typer) -> None:
    """Add a command from outside, or a group of them; one that takes nothing but the context parses its own options."""
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
        return
    bare = list(inspect.signature(command).parameters) == ["ctx"]
    settings = {"allow_extra_args": True, "ignore_unknown_options": True} if bare else {}
    app.command(name, context_settings=settings, add_help_option=not bare)(command)


def main() -> None:
    """The `tcm` program. Loads the command that is asked for, and all of them for help: a health check is quick."""
    open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be of bytes that are no text
    environment.prepare()
    points = {point.name: point for point in [*_OWN, *entry_points(group=_GROUP)]}
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    for name in [asked] if asked in points else points:
        _join(name, points[name].load())
    code: Any = 0
    try:
        try:
            app()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
    except OSError as error:
        from model.commands.common import exit_code, forget_output, stderr

        forget_output()
        if not code:
            stderr.print(f"tcm: {error}")
            code = exit_code(error)
    gc.freeze()  # or half a million objects are searched for circles once more, for half a second, to be thrown away
    sys.exit(code)
