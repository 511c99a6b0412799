"""The named errors of `model`. Each message says what was wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


class ModelError(Exception):
    """Any error that a caller of `model` may want to tell its user.

    Attributes:
        code: stable, machine-readable name, the same in the HTTP problem, in `--json` and in the docs.
    """

    code = "model-error"


class CheckpointMismatch(ModelError):
    """A weights file whose names or shapes are not those of a TCM."""

    code = "checkpoint-mismatch"

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        shapes: Sequence[str] = (),
    ) -> None:
        self.missing, self.unexpected, self.shapes = list(missing), list(unexpected), list(shapes)
        parts = [message]
        for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)):
            if names:
                shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
                parts.append(f"{label}: {shown}")
        super().__init__("; ".join(parts))


class CheckpointUnreadable(ModelError):
    """A weights file that is damaged, not a checkpoint, or would have to be unpickled."""

    code = "checkpoint-unreadable"


class UnknownModel(ModelError):
    """A model name that this installation does not have."""

    code = "unknown-model"


class CorruptBitstream(ModelError):
    """A bitstream that is damaged, truncated, or lies about itself."""

    code = "corrupt-bitstream"


class UnsupportedBitstream(ModelError):
    """Bytes that are no .tcm file, or one of a later format version."""

    code = "unsupported-bitstream"


class IncompatibleModel(ModelError):
    """A sound bitstream whose weights are not here, or whose symbols these weights cannot reproduce."""

    code = "incompatible-model"


class UnsupportedImage(ModelError):
    """Bytes that are no image, or an image of a kind that cannot be coded."""

    code = "unsupported-image"


class CorruptImage(ModelError):
    """An image file that is damaged or truncated."""

    code = "corrupt-image"


class TooManyPixels(ModelError):
    """An image, or a bitstream's promise of one, over the pixel limit."""

    code = "too-many-pixels"


class OutputLimit(ModelError):
    """An image that the wanted file format cannot hold."""

    code = "output-limit"


class DownloadFailed(ModelError):
    """Published weights that could not be fetched."""

    code = "download-failed"


class OutOfMemory(ModelError):
    """The device has no memory left for this image."""

    code = "out-of-memory"


class NoProcess(ModelError):
    """A machine that gives no process, or no file descriptor, to read an image file with."""

    code = "no-process"


class DeviceLost(ModelError):
    """A device that does nothing any more, until this process has ended."""

    code = "device-lost"


def reason(error: Exception) -> str:
    """What a library says is wrong, in one line of at most 200 characters."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:200]
