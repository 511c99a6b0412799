"""Recording that goes wrong, against a stand-in (graphs.py) for torch's graphs and allocators.

tests/model/test_kernels.py has the same on a GPU.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from weakref import WeakSet, ref

import pytest
import torch

from model import devices, programs, recording
from model.stages import Stages
from tests.model.graphs import Cuda, Gpu


@pytest.fixture(params=["2.11", "2.14"])
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Cuda]:
    stand_in = Cuda()
    stand_in.sees_to_it = request.param == "2.14"
    for module in (programs, recording):
        monkeypatch.setattr(module, "torch", stand_in)
    monkeypatch.setattr(recording, "_ready", threading.local())
    monkeypatch.setattr(recording, "_broken", [])
    monkeypatch.setattr(devices, "_answers", lambda _: True)
    recording._recording_stream.cache_clear()
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: t if isinstance(a[0], Gpu) else to(t, *a, **k))
    yield stand_in
    recording._recording_stream.cache_clear()
    recording._broken.clear()
    gc.collect()
    assert not stand_in.terminated


@pytest.fixture
def runner(cuda: Cuda) -> programs.Runner:
    return programs.Runner(Gpu())  # type: ignore[arg-type]


def kept(cuda: Cuda) -> int:
    """Graphs that the host's allocator may still ask: none where both were told."""
    return 0 if cuda.sees_to_it else 1


def go(runner: programs.Runner, name: str, fail=lambda place: None) -> float:
    """Three pauses, each of which adds one; `fail` is called before each while it is recorded."""
    stand_in = programs.torch

    def program(given, heartbeat):
        for place in range(3):
            stand_in.kernel()
            if stand_in.recording:
                fail(place)
            given = yield recording.Pause("stage", (given + 1,), last=place == 2)

    def work() -> float:
        run = runner.run(name, program, 1, Stages())
        out = torch.zeros(1)
        for _ in range(3):
            (out,) = run.send(out)
        return out.item()

    return programs.with_room(runner.device, work)


def recorded(runner: programs.Runner) -> list[str]:
    return [name for name, *_ in runner._recordings]


def test_the_second_time_is_recorded(runner, cuda):
    go(runner, "a")
    assert not cuda.recorded_by
    go(runner, "a")
    assert len(cuda.recorded_by) == 3
    go(runner, "a")
    assert len(cuda.recorded_by) == 3
    assert not any(cuda.collects)
    assert gc.isenabled()
    assert cuda.workspaces_cleared == 6  # before and behind each


def test_what_lies_between_its_steps_is_kept_until_it_is_whole(runner):
    """It was kept for good, though only the outputs are asked for once all is recorded."""
    kept, alive = [], []

    def program(given, heartbeat):
        between = given + 1
        kept.append(ref(between))
        for place in range(2):
            alive.append(all(tensor() is not None for tensor in kept))
            yield recording.Pause("stage", (between + 1,), last=place == 1)

    def work():
        run = runner.run("a", program, 1, Stages())
        return [run.send(torch.zeros(1)) for _ in range(2)]

    programs.with_room(runner.device, work)
    kept.clear(), alive.clear()
    outputs = programs.with_room(runner.device, work)
    assert [len(of_step) for of_step in outputs] == [1, 1]
    assert recorded(runner) == ["a"]
    assert alive == [True, True]
    assert kept[0]() is None


@pytest.mark.parametrize("error", [RuntimeError, TypeError, StopIteration])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_recording_that_fails_costs_the_others_nothing(runner, cuda, place, error):
    def fail(here):
        if here == place:
            raise error

    go(runner, "a"), go(runner, "b")
    for _ in range(3):
        assert go(runner, "a", fail) == 3
    go(runner, "b")
    assert recorded(runner) == ["b"]
    assert not cuda.device.under_way
    assert not cuda.host.under_way


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_recording_that_cuda_ends_costs_the_others_nothing(runner, cuda, place, known):
    """Then torch 2.11 tells neither allocator; one can be told by hand."""

    def spoil(here):
        if here == place:
            cuda.spoilt = True
            if known:  # else it shows at the end of the recording
                raise RuntimeError("operation not permitted when stream is capturing")

    for name in "abc":
        go(runner, name)
    go(runner, "b")
    for _ in range(3):
        assert go(runner, "a", spoil) == 3
    go(runner, "b"), go(runner, "c"), go(runner, "c")
    assert recorded(runner) == ["b", "c"]
    assert not cuda.device.under_way
    assert len(recording._broken) == kept(cuda)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_recording_that_does_not_begin_costs_the_others_nothing(runner, cuda, place):
    def refuse(here):
        cuda.refuses = here == place - 1

    for name in "abc":
        go(runner, name)
    go(runner, "b")
    cuda.refuses = place == 0
    for _ in range(3):
        assert go(runner, "a", refuse) == 3
        cuda.refuses = False
    go(runner, "b"), go(runner, "c"), go(runner, "c")
    assert recorded(runner) == ["b", "c"]
    assert not cuda.device.under_way
    assert len(recording._broken) == kept(cuda)


def test_a_thread_runs_it_as_it_is_before_it_records(runner, cuda):
    for name in ("first", "second", "second", "first"):
        thread = threading.Thread(target=go, args=(runner, "a"), name=name)
        thread.start()
        thread.join()
    assert not cuda.recorded_by  # each is a new thread

    def twice():
        go(runner, "a")
        go(runner, "a")

    thread = threading.Thread(target=twice, name="both")
    thread.start()
    thread.join()
    assert cuda.recorded_by == ["both"] * 3
    go(runner, "a")  # what is whole is anybody's
    assert len(cuda.recorded_by) == 3


def test_memory_that_runs_out_while_recording(runner, cuda):
    full = iter([True])

    def fail(here):
        if here == 1 and next(full, False):
            raise torch.OutOfMemoryError

    go(runner, "a")
    assert go(runner, "a", fail) == 3
    assert not recorded(runner)
    go(runner, "a", fail)
    assert recorded(runner) == ["a"]


def test_memory_that_nobody_uses_is_given_back_without_recordings(runner, cuda):
    """What the host has for a GPU stayed for good: as much as the largest picture had ever needed."""
    go(runner, "a")
    assert not programs.forget_all(runner.device)
    assert cuda.emptied == ["device", "host"]
    del cuda._C._host_emptyCache
    go(runner, "a"), go(runner, "a")
    assert programs.forget_all(runner.device)
    assert cuda.emptied == ["device", "host", "device"]


def test_a_runner_may_be_made_while_everybody_forgets(runner, cuda, monkeypatch):
    """By another codec, on another device, whose lock nobody holds here."""
    made = []
    makers = [threading.Thread(target=lambda: made.append(programs.Runner(Gpu()))) for _ in range(2)]

    class Slow(WeakSet):
        def __iter__(self):
            for one in super().__iter__():
                if makers:
                    makers[-1].start()
                    makers.pop().join(0.2)
                yield one

    others = [runner, programs.Runner(Gpu())]
    monkeypatch.setattr(programs, "_runners", Slow(others))
    started = list(makers)
    assert not programs.forget_all(runner.device)
    for thread in started:
        thread.join()
    assert set(programs._runners) == {*others, *made}


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_memory_of_libraries_that_runs_out_is_named(message):
    with pytest.raises(devices.OutOfMemory), devices.memory_errors(torch.device("cpu")):
        raise RuntimeError(message)


def test_what_cannot_be_recorded_for_want_of_memory_runs_as_it_is(runner, cuda):
    """Libraries say it as a RuntimeError: it cost all other recordings, or was told to the client."""

    def fail(here):
        if here == 2:
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")

    go(runner, "a"), go(runner, "b"), go(runner, "b")
    assert go(runner, "a", fail) == 3
    assert recorded(runner) == ["b"]
