"""Which image format a client gets: the best that its `Accept` allows and that can hold the picture (RFC 9110)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.output import MAX_OUTPUT_SIDE
from service.errors import NotAcceptable


@dataclass(frozen=True)
class ImageFormat:
    """One format of reconstructions.

    Attributes:
        name: as `model.output.write_image` calls it.
        media_type: as HTTP calls it.
    """

    name: str
    media_type: str

    def holds(self, width: int, height: int) -> bool:
        """Whether so large a picture can be written and read back."""
        return max(width, height) <= MAX_OUTPUT_SIDE.get(self.name, max(width, height))


FORMATS = (
    ImageFormat("png", "image/png"),
    ImageFormat("webp", "image/webp"),
    ImageFormat("jpeg", "image/jpeg"),
    ImageFormat("avif", "image/avif"),
    ImageFormat("tiff", "image/tiff"),
)
"""In the order in which equal preferences are broken."""

_ALIASES = {"image/jpg": "image/jpeg", "image/tif": "image/tiff"}
"""What clients write, and no registry knows."""
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?')
"""In a parameter, where commas and semicolons separate nothing; unclosed, to the end: each sign is looked at once."""
_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


def parse_accept(accept: str) -> dict[str, float]:
    """Media ranges and their q-values, by their registered names; what is not well formed is passed over."""
    ranges: dict[str, float] = {}
    for part in _QUOTED.sub("", accept).split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((p[2:].strip() for p in parameters if p.startswith("q=")), "1")
        media_range = _ALIASES.get(media_range, media_range)
        if media_range and _QUALITY.fullmatch(weight):
            ranges[media_range] = max(float(weight), ranges.get(media_range, 0.0))
    return ranges


def preference(media_type: str, ranges: dict[str, float]) -> float:
    """The q-value of a media type: that of the most specific range that matches, 0 where none does."""
    kind = media_type.partition("/")[0]
    return next((ranges[key] for key in (media_type, f"{kind}/*", "*/*") if key in ranges), 0.0)


def choose(accept: str | None, width: int, height: int) -> ImageFormat:
    """The format for a picture of this size; PNG where the client does not say.

    Raises:
        NotAcceptable: nothing it accepts can be had; the problem lists what can.
    """
    possible = [f for f in FORMATS if f.holds(width, height)]
    ranges = parse_accept(accept) if accept and accept.strip() else {"*/*": 1.0}
    best = max(possible, key=lambda f: preference(f.media_type, ranges))  # the first of equals
    if preference(best.media_type, ranges) > 0:
        return best
    available = [f.media_type for f in possible]
    raise NotAcceptable(
        f"{accept!r:.200} allows no format that can be had for a picture of {width}x{height}: {', '.join(available)}",
        headers={"Vary": "Accept"},
        available=available,
    )
