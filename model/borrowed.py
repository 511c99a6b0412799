"""The two parts of CompressAI that the network is made of, without the rest of it.

`import compressai` loads its data sets of point clouds and its zoo as well, and with them pandas, torch_geometric and
torch's compiler; its entropy models load all of SciPy's statistics for a function that nobody here calls. That took
nearly half of the time of a `tcm encode`, and a fifth of the memory of a server at rest (bench/start.py). Whoever
asks either package for more gets it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_lock = threading.RLock()
_loading: set[ModuleType] = set()


class _Parts(ModuleType):
    """A package whose own code runs when a name is asked for that is none of its parts."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):  # asked by whoever looks at all modules
            raise self._lacks(name)
        if importlib.util.find_spec(f"{self.__name__}.{name}"):
            return importlib.import_module(f"{self.__name__}.{name}")
        with _lock:
            if self in _loading:
                raise self._lacks(name)
            if type(self) is _Parts:
                self._load()
        return getattr(self, name)

    def _load(self) -> None:
        loader: Any = self.__loader__
        _loading.add(self)
        try:
            loader.exec_module(self)
        finally:
            _loading.remove(self)
        object.__setattr__(self, "__class__", ModuleType)

    def _lacks(self, name: str) -> AttributeError:
        return AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _take_apart(name: str, **known: Any) -> None:
    """Let a package's parts be imported alone, and these names asked for; what is loaded already stays as it is."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        package = sys.modules[name] = importlib.util.module_from_spec(spec)
        package.__dict__.update(known)
        package.__class__ = _Parts


_take_apart("scipy.stats")
# an entropy model asks for these when it is made; it is none of theirs that codes here
_take_apart("compressai", available_entropy_coders=lambda: ["ans"], get_entropy_coder=lambda: "ans")

from compressai import layers  # noqa: E402 - as it has been prepared
from compressai.entropy_models import EntropyBottleneck, GaussianConditional  # noqa: E402

__all__ = ["EntropyBottleneck", "GaussianConditional", "layers"]
