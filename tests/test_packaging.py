"""What is installed is what is here: every package, and every file beside the code."""

from __future__ import annotations

import fnmatch
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files():
    for top in ("model", "service"):
        yield from (path for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def test_every_package_is_listed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in files() if path.suffix == ".py"}
    assert found <= set(SETUPTOOLS["packages"])


def test_every_other_file_is_listed():
    patterns = SETUPTOOLS["package-data"]
    for path in files():
        package = ".".join(path.parent.relative_to(ROOT).parts)
        listed = any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns.get(package, []))
        assert path.suffix in (".py", ".nbi", ".nbc") or listed, path
