"""Weights in and out: the authors' .pth.tar files, and the safetensors files that this project serves.

Nothing is ever unpickled but tensors, and no name or shape is taken on trust: a checkpoint either fits a TCM
completely or is refused with the list of what does not fit. (Published files carry the entropy bottleneck under
CompressAI's old parameter names; loaded leniently they give a network with an untrained prior: 25 dB at 1.3 bpp.)
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import TCMConfig
from model.errors import CheckpointMismatch, CheckpointUnreadable
from model.network import TCM
from model.tables import Tables, bottleneck_tables

FINGERPRINT_BYTES = 6
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
METRICS = ("mse", "ms-ssim")

_OLD_BOTTLENECK = re.compile(r"^entropy_bottleneck\._(matrix|bias|factor)(\d+)$")
_NEW_BOTTLENECK = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
_TABLES = "tables.z."
_BEGINNINGS = (b"PK", b"\x80")
"""Of files that torch writes: a ZIP archive, or a bare pickle."""
_STANDARD_NAME = re.compile(r"tcm-(?P<size>[a-z]+)-(?P<metric>mse|ms-ssim)-(?P<lmbda>\d+(\.\d+)?)")


@dataclass(frozen=True)
class ModelInfo:
    """What a weights file says of itself.

    Attributes:
        name: as in `tcm models` and in every bitstream made with it.
        lmbda: λ, the weight of the distortion in the training loss.
        metric: what was optimised, "mse" or "ms-ssim".
        config: every width.
        parameters: number of learned parameters.
        rounding: the weight that the model's symbols are chosen with (`model.rounding`), or None: to the nearest.
        fingerprint: first bytes of the SHA-256 over every tensor, in hex: which weights, whatever their name.
    """

    name: str
    lmbda: float
    metric: str
    config: TCMConfig
    parameters: int
    fingerprint: str
    rounding: float | None = None


@dataclass(frozen=True)
class Weights:
    """A network ready to run, the tables of its z, and what it is."""

    info: ModelInfo
    net: TCM
    z_tables: Tables


def standard_name(name: str) -> tuple[float, str] | None:
    """λ and metric of a name like tcm-s-mse-0.013, or None."""
    match = _STANDARD_NAME.fullmatch(name)
    return (float(match["lmbda"]), match["metric"]) if match else None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The parameters in a .pth.tar, .pt or .safetensors file, under the names of today.

    A `module.` prefix is dropped, the entropy bottleneck's old names are renewed, and what is recomputed anyway
    (CDF tables and other buffers) is left out.

    Raises:
        CheckpointUnreadable: the file is damaged, holds no state dict, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointUnreadable(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        if wrong := _no_checkpoint(path) or ("cut short" if "truncated" in str(error) else None):
            raise CheckpointUnreadable(f"{path}: damaged or not a checkpoint ({wrong})") from None
        raise CheckpointUnreadable(
            f"{path}: holds more than tensors, and reading it could run code; nothing but tensors is read. "
            "Save its `state_dict` alone and import that."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - unpickling damaged bytes raises anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointUnreadable(f"{path}: damaged or not a checkpoint ({reason})") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointUnreadable(f"{path}: holds no state dict")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise CheckpointUnreadable(f"{path}: its state dict holds other things than tensors")
    return normalise(content)


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
        if not _is_buffer(name):
            normal[name] = value
    return normal


def _is_buffer(name: str) -> bool:
    recomputed = ("_offset", "_quantized_cdf", "_cdf_length", "target")
    return (
        name.startswith(("gaussian_conditional.", _TABLES))
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
    net = TCM(config=config)
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


def check_name(name: str) -> None:
    """Raise ValueError where no model can be called so."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"{name!r} is no model name: lower-case letters, digits, '.', '_' and '-', at most 63")


def save(
    net: TCM, path: Path, *, name: str, lmbda: float, metric: str, half: bool = False, rounding: float | None = None
) -> ModelInfo:
    """Write a network as a safetensors file that `load` reads, with the tables of its z. The file appears whole.

    Args:
        half: store weights of two and more dimensions in float16 (the file is half as large; the model is then the
            rounded one, with a fingerprint of its own).
        rounding: the weight that its symbols are to be chosen with; it was trained with it.

    Raises:
        ValueError: a name, λ or metric that no model can have.
    """
    check_name(name)
    if not 0 < lmbda < 1e6 or metric not in METRICS:
        raise ValueError(f"λ={lmbda} with metric {metric!r}: λ is positive, metrics are {', '.join(METRICS)}")
    stored = {
        key: value.detach().cpu().to(torch.float16 if half and value.ndim >= 2 else torch.float32).contiguous()
        for key, value in net.named_parameters()
        if not key.startswith("entropy_bottleneck.")
    }
    for key, value in net.entropy_bottleneck.named_parameters():  # small, and what the tables of z come from
        stored[f"entropy_bottleneck.{key}"] = value.detach().cpu().float().contiguous()
    tables = bottleneck_tables(net.entropy_bottleneck.cpu())
    for part in ("cdf", "start", "low"):
        stored[_TABLES + part] = torch.from_numpy(getattr(tables, part).copy())
    info = ModelInfo(
        name=name,
        lmbda=float(lmbda),
        metric=metric,
        config=net.config,
        parameters=sum(p.numel() for p in net.parameters()),
        fingerprint=_fingerprint(stored),
        rounding=rounding,
    )
    metadata = {
        "architecture": "tcm",
        "name": name,
        "lmbda": f"{lmbda:g}",
        "metric": metric,
        "config": net.config.to_json(),
        "parameters": str(info.parameters),
        "fingerprint": info.fingerprint,
    }
    if rounding is not None:
        metadata["rounding"] = f"{rounding:g}"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name_of_part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    unfinished = Path(name_of_part)
    try:
        save_file(stored, unfinished, metadata)
        unfinished.chmod(0o644)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink()
        raise
    return info


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.digest()[:FINGERPRINT_BYTES].hex()


def read_info(path: Path) -> ModelInfo:
    """What a weights file says of itself, without reading the weights.

    Raises:
        CheckpointUnreadable: it is damaged, or was not written by `save`.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return ModelInfo(
            name=metadata["name"],
            lmbda=float(metadata["lmbda"]),
            metric=metadata["metric"],
            config=TCMConfig.from_json(metadata["config"]),
            parameters=int(metadata["parameters"]),
            fingerprint=metadata["fingerprint"],
            rounding=_rounding(metadata.get("rounding")),
        )
    except KeyError as error:
        raise CheckpointUnreadable(
            f"{path}: has no {error.args[0]!r} in its metadata; run `tcm import {path} --name NAME` first"
        ) from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointUnreadable(f"{path}: damaged or not a weights file ({error})") from None


def _rounding(text: str | None) -> float | None:
    weight = None if text is None else float(text)
    if weight is not None and not 0 < weight < math.inf:
        raise ValueError(f"a rounding weight is a positive number, not {weight}")
    return weight


def load(path: Path) -> Weights:
    """Read a file that `save` wrote.

    Raises:
        CheckpointUnreadable: it is damaged: it does not parse or its fingerprint is not that of its tensors.
        CheckpointMismatch: its weights are not those of a TCM.
    """
    info = read_info(path)
    try:
        tensors = load_file(path)
        if _fingerprint(tensors) != info.fingerprint:
            raise CheckpointUnreadable(f"{path}: damaged: its tensors are not those of its fingerprint")
        tables = Tables(*(tensors[_TABLES + part].numpy().astype(np.int32) for part in ("cdf", "start", "low")))
        tables.check()
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointUnreadable(f"{path}: damaged or not a weights file ({error})") from None
    net = fill(tensors)
    if net.config != info.config or len(tables) != net.config.hyper_channels:
        raise CheckpointMismatch(f"{path}: its metadata speaks of another network than its tensors")
    net.rounding = info.rounding
    for attention in (*net.atten_mean, *net.atten_scale):
        attention[0].find_shut()
    return Weights(info, net, tables)
