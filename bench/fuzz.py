"""Hostile files by the hundred thousand: each must give a named error, or exactly the picture that was written.

python bench/fuzz.py [--count 100000] [--processes 1] [--seed 0] [--finds runs/fuzz] [--json FILE]
                     [--write docs/hostile.md]
python bench/fuzz.py --replay FILE [--targets whole]

A case is its target, the seed and its number, so a run can be repeated and cut into any number of processes. Beside
`--count` mutated bitstreams that go through the whole codec (tiny widths; one in five hundred through an embedded
model), half as many go through the container alone and through the entropy decoder alone, and a tenth as many mutated
image files through the image reader. The processes run under a limit of memory; the parent sees one that crashes or
hangs, keeps the case and goes on behind it. Ctrl-C ends it early, with what there is. Exit code 1 where there were
finds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing as mp
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/fuzz holds what the tests and this share

SHARES = {"container": 0.5, "entropy": 0.5, "whole": 1.0, "embedded": 0.002, "image": 0.1}
SECONDS, PATIENCE = 20.0, 600.0
"""Of processor time, and of the clock, that one case may take before it counts as a hang."""
MEMORY = 1 << 30
"""Bytes that a process may add to what it holds once its models are loaded."""
REPORT = 200


def _targets() -> dict[str, Callable[[], tuple[Callable[[Random], bytes], Callable[[bytes, Random], str]]]]:
    """For each target what makes its cases and what judges them; made in the process that needs them."""
    import torch

    torch.set_num_threads(1)
    from model.checkpoint import save
    from model.codec import Codec
    from tests.conftest import TINY, make_tiny
    from tests.fuzz import oracle, seeds
    from tests.fuzz.mutate import damaged_image, hostile

    def tiny() -> Codec:
        path = Path(tempfile.mkdtemp()) / "tcm-tiny-mse-0.01.safetensors"
        net = make_tiny(config=dataclasses.replace(TINY, slices=2, depth=1))
        save(net, path, name="tcm-tiny-mse-0.01", lmbda=0.01, metric="mse")
        codec = Codec.load(path, device="cpu")
        path.unlink()
        path.parent.rmdir()
        return codec

    def whole(codec: Codec) -> Any:
        files = seeds.bitstreams(codec)
        judge = oracle.WholeCodec(codec, files).judge
        return lambda rng: hostile(rng, files), lambda data, _: judge(data)

    def container() -> Any:
        files = seeds.bitstreams(tiny())
        return lambda rng: hostile(rng, files), lambda data, _: oracle.container_only(data)

    def entropy() -> Any:
        judge = oracle.EntropyDecoder().judge
        return lambda rng: rng.randbytes(16), lambda data, _: judge(Random(data))

    def image() -> Any:
        files = seeds.images()
        return lambda rng: damaged_image(rng, files), lambda data, _: oracle.image_file(data)

    def embedded() -> Any:
        return whole(Codec.load("tcm-xs-mse-0.0035", device="cpu"))

    return {
        "container": container,
        "entropy": entropy,
        "whole": lambda: whole(tiny()),
        "embedded": embedded,
        "image": image,
    }


@dataclass
class Find:
    """A case that must not be: which, and what happened."""

    target: str
    number: int
    what: str


def _work(target: str, seed: int, start: int, stop: int, place: Any, out: Any) -> None:
    """One process: the cases start..stop - 1 of a target."""
    make, judge = _targets()[target]()
    for i in range(3):  # what is allocated once is allocated now
        judge(make(_random(target, seed, i)), Random(0))
    warnings.simplefilter("ignore")  # Pillow's, of broken metadata
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries print
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    outcomes: Counter[str] = Counter()
    parent = os.getppid()
    for number in range(start, stop):
        if os.getppid() != parent:
            return  # nobody is left to report to
        data = make(_random(target, seed, number))
        place[0], place[1] = number, time.monotonic()
        try:
            outcome = judge(data, Random(number))
        except BaseException:  # noqa: BLE001 - whatever it is, it is a find
            outcome = "FIND"
            out.put(Find(target, number, traceback.format_exc(limit=-6)))
        if outcome == "out-of-memory":
            out.put(Find(target, number, "a picture of at most 65536 pixels ran out of memory"))
        outcomes[outcome] += 1
        if (number + 1 - start) % REPORT == 0 or number + 1 == stop:
            out.put((target, dict(outcomes), number + 1))
            outcomes.clear()
    place[0] = -1
    out.put((target, "peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def _random(target: str, seed: int, number: int) -> Random:
    return Random(f"{seed}/{target}/{number}")


class Run:
    """The processes of one run, what they found, and how far they are."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self.finds: list[Find] = []
        self.peak: dict[str, int] = {}
        self._arguments, self._progress = arguments, progress
        self._context = mp.get_context("spawn")

    def target(self, target: str, count: int) -> None:
        """All cases of one target, in as many processes as were asked for."""
        self.outcomes[target] = Counter()
        bar = self._progress.add_task(target, total=count)
        processes = min(self._arguments.processes, count)
        edges = [count * k // processes for k in range(processes + 1)]
        workers = [_Worker(self, target, a, b) for a, b in pairwise(edges)]
        while any(not worker.done for worker in workers):
            time.sleep(0.1)
            for worker in workers:
                worker.look()
            self._progress.update(bar, completed=self.outcomes[target].total())

    def keep(self, find: Find) -> None:
        """Print a find and save its case."""
        self.finds.append(find)
        folder = self._arguments.finds / f"{find.target}-{self._arguments.seed}-{find.number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "what.txt").write_text(find.what)
        make, _ = _targets()[find.target]()
        (folder / "case.bin").write_bytes(make(_random(find.target, self._arguments.seed, find.number)))
        self._progress.console.print(Text.assemble(("find", "red"), f" in {folder}:\n{find.what}"))

    def start(self, target: str, start: int, stop: int, place: Any, out: Any) -> Any:
        """A process for some cases."""
        process = self._context.Process(
            target=_work, args=(target, self._arguments.seed, start, stop, place, out), daemon=True
        )
        process.start()
        return process

    def shared(self) -> tuple[Any, Any]:
        """Where a process says where it is, and what it found."""
        return self._context.Array("d", 2), self._context.Queue()


class _Worker:
    """A process, watched and replaced until its cases are through."""

    def __init__(self, run: Run, target: str, start: int, stop: int) -> None:
        self.done = start >= stop
        self._run, self._target, self._stop = run, target, stop
        self._reported = start
        self._since, self._used = 0.0, 0.0  # the case last looked at, and the processor time of its process then
        self._launch(start)

    def _launch(self, start: int) -> None:
        self._place, self._out = self._run.shared()
        self._place[0], self._place[1] = start, float("inf")  # not before its models are loaded
        self._process = self._run.start(self._target, start, self._stop, self._place, self._out)

    def look(self) -> None:
        """Take what was reported; a process that has died or hangs is a find."""
        if self.done:
            return
        alive = self._process.is_alive()
        self._take()
        if self.done:
            self._process.join()
            return
        number, since = int(self._place[0]), self._place[1]
        if alive and self._spent(since) <= SECONDS and time.monotonic() - since <= PATIENCE:
            return
        if not alive and number == -1:
            return  # its last words are on their way
        what = (
            f"took more than {SECONDS:.0f} s of processor time"
            if alive
            else f"the process ended with {self._process.exitcode}"
        )
        self._process.kill()
        self._process.join()
        if since == float("inf"):
            raise SystemExit(f"{self._target}: {what} before its first case")
        self._run.keep(Find(self._target, number, what))
        # what was not reported since is counted with the crash
        self._run.outcomes[self._target]["FIND" if number < self._stop else "?"] += number + 1 - self._reported
        self._reported = number + 1
        if number + 1 < self._stop:
            self._launch(number + 1)
        else:
            self.done = True

    def _spent(self, since: float) -> float:
        """Seconds of processor time since the case was first looked at; other work on the machine does not count."""
        ticks = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        used = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        if since != self._since or since == float("inf"):
            self._since, self._used = since, used
        return used - self._used

    def _take(self) -> None:
        while not self._out.empty():
            message = self._out.get()
            if isinstance(message, Find):
                self._run.keep(message)
            elif message[1] == "peak":
                self._run.peak[self._target] = max(self._run.peak.get(self._target, 0), message[2])
                self.done = True
            else:
                self._run.outcomes[self._target].update(message[1])
                self._reported = message[2]


def _replay(target: str, file: Path) -> int:
    _, judge = _targets()[target]()
    try:
        print(judge(file.read_bytes(), Random(0)))
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


def _write(document: Path, run: Run, summary: str) -> None:
    """Put the result between the two marks of a document."""
    rows = ["| target | cases | outcomes | memory added |", "|---|---|---|---|"]
    for target, outcomes in run.outcomes.items():
        shown = ", ".join(f"{name} {count:,}" for name, count in outcomes.most_common())
        memory = f"{run.peak[target] >> 10} MiB" if target in run.peak else "stopped early"
        rows.append(f"| {target} | {outcomes.total():,} | {shown} | {memory} |")
    before, _, rest = document.read_text().partition("<!-- fuzz -->")
    _, _, after = rest.partition("<!-- /fuzz -->")
    table = "\n".join([f"{summary}.", "", *rows])
    document.write_text(f"{before}<!-- fuzz -->\n{table}\n<!-- /fuzz -->{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="mutated bitstreams through the whole codec")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--finds", type=Path, default=Path("runs/fuzz"), help="where finds are kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, help="document to put the result into, between its marks")
    parser.add_argument("--replay", type=Path, help="judge one file instead")
    arguments = parser.parse_args()
    if arguments.replay:
        return _replay(arguments.targets[0] if len(arguments.targets) == 1 else "whole", arguments.replay)
    console = Console()
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start, cpu = time.monotonic(), os.times()
    with Progress(*columns, console=console) as progress:
        run = Run(arguments, progress)
        with contextlib.suppress(KeyboardInterrupt):
            for target in arguments.targets:
                run.target(target, max(1, int(arguments.count * SHARES[target])))
    seconds, after = time.monotonic() - start, os.times()
    children = after.children_user + after.children_system - cpu.children_user - cpu.children_system
    table = Table("target", "cases", "outcomes", "memory", box=None)
    for target, outcomes in run.outcomes.items():
        shown = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
        table.add_row(target, str(outcomes.total()), shown, f"+{run.peak.get(target, 0) >> 10} MiB")
    console.print(table)
    total = sum(outcomes.total() for outcomes in run.outcomes.values())
    console.print(
        f"{total} cases, {len(run.finds)} finds; {seconds / 60:.1f} min, {children / 60:.1f} min of processor"
    )
    if arguments.write:
        _write(
            arguments.write, run, f"{total:,} cases, {len(run.finds)} finds; {children / 60:.0f} minutes of processor"
        )
    if arguments.json:
        found = {"outcomes": run.outcomes, "peak_kib": run.peak, "seconds": seconds, "processor_seconds": children}
        arguments.json.write_text(json.dumps(found | {"finds": [dataclasses.asdict(f) for f in run.finds]}, indent=1))
    return 1 if run.finds else 0


if __name__ == "__main__":
    sys.exit(main())
