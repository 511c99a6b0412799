"""Hostile files by the thousand: a named error, or exactly the picture that was written. `bench/fuzz.py` makes more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codec import Codec
from tests.fuzz import oracle, seeds
from tests.fuzz.corpus import FOLDER, adopted
from tests.fuzz.mutate import Layout, damaged_image, hostile

ROOT = Path(__file__).parents[2]
numbers = st.integers(0, 1 << 64)


@pytest.fixture(scope="module")
def sound(tiny_codec: Codec) -> list[bytes]:
    return seeds.bitstreams(tiny_codec)


@pytest.fixture(scope="module")
def whole(tiny_codec: Codec, sound: list[bytes]) -> oracle.WholeCodec:
    return oracle.WholeCodec(tiny_codec, sound)


@pytest.fixture(scope="module")
def image_files() -> list[bytes]:
    return seeds.images()


@pytest.fixture(scope="module")
def entropy() -> oracle.EntropyDecoder:
    return oracle.EntropyDecoder()


def test_sound_files_pass(sound, whole, image_files):
    for data in sound:
        assert whole.judge(data) == "decoded"
        assert oracle.container_only(data) == "read"
        assert Layout.of(data).sealed() == Layout.of(data).honest().sealed() == data
    for data in image_files:
        assert oracle.image_file(data) == "read"


@settings(deadline=None, max_examples=2000)
@given(number=numbers)
def test_containers(sound, number):
    oracle.container_only(hostile(Random(number), sound))


@settings(deadline=None, max_examples=2000)
@given(number=numbers)
def test_entropy_decoder(entropy, number):
    entropy.judge(Random(number))


@settings(deadline=None, max_examples=200)
@given(number=numbers)
def test_whole_codec(sound, whole, number):
    assert whole.judge(hostile(Random(number), sound)) != "out-of-memory"


@pytest.mark.filterwarnings("ignore")  # Pillow's, of broken metadata
@settings(deadline=None, max_examples=300)
@given(number=numbers)
def test_image_files(image_files, number):
    rng = Random(number)
    oracle.image_file(damaged_image(rng, image_files))


def test_the_oracle_sees_what_it_must(tiny_codec, sound, whole, monkeypatch):
    """A codec that is wrong by one pixel, and one that believes any symbols."""
    right = type(tiny_codec).unpack

    def wrong(self, container, padded):
        padded = padded.copy()
        padded[0, 0, 0] ^= 1
        return right(self, container, padded)

    monkeypatch.setattr(type(tiny_codec), "unpack", wrong)
    with pytest.raises(oracle.Find, match="other pixels"):
        whole.judge(sound[0])
    monkeypatch.undo()
    with pytest.raises(oracle.Find, match="nobody wrote"):
        oracle.WholeCodec(tiny_codec, []).judge(sound[0])


def _outcome(path: Path) -> str:
    return path.name.partition("--")[0]


@pytest.mark.parametrize("path", sorted((FOLDER / "tcm").glob("*.tcm")), ids=lambda path: path.stem)
def test_corpus_of_bitstreams(path, tiny_codec):
    data = path.read_bytes()
    try:
        data = adopted(data, tiny_codec.info.fingerprint)
        outcome = oracle.WholeCodec(tiny_codec, [data] if _outcome(path) == "decoded" else []).judge(data)
    except AttributeError:  # this torch draws other random weights, so that nobody can have written it
        outcome = "incompatible-model"
    assert outcome in (_outcome(path), "incompatible-model" if _outcome(path) == "decoded" else "")


@pytest.mark.parametrize("path", sorted((FOLDER / "image").glob("*.bin")), ids=lambda path: path.stem)
def test_corpus_of_images(path):
    assert oracle.image_file(path.read_bytes()) == _outcome(path)


@pytest.mark.slow
def test_the_bench_runs(tmp_path):
    command = [sys.executable, "bench/fuzz.py", "--count", "40", "--processes", "2", "--json", str(tmp_path / "out")]
    command += ["--targets", "image", "--finds", str(tmp_path / "finds")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 cases, 0 finds" in done.stdout
