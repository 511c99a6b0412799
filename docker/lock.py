"""Write docker/requirements.lock: every version that goes into the images, and the hashes of the files that fit them.

python docker/lock.py [--upgrade]     needs uv and packaging; `make lock` installs them

uv resolves for all platforms at once. Of what it finds, only packages that Linux needs are kept, and of each release
only the files for CPython 3.11 and 3.12 on glibc: a seventh of them, so that a review can read the difference.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from itertools import product
from pathlib import Path

from packaging.markers import Marker

HERE = Path(__file__).parent
LOCK = HERE / "requirements.lock"
EXTRAS = ("otlp", "s3")  # those of pyproject.toml that settings of the service can call for
OLDEST = "python_full_version >= '3.11'"
IMAGES = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": machine}
    | {"python_version": python, "python_full_version": f"{python}.0"}
    for machine, python in product(("x86_64", "aarch64"), ("3.11", "3.12"))
]


def main() -> None:
    packages = [package for package in resolve(upgrade="--upgrade" in sys.argv) if needed(package)]
    head = "# Written by `make lock` from pyproject.toml and requirements.in."
    LOCK.write_text("\n".join([head, *map(entry, packages), ""]))


def resolve(*, upgrade: bool) -> list[dict]:
    """What uv resolves; versions of the present lock are kept unless they are to be upgraded."""
    with tempfile.TemporaryDirectory() as folder:
        answer, present = Path(folder, "pylock.toml"), Path(folder, "present.txt")
        present.write_text("" if upgrade or not LOCK.exists() else pins(LOCK.read_text()))
        command = [
            sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
            *(f"--extra={extra}" for extra in EXTRAS),
            "--constraints", present, "--format", "pylock.toml", "--output-file", answer,
            HERE.parent / "pyproject.toml", HERE / "requirements.in",
        ]  # fmt: skip
        subprocess.run(command, check=True)
        return tomllib.loads(answer.read_text())["packages"]


def pins(lock: str) -> str:
    """The lock without its hashes."""
    return "\n".join(line.removesuffix(" \\") for line in lock.splitlines() if re.match(r"\w", line))


def needed(package: dict) -> bool:
    return "marker" not in package or any(Marker(package["marker"]).evaluate(image) for image in IMAGES)


def entry(package: dict) -> str:
    """One package of the lock."""
    marker = re.sub(rf"^{OLDEST}( and )?", "", package.get("marker", ""))
    files = [wheel for wheel in package["wheels"] if fits(wheel.get("name") or wheel["url"])]
    hashes = sorted(f"--hash=sha256:{file['hashes']['sha256']}" for file in files)
    requirement = f"{package['name']}=={package['version']}" + (f" ; {marker}" if marker else "")
    return " \\\n    ".join([requirement, *hashes])


def fits(wheel: str) -> bool:
    """Whether an image could install the file of that name."""
    interpreters, abi, platforms = wheel.removesuffix(".whl").split("-")[-3:]
    ours = abi == "abi3" or {"py3", "cp311", "cp312"} & set(interpreters.split("."))
    return bool(ours) and (platforms == "any" or "manylinux" in platforms)


if __name__ == "__main__":
    main()
