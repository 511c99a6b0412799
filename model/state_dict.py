"""Foreign weights: the state dicts of .pth.tar, .pt and .safetensors files, and the network that they belong to.

Nothing is ever unpickled but tensors, and no name or shape is taken on trust: a checkpoint either fits a TCM
completely or is refused with the list of what does not fit. (Published files carry the entropy bottleneck under
CompressAI's old parameter names; loaded leniently they give a network with an untrained prior: 25 dB at 1.3 bpp.)
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.config import TCMConfig
from model.devices import tells_of_memory
from model.differences import read_tensors
from model.errors import CheckpointMismatch, CheckpointUnreadable, reason
from model.info import info_of
from model.network import TCM
from model.tensors import check_fingerprint

TABLES = "tables.z."
"""What the names of the tables of z begin with, in the files of this project."""

_OLD_BOTTLENECK = re.compile(r"^entropy_bottleneck\._(matrix|bias|factor)(\d+)$")
_NEW_BOTTLENECK = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
_BEGINNINGS = (b"PK", b"\x80")
"""Of files that torch writes: a ZIP archive, or a bare pickle."""


_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The parameters in a .pth.tar, .pt or .safetensors file, under the names of today.

    A `module.` prefix is dropped, the entropy bottleneck's old names are renewed, and what is recomputed anyway
    (CDF tables and other buffers) is left out.

    Raises:
        CheckpointUnreadable: the file is damaged, holds no state dict, or holds more than tensors of plain numbers.
        CheckpointMismatch: a parameter is there twice.
    """
    try:
        if path.suffix == ".safetensors":
            content: object = read_tensors(path)
        else:
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointUnreadable:
        raise
    except FileNotFoundError:
        raise CheckpointUnreadable(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        if wrong := _no_checkpoint(path) or ("cut short" if "truncated" in str(error) else None):
            raise CheckpointUnreadable(f"{path}: damaged or not a checkpoint ({wrong})") from None
        raise CheckpointUnreadable(
            f"{path}: holds more than tensors, and reading it could run code; nothing but tensors is read. "
            "Save its `state_dict` alone and import that."
        ) from None
    except Exception as error:  # unpickling damaged bytes raises anything
        if tells_of_memory(error):
            raise
        raise CheckpointUnreadable(f"{path}: damaged or not a checkpoint ({reason(error)})") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointUnreadable(f"{path}: holds no state dict")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise CheckpointUnreadable(f"{path}: its state dict holds other things than tensors")
    weights = normalise(content)
    if odd := [name for name, value in weights.items() if not _is_plain(value)]:
        listed = ", ".join(odd[:3])
        raise CheckpointUnreadable(
            f"{path}: {len(odd)} of its tensors are not of plain floating-point numbers: {listed}"
        )
    _check_own(path, content)
    return weights


def _check_archive(path: Path) -> None:
    """That what torch has written is as it was written: torch does not look at its checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            written = any(entry.CRC for entry in archive.infolist())  # torch can be told not to
            if written and (bad := archive.testzip()):
                raise zipfile.BadZipFile(f"the checksum of {bad} does not fit")


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and value.device.type == "cpu" and value.dtype in _PLAIN


def _check_own(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A damaged file of this project's must not become a model of another fingerprint."""
    if own := info_of(path):  # else it is somebody else's
        check_fingerprint(path, tensors, own)


def _no_checkpoint(path: Path) -> str | None:
    """What a file is instead, by its beginning; None where it begins as torch begins."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_BEGINNINGS):
        return None
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page: where it was downloaded, something else was answered; look at it in a browser"
    return "of another kind"


def normalise(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of today, without `module.` and without recomputed buffers."""
    normal: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = key.removeprefix("module.")
        if match := _OLD_BOTTLENECK.match(name):
            name = f"entropy_bottleneck.{_NEW_BOTTLENECK[match[1]]}.{match[2]}"
        if _is_buffer(name):
            continue
        if name in normal:
            raise CheckpointMismatch(f"{name} is there twice, with and without `module.` or under an old name")
        normal[name] = value
    return normal


def _is_buffer(name: str) -> bool:
    recomputed = ("_offset", "_quantized_cdf", "_cdf_length", "target")
    return (
        name.startswith(("gaussian_conditional.", TABLES))
        or name.endswith((".pedestal", ".bound"))
        or name.removeprefix("entropy_bottleneck.") in recomputed
    )


def fill(state_dict: Mapping[str, Tensor]) -> TCM:
    """The network that these weights belong to, in float32, with every name and shape checked.

    Raises:
        CheckpointMismatch: with the list of what is missing, unexpected, of another shape or not finite.
    """
    given = normalise(state_dict)
    config = TCMConfig.from_shapes({name: tuple(value.shape) for name, value in given.items()})
    # as they are stored: a tensor may show one number as a billion
    numbers = sum(
        min(value.numel(), value.untyped_storage().nbytes() // value.element_size()) for value in given.values()
    )
    if numbers < config.least_parameters:  # before it is made: a small file must not ask for all the memory there is
        raise CheckpointMismatch(f"{numbers} numbers are not the weights of a TCM of N={config.N} and M={config.M}")
    net = TCM(config)
    expected = {name: tuple(p.shape) for name, p in net.named_parameters()}
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointMismatch("not the weights of a TCM", missing=missing, unexpected=unexpected, shapes=shapes)
    broken = [name for name, value in given.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointMismatch(f"weights that are not finite numbers: {', '.join(broken[:12])}")
    net.load_state_dict({name: value.float() for name, value in given.items()}, strict=False)
    return net.eval()
