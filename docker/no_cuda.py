"""Stand in for the CUDA libraries that PyPI's torch is linked against, in an image that never uses a GPU.

python docker/no_cuda.py SITE_PACKAGES     needs gcc and binutils

`import torch` fails without libcublas, libcudnn and a dozen others: 4 GB that a CPU never calls. One small library
takes their names. Each function in it answers 35, cudaErrorInsufficientDriver, as the real ones do on a machine
without a driver, so that `torch.cuda.is_available()` is False and everything on the CPU works as it does elsewhere.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

OURS = re.compile(r"(?:lib|_+)?(?:cu|nv|nccl)")
DRIVER = "libcuda.so.1"  # the host's, and only opened when it is asked for
INSUFFICIENT_DRIVER = 35
STAND_IN = "libno_cuda.so"


def output(*command: str | Path) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def main(site_packages: Path) -> None:
    lib = site_packages / "torch" / "lib"
    needed: set[str] = set()
    undefined: dict[str, str] = {}  # function: the version that its users ask for
    defined: set[str] = set()
    for library in lib.glob("*.so"):
        needed |= {m[1] for line in output("readelf", "-dW", library) if (m := re.search(r"NEEDED.*\[(.+)\]", line))}
        for line in output("nm", "-D", library):
            kind, symbol = line.split()[-2:]
            name, _, version = symbol.partition("@")
            if kind == "U":
                undefined[name] = version
            else:
                defined.add(name)

    missing = sorted(name for name in needed if OURS.match(name) and name != DRIVER)
    functions = sorted(name for name in undefined if OURS.match(name) and name not in defined)
    versions: dict[str, list[str]] = defaultdict(list)
    for name in functions:
        versions[undefined[name]].append(name)
    if missing:
        with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
            script.writelines(f"{v} {{ global: {'; '.join(names)}; }};\n" for v, names in versions.items() if v)
            script.flush()
            source = "".join(f"int {name}(void) {{ return {INSUFFICIENT_DRIVER}; }}\n" for name in functions)
            options = ("-shared", "-fPIC", "-w", f"-Wl,--version-script={script.name}")
            subprocess.run(["gcc", *options, "-x", "c", "-", "-o", lib / STAND_IN], input=source.encode(), check=True)
    for name in missing:
        (lib / name).symlink_to(STAND_IN)
    print(f"{len(functions)} functions of {len(missing)} libraries answer that there is no CUDA: {', '.join(missing)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
