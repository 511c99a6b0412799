"""How a run ends: by a signal, an error, want of memory or of room on the disk; and what is there then."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner

from model import checkpoint
from model.checkpoint import load
from model.errors import OutOfMemory
from model.training import train as module
from model.training.checkpoints import RunState, load_state, save_state
from model.training.interrupt import Interrupt
from model.training.train import train
from tests.service.conftest import wait_for
from tests.training.runs import QUICK, options, program


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_a_run_in_order(photographs, tmp_path, kind):
    """Found by trying: the loading processes died of SIGTERM, torch raised for them, and nothing was written."""
    program = """if True:
        import signal
        import sys
        from pathlib import Path

        from model.training.interrupt import Interrupted
        from model.training.train import train
        from tests.training.runs import options

        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background may ignore
        try:
            train(options(Path(sys.argv[1]), Path(sys.argv[2]), steps=100_000, workers=1, log_every=1), quiet=True)
        except Interrupted:
            sys.exit(0)
    """
    command = [sys.executable, "-c", program, str(photographs), str(tmp_path)]
    run = subprocess.Popen(command, start_new_session=True)
    log = tmp_path / "log.jsonl"
    try:
        wait_for(lambda: log.exists() and '"train"' in log.read_text(), 120)
        os.killpg(run.pid, kind)
        assert run.wait(60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert (tmp_path / "checkpoint").is_dir()
    assert list(tmp_path.glob("*.safetensors"))


def test_an_error_that_nobody_knows_ends_the_loading_too(photographs, tmp_path):
    """Found by review: processes that heed no SIGTERM were waited for, for ever."""
    program = """if True:
        import sys
        from pathlib import Path
        from unittest import mock

        from model.training import train as module
        from tests.training.runs import options

        module._take_step = mock.Mock(side_effect=ZeroDivisionError)
        module.train(options(Path(sys.argv[1]), Path(sys.argv[2]), workers=1), quiet=True)
    """
    command = [sys.executable, "-c", program, str(photographs), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, "ZeroDivisionError" in result.stderr) == (1, True)


def test_memory_that_runs_out_is_named(photographs, tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(module, "_take_step", mock.Mock(side_effect=error))
    with pytest.raises(OutOfMemory, match="a smaller --batch or --crop"):
        train(options(photographs, tmp_path), quiet=True)


def test_a_disk_that_is_too_full_for_the_run_may_take_its_model(photographs, tmp_path, monkeypatch):
    """Found by trying: the last checkpoint did not fit, and the model, a quarter of it, was not written."""
    monkeypatch.setattr(module, "save_run", mock.Mock(side_effect=OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        train(options(photographs, tmp_path, steps=1), quiet=True)
    [path] = tmp_path.glob("*.safetensors")
    load(path)


def test_a_run_that_diverges_is_given_up_and_its_checkpoint_stays(photographs, tmp_path, monkeypatch):
    """Found by reading: it went on to its end, over the good checkpoint, and wrote a model of nothing."""
    model = train(options(photographs, tmp_path, steps=1), quiet=True)
    model.unlink()
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="diverged at step 1: lower --lr"):
        train(options(photographs, tmp_path, steps=90, resume=True, save_every=0.0), quiet=True)
    assert load_state(tmp_path / "checkpoint").step < 1 + module._ACCIDENTS
    assert not model.exists()


def test_a_full_disk_costs_no_checkpoint_that_is_there(tmp_path, monkeypatch):
    """Found by looking over it: after a kill in the first save, the only whole one was removed before the next."""
    folder, state = tmp_path / "checkpoint", RunState(1, 1.0, [], {"w": torch.ones(1)}, {}, "{}")
    save_state(folder, state)
    folder.rename(tmp_path / "checkpoint.new")
    monkeypatch.setattr("model.training.checkpoints.torch.save", mock.Mock(side_effect=OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        save_state(folder, dataclasses.replace(state, step=2))
    assert load_state(folder).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("large", ["weights", "optimisers"])
def test_a_full_disk_is_named_and_the_old_checkpoint_stays(tmp_path, large):
    """Found by reading: torch said `unexpected pos`, and half a checkpoint went on filling the disk."""
    state = RunState(step=1, seconds=0.0, optimisers=[], weights={"x": torch.zeros(1)}, average={}, setting="{}")
    save_state(tmp_path / "checkpoint", state)
    much = torch.zeros(100_000)
    more = dataclasses.replace(state, step=2, **{large: {"x": much} if large == "weights" else [{"x": {"y": much}}]})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint: cannot be written \(.*File too large"):
            save_state(tmp_path / "checkpoint", more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert load_state(tmp_path / "checkpoint").step == 1


def test_what_a_kill_between_the_renames_left_outlives_a_failed_save(tmp_path, monkeypatch):
    state = RunState(step=1, seconds=0.0, optimisers=[], weights={"x": torch.zeros(1)}, average={}, setting="{}")
    for step, name in enumerate(("checkpoint.old", "checkpoint.new"), 1):
        save_state(tmp_path / "x", dataclasses.replace(state, step=step))
        (tmp_path / "x").rename(tmp_path / name)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr("model.training.checkpoints.save_file", full)
        save_state(tmp_path / "checkpoint", dataclasses.replace(state, step=3))
    assert load_state(tmp_path / "checkpoint").step == 2
    save_state(tmp_path / "checkpoint", dataclasses.replace(state, step=3))
    assert load_state(tmp_path / "checkpoint").step == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_disk_that_is_full_for_a_while_ends_no_run(photographs, tmp_path, monkeypatch, caplog):
    save, tries = module.save_run, []

    def full_at_first(run: Any) -> None:
        tries.append(run.step)
        if run.step < 3:
            raise OSError("no space")
        save(run)

    monkeypatch.setattr(module, "save_run", full_at_first)
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    train(options(photographs, tmp_path, steps=3, save_every=0.0), quiet=True)
    assert tries == [1, 2, 3, 3]
    assert "no space: tried again in 0 s" in caplog.text
    assert "log.jsonl: No space left on device" in caplog.text
    with pytest.raises(OSError, match="no space"):
        train(options(photographs, tmp_path / "other", steps=2, save_every=0.0), quiet=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_in_order_and_its_exit_code_says_so(photographs, tmp_path, monkeypatch, request, number):
    """Found by reading: it was 0, and a script went on with a model that was trained by half."""
    before = signal.signal(number, signal.default_int_handler)  # in a shell's background, SIGINT may be ignored
    request.addfinalizer(lambda: signal.signal(number, before))
    step = module._take_step

    def interrupted(run: Any, x: torch.Tensor) -> Any:
        if run.step == 2:
            os.kill(os.getpid(), number)
        return step(run, x)

    monkeypatch.setattr(module, "_take_step", interrupted)
    done = CliRunner().invoke(program(), [*QUICK, "--steps=9", f"--save={tmp_path}", str(photographs)])
    assert done.exit_code == 128 + number
    assert "tcm: interrupted at step 3; --resume goes on" in done.output
    assert load_state(tmp_path / "checkpoint").step == 3
    checkpoint.load(tmp_path / "tcm-xs-mse-0.013.safetensors")
    monkeypatch.setattr(module, "_take_step", step)
    resumed = CliRunner().invoke(program(), [*QUICK, "--steps=4", "--resume", f"--save={tmp_path}", str(photographs)])
    assert resumed.exit_code == 0


def test_what_nohup_ignores_ends_no_run():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)
