"""What the setting `store` may say, and the medium it means."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import platformdirs

from service.store.files import Files
from service.store.medium import Medium, MediumFailed

NONE = "none"


def default_folder() -> Path:
    """Where bitstreams lie when nothing else is said: the user's data directory."""
    return platformdirs.user_data_path("tcm") / "store"


def check(address: str) -> str:
    """The address, if it is one, its scheme in lower case.

    Raises:
        ValueError: it is neither file:///…, nor s3://bucket/…, nor `none`.
    """
    if address == NONE:
        return address
    parts = urlsplit(address)
    address = f"{parts.scheme}:{address.partition(':')[2]}"
    bare = not (parts.query or parts.fragment)
    absolute = len(parts.path) > 1 and parts.path[0] == "/"
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and absolute and bare:
        return address
    if parts.scheme == "s3" and parts.netloc and bare and "@" not in parts.netloc:
        return address
    raise ValueError("a store is file:///absolute/folder, s3://bucket/prefix or none")


def open_medium(address: str | None, seconds: float, *, make: bool = True) -> Medium | None:
    """The medium of an address; None for `none`, the default folder where there is no address.

    Args:
        address: a checked one.
        seconds: after which a call to a remote store is given up.
        make: whether to make a folder that was named and is not there.

    Raises:
        OSError: a folder that was named cannot be made or written to, or is not there, or empty, and must not be made.
        ValueError: the package for S3 is not installed, or does not take this address.
    """
    if address == NONE:
        return None
    if address and address.startswith("s3:"):
        try:
            from service.store.objects import Objects
        except ImportError:
            raise ValueError("a store in S3 needs obstore: pip install 'tcm-service[s3]'") from None
        try:
            return Objects(address, seconds)
        except MediumFailed as error:
            raise ValueError(f"{address}: {error}") from None
    folder = Path(unquote(urlsplit(address).path)) if address else default_folder()
    files = Files(folder)
    if not make and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not make and address and not any(folder.iterdir()):  # a service marks it when it starts
        raise FileNotFoundError(f"{folder} is empty, and no service has ever used it: is it mounted?")
    if make and address:  # that of the default is made when something is stored
        files.make()
    return files
