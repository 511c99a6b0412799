"""Earlier weights of a model, kept as what differs from later ones: the files that they wrote stay readable.

Where g_s alone was trained further, the tensors that changed are a twentieth of the model. Such a file has the earlier
model's metadata, and in `differs_from` the fingerprint of the whole weights that lie beside it in the same folder.

    python -m model.differences EARLIER LATER     # writes NAME.FINGERPRINT.safetensors beside LATER
"""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import CheckpointMismatch, CheckpointUnreadable
from model.info import read_info


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, those included that it leaves to the weights beside it.

    Raises:
        CheckpointUnreadable: those weights are not there.
        OSError, ValueError, SafetensorError: it cannot be read.
    """
    with safetensors.safe_open(path, "np") as file:
        whole = (file.metadata() or {}).get("differs_from")
    tensors = load_file(path)
    return tensors if whole is None else load_file(_beside(path, whole)) | tensors


def save_difference(earlier: Path, later: Path) -> Path:
    """Write what `earlier` has otherwise than `later`, beside `later`.

    Returns:
        The file: with `later` in its folder it is the model that `earlier` is.

    Raises:
        CheckpointUnreadable: one of them is damaged or no model.
        CheckpointMismatch: they have nothing in common, or other tensors than each other.
    """
    info, whole = read_info(earlier), read_info(later)
    if whole.differs_from is not None:
        raise CheckpointMismatch(f"{later}: is not whole itself, but differs from {whole.differs_from}")
    old, new = read_tensors(earlier), read_tensors(later)
    kinds = [{name: (t.shape, t.dtype) for name, t in tensors.items()} for tensors in (old, new)]
    changed = {name: tensor for name, tensor in old.items() if name in new and not tensor.equal(new[name])}
    if kinds[0] != kinds[1] or len(changed) == len(old):
        raise CheckpointMismatch(f"{earlier} and {later} are different models: keep them both whole")
    path = later.with_name(f"{info.name}.{info.fingerprint}.safetensors")
    with safetensors.safe_open(earlier, "np") as file:
        save_file(changed, path, file.metadata() | {"differs_from": whole.fingerprint})
    return path


def _beside(path: Path, fingerprint: str) -> Path:
    for other in sorted(path.parent.glob("*.safetensors")):
        try:
            info = read_info(other)
        except CheckpointUnreadable:
            continue
        if info.fingerprint == fingerprint and info.differs_from is None:
            return other
    raise CheckpointUnreadable(f"{path}: holds what differs from weights {fingerprint}, and they are not beside it")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.stdout.write(f"{save_difference(Path(sys.argv[1]), Path(sys.argv[2]))}\n")
