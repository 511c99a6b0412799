"""Random crops of a folder of photographs; which crop a sample gets follows from (seed, index) alone.

So the order survives a kill: sample i of a run is the same whether or not the run was interrupted before it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from model.errors import ModelError
from model.kinds import SUFFIXES
from model.pixels import read_image

log = logging.getLogger(__name__)

_CACHE = 1 << 30
_MAX_PIXELS = 1 << 28  # of a photograph: the folder is the user's own


def find_images(folder: Path) -> list[Path]:
    """Every image file below a folder, sorted by name; folders that links lead to are entered, once.

    Raises:
        FileNotFoundError: there is none.
    """
    paths: list[Path] = []
    entered: set[str] = set()
    waiting = [folder]  # links behind all that they may lead to: what can be had without one is
    while waiting:
        for place, folders, names in os.walk(waiting.pop(0)):
            if (real := os.path.realpath(place)) in entered:  # a link leads back up, or two lead here
                folders.clear()
                continue
            entered.add(real)
            folders.sort()  # or the disk would say which of two links to a folder is taken
            waiting += [path for name in folders if (path := Path(place, name)).is_symlink()]
            paths += [Path(place, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
    paths.sort()
    if not paths:
        raise FileNotFoundError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))})")
    return paths


def split_validation(paths: list[Path], count: int) -> tuple[list[Path], list[Path]]:
    """(training, validation): `count` files, at most half of all, evenly spread by name, are kept out of training."""
    count = min(count, len(paths) // 2)
    kept = {paths[(2 * i + 1) * len(paths) // (2 * count)] for i in range(count)} if count else set()
    return [p for p in paths if p not in kept], sorted(kept)


UNREADABLE = (OSError, ValueError, ModelError)
"""What a file raises that is no photograph, or too small a one."""


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, as the codec reads it; what is no such picture raises OSError or ModelError."""
    return read_image(path.read_bytes(), _MAX_PIXELS, keep_metadata=False).rgb


class Crops(Dataset[Tensor]):
    """Sample i: a random crop (3, crop, crop) in [0, 1] of a photograph, half of them scaled down, half mirrored.

    A file that is damaged or smaller than a crop is named in the log once and replaced by the next one.

    Args:
        paths: the photographs.
        crop: side of a crop in pixels.
        seed: decides the order of the files and every crop.
        cache_bytes: decoded photographs kept in memory, by each loading process.
    """

    def __init__(self, paths: list[Path], crop: int, seed: int, cache_bytes: int = _CACHE) -> None:
        self.paths, self.crop, self.seed = paths, crop, seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.arange(0))
        self._room = cache_bytes
        self._cache: dict[int, NDArray[np.uint8]] = {}
        self._bad: set[int] = set()

    def __getitem__(self, index: int) -> Tensor:
        epoch, place = divmod(index, len(self.paths))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.paths))
        order = self._order[1]
        rng = np.random.default_rng((self.seed, epoch, place))
        for offset in range(len(self.paths)):
            image = self._image(int(order[(place + offset) % len(order)]))
            if image is not None:
                return self._crop(image, rng)
        raise FileNotFoundError(f"not one of {len(self.paths)} images can be read and holds a crop of {self.crop}")

    def _image(self, number: int) -> NDArray[np.uint8] | None:
        if number in self._cache:
            return self._cache[number]
        if number in self._bad:
            return None
        path = self.paths[number]
        try:
            image = read_rgb(path)
            if min(image.shape[:2]) < self.crop:
                raise ValueError(f"{image.shape[1]}x{image.shape[0]} is smaller than a crop of {self.crop}")
        except UNREADABLE as error:
            self._bad.add(number)
            log.warning("%s skipped: %s", path, error)
            return None
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._cache[number] = image
        return image

    def _crop(self, image: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
        height, width = image.shape[:2]
        least = self.crop / min(height, width)
        scale = max(least, rng.uniform(0.5, 1)) if rng.random() < 0.5 else 1.0
        side = min(round(self.crop / scale), height, width)
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        part = image[top : top + side, left : left + side]
        if side > self.crop:
            part = np.asarray(Image.fromarray(part).resize((self.crop, self.crop), Image.Resampling.LANCZOS))
        if rng.random() < 0.5:
            part = part[:, ::-1]
        return torch.from_numpy(np.array(part)).permute(2, 0, 1).float() / 255


class Indexes(Sampler[int]):
    """The sample numbers of one process, from step `first` on, without end: step-major, then by process."""

    def __init__(self, first: int, batch: int, rank: int = 0, processes: int = 1) -> None:
        self.first, self.batch, self.rank, self.processes = first, batch, rank, processes

    def __iter__(self) -> Iterator[int]:
        step = self.first
        while True:
            start = (step * self.processes + self.rank) * self.batch
            yield from range(start, start + self.batch)
            step += 1
