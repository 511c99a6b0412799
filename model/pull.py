"""The authors' published checkpoints, from the drive they published them on."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

from model.errors import DownloadFailed, UnknownModel, reason

PUBLISHED = {
    "tcm-s-mse-0.0025": "1zpkW_MCkUWl8nRUlza0L7Fk7dXlXciZd",
    "tcm-s-mse-0.0035": "1x2rfIQAv8RsjM3zEByDdOZJtEcPU5XZT",
    "tcm-s-mse-0.0067": "17THA1IiPStSO6jG4h5clwkw0ySzgLZID",
    "tcm-s-mse-0.013": "1UbfQFsrr-Z6SrvZvpX4p1QPta5FCORZ5",
    "tcm-s-mse-0.025": "1rc4E2Rke1Jd8UnLq73NaXbfAdcBGGPKg",
    "tcm-s-mse-0.05": "1Quz6_jGJyaG6LMUbT4JuOhhQWxJN26Kh",
    "tcm-l-mse-0.05": "1TK-CPiD2QwtWJqZoT_OyCtnxdQ7UNP56",
}
"""Drive file ids (github.com/jmliu206/LIC_TCM, README)."""


@contextlib.contextmanager
def download(name: str) -> Iterator[Path]:
    """A published checkpoint as a file that lasts as long as the context.

    Raises:
        UnknownModel: the authors have published no such model.
        DownloadFailed: no network, no such file any more, or gdown is not installed.
    """
    if name not in PUBLISHED:
        raise UnknownModel(f"the authors have published no {name!r}; published are: {', '.join(PUBLISHED)}")
    try:
        import gdown
    except ImportError:
        raise DownloadFailed("gdown is not installed: pip install 'tcm-service[pull]'") from None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{name}.pth.tar"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = gdown.download(id=PUBLISHED[name], output=str(target), quiet=False)
        except Exception as error:  # noqa: BLE001 - gdown and what it builds on raise many kinds
            raise DownloadFailed(f"{name} could not be downloaded ({reason(error)}); are you online?") from None
        if result is None or not target.exists():
            raise DownloadFailed(f"{name} could not be downloaded; are you online?")
        yield target
