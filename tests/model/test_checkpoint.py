"""Published checkpoints load completely or not at all, and reading one never runs code."""

from __future__ import annotations

import errno
import math
import os
import re
from pathlib import Path
from unittest import mock

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from model import Codec, Zoo, state_dict
from model.checkpoint import load, save
from model.config import SIZES
from model.devices import memory_errors
from model.errors import CheckpointMismatch, CheckpointUnreadable, IncompatibleModel, OutOfMemory, UnknownModel
from model.info import read_info, standard_name
from model.network import TCM
from model.state_dict import fill, read_state_dict
from model.tensors import fingerprint_of
from tests.conftest import TINY, make_tiny

_OLD = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}


def published_style(net: TCM, *, prefix: str = "", filled: bool = False) -> dict[str, torch.Tensor]:
    """The state dict as the authors' code saves it: the entropy bottleneck under its old names."""
    if filled:
        net.entropy_bottleneck.update(force=True)
        net.gaussian_conditional.update_scale_table(torch.linspace(0.11, 256, 64), force=True)
    return {
        prefix + re.sub(r"\.(matrices|biases|factors)\.(\d)", lambda m: f".{_OLD[m[1]]}{m[2]}", name): value
        for name, value in net.state_dict().items()
    }


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("filled", [False, True])
def test_published_files_load_completely(tmp_path, prefix, filled):
    net = make_tiny(2)
    torch.nn.init.normal_(net.entropy_bottleneck.matrices[1])  # a trained prior differs from a fresh one
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 49, "loss": 0.7, "state_dict": published_style(net, prefix=prefix, filled=filled)}, path)
    again = fill(read_state_dict(path))
    for (name, a), (_, b) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(net(x).likelihoods["z"], again(x).likelihoods["z"])


@pytest.mark.parametrize("lost", ["entropy_bottleneck._matrix0", "entropy_bottleneck._bias3", "g_s.9.0.weight"])
def test_a_lost_parameter_is_never_replaced_by_a_random_one(tmp_path, lost):
    """Released weights read leniently gave a user 25 dB at 1.3 bpp: the prior kept its initial values."""
    state = published_style(make_tiny())
    del state[lost]
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointMismatch) as caught:
        fill(read_state_dict(path))
    assert len(caught.value.missing) == 1


def test_everything_that_does_not_fit_is_listed():
    state = dict(make_tiny().state_dict())
    state["surplus.weight"] = torch.zeros(1)
    state["g_a.1.conv1_1.bias"] = torch.zeros(3)
    del state["lrp_transforms.2.4.bias"]
    with pytest.raises(CheckpointMismatch) as caught:
        fill(state)
    assert caught.value.missing == ["lrp_transforms.2.4.bias"]
    assert caught.value.unexpected == ["surplus.weight"]
    assert caught.value.shapes == ["g_a.1.conv1_1.bias (3,) instead of (16,)"]
    for name in ("lrp_transforms.2.4.bias", "surplus.weight", "g_a.1.conv1_1.bias"):
        assert name in str(caught.value)


def test_numbers_that_are_not_finite_are_refused():
    state = dict(make_tiny().state_dict())
    state["h_a.3.bias"] = torch.full_like(state["h_a.3.bias"], float("nan"))
    with pytest.raises(CheckpointMismatch, match=r"h_a\.3\.bias"):
        fill(state)


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": _Bomb()}}, "evil.pth.tar")
    with pytest.raises(CheckpointUnreadable, match="nothing but tensors is read"):
        read_state_dict(Path("evil.pth.tar"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04broken", b"\x80\x02", b"\x80\x02}q\x00(", b"\xff\xd8\xff\xe0"]
)
@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
def test_damaged_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointUnreadable, match="damaged"):
        read_state_dict(path)
    with pytest.raises(CheckpointUnreadable, match="no such file"):
        read_state_dict(tmp_path / f"absent{suffix}")


def test_a_web_page_in_place_of_a_checkpoint_is_named(tmp_path):
    """What a drive answers when too many have asked for a file."""
    path = tmp_path / "0.05.pth.tar"
    path.write_bytes(b"<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>")
    with pytest.raises(CheckpointUnreadable, match="web page"):
        read_state_dict(path)


def test_a_small_file_cannot_ask_for_all_the_memory_there_is(monkeypatch):
    """Shapes may say anything where a tensor holds no number."""
    shapes = {name: tuple(p.shape) for name, p in TCM(SIZES["s"]).named_parameters()}
    given = {name: torch.empty(0 if len(shape) > 1 else shape[0]) for name, shape in shapes.items()}
    given |= {name: torch.empty(*shape[:2], 0, *shape[3:]) for name, shape in shapes.items() if len(shape) > 2}
    monkeypatch.setattr(state_dict, "TCM", None)
    one = torch.zeros(1)
    for small in (given, {name: one.expand(shape) for name, shape in shapes.items()}):
        with pytest.raises(CheckpointMismatch, match="numbers are not the weights"):
            fill(small)


@pytest.mark.parametrize(
    "error", [RuntimeError("unable to mmap: Cannot allocate memory (12)"), OSError(errno.ENOMEM, "")]
)
def test_a_machine_without_memory_damages_no_file(tiny_file, monkeypatch, error):
    for module, read in (("state_dict", read_state_dict), ("checkpoint", load)):
        monkeypatch.setattr(f"model.{module}.read_tensors", mock.Mock(side_effect=error))
        with pytest.raises(OutOfMemory), memory_errors(torch.device("cpu")):
            read(tiny_file)


def test_a_small_file_cannot_ask_for_wide_slice_attentions(monkeypatch):
    """Their width is believed from a tensor of 16 KB: 26 MB of a file asked for 28 GiB."""
    given = {name: p.detach() for name, p in make_tiny().named_parameters()}
    given["atten_mean.0.0.non_local_block.block_1.ln1.weight"] = torch.zeros(4096)
    given["atten_mean.0.0.non_local_block.block_1.msa.relative_position_params"] = torch.zeros(256, 15, 15)
    monkeypatch.setattr(state_dict, "TCM", None)
    with pytest.raises(CheckpointMismatch, match="numbers are not the weights"):
        fill(given)


@pytest.mark.parametrize("config", [TINY, *SIZES.values()])
def test_no_network_has_fewer_parameters_than_the_least(config):
    assert config.least_parameters < sum(p.numel() for p in TCM(config).parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.bfloat16(),
        lambda t: t[None],
        lambda t: t[:, None],
        lambda t: t[0].clone(),
        lambda t: t.long() + 2**32,
    ],
)
@pytest.mark.parametrize("part", ["cdf", "start", "low"])
def test_tables_of_other_numbers_are_damage(tmp_path, tiny_file, part, change):
    """Some were a TypeError, some were loaded."""
    tensors = load_file(tiny_file)
    tensors[f"tables.z.{part}"] = change(tensors[f"tables.z.{part}"]).contiguous()
    with safetensors.safe_open(tiny_file, "np") as file:
        metadata = file.metadata() | {"fingerprint": fingerprint_of(tensors)}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(CheckpointUnreadable, match="lists of int32"):
        load(tmp_path / "a.safetensors")


def test_a_flipped_bit_in_an_archive_of_torchs_is_damage(tmp_path):
    """Found by trying: torch does not look at its checksums, and published files have no other."""
    torch.save(make_tiny().state_dict(), tmp_path / "c.pt")
    data = bytearray((tmp_path / "c.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "c.pt").write_bytes(data)
    with pytest.raises(CheckpointUnreadable, match=r"checksum of .* does not fit"):
        read_state_dict(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(), lambda t: t.to(torch.complex64), lambda t: t.int(), lambda t: t.to("meta"),
        lambda t: t.to(torch.float8_e4m3fn),
    ],
)  # fmt: skip
def test_tensors_of_other_numbers_are_named(tmp_path, change):
    """Found by trying: most were a traceback; the imaginary part was lost."""
    weights = make_tiny().state_dict()
    weights["g_a.0.conv1.bias"] = change(weights["g_a.0.conv1.bias"])
    torch.save(weights, tmp_path / "c.pt")
    with pytest.raises(CheckpointUnreadable, match="1 of its tensors are not of plain"):
        read_state_dict(tmp_path / "c.pt")


def test_a_parameter_that_is_there_twice_is_named(tmp_path):
    weights = make_tiny().state_dict()
    weights["module.g_a.0.conv1.bias"] = weights["g_a.0.conv1.bias"] + 1
    torch.save(weights, tmp_path / "c.pt")
    with pytest.raises(CheckpointMismatch, match="is there twice"):
        read_state_dict(tmp_path / "c.pt")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"state_dict": {"a": 1}}, {}])
def test_files_without_a_state_dict_are_named(tmp_path, content):
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointUnreadable):
        read_state_dict(path)


# ---- our own files


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_model_says_what_it_is(tmp_path, half):
    net = make_tiny()
    path = tmp_path / "a.safetensors"
    saved = save(net, path, name="tcm-tiny-mse-0.01", lmbda=0.01, metric="mse", half=half)
    weights = load(path)
    assert weights.info == saved == read_info(path)
    assert weights.info.config == TINY
    assert weights.info.parameters == sum(p.numel() for p in net.parameters())
    exact = dict(net.named_parameters())
    for name, value in weights.net.named_parameters():
        torch.testing.assert_close(value, exact[name], rtol=1e-3 if half else 0, atol=1e-4 if half else 0)
    again = save(weights.net, tmp_path / "b.safetensors", name="other", lmbda=1, metric="mse", half=half)
    assert again.fingerprint == saved.fingerprint  # the weights, whatever they are called


def test_altered_weights_are_refused(tmp_path, tiny_file):
    tensors = load_file(tiny_file)
    tensors["g_a.1.conv1_1.bias"] = tensors["g_a.1.conv1_1.bias"] + 1e-3
    path = tmp_path / "altered.safetensors"
    info = read_info(tiny_file)
    metadata = {"name": info.name, "lmbda": "0.01", "metric": "mse", "config": info.config.to_json(),
                "parameters": str(info.parameters), "fingerprint": info.fingerprint}  # fmt: skip
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointUnreadable, match="fingerprint"):
        load(path)
    save_file({name: value.bfloat16() for name, value in tensors.items()}, path, metadata)
    with pytest.raises(CheckpointUnreadable, match="fingerprint"):
        load(path)
    save_file(tensors, path)
    with pytest.raises(CheckpointUnreadable, match="tcm import"):
        load(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "A"}, {"name": "../a"}, {"name": "grün"}, {"name": "a\x1b[2J"}, {"name": "a\n"}, {"name": "a" * 64},
        {"lmbda": 0.0}, {"lmbda": math.nan}, {"lmbda": math.inf}, {"metric": "psnr"}, {"rounding": 0.0},
        {"rounding": -1.0}, {"rounding": math.nan}, {"rounding": math.inf},
    ],
    ids=repr,
)  # fmt: skip
def test_what_no_model_can_be_is_neither_written_nor_read(tmp_path, tiny_file, wrong):
    """Found by reading: what `save` refused was read; a metric "psnr" failed where its quality was asked for."""
    with pytest.raises(ValueError):
        save(make_tiny(), tmp_path / "a.safetensors", **{"name": "a", "lmbda": 1.0, "metric": "mse", **wrong})
    assert list(tmp_path.iterdir()) == []
    assert_skipped(tmp_path, tiny_file, {key: str(value) for key, value in wrong.items()})


@pytest.mark.parametrize(
    "wrong", [{"fingerprint": "zz"}, {"fingerprint": "AB" * 6}, {"parameters": "0"}, {"config": '{"N": 0}'}], ids=repr
)
def test_files_that_say_what_cannot_be_are_skipped(tmp_path, tiny_file, wrong):
    assert_skipped(tmp_path, tiny_file, wrong)


def assert_skipped(folder, sound, wrong):
    """A file like `sound` but for some of its metadata is among the zoo's problems, and not its models."""
    with safetensors.safe_open(sound, "np") as file:
        metadata = file.metadata()
    save_file(load_file(sound), folder / "other.safetensors", metadata | wrong)
    zoo = Zoo(folder)
    assert [entry.quality for entry in zoo.entries()] == [entry.quality for entry in Zoo(folder / "none").entries()]
    assert len(zoo.problems) == 1
    assert zoo.problems[0].startswith(f"{folder / 'other.safetensors'}: damaged or not a weights file")
    assert zoo.problems[0].isprintable()


def test_standard_names():
    assert standard_name("tcm-s-mse-0.0025") == (0.0025, "mse")
    assert standard_name("tcm-xs-ms-ssim-16") == (16.0, "ms-ssim")
    assert standard_name("mine") is None


# ---- the zoo


def test_the_embedded_models_are_there(tmp_path):
    zoo = Zoo(tmp_path)
    names = [entry.name for entry in zoo.entries()]
    assert {"tcm-xs-mse-0.0035", "tcm-xs-mse-0.013", "tcm-xs-mse-0.05"} <= set(names)
    assert zoo.default().name == "tcm-xs-mse-0.013"
    assert [e.quality for e in zoo.entries()] == sorted(e.quality or 0 for e in zoo.entries())
    assert zoo.problems == []


def test_quality_is_the_nearest_lambda(tmp_path):
    zoo = Zoo(tmp_path)
    chosen = [zoo.for_quality(q, like=zoo.default()).info.lmbda for q in range(1, 7)]
    assert chosen == sorted(chosen)
    assert (chosen[1], chosen[3], chosen[5]) == (0.0035, 0.013, 0.05)
    with pytest.raises(ValueError):
        zoo.for_quality(7, like=zoo.default())


def test_of_two_names_for_the_same_weights_the_one_that_is_meant(tmp_path):
    """Found by trying: a file of the embedded model was told to be one of its copy, and quality=4 wrote with that."""
    embedded = Zoo(tmp_path).default()
    net, info = load(embedded.path).net, embedded.info
    copy = tmp_path / "a.safetensors"
    save(net, copy, name="a-copy", lmbda=info.lmbda, metric=info.metric, half=True, rounding=info.rounding)
    zoo = Zoo(tmp_path)
    mine = zoo.get("a-copy")
    assert mine.info.fingerprint == embedded.info.fingerprint
    for entry in (embedded, mine):
        assert zoo.by_fingerprint(embedded.info.fingerprint, entry.name).name == entry.name
        assert zoo.for_quality(4, like=zoo.get(entry.name)).name == entry.name
    assert zoo.by_fingerprint(embedded.info.fingerprint, "elsewhere").info.fingerprint == embedded.info.fingerprint


def test_a_model_that_is_skipped_is_no_model_that_was_never_there(tmp_path, tiny_file):
    (tmp_path / "shop.safetensors").write_bytes(tiny_file.read_bytes()[:1000])
    with pytest.raises(UnknownModel, match=r"no model 'shop' here; .*; skipped .*shop.safetensors: damaged"):
        Zoo(tmp_path).named("shop")
    with pytest.raises(UnknownModel) as told:  # whoever asks a service
        Zoo(tmp_path).get("shop")
    assert "skipped" not in str(told.value)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert [problem.endswith("symbolic links") for problem in Zoo(loop).problems] == [True]


def test_weights_replaced_since_they_were_found_are_not_taken_for_them(tmp_path):
    """A replica wrote files that it answered 409 to: it had loaded others than it said."""
    path = tmp_path / "mine.safetensors"
    save(make_tiny(1), path, name="mine", lmbda=0.013, metric="mse")
    entry = Zoo(tmp_path).get("mine")
    Codec.load(entry, "cpu")
    save(make_tiny(2), path, name="mine", lmbda=0.013, metric="mse")
    with pytest.raises(CheckpointUnreadable, match=f"not {entry.info.fingerprint}: it was replaced"):
        Codec.load(entry, "cpu")


def test_an_imported_model_goes_before_an_embedded_one(tmp_path):
    embedded = Zoo(tmp_path).default()
    save(make_tiny(), tmp_path / "mine.safetensors", name=embedded.name, lmbda=0.013, metric="mse")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    zoo = Zoo(tmp_path)
    assert zoo.get(embedded.name).info.config == TINY
    assert zoo.by_fingerprint(embedded.info.fingerprint).path == embedded.path  # old bitstreams stay readable
    assert len(zoo.problems) == 1
    with pytest.raises(UnknownModel, match=r"tcm-xs-mse-0\.05"):
        zoo.get("nothing")
    with pytest.raises(IncompatibleModel, match="ffffffffffff"):
        zoo.by_fingerprint("ff" * 6, embedded.name)
