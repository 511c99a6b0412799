"""Weights in and out: the safetensors files that this project serves, each with the tables of its z."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray

from model.devices import tells_of_memory
from model.differences import read_tensors
from model.errors import CheckpointMismatch, CheckpointUnreadable
from model.info import ModelInfo, read_info
from model.network import TCM
from model.state_dict import TABLES, fill
from model.tables import Tables, bottleneck_tables
from model.tensors import check_fingerprint, fingerprint_of, write_tensors


@dataclass(frozen=True)
class Weights:
    """A network ready to run, the tables of its z, and what it is."""

    info: ModelInfo
    net: TCM
    z_tables: Tables


def save(
    net: TCM, path: Path, *, name: str, lmbda: float, metric: str, half: bool = False, rounding: float | None = None
) -> ModelInfo:
    """Write a network as a safetensors file that `load` reads, with the tables of its z. The file appears whole.

    Args:
        half: store weights of two and more dimensions in float16 (the file is half as large; the model is then the
            rounded one, with a fingerprint of its own).
        rounding: the weight that its symbols are to be chosen with; it was trained with it.

    Raises:
        ValueError: a name, λ, metric or rounding weight that no model can have, or weights that are not finite
            as stored.
    """
    stored = {
        key: value.detach().cpu().to(torch.float16 if half and value.ndim >= 2 else torch.float32).contiguous()
        for key, value in net.named_parameters()
        if not key.startswith("entropy_bottleneck.")
    }
    for key, value in net.entropy_bottleneck.named_parameters():  # small, and what the tables of z come from
        stored[f"entropy_bottleneck.{key}"] = value.detach().cpu().float().contiguous()
    for key, value in stored.items():
        if not value.isfinite().all():
            finite = bool(net.get_parameter(key).isfinite().all())
            raise ValueError(f"{key} does not fit float16: leave out --half" if finite else f"{key} is not finite")
    tables = bottleneck_tables(net.entropy_bottleneck.cpu())
    for part in ("cdf", "start", "low"):
        stored[TABLES + part] = torch.from_numpy(getattr(tables, part).copy())
    info = ModelInfo(
        name=name,
        lmbda=float(lmbda),
        metric=metric,
        config=net.config,
        parameters=sum(p.numel() for p in net.parameters()),
        fingerprint=fingerprint_of(stored),
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
    write_tensors(stored, path, metadata)
    return info


def load(path: Path) -> Weights:
    """Read a file that `save` wrote.

    Raises:
        CheckpointUnreadable: it is damaged: it does not parse or its fingerprint is not that of its tensors.
        CheckpointMismatch: its weights are not those of a TCM.
    """
    info = read_info(path)
    try:
        tensors = read_tensors(path)
        check_fingerprint(path, tensors, info)
        tables = Tables(*(_numbers(tensors[TABLES + part]) for part in ("cdf", "start", "low")))
        tables.check()
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        if tells_of_memory(error):
            raise
        raise CheckpointUnreadable(f"{path}: damaged or not a weights file ({error})") from None
    net = fill(tensors)
    if net.config != info.config or len(tables) != net.config.hyper_channels:
        raise CheckpointMismatch(f"{path}: its metadata speaks of another network than its tensors")
    net.rounding = info.rounding
    for attention in (*net.atten_mean, *net.atten_scale):
        attention[0].find_shut()
    return Weights(info, net, tables)


def _numbers(tensor: torch.Tensor) -> NDArray[np.int32]:
    """A part of the tables, as `save` writes it."""
    if tensor.dtype != torch.int32 or tensor.ndim != 1:
        raise ValueError(f"tables are lists of int32, not {tuple(tensor.shape)} of {tensor.dtype}")
    return tensor.numpy()
