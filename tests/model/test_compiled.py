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
