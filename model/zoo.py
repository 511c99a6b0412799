"""The models that this installation knows: those embedded in the package, and those of the model directory."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from model.errors import CheckpointUnreadable, IncompatibleModel, UnknownModel
from model.info import ModelInfo, read_info
from model.pull import PUBLISHED

EMBEDDED_DIR = Path(__file__).parent / "weights"
DEFAULT_MODEL = "tcm-xs-mse-0.013"
LAMBDAS = {
    "mse": (0.0025, 0.0035, 0.0067, 0.013, 0.025, 0.05),
    "ms-ssim": (3.0, 5.0, 8.0, 16.0, 36.0, 64.0),
}
"""λ of quality 1 to 6, by metric (paper, section 4.1; the field's values for MS-SSIM)."""


def default_model_dir() -> Path:
    """`TCM_MODEL_DIR`, or the user's data directory."""
    configured = os.environ.get("TCM_MODEL_DIR")
    return Path(configured).expanduser() if configured else platformdirs.user_data_path("tcm") / "models"


@dataclass(frozen=True)
class ZooEntry:
    """One installed model.

    Attributes:
        name: what users call it.
        path: its weights file.
        info: what that file says of itself.
        embedded: it came with the package.
        size: bytes of the file.
    """

    name: str
    path: Path
    info: ModelInfo
    embedded: bool
    size: int

    @property
    def quality(self) -> int | None:
        """1 to 6 where λ is one of the field's six, else None."""
        for i, lmbda in enumerate(LAMBDAS[self.info.metric], start=1):
            if math.isclose(lmbda, self.info.lmbda, rel_tol=1e-3):
                return i
        return None


class Zoo:
    """The installed models. A model in the model directory goes before an embedded one of the same name.

    Args:
        model_dir: where imported models lie; None for the default.
    """

    def __init__(self, model_dir: Path | None = None) -> None:
        self.model_dir = model_dir or default_model_dir()
        self.problems: list[str] = []  # files that look like weights and are not: skipped, but worth a warning
        self.shadowed: list[str] = []  # sound ones whose name means another
        self._all: list[ZooEntry] = []
        for folder, embedded in ((self.model_dir, False), (EMBEDDED_DIR, True)):
            for path in self._files(folder):
                try:
                    info = read_info(path)
                except CheckpointUnreadable as error:
                    self.problems.append(str(error))
                    continue
                self._all.append(ZooEntry(info.name, path, info, embedded, path.stat().st_size))
        self._leave_out_unreadable()
        self._by_name: dict[str, ZooEntry] = {}
        for entry in self._all:
            if entry.info.differs_from is not None:  # earlier weights, for their files only
                continue
            meant = self._by_name.setdefault(entry.name, entry)
            if meant.embedded == entry.embedded and meant.info.fingerprint != entry.info.fingerprint:
                self.shadowed.append(
                    f"{entry.path}: {entry.name!r} means {meant.path.name}; this one is for its files only"
                )

    def _files(self, folder: Path) -> list[Path]:
        try:
            return sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:  # whose it is, say
            self.problems.append(f"{folder}: {error.strerror}")
            return []

    def _leave_out_unreadable(self) -> None:
        """Earlier weights are of no use without the later ones beside them; other copies of them may be."""
        whole = {(e.path.parent, e.info.fingerprint) for e in self._all if e.info.differs_from is None}
        for entry in list(self._all):
            later = entry.info.differs_from
            if later is not None and (entry.path.parent, later) not in whole:
                self._all.remove(entry)
                self.problems.append(f"{entry.path}: holds what differs from weights {later}, which are not beside it")

    def entries(self) -> list[ZooEntry]:
        """Every model that can be named, by width, metric and rising λ."""
        return sorted(self._by_name.values(), key=lambda e: (e.info.config.N, e.info.metric, e.info.lmbda, e.name))

    def get(self, name: str) -> ZooEntry:
        """The model of that name.

        Raises:
            UnknownModel: it is not installed.
        """
        if name not in self._by_name:
            known = ", ".join(entry.name for entry in self.entries()) or "none"
            hint = f"; `tcm pull {name}` fetches it" if name in PUBLISHED else ""
            raise UnknownModel(f"no model {name!r:.100} here; installed are: {known}{hint}")
        return self._by_name[name]

    def named(self, name: str) -> ZooEntry:
        """As `get`, for who has installed the models and may see the paths of those that were skipped.

        Raises:
            UnknownModel: it is not installed, or was skipped.
        """
        try:
            return self.get(name)
        except UnknownModel as error:
            skipped = "".join(f"; skipped {problem}" for problem in self.problems[:3])
            raise UnknownModel(f"{error}{skipped}") from None

    def default(self, name: str | None = None) -> ZooEntry:
        """The model used where none is asked for: `name`, else the embedded one of the middle λ, else the middle one.

        Raises:
            UnknownModel: `name` is not installed, or no model is.
        """
        if name:
            return self.named(name)
        if DEFAULT_MODEL in self._by_name:
            return self._by_name[DEFAULT_MODEL]
        entries = self.entries()
        if not entries:
            raise UnknownModel("no model is installed; `tcm import` or `tcm pull` one")
        return entries[len(entries) // 2]

    def for_quality(self, quality: int, like: ZooEntry) -> ZooEntry:
        """The model of `like`'s widths and metric whose λ is nearest to that of quality 1 to 6.

        Raises:
            ValueError: quality is not in 1..6.
        """
        if not 1 <= quality <= 6:
            raise ValueError(f"quality is 1 to 6, not {quality}")
        wanted = LAMBDAS[like.info.metric][quality - 1]
        family = [e for e in self.entries() if (e.info.config, e.info.metric) == (like.info.config, like.info.metric)]
        return min(family, key=lambda e: (abs(math.log(e.info.lmbda / wanted)), e != like))

    def also_read(self, entry: ZooEntry) -> list[str]:
        """The fingerprints of other weights of its name that are here: they read their files, and write none."""
        same = {e.info.fingerprint for e in self._all if e.name == entry.name}
        return sorted(same - {entry.info.fingerprint})

    def readable(self) -> list[ZooEntry]:
        """Every model, those that can be named and other weights of their names."""
        return sorted(self._all, key=lambda entry: (entry.name, entry.path))

    def by_fingerprint(self, fingerprint: str, name: str = "") -> ZooEntry:
        """The model with exactly these weights, whatever it is called; of several that called `name`, as the file says.

        Raises:
            IncompatibleModel: the weights are not here; the message says which are needed.
        """
        same = [entry for entry in self._all if entry.info.fingerprint == fingerprint]
        same.sort(key=lambda entry: entry.info.differs_from is not None)
        if same:
            return next((entry for entry in same if entry.name == name), same[0])
        here = self._by_name.get(name)
        raise IncompatibleModel(
            f"needs model {name or 'unnamed'!r} with weights {fingerprint}; "
            + (f"the {name!r} here has weights {here.info.fingerprint}" if here else "it is not installed here")
            + f": `tcm {'pull ' + name if name in PUBLISHED and not here else 'import'}` the ones that wrote the file"
        )
