"""What the routes that code images share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Query
from starlette.requests import Request

from model.zoo import ZooEntry
from service import auth, errors, openapi
from service.context import Context
from service.errors import AmbiguousModel, InvalidParameter
from service.negotiation import FORMATS

ModelName = Annotated[str | None, Query(description="Name of a model from /v1/models.", examples=["tcm-xs-mse-0.013"])]
Quality = Annotated[
    int | None,
    Query(ge=1, le=6, description="Instead of a name: the model of the default's family whose λ is nearest."),
]
Metadata = Annotated[
    Literal["keep", "strip"],
    Query(
        description="Whether ICC profile, EXIF and XMP go into the bitstream. Colours that lose "
        "their profile are brought to sRGB; a ready bitstream keeps its own, as its colours are coded already."
    ),
]
TimeoutMs = Annotated[
    int | None, Query(ge=1, description="Deadline of the whole request; capped by the server.", examples=[5000])
]
Accept = Annotated[
    str | None,
    Header(description="PNG where nothing is said; WebP and TIFF are lossless, too.", examples=["image/webp"]),
]

IMAGES: dict[str, Any] = {f.media_type: {"schema": openapi.BINARY} for f in FORMATS}
"""What a route answers that gives an image, for its description."""

BUSY = (errors.Saturated, errors.Draining, errors.WorkerLost, errors.NotReady)
"""What a route that needs the device can answer before it has looked at the request."""
SENT = (
    *auth.PROBLEMS,
    *(errors.CrossOriginRefused, errors.EmptyBody, errors.BadForm, errors.UnsupportedMediaType),
    *(errors.RequestTimeout, errors.QuotaExceeded),
)
"""What a route that is sent a file can answer, whatever the file is."""
CODED = (
    *(errors.TooManyPixels, errors.OutOfMemory, errors.NoProcess, errors.ModelUnavailable),
    *(errors.DeadlineExceeded, errors.InvalidParameter),
    *BUSY,
)
"""What a route that codes an image can answer."""


_MOST, _LONGEST = 10, 100  # names, and their characters, that an answer repeats


def known(*names: str) -> Any:
    """A dependency: parameters of these names, each at most once.

    A slip of the pen must not go unnoticed: a misspelt `metadata=strip` would keep where a photograph was taken.
    """

    async def check(request: Request) -> None:
        given = Counter(name for name, _ in request.query_params.multi_items())
        wrong = {name[:_LONGEST]: "there is no such parameter" for name in given if name not in names}
        wrong |= {name[:_LONGEST]: "it is given more than once" for name, times in given.items() if times > 1}
        if wrong:
            raise InvalidParameter.of(islice(wrong.items(), _MOST), f"known are {', '.join(names)}")

    return Depends(check)


_ELSEWHERE = {
    "format": "the header Accept asks for one, such as image/webp",
    "metadata": "what was stored is read as it is",
    "model": "a bitstream names its own",
    "quality": "a bitstream has its own",
}
_OF_READING = ("timeout_ms", "expires", "key", "signature")


async def _reading(request: Request) -> None:
    """What means something elsewhere is refused here; what means nothing, as links gather it, is not looked at."""
    given = Counter(name for name, _ in request.query_params.multi_items())
    wrong = {name: f"it is not taken here: {why}" for name, why in _ELSEWHERE.items() if name in given}
    wrong |= {name: "it is given more than once" for name in _OF_READING if given[name] > 1}
    if wrong:
        raise InvalidParameter.of(wrong.items())


READING = Depends(_reading)
"""The parameters of whatever reads or deletes what is stored."""

ENCODING = known("model", "quality", "metadata", "timeout_ms")
"""The parameters of whatever encodes."""


def choose(here: Context, model: str | None, quality: int | None) -> ZooEntry:
    """The model that a request asks for.

    Raises:
        AmbiguousModel: it asks twice.
        UnknownModel: it is not installed.
    """
    if model is not None and quality is not None:
        raise AmbiguousModel("`model` and `quality` both choose the model: send one of them")
    if model is not None:
        return here.zoo.get(model)
    if quality is not None:
        return here.zoo.for_quality(quality, like=here.default_entry)
    return here.default_entry


def seconds(here: Context, timeout_ms: int | None) -> float:
    """The deadline of a request, from its parameter and the cap."""
    return min(timeout_ms or here.settings.timeout_ms, here.settings.timeout_ms) / 1000


def server_timing(stages: Mapping[str, float]) -> str:
    """The header of that name."""
    return ", ".join(f"{stage};dur={duration * 1000:.1f}" for stage, duration in stages.items())
