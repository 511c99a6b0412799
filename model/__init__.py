"""TCM learned image compression: an image in, a bitstream out, the image back.

    from model import Codec

    codec = Codec.load("tcm-xs-mse-0.013")
    data = codec.encode(image)     # PIL image -> bytes of a .tcm file
    image = codec.decode(data)

Names are imported when first used: `tcm --help` and readers of headers need no torch.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.codec import Codec
    from model.config import TCMConfig
    from model.errors import ModelError
    from model.network import TCM, TCMOutput
    from model.zoo import Zoo

# compressai scripts one function at import in a way that torch has deprecated; nobody here can do anything about it
warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

__all__ = ["TCM", "Codec", "ModelError", "TCMConfig", "TCMOutput", "Zoo"]

_HOMES = {
    "Codec": "model.codec",
    "ModelError": "model.errors",
    "TCM": "model.network",
    "TCMConfig": "model.config",
    "TCMOutput": "model.network",
    "Zoo": "model.zoo",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'model' has no attribute {name!r}")
