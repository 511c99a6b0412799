"""Whole runs of a few steps."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from model import checkpoint
from model.errors import CheckpointMismatch, CheckpointUnreadable
from model.info import read_info
from model.training import train as module
from model.training.adam import named_state
from model.training.checkpoints import load_state
from model.training.data import find_images, split_validation
from model.training.device import Place, find_place
from model.training.rates import read_rates
from model.training.run import Run, prepare_run
from model.training.train import train
from tests.training.conftest import SMALL
from tests.training.runs import SMALL_AS_OPTIONS, log_of, options, program


def test_the_loss_falls_and_the_model_is_one_that_can_be_served(photographs, tmp_path):
    narrow = dataclasses.replace(SMALL, N=8, head_dim=(4,) * 6, hyper_head_dim=4)
    path = train(options(photographs, tmp_path, config=narrow, start="random", steps=30, lr=1e-3), quiet=True)
    losses = [line["loss"] for line in log_of(tmp_path) if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    weights = checkpoint.load(path)
    assert (weights.info.name, weights.info.lmbda, weights.info.metric) == ("tcm-xs-mse-0.013", 0.013, "mse")
    assert weights.net.config == narrow
    assert [line["kind"] for line in log_of(tmp_path)][-2:] == ["validation", "finished"]


@contextlib.contextmanager
def killed_after_three_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run saves itself, and is no more."""
    step = module._take_step

    def killed(run: Any, x: torch.Tensor) -> Any:
        if run.step == 3:
            module.save_run(run)
            raise KeyboardInterrupt
        return step(run, x)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_take_step", killed)
        yield


def test_a_run_that_was_killed_goes_on_to_the_same_weights(photographs, tmp_path, monkeypatch):
    whole = train(options(photographs, tmp_path / "whole"), quiet=True)
    with killed_after_three_steps(monkeypatch):
        train(options(photographs, tmp_path / "cut"), quiet=True)
    assert load_state(tmp_path / "cut" / "checkpoint").step == 3
    resumed = train(options(photographs, tmp_path / "cut", resume=True), quiet=True)
    assert read_info(resumed).fingerprint == read_info(whole).fingerprint


def test_a_run_is_not_resumed_as_another(photographs, tmp_path):
    train(options(photographs, tmp_path, steps=1), quiet=True)
    changes: dict[str, Any] = {"lmbda": 0.05, "config": dataclasses.replace(SMALL, depth=2)}
    with pytest.raises(CheckpointMismatch, match=r"otherwise \(lmbda 0.013 → 0.05, depth 1 → 2\): start"):
        train(options(photographs, tmp_path, steps=2, resume=True, **changes), quiet=True)


def test_a_run_is_not_overwritten(photographs, tmp_path):
    train(options(photographs, tmp_path, steps=1), quiet=True)
    with pytest.raises(ValueError, match="--resume"):
        train(options(photographs, tmp_path, steps=1), quiet=True)


def test_no_limit_of_the_gradient_is_no_gradient(photographs, tmp_path):
    """Found by trying: --clip 0 ended in the weights that it had begun with."""
    first, last = (train(options(photographs, tmp_path / str(n), steps=n, clip=0.0), quiet=True) for n in (0, 2))
    assert read_info(first).fingerprint != read_info(last).fingerprint


def test_a_model_is_not_overwritten(photographs, tmp_path):
    """Found by trying: an installed model of that name was replaced, and nothing was said."""
    path = train(options(photographs, tmp_path, steps=1), quiet=True)
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=rf"{path.name} is there already: choose another name"):
        train(options(photographs, tmp_path, steps=1), quiet=True)
    train(options(photographs, tmp_path, steps=1, name="other"), quiet=True)


def test_a_kill_in_the_first_save_leaves_no_run(photographs, tmp_path):
    """What it had written is no checkpoint, and must not have to be removed by hand."""
    (tmp_path / "checkpoint.part").mkdir()
    (tmp_path / "checkpoint.part" / "optimiser.pt").write_bytes(b"half")
    assert train(options(photographs, tmp_path, steps=1), quiet=True).exists()
    assert not (tmp_path / "checkpoint.part").exists()


@pytest.mark.parametrize("left", ["checkpoint.new", "checkpoint.old"])
def test_a_run_killed_as_it_saved_is_not_overwritten(photographs, tmp_path, left):
    """Found by reading: between the two renames there is no `checkpoint`."""
    train(options(photographs, tmp_path, steps=1), quiet=True)
    (tmp_path / "checkpoint").rename(tmp_path / left)
    with pytest.raises(ValueError, match="--resume"):
        train(options(photographs, tmp_path, steps=1), quiet=True)
    train(options(photographs, tmp_path, steps=2, resume=True), quiet=True)


def test_a_run_is_resumed_with_its_photographs(photographs, tmp_path):
    """Or some that it was trained on would be measured on."""
    folder = tmp_path / "photographs"
    shutil.copytree(photographs, folder)
    train(options(folder, tmp_path / "run", steps=1), quiet=True)
    train(options(folder, tmp_path / "run", steps=2, resume=True), quiet=True)
    next(folder.rglob("*.png")).rename(folder / "another name.png")
    with pytest.raises(CheckpointMismatch, match="trained otherwise"):
        train(options(folder, tmp_path / "run", steps=3, resume=True), quiet=True)


def taken_up(photographs: Path, save: Path, **changes: Any) -> Run:
    o = options(photographs, save, resume=True, **changes)
    return prepare_run(o, find_place("fp32"), split_validation(find_images(o.data), o.validation)[0])


def test_a_run_that_goes_on_starts_nothing_anew(photographs, tmp_path, monkeypatch):
    """Found by reading: the start was made again, with the options of now, though the checkpoint replaces it."""
    changes: dict[str, Any] = {"part": "coarse", "balance": 0.3}
    model = train(options(photographs, tmp_path, steps=4, fit_synthesis=True, **changes), quiet=True)
    before = load_state(tmp_path / "checkpoint")
    monkeypatch.delattr("model.training.run.make_net")
    monkeypatch.delattr("model.training.run.bearable_rates")
    run = taken_up(photographs, tmp_path, start="random", init_from=Path("absent"), spread=True, **changes)
    assert (run.step, run.net.rounding) == (4, None)
    assert all(torch.equal(value, before.weights[name]) for name, value in run.net.named_parameters())
    assert run.channels is not None
    assert torch.equal(run.channels.deviation, before.deviation)
    resumed = train(options(photographs, tmp_path, steps=4, resume=True, **changes), quiet=True)
    assert checkpoint.load(resumed).info == checkpoint.load(model).info


def test_a_balanced_run_that_was_killed_goes_on_to_the_same_weights(photographs, tmp_path, monkeypatch):
    changes: dict[str, Any] = {"part": "coarse", "balance": 0.3}
    whole = train(options(photographs, tmp_path / "whole", **changes), quiet=True)
    with killed_after_three_steps(monkeypatch):
        train(options(photographs, tmp_path / "cut", **changes), quiet=True)
    resumed = train(options(photographs, tmp_path / "cut", resume=True, **changes), quiet=True)
    assert read_info(resumed).fingerprint == read_info(whole).fingerprint


def test_a_run_goes_on_with_other_rates(photographs, tmp_path):
    """Found by reading: other rates make other groups, which torch would not load."""
    train(options(photographs, tmp_path, steps=2, part="coarse", balance=0.3), quiet=True)
    stored = load_state(tmp_path / "checkpoint").optimisers[0]
    kept = (tmp_path / "rates.json").read_bytes()
    for changes in ({"balance": 0.3, "lr": 1e-7}, {"balance": 0.0, "lr": 3e-5}, {"balance": 0.3, "lr": 1.0}):
        run = taken_up(photographs, tmp_path, part="coarse", **changes)
        assert {name: list(state) for name, state in named_state(run.main, run.net).items()} == {
            name: list(state) for name, state in stored.items()
        }
        rates = {group["base"] for group in run.main.param_groups}
        assert max(rates) == pytest.approx(4e-7 if changes["lr"] == 1e-7 else changes["lr"], rel=1e-6)
        assert (len(rates) > 2) == (changes["lr"] == 1.0)
    assert (tmp_path / "rates.json").read_bytes() == kept
    train(options(photographs, tmp_path, steps=3, part="coarse", resume=True), quiet=True)
    train(options(photographs, tmp_path, steps=4, part="coarse", resume=True, balance=0.3), quiet=True)
    assert load_state(tmp_path / "checkpoint").step == 4


def test_a_run_to_go_on_with_is_looked_for_first(photographs, tmp_path):
    with pytest.raises(CheckpointUnreadable, match="no checkpoint"):
        train(options(photographs, tmp_path, resume=True, start="random", init_from=Path("absent")), quiet=True)


def test_rates_that_are_broken_are_named(tmp_path):
    for broken in ("", "{", "[1.0]", '{"g_a.0": NaN}', '{"g_a.0": "1"}'):
        (tmp_path / "rates.json").write_text(broken)
        with pytest.raises(ValueError, match=r"rates.json: not the rates of a run"):
            read_rates(tmp_path / "rates.json")


def test_a_damaged_checkpoint_is_named(photographs, tmp_path):
    train(options(photographs, tmp_path, steps=1), quiet=True)
    (tmp_path / "checkpoint" / "optimiser.pt").write_bytes(b"no")
    with pytest.raises(CheckpointUnreadable, match="checkpoint"):
        train(options(photographs, tmp_path, steps=2, resume=True), quiet=True)


def test_another_lambda_starts_from_the_same_picture(photographs, tmp_path):
    first = train(options(photographs, tmp_path / "a", steps=1), quiet=True)
    second = train(
        options(photographs, tmp_path / "b", steps=0, start="random", init_from=first, lmbda=0.052), quiet=True
    )
    x = torch.rand(1, 3, 64, 64)
    a, b = checkpoint.load(first).net, checkpoint.load(second).net
    with torch.no_grad():
        torch.testing.assert_close(2 * a.g_a(x), b.g_a(x), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(a.g_s(a.g_a(x)), b.g_s(b.g_a(x)), rtol=1e-2, atol=1e-2)


def test_a_narrower_model_is_a_start_too(photographs, tmp_path):
    narrow = train(options(photographs, tmp_path / "a", steps=1, part="coarse", attention=False), quiet=True)
    wide = dataclasses.replace(SMALL, M=64, slices=4)
    path = train(
        options(photographs, tmp_path / "b", steps=1, part="coarse", start="random", init_from=narrow, config=wide),
        quiet=True,
    )
    assert checkpoint.load(path).net.config == wide


def test_widths_that_no_start_changes_are_named_before_it_is_made(photographs, tmp_path, monkeypatch):
    narrow = train(options(photographs, tmp_path / "a", steps=0), quiet=True)
    monkeypatch.delattr("model.training.setup.block_transform")
    foreign = dataclasses.replace(SMALL, M=64, slices=4, hyper_channels=16)
    with pytest.raises(CheckpointMismatch, match=r"other widths than asked for: hyper_channels 8, not 16$"):
        train(options(photographs, tmp_path / "b", start="random", init_from=narrow, config=foreign), quiet=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"part": "entropy", "attention": False, "balance": 0.3},
        {"part": "coarse", "fit_synthesis": True},
        {"part": "coarse", "balance": 0.3},
        {"part": "middle", "rounding": 8.66, "precision": "bf16"},
        {"part": "entropy", "spread": True},
        {"start": "random"},
    ],
    ids=str,
)
def test_every_way_of_training_takes_steps(photographs, tmp_path, changes):
    train(options(photographs, tmp_path, steps=2, **changes), quiet=True)
    assert log_of(tmp_path)[-1]["kind"] == "finished"


def test_ms_ssim_is_trained_for(tmp_path):
    for i in range(3):
        Image.effect_noise((200, 200), 40 + i).convert("RGB").save(tmp_path / f"{i}.png")
    path = train(
        options(
            tmp_path, tmp_path / "run", metric="ms-ssim", lmbda=8.0, crop=192, steps=2, validation=1, start="random"
        ),
        quiet=True,
    )
    assert (read_info(path).name, read_info(path).metric) == ("tcm-xs-ms-ssim-8", "ms-ssim")


def test_the_clock_ends_a_run(photographs, tmp_path):
    train(options(photographs, tmp_path, steps=None, minutes=0.01), quiet=True)
    assert log_of(tmp_path)[-1]["kind"] == "finished"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": 100}, "multiple of 64"),
        ({"lmbda": 0.0}, "positive"),
        ({"lmbda": float("nan")}, "positive"),
        ({"rounding": 0.0}, "rounding weight"),
        ({"name": "My Model"}, "no model name"),
        ({"metric": "ms-ssim", "crop": 192, "lmbda": 16.0}, "squared errors"),
        ({"metric": "ms-ssim"}, "above 160"),
        ({"init_from": Path("x.safetensors")}, "not both"),
        ({"minutes": 1.0}, "one of the three"),
        ({"epochs": 1}, "one of the three"),
        ({"steps": None}, "one of the three"),
        ({"steps": -1}, "--steps is"),
        ({"steps": None, "minutes": float("nan")}, "--minutes is"),
        ({"steps": None, "minutes": float("inf")}, "--minutes is"),
        ({"steps": None, "epochs": -1}, "--epochs is"),
        ({"crop": 0}, "--crop is"),
        ({"crop": -64}, "--crop is"),
        ({"batch": 0}, "--batch is"),
        ({"workers": -1}, "--workers is"),
        ({"seed": -1}, "--seed is"),
        ({"validation": -1}, "--validation is"),
        ({"lr_aux": float("nan")}, "--lr-aux is"),
        ({"cool_from": 1.0}, "--cool-from"),
        ({"average": 1.5}, "--average"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(photographs, tmp_path, wrong, message):
    """Found by reading: some were only once the start was made, or by what they broke there."""
    with pytest.raises(ValueError, match=message):
        options(photographs, tmp_path, **wrong)


def test_two_processes_train_one_model(photographs, tmp_path):
    """As on two GPUs, here on the CPU through gloo: torchrun, one model, and the same weights as one process's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    arguments = [
        "model.training", str(photographs), "--size=xs", *SMALL_AS_OPTIONS, "--crop=64", "--batch=1", "--steps=3",
        "--start-from=block-transform", "--validation=2", "--precision=fp32", "--threads=1", f"--save={tmp_path}",
    ]  # fmt: skip
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=variables)
    assert done.returncode == 0, done.stderr
    weights = checkpoint.load(tmp_path / "tcm-xs-mse-0.013.safetensors")
    assert weights.net.config == SMALL
    assert [line["kind"] for line in log_of(tmp_path)].count("finished") == 1


@pytest.mark.parametrize("word", ["depth", "depth=two", "deep=2"])
def test_a_width_that_is_none_is_named(photographs, tmp_path, word):
    done = CliRunner().invoke(program(), ["--width", word, "--save", str(tmp_path), str(photographs)])
    assert done.exit_code == 2
    assert f"--width {word}" in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--save=there", "photographs"], 6, "there"),
        (["--save=run", "empty"], 6, "no images"),
        (["--save=run", "--size=xs", "--init-from=absent.pth", "photographs"], 5, "checkpoint-unreadable"),
        (["--save=run", "--lmbda=0", "photographs"], 2, "positive"),
        (["--save=run", "--threads=-1", "photographs"], 2, "--threads is"),
        (["--save=run", "--milestones=45;48", "photographs"], 2, "--milestones are"),
    ],
)
def test_errors_are_one_line_with_the_codes_of_every_command(photographs, tmp_path, monkeypatch, arguments, code, says):
    """Found by reading: all were 1, and a file in the way of the run's folder was a traceback."""
    monkeypatch.chdir(tmp_path)
    Path("photographs").symlink_to(photographs)
    Path("empty").mkdir()
    Path("there").write_text("not a folder")
    done = CliRunner().invoke(program(), arguments)
    assert done.exit_code == code, done.output
    assert len(done.output.strip().splitlines()) == 1
    assert says in done.output


def test_all_processes_go_by_the_slowest_clock(photographs, tmp_path, monkeypatch):
    """Found by reading: each cooled its rate by its own clock, so that their weights drifted apart."""
    monkeypatch.setattr(Place, "largest", lambda _, values: [max(values[0], 60.0), values[1]])
    train(options(photographs, tmp_path, steps=None, minutes=1.0), quiet=True)
    state = load_state(tmp_path / "checkpoint")
    assert (state.step, state.seconds) == (0, 60.0)
