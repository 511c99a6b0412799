"""What version 1 wrote stays readable: the same symbols, the same picture, the same metadata."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

from model import Codec, Zoo
from tests.golden.files import FOLDER, INDEX, check, write
from tests.golden.kinds import KINDS

GOLDEN = json.loads((FOLDER / INDEX).read_text()) if (FOLDER / INDEX).exists() else []
needs_files = pytest.mark.skipif(
    not GOLDEN, reason="no golden files yet: python -m tests.golden.write, once the embedded weights are final"
)


@functools.cache
def codec_for(fingerprint: str, name: str) -> Codec:
    """Weights that have written files stay installed."""
    return Codec.load(Zoo().by_fingerprint(fingerprint, name), "cpu")


@needs_files
@pytest.mark.parametrize("expected", GOLDEN, ids=[one["name"] for one in GOLDEN])
def test_a_file_of_version_1_reads_as_it_did(expected):
    check(FOLDER, codec_for(expected["fingerprint"], expected["model"]), expected)


@needs_files
def test_there_is_one_of_every_kind_by_every_embedded_model():
    written = {(one["model"], one["fingerprint"], one["kind"]) for one in GOLDEN}
    for entry in Zoo().entries():
        if entry.embedded:
            assert {(entry.name, entry.info.fingerprint, kind) for kind in KINDS} <= written
    assert {one["name"] for one in GOLDEN} == {path.name for path in FOLDER.glob("*.tcm")}
    assert all(one["streams"] > 1 for one in GOLDEN if one["kind"] == "streams")


def test_what_the_writer_writes_is_what_the_test_reads(tiny_codec, tiny_file, tmp_path):
    index = write(tmp_path, [tiny_codec])
    assert [one["kind"] for one in index] == list(KINDS)
    assert json.loads((tmp_path / INDEX).read_text()) == index
    reader = Codec.load(tiny_file, "cpu")
    for one in index:
        check(tmp_path, reader, one)
    described = next(one for one in index if one["kind"] == "metadata")
    assert all(described["metadata"].values())
    assert described["size"] == [64, 96]
    damaged = tmp_path / index[0]["name"]
    damaged.write_bytes((tmp_path / index[1]["name"]).read_bytes())
    with pytest.raises(AssertionError, match="another file"):
        check(tmp_path, tiny_codec, index[0])


@needs_files
def test_it_does_not_overwrite_unasked():
    before = (FOLDER / INDEX).read_bytes()
    refused = subprocess.run([sys.executable, "-m", "tests.golden.write"], capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0
    assert "--overwrite" in refused.stderr
    assert (FOLDER / INDEX).read_bytes() == before
