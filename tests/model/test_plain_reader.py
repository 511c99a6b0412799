"""docs/bitstream.md is enough: a reader that was written from it reads and refuses what the codec does."""

from __future__ import annotations

import functools
import hashlib
import json
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Codec, Zoo, guard
from model.alpha import decode_alpha, encode_alpha
from model.container import read_container
from model.entropy import Coder, SymbolMismatch
from model.errors import CorruptBitstream, ModelError
from model.tables import gaussian_tables, guard_tables
from tests.fuzz.mutate import damage, hostile
from tests.golden.files import FOLDER, INDEX, sha256
from tests.model import plain_reader as plain

GOLDEN = {one["name"]: one for one in json.loads((FOLDER / INDEX).read_text())}
MODELS = [entry.name for entry in Zoo().entries() if entry.embedded]
SMALL = ["grey", "alpha", "grey-alpha", "metadata", "one-pixel", "odd", "rgb"]
READ = [f"{MODELS[i % len(MODELS)]}.{kind}.tcm" for i, kind in enumerate(SMALL)]
"""A file of each kind but the large one, the models in turn."""
SEEDS = [name for name in GOLDEN if ".one-pixel." in name or ".grey-alpha." in name or name.endswith("35.metadata.tcm")]
NO_LIMIT = 1 << 40
CODER = Coder(gaussian_tables() + guard_tables())
ALPHABETS = [*plain.GAUSSIANS, plain.UNIFORM_20, plain.UNIFORM_64, *plain.GEOMETRIC]
"""As the coder numbers them."""


@functools.cache
def weights_of(fingerprint: str) -> plain.Weights:
    return plain.read_weights(Zoo().by_fingerprint(fingerprint).path)


@functools.cache
def codec_of(fingerprint: str) -> Codec:
    return Codec.load(Zoo().by_fingerprint(fingerprint), "cpu", "float32")


def test_checksums_of_the_page():
    assert plain.crc32c(b"123456789") == 0xE3069283
    for alphabets, expected in ((ALPHABETS[:64], 0x45D0BBC9), (ALPHABETS[64:], 0xA167CDA6)):
        assert plain.crc32c(b"".join(plain.little_endian(alphabet.edges) for alphabet in alphabets)) == expected


@pytest.mark.parametrize("name", MODELS)
def test_fingerprints_follow_the_page(name):
    fingerprint = Zoo().get(name).info.fingerprint
    assert weights_of(fingerprint).fingerprint == fingerprint


@pytest.mark.parametrize("name", READ)
def test_a_golden_file_reads_as_the_index_has_it(name):
    expected, data = GOLDEN[name], (FOLDER / name).read_bytes()
    found = plain.decode(data, weights_of(expected["fingerprint"]))
    assert hashlib.sha256(plain.little_endian(found.symbols)).hexdigest() == expected["symbols"]
    assert {key: sha256(found.file.sections.get(key)) for key in expected["metadata"]} == expected["metadata"]
    back = codec_of(expected["fingerprint"]).decode(data)
    assert back.mode == ("L" if found.samples.ndim == 2 else "RGB") + ("" if found.alpha is None else "A")
    planes = np.asarray(back).astype(int)
    if found.alpha is not None:
        assert planes[..., -1].astype(np.uint8).tobytes() == b"".join(found.alpha)
        planes = planes[..., 0] if back.mode == "LA" else planes[..., :3]
    assert planes.shape == found.samples.shape
    assert np.abs(planes - found.samples).max() <= 1


def test_what_golden_files_do_not_have_reads_alike():
    """Escapes of every length, several streams."""
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, len(ALPHABETS), 6000).astype(np.int16)
    ends = np.array([(a.low - 1, a.low + len(a.edges) - 2) for a in ALPHABETS])[indexes]
    beyond = (1 << rng.integers(0, 30, len(indexes))) - rng.integers(0, 2, len(indexes))
    upwards = rng.integers(0, 2, len(indexes)).astype(bool)
    symbols = np.where(upwards, ends[:, 1] + beyond, ends[:, 0] - beyond)
    largest = (1 << 30) - 1
    symbols = np.clip(symbols, -largest, largest).astype(np.int32)
    symbols[:2] = largest, -largest
    for count in (1, 2, 5, 64):
        payload = plain.Payload(CODER.encode([(symbols, indexes)], count), count << 17)
        assert payload.part([ALPHABETS[i] for i in indexes]) == symbols.tolist()
        payload.finish()
        assert len(payload.streams) == count


@settings(deadline=None, max_examples=400)
@given(number=st.integers(0, 1 << 64))
def test_both_refuse_the_same_files(number):
    data = hostile(Random(number), [(FOLDER / name).read_bytes() for name in SEEDS])
    try:
        expected = read_container(data, NO_LIMIT)
    except ModelError:
        with pytest.raises(plain.Refused):
            plain.read_file(data)
        return
    found = plain.read_file(data)
    assert (found.name, found.fingerprint, found.width, found.height, found.grey, found.payload) == (
        expected.model, expected.fingerprint, expected.width, expected.height, expected.grey, expected.payload,
    )  # fmt: skip
    assert all(found.sections.get(key) == getattr(expected, key) for key in ("alpha", "icc", "exif", "xmp"))


@settings(deadline=None, max_examples=400)
@given(number=st.integers(0, 1 << 64))
def test_both_refuse_the_same_alpha_channels(number):
    rng = Random(number)
    channel = np.frombuffer(rng.randbytes(63), np.uint8).reshape(7, 9) >> rng.randrange(8)
    data = encode_alpha(channel)
    data = damage(rng, data) if rng.random() < 0.5 else data
    width, height = rng.choice([(9, 7), (9, 7), (9, 7), (9, 6), (8, 7), (7, 9)])
    try:
        expected = decode_alpha(data, width, height)
    except CorruptBitstream:
        with pytest.raises(plain.Refused):
            plain.read_alpha(data, width, height)
        return
    assert b"".join(plain.read_alpha(data, width, height)) == expected.tobytes()


@settings(deadline=None, max_examples=300)
@given(
    more=st.integers(-2, 12),
    d=st.integers(-1, 20),
    values=st.lists(
        st.sampled_from([-1, 0, 1, 5, 63, 64, 1023, 1024, 65535, 65536, 1 << 29]), min_size=26, max_size=26
    ),
    elements=st.sampled_from([1, 64, 128, 640, 1000]),
)
def test_both_refuse_the_same_guards(more, d, values, elements):
    count, number = max(more + 1, 1), min(max(d, 0), 19)
    symbols = np.array([more, d, *values[: count if number < 12 else 2 * count]], np.int32)
    tables = [76, 64] + [66 + number] * count if number < 12 else [76, 64] + [60 + number] * count + [65] * count
    indexes = np.array(tables, np.int16)
    data = CODER.encode([(symbols, indexes)])
    try:
        expected = guard.read(CODER.decoder(data), elements)
    except SymbolMismatch:
        with pytest.raises(plain.Refused):
            plain.read_guard(plain.Payload(data, 0), elements)
        return
    assert plain.read_guard(plain.Payload(data, 0), elements) == expected.tolist()


def test_both_find_the_same_alphabets():
    rng = np.random.default_rng(0)
    for ways in ([0], [0, 1, 65535], rng.integers(0, 65536, 40).tolist()):
        near = rng.choice([step for way in ways for step in plain.steps(way)], 4000)
        near = near.astype(np.float32).view(np.int32) + rng.integers(-1, 2, len(near)).astype(np.int32)
        spread = np.exp(rng.uniform(np.log(0.05), np.log(400), 4000)).astype(np.float32)
        sigmas = np.concatenate(
            [near.view(np.float32), spread, np.float32([0, -1, np.nan, np.inf, -np.inf, 0.11, 256])]
        )
        found = plain.alphabets_of(sigmas.tolist(), ways)
        expected = guard.scale_indexes(sigmas, np.array(ways, np.int32))
        assert all(one is plain.GAUSSIANS[i] for one, i in zip(found, expected, strict=True))
