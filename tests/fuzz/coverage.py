"""Coverage-guided fuzzing of the container or of the image reader, with atheris (the extra `fuzz`).

python -m tests.fuzz.coverage container|image [options of libFuzzer, such as -max_total_time=60]

It starts from the corpus in tests/fuzz/corpus and the sound files of tests/fuzz/seeds.py, and keeps what covers new
lines in runs/fuzz/TARGET. An exception that is no named error ends it, and leaves the file beside. The entropy decoder
is compiled code, in which atheris sees no lines: `bench/fuzz.py` has it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

from model import guard, windows  # noqa: F401 - compiled code, and all that it needs, must stay as it is

with atheris.instrument_imports(include=["model", "PIL"]):
    from model import container, pixels  # noqa: F401 - so that they are instrumented
    from tests.fuzz import oracle
    from tests.fuzz.mutate import CRC_BYTES, seal

CORPUS = Path(__file__).parent / "corpus"
KEPT = Path(__file__).parents[2] / "runs" / "fuzz"


def judge_container(data: bytes) -> None:
    """With a checksum that fits: coverage does not find one by itself."""
    oracle.container_only(seal(data[:-CRC_BYTES]))


def judge_image(data: bytes) -> None:
    """Whatever it is, it is a picture or a named error."""
    oracle.image_file(data)


TARGETS = {"container": (judge_container, CORPUS / "tcm"), "image": (judge_image, CORPUS / "image")}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    name = sys.argv.pop(1)
    judge, corpus = TARGETS[name]
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == "image":
        from tests.fuzz import seeds

        for i, data in enumerate(seeds.images()):
            (folder / f"sound-{i}").write_bytes(data)
    prefix = f"-artifact_prefix={KEPT}/find-{name}-"
    atheris.Setup([sys.argv[0], *sys.argv[1:], prefix, str(folder), str(corpus)], judge)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
