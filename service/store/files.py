"""Bitstreams in a folder, which several processes may share: ROOT/ab/ab12….tcm, whole files that `tcm decode` reads.

A file is written beside its place, synced, and renamed into it; then its folder is synced. A process that is killed
at any moment leaves the object whole or not at all, and perhaps a part that `sweep` removes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from service.store.medium import ID_PATTERN, MAX_OBJECT_BYTES, SUFFIX, MediumFailed, Meta, place

_PART, _ASIDE, _MARK = ".part", ".expired", ".tcm-store"
_ID = re.compile(ID_PATTERN)


class Files:
    """A folder as a medium.

    Args:
        root: absolute; made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._durable: set[Path] = set()  # folders whose own entry is known to be on the disk
        self._seen: tuple[int, int] | None = None  # device and inode of the root that bears the mark

    @property
    def url(self) -> str:
        """As the setting names it."""
        return self._root.as_uri()

    def make(self) -> None:
        """Make the root and mark it: from then on, a folder without the mark, as a lost mount leaves it, is another.

        Raises:
            OSError: it cannot be made, or not be written to.
        """
        try:
            self._make(self._root)
            if not (self._root / _MARK).exists():  # it may be another user's
                (self._root / _MARK).touch()
        except OSError as error:
            raise OSError(f"the store's folder {self._root} cannot be made: {error.strerror}") from error
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise PermissionError(f"the store's folder {self._root} cannot be written to")
        status = self._root.stat()
        self._seen = status.st_dev, status.st_ino

    def write(self, digest: str, data: bytes) -> None:
        """Keep an object; one that lies there, even damaged, is replaced, and its age begins anew."""
        path = self._path(digest)
        self._make(path.parent)
        part = self._beside(path, _PART)
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def read(self, digest: str) -> bytes | None:
        """The bytes that lie there."""
        try:
            with self._path(digest).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return file.read(size + 1) if size <= MAX_OBJECT_BYTES else b""
        except FileNotFoundError:
            return None

    def stat(self, digest: str) -> Meta | None:
        """What is known of an object."""
        try:
            status = self._path(digest).stat()
        except FileNotFoundError:
            return None
        return Meta(digest, status.st_size, status.st_mtime)

    def delete(self, digest: str) -> None:
        """Remove an object."""
        path = self._path(digest)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            _sync(path.parent)

    def expire(self, digest: str, before: float) -> bool:
        """Remove an object that is older than this, even while it is being written anew."""
        path = self._path(digest)
        aside = self._beside(path, _ASIDE)
        try:
            if path.stat().st_mtime >= before:
                return False  # readers must find it while it is judged
            path.rename(aside)  # from here on, a writer's new object is another file
            if aside.stat().st_mtime >= before:  # it was written anew before that
                _put_back(aside, path)
                return False
            aside.unlink()
        except FileNotFoundError:
            return False
        _sync(path.parent)
        return True

    def entries(self) -> Iterator[Meta]:
        """Every object, by rising id."""
        for folder in self._folders():
            for path in sorted(folder.iterdir()):  # which raises where it may not look, as `glob` does not
                if path.suffix == SUFFIX and _ID.fullmatch(path.stem) and (meta := self.stat(path.stem)):
                    yield meta

    def sweep(self, before: float, *, dry_run: bool = False) -> int:
        """Remove parts, and put back at once what was set aside: whoever judges it may be dead, and it may be new."""
        removed = 0
        for folder in self._folders():
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.suffix == _PART and path.stat().st_ctime < before:
                        if not dry_run:
                            path.unlink()
                        removed += 1
                    elif path.suffix == _ASIDE and not dry_run:
                        _put_back(path, self._path(path.name[1:].partition(".")[0]))
        return removed

    def _path(self, digest: str) -> Path:
        self._check()
        return self._root / place(digest)

    def _check(self) -> None:
        """That the root is still there: in an empty folder, everything would seem deleted."""
        if self._seen is None:
            return
        try:
            status = self._root.stat()
            if (status.st_dev, status.st_ino) != self._seen:
                (self._root / _MARK).stat()
                self._seen = status.st_dev, status.st_ino  # mounted anew
        except FileNotFoundError:
            raise MediumFailed(
                f"{self._root} is not the folder that was there at the start: is it still mounted? "
                f"If it is right (it was restored, say), make the file {_MARK} in it"
            ) from None

    def _beside(self, path: Path, suffix: str) -> Path:
        return path.with_name(f".{path.stem}.{secrets.token_hex(8)}{suffix}")

    def _folders(self) -> list[Path]:
        if not self._root.is_dir():
            return []
        return sorted(path for path in self._root.iterdir() if len(path.name) == 2 and path.is_dir())

    def _make(self, folder: Path) -> None:
        """The folder, its entry in its parent, and so on up, durably."""
        if folder in self._durable and folder.is_dir():
            return
        if not folder.parent.is_dir():
            self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)
        self._durable.add(folder)


def _put_back(aside: Path, path: Path) -> None:
    """Unless something newer has come to lie there."""
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            aside.replace(path)
            return
    aside.unlink()


def _sync(folder: Path) -> None:
    """Bring a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
