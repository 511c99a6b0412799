"""A batch in halves, as a GPU reads it: one is on the device while the other's symbols are read."""

from __future__ import annotations

import gc
from dataclasses import replace
from unittest import mock
from weakref import ref

import numpy as np
import pytest
import torch

from model import codec as codec_module
from model import programs
from model.container import read_container
from model.errors import IncompatibleModel
from model.programs import Runner
from model.turns import in_turn


class Late(Runner):
    """Says when work is given to the device, and when its results are waited for."""

    def __init__(self, codec, name, log):
        super().__init__(codec.device)
        self._name, self._log = name, log

    def to_host(self, tensors):
        self._log.append((self._name, "given"))
        arrive = super().to_host(tensors)

        def late():
            self._log.append((self._name, "waited for"))
            return arrive()

        return late


@pytest.fixture
def files(codec, photo):
    return [read_container(codec.encode(photo.crop((x, 0, x + 128, 100)))) for x in (0, 60, 120, 180, 240)]


@pytest.fixture
def halved(codec, files, monkeypatch):
    """The codec with two runners, and what they say."""
    log = []
    monkeypatch.setattr(codec, "_runners", [Late(codec, name, log) for name in "ab"])
    monkeypatch.setattr(codec_module, "_WORTH_HALVING", 1)
    return codec, log


def test_halves_give_what_each_gives_alone(halved, files):
    codec, log = halved
    together = codec.synthesise(files)
    assert {name for name, _ in log} == {"a", "b"}
    for file, padded in zip(files, together, strict=True):
        alone = codec.decode_container(file)
        np.testing.assert_allclose(alone.rgb.astype(int), codec.unpack(file, padded).rgb.astype(int), atol=1)


def test_the_device_always_has_the_other_half_to_do(halved, files):
    codec, log = halved
    codec.synthesise(files)
    under_way = 0
    for i, (_, what) in enumerate(log):
        under_way += 1 if what == "given" else -1
        if what == "waited for" and i < len(log) - 1:
            assert under_way == 1
    assert len(log) == 2 * 2 * (codec.info.config.slices + 1)


def test_few_or_small_files_are_not_halved(halved, files, monkeypatch):
    codec, log = halved
    codec.synthesise(files[:3])
    assert {name for name, _ in log} == {"a"}
    monkeypatch.setattr(codec_module, "_WORTH_HALVING", 5 * 128 * 128 + 1)
    codec.synthesise(files)
    assert {name for name, _ in log} == {"a"}


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_bad_file_costs_neither_half_anything(halved, tiny_codec, photo, files, place):
    codec, _ = halved
    foreign = read_container(tiny_codec.encode(photo.crop((0, 0, 128, 100))))
    damaged = replace(files[place], payload=files[place].payload[:200] + bytes(2) + files[place].payload[202:])
    sound = codec.synthesise(files)
    for bad in (foreign, damaged):
        found = codec.synthesise([*files[:place], bad, *files[place + 1 :]])
        assert [isinstance(one, IncompatibleModel) for one in found] == [i == place for i in range(5)]
        for i in {0, 1, 2, 3, 4} - {place}:
            np.testing.assert_array_equal(found[i], sound[i])


def test_a_half_may_be_bad_altogether(halved, tiny_codec, photo, files):
    codec, _ = halved
    foreign = read_container(tiny_codec.encode(photo.crop((0, 0, 128, 100))))
    found = codec.synthesise([foreign, foreign, *files[:2]])
    assert [isinstance(one, IncompatibleModel) for one in found] == [True, True, False, False]


def test_a_file_that_needs_float64_is_read_again_in_its_half(halved, files, monkeypatch):
    """The first reading of the second half finds other symbols, as with another machine's float32."""
    codec, _ = halved
    sound = codec.synthesise(files)
    runner = codec._runners[1]
    to_host = runner.to_host

    def other(tensors):
        arrive = to_host(tensors)
        return lambda: [array * np.float32(1.5) if array.dtype == np.float32 else array for array in arrive()]

    monkeypatch.setattr(runner, "to_host", other)
    before = codec.retries
    found = codec.synthesise(files)
    assert codec.retries == before + len(files) // 2
    for one, wanted in zip(found, sound, strict=True):
        np.testing.assert_allclose(one.astype(int), wanted.astype(int), atol=2)


def test_memory_that_runs_out_in_one_half_is_free_at_the_next_attempt(halved, files, monkeypatch):
    codec, _ = halved
    sound = codec.synthesise(files)
    forget = mock.Mock(return_value=True)
    monkeypatch.setattr(programs, "forget_all", forget)
    given, alive = [], []  # to either runner in the first attempt; of those, when the second begins

    def limited(to_host):
        def to_host_if_it_fits(tensors):
            if forget.called:
                alive.append(sum(tensor() is not None for tensor in given))
                return to_host(tensors)
            given.extend(map(ref, tensors))
            if len(given) == 4:
                raise torch.OutOfMemoryError
            return to_host(tensors)

        return to_host_if_it_fits

    for runner in codec._runners:
        monkeypatch.setattr(runner, "to_host", limited(runner.to_host))
    gc.disable()
    try:
        again = codec.synthesise(files)
    finally:
        gc.enable()
    assert alive[0] == 0
    for one, wanted in zip(again, sound, strict=True):
        np.testing.assert_array_equal(one, wanted)


def test_work_in_halves_can_be_given_up(halved, files):
    codec, _ = halved
    beats = []

    def give_up():
        beats.append(None)
        if len(beats) == 4:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        codec.synthesise(files, heartbeat=give_up)
    assert all(isinstance(one, np.ndarray) for one in codec.synthesise(files))


def test_parts_are_done_in_turn_and_end_together():
    done = []

    def part(name, turns, fails=False):
        try:
            for turn in range(turns):
                done.append((name, turn))
                yield
            if fails:
                raise KeyError(name)
            return name.upper()
        finally:
            done.append((name, "ended"))

    assert in_turn([part("a", 2), part("b", 1), part("c", 0)]) == ["A", "B", "C"]
    assert done == [("a", 0), ("b", 0), ("c", "ended"), ("a", 1), ("b", "ended"), ("a", "ended")]
    done.clear()
    with pytest.raises(KeyError):
        in_turn([part("a", 9), part("b", 1, fails=True)])
    assert done[-2:] == [("b", "ended"), ("a", "ended")]
