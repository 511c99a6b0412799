"""Earlier weights of a model, kept as what differs from later ones: the files that they wrote stay readable.

Where g_s alone was trained further, the tensors that changed are a twentieth of the model. Such a file has the earlier
model's metadata, and in `differs_from` the fingerprint of the whole weights that lie beside it in the same folder.
`tcm difference` writes it.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.errors import CheckpointMismatch, CheckpointUnreadable
from model.info import read_info
from model.tensors import check_fingerprint, fingerprint_of, write_tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, those included that it leaves to the weights beside it.

    Raises:
        CheckpointUnreadable: those weights are not there.
        OSError, ValueError, SafetensorError: it cannot be read.
    """
    with safetensors.safe_open(path, "np") as file:
        whole = (file.metadata() or {}).get("differs_from")
    tensors = load_file(path)
    return tensors if whole is None else _beside(path, whole) | tensors


def save_difference(earlier: Path, later: Path) -> Path:
    """Write what `earlier` has otherwise than `later`, beside `later`.

    Returns:
        The file: with `later` in its folder it is the model that `earlier` is.

    Raises:
        CheckpointUnreadable: one of them is damaged or no model.
        CheckpointMismatch: they are the same weights, or have other tensors than each other, or none in common.
        OSError: it cannot be written.
    """
    info, whole = read_info(earlier), read_info(later)
    if whole.differs_from is not None:
        raise CheckpointMismatch(f"{later}: is not whole itself, but differs from {whole.differs_from}")
    if info.fingerprint == whole.fingerprint:
        raise CheckpointMismatch(f"{earlier} and {later} are the same weights, {info.fingerprint}")
    old, new = read_tensors(earlier), read_tensors(later)
    kinds = [{name: (t.shape, t.dtype) for name, t in tensors.items()} for tensors in (old, new)]
    changed = {name: tensor for name, tensor in old.items() if name in new and not _same(tensor, new[name])}
    if kinds[0] != kinds[1] or len(changed) == len(old):
        raise CheckpointMismatch(f"{earlier} and {later} are different models: keep them both whole")
    for given, tensors, said in ((earlier, old, info), (later, new, whole)):
        check_fingerprint(given, tensors, said)
    path = later.with_name(f"{info.name}.{info.fingerprint}.safetensors")
    if path.resolve() == earlier.resolve():
        raise CheckpointMismatch(f"{earlier}: lies where the difference is to be written: it is one, or move it first")
    with safetensors.safe_open(earlier, "np") as file:
        metadata = file.metadata() | {"differs_from": whole.fingerprint}
    write_tensors(changed, path, metadata)
    return path


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit by bit, as fingerprints see them: 0 and -0 are two."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _beside(path: Path, fingerprint: str) -> dict[str, Tensor]:
    for other in sorted(path.parent.glob("*.safetensors")):
        try:
            info = read_info(other)
            if info.fingerprint == fingerprint and info.differs_from is None:
                tensors = load_file(other)
                if fingerprint_of(tensors) == fingerprint:  # a damaged copy may lie beside a sound one
                    return tensors
        except (CheckpointUnreadable, OSError, safetensors.SafetensorError):
            continue
    raise CheckpointUnreadable(
        f"{path}: holds what differs from weights {fingerprint}, and they are not beside it, or damaged"
    )
