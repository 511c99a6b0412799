"""What numba keeps on disk is what the files say, those that loops take code from, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOP = """
from model.compiled import compiled
import constants

@compiled(constants)("int64()")
def loop():
    return constants.X + constants.more()

print(loop(), sum(loop.stats.cache_hits.values()))
"""
CONSTANTS = """
import numba

X = {x}

@numba.njit(inline="always")
def more():
    return {more}
"""


def test_where_nothing_can_be_kept_loops_are_compiled_all_the_same(tmp_path):
    """Found by trying: `tcm serve` ended on a full disk, and in a system that is read-only."""
    script = "{}\nfrom model.steps import place; print(place(5, 7))"
    variables = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    nowhere = "from numba.core import caching; caching.CacheImpl._locator_classes.clear()"
    for way, reason in (("", None), (full, "File too large"), (nowhere, "no folder")):
        command = [sys.executable, "-B", "-c", script.format(way)]
        variables["NUMBA_CACHE_DIR"] = str(tmp_path / (reason or "kept"))
        result = subprocess.run(command, env=variables, check=True, capture_output=True, text=True, timeout=120)
        assert result.stdout == "20\n"
        assert (reason or "") in result.stderr
        assert result.stderr.count("RuntimeWarning: compiled loops cannot be kept") == (reason is not None)


def test_a_change_in_another_file_is_seen(tmp_path):
    (tmp_path / "loop.py").write_text(LOOP)

    def run(x: int, more: int) -> list[int]:
        (tmp_path / "constants.py").write_text(CONSTANTS.format(x=x, more=more))
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        command = [sys.executable, "-B", tmp_path / "loop.py"]
        printed = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout
        return [int(word) for word in printed.split()]

    assert run(1, 20) == [21, 0]
    assert run(1, 20) == [21, 1]
    assert run(2, 20) == [22, 0]
    assert run(2, 30) == [32, 0]
    assert run(1, 20) == [21, 1]
