"""Weights that were trained further: what the earlier ones wrote is read with the earlier ones, from what differs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import Codec, Zoo
from model.checkpoint import load, save
from model.differences import save_difference
from model.errors import CheckpointMismatch, CheckpointUnreadable, IncompatibleModel
from model.info import ModelInfo, read_info
from model.state_dict import fill, read_state_dict
from tests.conftest import make_tiny

NAME = "tcm-tiny-mse-0.01"


def saved(folder: Path, *, brighter: float = 0.0, seed: int = 0) -> ModelInfo:
    """A tiny model, whose g_s may have learnt something."""
    net = make_tiny(seed)
    with torch.no_grad():
        net.g_s[-1][0].bias += brighter
    return save(net, folder / f"{NAME}.safetensors", name=NAME, lmbda=0.01, metric="mse", rounding=8.0)


@dataclass(frozen=True)
class Generations:
    """The earlier model as it was, in a folder of its own, and the later one with what is left of the earlier."""

    before: Path
    now: Path
    earlier: ModelInfo
    later: ModelInfo
    left: Path


@pytest.fixture
def generations(tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    earlier, later = saved(before), saved(now, brighter=0.1)
    left = save_difference(before / f"{NAME}.safetensors", now / f"{NAME}.safetensors")
    return Generations(before, now, earlier, later, left)


def test_a_file_of_the_earlier_weights_gives_the_picture_that_it_gave(generations, photo):
    small = photo.crop((0, 0, 128, 128))
    data = Codec.load(NAME, "cpu", zoo=Zoo(generations.before)).encode(small)
    picture = Codec.load(NAME, "cpu", zoo=Zoo(generations.before)).decode(data)
    zoo = Zoo(generations.now)
    reader = Codec.load(zoo.by_fingerprint(generations.earlier.fingerprint, NAME), "cpu")
    assert np.array_equal(np.asarray(reader.decode(data)), np.asarray(picture))
    assert reader.info.rounding == 8.0
    later = Codec.load(zoo.get(NAME), "cpu")
    with pytest.raises(IncompatibleModel):
        later.decode(data)
    brighter = later.decode(later.encode(small))
    assert np.asarray(brighter, float).mean() > np.asarray(picture, float).mean() + 1


def test_what_is_left_of_earlier_weights_is_not_written_over(generations):
    """`tcm difference` wrote over EARLIER and said that it could go; `tcm import --force` took away its base."""
    whole = generations.now / f"{NAME}.safetensors"
    kept = [path.read_bytes() for path in (generations.left, whole)]
    with pytest.raises(CheckpointMismatch, match="it is one, or move it first"):
        save_difference(generations.left, whole)
    command = [Path(sys.executable).with_name("tcm"), "import", generations.before / f"{NAME}.safetensors"]
    command += [f"--name={NAME}", "--force", f"--model-dir={generations.now}"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 6
    assert "Give the new one a name of its own" in refused.stderr
    assert [path.read_bytes() for path in (generations.left, whole)] == kept
    sound = whole.rename(whole.with_name("elsewhere")).rename(generations.before / "sound.safetensors")
    whole.write_bytes(kept[1][:-1] + b"!")  # a damaged one may be replaced by the same weights
    command[2] = sound
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert read_info(whole) == generations.later
    Codec.load(Zoo(generations.now).by_fingerprint(generations.earlier.fingerprint, NAME), "cpu")


def test_the_earlier_weights_are_small_and_have_no_name(generations):
    whole = generations.now / f"{NAME}.safetensors"
    assert generations.left.name == f"{NAME}.{generations.earlier.fingerprint}.safetensors"
    assert generations.left.stat().st_size < whole.stat().st_size / 20
    zoo = Zoo(generations.now)
    assert zoo.problems == []
    assert zoo.get(NAME).info == generations.later
    assert zoo.also_read(zoo.get(NAME)) == [generations.earlier.fingerprint]
    before = Zoo(generations.before)
    assert before.also_read(before.get(NAME)) == []
    assert [entry.info.fingerprint for entry in zoo.entries() if not entry.embedded] == [generations.later.fingerprint]
    assert zoo.for_quality(3, like=zoo.get(NAME)).path == whole


def test_they_can_be_trained_on_and_imported(generations, tmp_path):
    old = load(generations.before / f"{NAME}.safetensors").net
    for name, tensor in fill(read_state_dict(generations.left)).named_parameters():
        assert torch.equal(tensor, old.get_parameter(name)), name


def test_signs_of_zeros_count(tmp_path):
    """Found by a reviewer: 0 and -0 are equal and have other bytes; what was left gave weights of no fingerprint."""
    for folder, zero in (("before", -0.0), ("now", 0.0)):
        net = make_tiny()
        with torch.no_grad():
            net.h_a[0].conv1.weight[0] = zero
            net.g_s[-1][0].bias += zero == 0 and str(zero) == "0.0"
        save(net, tmp_path / folder / f"{NAME}.safetensors", name=NAME, lmbda=0.01, metric="mse")
    earlier, later = (tmp_path / folder / f"{NAME}.safetensors" for folder in ("before", "now"))
    assert load(save_difference(earlier, later)).info.fingerprint == read_info(earlier).fingerprint


def test_everybody_may_read_them(generations):
    """Found by a reviewer: written by root, they were no model for a service under another user."""
    assert generations.left.stat().st_mode & 0o777 == 0o644


def test_a_whole_copy_goes_before_what_differs(generations):
    """Found by a reviewer: readable files were answered with errors, as a difference without its base came first."""
    zoo = Zoo(generations.now)
    assert zoo.by_fingerprint(generations.earlier.fingerprint).path == generations.left
    copy = Path(shutil.copy(generations.before / f"{NAME}.safetensors", generations.now / "z.safetensors"))
    assert Zoo(generations.now).by_fingerprint(generations.earlier.fingerprint).path == copy


def test_without_the_later_weights_they_say_what_is_missing(generations, tmp_path, photo):
    alone = tmp_path / "alone"
    alone.mkdir()
    moved = Path(shutil.copy(generations.left, alone))
    for read in (load, read_state_dict, lambda path: Codec.load(path, "cpu")):
        with pytest.raises(CheckpointUnreadable, match=f"differs from weights {generations.later.fingerprint}"):
            read(moved)
    saved(alone, brighter=0.2)  # others of that name do not help
    with pytest.raises(CheckpointUnreadable, match="not beside it"):
        load(moved)
    (problem,) = Zoo(alone).problems
    assert problem.startswith(f"{moved}: holds what differs from weights {generations.later.fingerprint}")
    with pytest.raises(IncompatibleModel):
        Zoo(alone).by_fingerprint(generations.earlier.fingerprint)


@pytest.mark.parametrize("at", [-1, -40])
def test_damage_to_either_file_is_seen(generations, at):
    whole = generations.now / f"{NAME}.safetensors"
    for path, says in (generations.left, "its tensors are not those of its fingerprint"), (whole, "or damaged$"):
        sound = path.read_bytes()
        data = bytearray(sound)
        data[at] ^= 1
        path.write_bytes(data)
        for read in (load, read_state_dict):
            with pytest.raises(CheckpointUnreadable, match=says):
                read(generations.left)
        with pytest.raises(CheckpointUnreadable, match=f"{path.name}: damaged|or damaged$"):
            save_difference(generations.before / f"{NAME}.safetensors" if path == whole else path, whole)
        (generations.now / "aa.safetensors").write_bytes(path.read_bytes())  # a sound one does, whichever is first
        path.write_bytes(sound)
        load(generations.left)


def test_a_third_generation(generations, tmp_path):
    """What was left of the first is written anew, against the third."""
    newest = tmp_path / "newest"
    saved(newest, brighter=-0.1)
    whole = newest / f"{NAME}.safetensors"
    first = save_difference(generations.left, whole)
    second = save_difference(generations.now / f"{NAME}.safetensors", whole)
    assert load(first).info.fingerprint == generations.earlier.fingerprint
    assert load(second).info.fingerprint == generations.later.fingerprint
    with pytest.raises(CheckpointMismatch, match="not whole itself"):
        save_difference(whole, second)


def test_the_same_weights_are_not_written_over_themselves(generations):
    """Found by a reviewer: under the name that what is left has, the only whole file was replaced by nothing."""
    whole = generations.now / f"{NAME}.safetensors"
    named = whole.rename(whole.with_name(f"{NAME}.{generations.later.fingerprint}.safetensors"))
    with pytest.raises(CheckpointMismatch, match="are the same weights"):
        save_difference(named, named)
    load(named)


def test_different_models_are_kept_whole(generations, tmp_path):
    other = tmp_path / "other"
    saved(other, seed=5)
    with pytest.raises(CheckpointMismatch, match="keep them both whole"):
        save_difference(generations.before / f"{NAME}.safetensors", other / f"{NAME}.safetensors")
    half = other / "half.safetensors"
    save(make_tiny(), half, name=NAME, lmbda=0.01, metric="mse", half=True)
    with pytest.raises(CheckpointMismatch, match="keep them both whole"):
        save_difference(generations.before / f"{NAME}.safetensors", half)


def test_as_a_command(generations):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("tcm"), "difference", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    generations.left.unlink()
    done = run(generations.before / f"{NAME}.safetensors", generations.now / f"{NAME}.safetensors")
    assert done.returncode == 0
    assert generations.left.name in "".join(done.stderr.split())
    assert read_info(generations.left).differs_from == generations.later.fingerprint
    refused = run(generations.now / f"{NAME}.safetensors", generations.left)
    assert refused.returncode == 5
    assert "not whole itself" in " ".join(refused.stderr.split())
    absent = run(generations.now / "absent.safetensors", generations.left)
    assert (absent.returncode, len(absent.stderr.splitlines())) == (5, 1)


def test_the_embedded_models_of_earlier_releases_still_read_their_files():
    golden = Path(__file__).parents[1] / "golden"
    data = (golden / "tcm-xs-mse-0.013.rgb.tcm").read_bytes()
    entry = Zoo().by_fingerprint("30acd3da8d3f")
    assert isinstance(Codec.load(entry, "cpu").decode(data), Image.Image)
    assert Codec.load_for(data, "cpu").info.fingerprint == "30acd3da8d3f"
    with pytest.raises(IncompatibleModel, match="load_for"):
        Codec.load("tcm-xs-mse-0.013", "cpu").decode(data)
