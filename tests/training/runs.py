"""Runs of seconds: their options, the same on a command line, and what they log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from model.training.command import train as command
from model.training.options import Options
from tests.training.conftest import SMALL


def options(photographs: Path, save: Path, **changes: Any) -> Options:
    plain: dict[str, Any] = {
        "config": SMALL, "size": "xs", "half": True, "crop": 64, "batch": 2, "validation": 2, "log_every": 5,
        "start": "block-transform", "steps": 6, "warmup": 2, "workers": 0, "sample": 16, "precision": "fp32",
    }  # fmt: skip
    return Options(data=photographs, save=save, **{**plain, **changes})


def log_of(save: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]


SMALL_AS_OPTIONS = [
    "--N=24", "--M=32", "--hyper=8", "--slices=2", "--width=head_dim=12,12,12,12,12,12", "--width=hyper_head_dim=12",
    "--width=depth=1", "--width=slice_widths=12,8", "--width=attention_width=8", "--width=attention_head_dim=4",
    "--width=window=4", "--width=hyper_window=2",
]  # fmt: skip


QUICK = ["--size=xs", *SMALL_AS_OPTIONS, "--crop=64", "--batch=1", "--validation=1", "--precision=fp32", "--workers=0"]


def program() -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app
