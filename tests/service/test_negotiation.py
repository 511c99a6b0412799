"""Accept, by RFC 9110."""

from __future__ import annotations

import pytest

from service.errors import NotAcceptable
from service.negotiation import choose, parse_accept, preference


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        (None, "png"),
        ("", "png"),
        ("*/*", "png"),
        ("image/*", "png"),
        ("image/webp,*/*;q=0.8", "webp"),
        ("image/webp;q=0.1, image/jpeg;q=0.2", "jpeg"),
        ("IMAGE/TIFF", "tiff"),
        ("image/png;q=0.5, image/*;q=0.5", "png"),
        ("image/png;q=0.4, image/*;q=0.5", "webp"),
        ("image/avif;level=3;q=0.9, image/webp;q=0.3", "avif"),
        ("text/html, application/xhtml+xml, application/xml;q=0.9, image/avif, image/webp, */*;q=0.8", "webp"),
        ("image/jpeg ; q = 1, image/png;q=0", "jpeg"),
        ("image/jpeg;q=2, image/tiff;q=0.001", "tiff"),
        (",,;q=1,image/avif,", "avif"),
        ("image/jpg", "jpeg"),
        ('image/jpeg;note="a, image/png;q=1, \\"b";q=0.5, image/webp;q=0.4', "jpeg"),
        ('image/webp, image/jpeg;note="never closed', "webp"),
        ("image/tif, image/jpg;q=0.5", "tiff"),
        ("image/png;q=0.3, Image/JPG;q=0.2, image/jpeg;q=0.1", "png"),
    ],
)
def test_choice(accept: str | None, name: str) -> None:
    assert choose(accept, 100, 100).name == name


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "image/png;q=0", "image/gif", "garbage", "image/png;q=x"])
def test_nothing_fits(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        choose(accept, 100, 100)


def test_formats_that_cannot_hold_the_picture_are_passed_over() -> None:
    assert choose("image/webp, image/jpeg;q=0.5", 16_383, 1).name == "webp"
    assert choose("image/webp, image/jpeg;q=0.5", 1, 16_384).name == "jpeg"
    assert choose("image/jpeg, image/tiff;q=0.5", 65_501, 1).name == "tiff"
    with pytest.raises(NotAcceptable) as problem:
        choose("image/avif", 40_000, 1)
    assert problem.value.members["available"] == ["image/png", "image/jpeg", "image/tiff"]


def test_the_most_specific_range_counts() -> None:
    ranges = parse_accept("image/png;q=0.1, image/*;q=0.5, */*;q=0.9")
    assert [preference(m, ranges) for m in ("image/png", "image/webp", "text/html")] == [0.1, 0.5, 0.9]
