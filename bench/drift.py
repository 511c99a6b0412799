"""How far σ drifts between ways of computing it, how much of that the guard forgives, and what it costs.

python -m bench.drift PHOTOGRAPHS --count 8 [--write] [--alone]

Every embedded model computes the σ of the same symbols with several thread counts, batch sizes, memory layouts and
attention kernels, in float32 and float64, in processes held to smaller instruction sets, and on a GPU where there is
one. With --write the tables go to docs/drift.md and the modules' drifts to docs/drift.json, for the noise test.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from bench.ways import Drift, Run, Symbols, all_devices, guard_share, run, runs, symbols_of
from model import Codec, Zoo, guard_choice
from model.benchmark.machine import describe
from model.folded import fold
from model.zoo import ZooEntry

SIZE = (768, 512)
CPUS = {
    "AVX2 at most": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma",
    },
    "SSE4 at most": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "NUMBA_CPU_NAME": "nehalem",
        "NUMBA_CPU_FEATURES": "+sse4.2",
    },
}
"""Environments in which torch and its libraries take this CPU for an older one."""
SLOWEST = "SSE4 at most"
RARELY = 4
"""One photograph in so many sees batches of eight and the slowest process, which take as long as all other ways."""
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "drift.md"
BEGIN, END = "<!-- measured: bench/drift.py -->", "<!-- end of measured -->"


# ---- processes held to smaller instruction sets


class Older:
    """A process that answers with the shared path's results on the CPU that it takes this one for."""

    def __init__(self, environment: dict[str, str], folder: str) -> None:
        self._folder = Path(folder)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.drift", "--work"], cwd=ROOT, env=os.environ | environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, model: str, symbols: Symbols, first: dict[str, torch.Tensor]) -> Run:
        asked, answered = self._folder / "symbols.npz", self._folder / "run.npz"
        np.savez(asked, z=symbols.z.numpy(), y=symbols.y.numpy(), **{n: o.numpy() for n, o in first.items()})
        assert self._process.stdin
        assert self._process.stdout
        print(model, asked, answered, sep="\t", file=self._process.stdin, flush=True)
        if self._process.stdout.readline() != "done\n":
            sys.exit("a process held to a smaller instruction set has failed")
        with np.load(answered) as found:
            outputs = {name: torch.from_numpy(found[name]) for name in found.files}
        return Run(outputs.pop("scales"), outputs)

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def work() -> None:
    """What such a process does."""
    nets = {}
    for line in sys.stdin:
        model, asked, answered = line.rstrip("\n").split("\t")
        if model not in nets:
            nets[model] = Codec.load(model, "cpu").net
        with np.load(asked) as found:
            given = {name: torch.from_numpy(found[name]) for name in found.files}
        result = run(nets[model], Symbols(given.pop("z"), given.pop("y")), given, fold(nets[model]))
        np.savez(answered, scales=result.scales.numpy(), **{n: o.numpy() for n, o in result.outputs.items()})
        print("done", flush=True)


# ---- the measurement


def crop(path: Path) -> Image.Image:
    """The middle of a photograph, 768x512, scaled up where it is smaller."""
    image = Image.open(path).convert("RGB")
    scale = max(SIZE[0] / image.width, SIZE[1] / image.height, 1)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = (image.width - SIZE[0]) // 2, (image.height - SIZE[1]) // 2
    return image.crop((left, top, left + SIZE[0], top + SIZE[1]))


def measure(entry: ZooEntry, photographs: list[Path], older: dict[str, Older], progress: Progress) -> dict:
    codec = Codec.load(entry, "cpu", "float32")
    drift, costs, ways = Drift(), [], {}
    for number, path in enumerate(progress.track(photographs, description=entry.name)):
        image = crop(path)
        x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
        symbols = symbols_of(codec.net, x, codec.info.rounding)
        costs.append(guard_share(codec, image))

        def every(symbols: Symbols = symbols, number: int = number) -> Iterator[tuple[str, Run]]:
            rare, first = number % RARELY == 0, {}
            for name, result in runs(codec.net, symbols, batches=(2, 8) if rare else (2,)):
                first = first or result.outputs
                yield name, result
            for name, process in older.items():
                if rare or name != SLOWEST:
                    yield f"cpu, {name}", process.run(entry.name, symbols, first)

        def named() -> Iterator[tuple[str, Run]]:
            for name, result in every():
                ways[name] = None
                yield name, result

        drift.add_image(named(), symbols, codec.info.config.slices)
    return {
        "model": entry.name,
        "fingerprint": entry.info.fingerprint,
        "sigma": drift.sigma,
        "log_scale": drift.log_scale,
        "margin": drift.margin,
        "pair": drift.pair,
        "modules": {name: drift.modules[name] for name in sorted(drift.modules)},
        "cost": costs,
        "ways": list(ways),
    }


# ---- the page


def tables(found: list[dict], machine: str, photographs: int) -> str:
    lines = [
        f"{photographs} photographs of 768x512, on {machine}. "
        f"D = {guard_choice.DRIFT:g} + {guard_choice.DRIFT_OF_LARGEST:g} · "
        "the largest σ of the slice before (more beyond what photographs have).",
        "",
        "| model | largest \\|Δσ\\|/(1+σ) | largest \\|Δ ln σ\\| | margin: D over a slice's drift, at least | "
        "between | the guard's part of a file, mean | most |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['model']} | {one['sigma']:.1e} | {one['log_scale']:.1e} | {one['margin']:.1f} | "
        f"{' / '.join(one['pair'])} | {np.mean(one['cost']):.2%} | {max(one['cost']):.2%} |"
        for one in found
    ]
    lines += [
        "",
        f"Ways compared: {'; '.join(found[0]['ways'])} ({SLOWEST} and batches of 8 on every fourth photograph).",
        "",
    ]
    lines += ["The largest drift of each module's output, given the same input, relative to its terms Σ|w·a|:", ""]
    lines += [
        "| module | " + " | ".join(one["model"] for one in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name in sorted({name for one in found for name in one["modules"]}):
        cells = (f"{one['modules'][name]:.1e}" if name in one["modules"] else "" for one in found)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(text: str, found: list[dict]) -> None:
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    modules = {one["fingerprint"]: {"model": one["model"], "modules": one["modules"]} for one in found}
    PAGE.with_suffix(".json").write_text(json.dumps(modules, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="?", help="a folder of PNG or JPEG files")
    parser.add_argument("--count", type=int, default=8, help="photographs, spread over the folder (default 8)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/drift.md")
    parser.add_argument("--alone", action="store_true", help="without the processes held to smaller instruction sets")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work()
    files = sorted(p for p in (options.photographs or Path()).glob("*") if p.suffix in (".png", ".jpg", ".jpeg"))
    if not options.photographs or not files or options.count < 1:
        parser.error("give a folder that holds photographs, and a count of at least 1")
    count = min(options.count, len(files))
    photographs = [files[k * len(files) // count] for k in range(count)]
    entries = [entry for entry in Zoo().entries() if entry.embedded]
    machine = " and ".join(describe(torch.device(device)) for device in all_devices())
    with contextlib.ExitStack() as stack:
        older = {}
        for name, environment in ({} if options.alone else CPUS).items():
            older[name] = Older(environment, stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(older[name].stop)
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        found = [measure(entry, photographs, older, progress) for entry in entries]
    text = tables(found, machine, count)
    print(text)
    if options.write:
        write(text, found)
        print(f"\nwritten to {PAGE}", file=sys.stderr)
    too_far = [one["model"] for one in found if one["margin"] < 4]
    if too_far:
        sys.exit(f"the guard forgives less than four times the drift of {', '.join(too_far)}")
    return None


if __name__ == "__main__":
    main()
