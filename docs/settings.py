"""Writes docs/settings.md: `python docs/settings.py > docs/settings.md`; a test keeps it current."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from pydantic import ByteSize

from service.settings import PREFIX, Settings, option


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| environment | option | default | what it does |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        cells = (f"`{PREFIX}{name.upper()}`", f"`{option(name)}`", _shown(field.default), _described(name))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _shown(default: object) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, ByteSize):
        return f"`{default.human_readable().removesuffix('.0')}`".replace(".0", "")
    return f"`{','.join(default) if isinstance(default, tuple) else default}`"


def _described(name: str) -> str:
    field = Settings.model_fields[name]
    text = field.description or ""
    if get_origin(field.annotation) is Literal:
        text += f" One of {', '.join(get_args(field.annotation))}."
    return text.replace("|", "\\|")


def document() -> str:
    """docs/settings.md."""
    return (
        "# Settings of the service\n\n"
        "<!-- Written by `python docs/settings.py > docs/settings.md`; a test keeps it current. -->\n\n"
        "Each is an environment variable and an option of `tcm serve`; the option wins. Sizes take units (`70MB`, "
        "`2GiB`).\n\n" + table() + "\n"
    )


if __name__ == "__main__":
    print(document(), end="")
