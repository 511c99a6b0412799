"""Run the commands of docs/performance.md again and put what they print where it stands there.

python bench/report.py [WORD ...]     only those commands that contain one of the words

Behind each `<!-- $ COMMAND -->` stands a block of code: the command, what it printed, and on which machine. Everything
else is left as it is. A command that fails leaves its block alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from model.environment import FOR_TORCH

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- \$ (?P<command>[^\n]*?) -->\n```\n)(?P<printed>.*?)(```\n)", re.DOTALL)


def printed(command: str) -> str:
    environment = (
        os.environ
        | FOR_TORCH
        | {
            "COLUMNS": "132",
            "NO_COLOR": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }
    )
    done = subprocess.run(
        command.split(),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join(line for line in lines if line and not line.endswith(": done")) + "\n"


def main(words: list[str]) -> None:
    for command in [match["command"] for match in BLOCK.finditer(PAGE.read_text())]:
        if words and not any(word in command for word in words):
            continue
        start = time.perf_counter()
        try:
            output = printed(command)
        except subprocess.CalledProcessError as error:
            print(f"$ {command}\n{error.stdout}failed, and left as it was", file=sys.stderr)
            continue
        print(f"$ {command}   ({time.perf_counter() - start:.0f} s)\n{output}", flush=True)

        def renewed(match: re.Match[str], command: str = command, output: str = output) -> str:
            return f"{match[1]}$ {command}\n{output}{match[4]}" if match["command"] == command else match[0]

        PAGE.write_text(BLOCK.sub(renewed, PAGE.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
