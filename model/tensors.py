"""Tensors in safetensors files: which they are, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.errors import CheckpointUnreadable, reason
from model.info import FINGERPRINT_BYTES, ModelInfo


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """The first bytes of the SHA-256 over every tensor, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.digest()[:FINGERPRINT_BYTES].hex()


def check_fingerprint(path: Path, tensors: Mapping[str, Tensor], said: ModelInfo) -> None:
    """That they are the weights that their file says.

    Raises:
        CheckpointUnreadable: they are not.
    """
    if fingerprint_of(tensors) != said.fingerprint:
        raise CheckpointUnreadable(f"{path}: damaged: its tensors are not those of its fingerprint")


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that appears whole, for everybody to read.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name_of_part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    unfinished = Path(name_of_part)
    try:
        save_file(tensors, unfinished, metadata)
        unfinished.chmod(0o644)
        unfinished.replace(path)
    except safetensors.SafetensorError as error:
        unfinished.unlink()
        raise OSError(f"{path}: could not be written ({reason(error)})") from None
    except BaseException:
        unfinished.unlink()
        raise
