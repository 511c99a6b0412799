"""The compiled entropy coder of a container image: read from beside its source, where nothing can be written.

numba's own cache wants a folder that it can write, and keys what it holds by the CPU that compiled it. An image is
built on one machine and run on others, with a read-only root: docker/Dockerfile compiles for NUMBA_CPU_NAME=generic and
names this class in NUMBA_CACHE_LOCATOR_CLASSES. Nothing else imports it.
"""

from __future__ import annotations

from pathlib import Path

from numba.core.caching import InTreeCacheLocator


class Prebuilt(InTreeCacheLocator):
    """Finds what was compiled when the image was built; anything else is left to the next locator."""

    def ensure_cache_path(self) -> None:
        """Raise OSError, as numba's do, where nothing was compiled for this function."""
        folder, line = self.get_cache_path(), self.get_disambiguator()  # type: ignore[no-untyped-call]
        if not any(Path(folder).glob(f"*-{line}.py*.nbi")):
            raise FileNotFoundError(folder)
