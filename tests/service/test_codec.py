"""An image in, a bitstream out, the image back, over HTTP."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from PIL import Image, ImageCms

from model import Codec
from model.container import read_container
from model.profiles import in_srgb, made
from tests.conftest import psnr
from tests.model.test_colours import P3
from tests.model.test_output import from_a_camera
from tests.service.conftest import DATA, MODEL, Server, image_file, open_image


def test_round_trip_of_a_photograph(server: Server, photo: Image.Image, photo_file: bytes) -> None:
    encoded = server.client.post(
        "/v1/encode", params={"model": MODEL}, content=photo_file, headers={"Content-Type": "image/png"}
    )
    assert encoded.status_code == 200
    assert encoded.headers["content-type"] == "application/vnd.tcm"
    assert encoded.headers["tcm-model"] == MODEL
    assert encoded.headers["content-disposition"] == 'attachment; filename="image.tcm"'
    assert float(encoded.headers["tcm-bits-per-pixel"]) == pytest.approx(
        8 * len(encoded.content) / (photo.width * photo.height), abs=1e-4
    )
    stages = {part.partition(";")[0]: part for part in encoded.headers["server-timing"].split(", ")}
    assert {"read_image", "queue", "g_a"} <= stages.keys()
    assert float(stages["g_a"].partition("dur=")[2]) > 0

    decoded = server.client.post("/v1/decode", content=encoded.content)
    assert decoded.status_code == 200
    assert decoded.headers["content-type"] == "image/png"
    assert decoded.headers["vary"] == "Accept"
    assert decoded.headers["tcm-model"] == MODEL
    back = open_image(decoded.content)
    assert (back.format, back.mode, back.size) == ("PNG", "RGB", photo.size)
    assert psnr(back, photo) > 23


def test_http_and_python_agree_to_the_pixel(server: Server, bitstream: bytes, codec: Codec) -> None:
    decoded = open_image(server.client.post("/v1/decode", content=bitstream).content)
    assert np.array_equal(np.asarray(decoded), np.asarray(codec.decode(bitstream)))


@pytest.mark.parametrize("accept", ["image/png", "image/webp", "image/jpeg", "image/avif", "image/tiff"])
def test_what_a_camera_says_goes_there_and_back(server: Server, photo: Image.Image, accept: str) -> None:
    file = image_file(photo.resize((96, 64)), "JPEG", exif=from_a_camera())
    encoded = server.client.post("/v1/encode", content=file)
    decoded = server.client.post("/v1/decode", content=encoded.content, headers={"Accept": accept})
    assert decoded.status_code == 200, decoded.text
    exif = open_image(decoded.content).getexif()
    assert exif[0x010F] == "a maker"
    assert float(exif.get_ifd(0x8769)[0x829A]) == 0.01


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "PNG"),
        ("*/*", "PNG"),
        ("image/*", "PNG"),
        ("image/webp", "WEBP"),
        ("image/jpeg", "JPEG"),
        ("image/avif", "AVIF"),
        ("image/tiff", "TIFF"),
        ("image/avif;q=0.5, image/tiff;q=0.9, text/html", "TIFF"),
        ("text/html, image/png;q=0, */*;q=0.1", "WEBP"),
    ],
)
def test_accept_chooses_the_format(server: Server, bitstream: bytes, accept: str | None, expected: str) -> None:
    client = httpx.Client(base_url=server.url, timeout=60)
    client.headers.pop("accept")
    response = client.post("/v1/decode", content=bitstream, headers={"Accept": accept} if accept else {})
    assert response.status_code == 200
    image = open_image(response.content)
    assert image.format == expected
    assert response.headers["content-type"] == f"image/{expected.lower()}"
    reference = open_image(server.client.post("/v1/decode", content=bitstream).content)
    if expected in ("PNG", "WEBP", "TIFF"):
        assert np.array_equal(np.asarray(image), np.asarray(reference))
    else:
        assert psnr(image, reference) > 35


@pytest.mark.parametrize(
    "media_type", ["application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded", None]
)
def test_an_untyped_body_is_taken_as_it_is(server: Server, photo_file: bytes, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    encoded = server.client.post("/v1/encode", content=photo_file, headers=headers)
    assert encoded.status_code == 200
    assert server.client.post("/v1/decode", content=encoded.content, headers=headers).status_code == 200


def test_multipart_keeps_the_name(server: Server, photo_file: bytes) -> None:
    encoded = server.client.post("/v1/encode", files={"file": ("été à la mer.png", photo_file, "image/png")})
    assert encoded.status_code == 200
    name = "%C3%A9t%C3%A9%20%C3%A0%20la%20mer.tcm"
    assert encoded.headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"
    decoded = server.client.post("/v1/decode", files={"file": ("../../sea.tcm", encoded.content)})
    assert decoded.status_code == 200
    assert decoded.headers["content-disposition"] == 'inline; filename="sea.png"'


def test_a_long_name_makes_no_long_header(server: Server, photo_file: bytes) -> None:
    """Found by trying: proxies have no room for it, and the picture was lost."""
    encoded = server.client.post("/v1/encode", files={"file": ("é" * 1500 + ".png", photo_file, "image/png")})
    assert encoded.headers["content-disposition"].count("%C3%A9") == 200
    assert len(encoded.headers["content-disposition"]) < 4096


def test_a_chunked_body_is_taken(server: Server, photo_file: bytes) -> None:
    chunks = (photo_file[i : i + 10_000] for i in range(0, len(photo_file), 10_000))
    response = server.client.post("/v1/encode", content=chunks, headers={"Content-Type": "image/png"})
    assert response.status_code == 200


def test_quality_chooses_the_nearest_of_the_family(server: Server, photo_file: bytes) -> None:
    sizes = {}
    for quality in (1, 4, 6):
        response = server.client.post("/v1/encode", params={"quality": quality}, content=photo_file)
        sizes[response.headers["tcm-model"]] = len(response.content)
    assert list(sizes) == ["tcm-xs-mse-0.0035", "tcm-xs-mse-0.013", "tcm-xs-mse-0.05"]
    assert list(sizes.values()) == sorted(sizes.values())


def test_metadata_is_kept_or_stripped(server: Server, photo: Image.Image) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = image_file(photo.crop((0, 0, 64, 64)), icc_profile=icc)
    for metadata, expected in (("keep", icc), ("strip", None)):
        encoded = server.client.post("/v1/encode", params={"metadata": metadata}, content=data).content
        assert read_container(encoded).icc == expected
        back = open_image(server.client.post("/v1/decode", content=encoded).content)
        assert back.info.get("icc_profile") == expected


def test_stripped_colours_are_those_of_the_photograph(server: Server, photo: Image.Image) -> None:
    """Of a photograph in P3 the numbers were kept and the profile was not: paler wherever it was shown."""
    data = image_file(photo, icc_profile=made(P3, None, grey=False))
    right = in_srgb(photo, made(P3, None, grey=False))
    stripped = server.client.post("/v1/encode?metadata=strip", content=data).content
    plain = server.client.post("/v1/encode", content=image_file(right)).content
    back, same = (open_image(server.client.post("/v1/decode", content=c).content) for c in (stripped, plain))
    assert np.abs(np.asarray(back).astype(int) - np.asarray(same)).max() <= 1
    assert psnr(back, right) > psnr(back, photo) + 0.3


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_comes_back_with_its_size(server: Server, photo: Image.Image, mode: str) -> None:
    small = photo.resize((33, 21))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    else:
        image = small.convert("L").convert(mode) if mode in ("LA", "1") else small.convert(mode)
    data = image_file(image, "TIFF" if mode == "CMYK" else "PNG")
    encoded = server.client.post("/v1/encode", content=data)
    assert encoded.status_code == 200, encoded.text
    back = open_image(server.client.post("/v1/decode", content=encoded.content).content)
    assert back.size == (33, 21)
    kept = {"L": "L", "LA": "LA", "RGBA": "RGBA", "1": "L", "I;16": "L"}
    assert back.mode == kept.get(mode, "RGB")


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_extreme_shapes(server: Server, photo: Image.Image, size: tuple[int, int]) -> None:
    encoded = server.client.post("/v1/encode", content=image_file(photo.resize(size)))
    assert encoded.status_code == 200
    assert open_image(server.client.post("/v1/decode", content=encoded.content).content).size == size


def test_jpeg_photograph(server: Server) -> None:
    data = (DATA / "sea.jpg").read_bytes()
    encoded = server.client.post("/v1/encode", content=data, headers={"Content-Type": "image/jpeg"})
    back = open_image(server.client.post("/v1/decode", content=encoded.content).content)
    assert psnr(back, open_image(data).convert("RGB")) > 23
