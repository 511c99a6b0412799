"""What every command shares: options, exit codes, and errors told in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model import errors

EXIT_CODES: dict[type[Exception], int] = {
    errors.UnsupportedImage: 3,
    errors.CorruptImage: 3,
    errors.TooManyPixels: 3,
    errors.UnsupportedBitstream: 4,
    errors.CorruptBitstream: 4,
    errors.IncompatibleModel: 5,
    errors.UnknownModel: 5,
    errors.CheckpointMismatch: 5,
    errors.CheckpointUnreadable: 5,
    errors.OutputLimit: 6,
    errors.OutOfMemory: 7,
    errors.DeviceLost: 7,
    errors.NoProcess: 7,
    errors.DownloadFailed: 7,
    OSError: 6,
    ValueError: 2,
    MemoryError: 7,
}
TOLD = (errors.ModelError, OSError, ValueError, MemoryError)
"""What a user can mend, and is told in one line."""

_EXTRAS = {"bjontegaard": "eval", "matplotlib": "eval"}
"""The extra of this package that brings a module."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more: an error like any other, not rich's exit with code 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


# names and paths are others' text: in brackets or between colons they mean nothing but themselves
stdout = _Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)

Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Refuse larger images.")]


def _to_read(context: typer.Context, folder: Path | None) -> Path | None:
    """A folder given here is there; the variable's may be one that `tcm import` is yet to make."""
    folder = folder and folder.expanduser()
    given = context.get_parameter_source("model_dir")
    if folder is not None and not folder.is_dir() and given is not None and given.name == "COMMANDLINE":
        raise typer.BadParameter(f"{folder}: there is no such folder")
    return folder


ModelDir = Annotated[
    Path | None,
    typer.Option(envvar="TCM_MODEL_DIR", callback=_to_read, help="Where imported models lie.", show_default=False),
]
NewModelDir = Annotated[
    Path | None,
    typer.Option(
        envvar="TCM_MODEL_DIR",
        callback=lambda folder: folder and folder.expanduser(),
        help="Where imported models come to lie; made if it is not there.",
        show_default=False,
    ),
]


def check_place(path: Path | None) -> None:
    """That a file can come to lie there: said before the work, not after it.

    Raises:
        FileNotFoundError: its folder is not there.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no such folder")


def say(text: str) -> None:
    """Print what was asked for, now.

    Raises:
        OSError: nobody takes it.
    """
    print(text, flush=True)  # noqa: T201 - this is the output


def forget_output() -> None:
    """What could not be written is not tried again when the program ends, which would say so once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(error: Exception) -> int:
    """The exit code that an error means."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def reason(error: Exception) -> str:
    """The error in one line, with its stable name first."""
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}".removesuffix(": ")
    code = getattr(error, "code", None)
    return f"{code}: {error}" if code else str(error)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What is `TOLD` is said in one line; anything else is a bug and keeps its traceback."""
    try:
        yield
    except TOLD as error:
        stderr.print(f"tcm: {reason(error)}")
        raise typer.Exit(exit_code(error)) from None
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        extra = _EXTRAS[error.name]
        stderr.print(f"tcm: this needs {error.name}: pip install 'tcm-service[{extra}]'")
        raise typer.Exit(2) from None
