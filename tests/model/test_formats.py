"""What single formats do in their own way, and Pillow in another: the picture that every other program shows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from model.pixels import from_pil, read_image
from tests import bombs

# ---- TIFF


def planes(samples: np.ndarray, *extra: int) -> bytes:
    """A TIFF of RGB or more, uncompressed, one plane after another."""
    height, width, count = samples.shape
    tags = {258: (3, [8 * samples.itemsize] * count), 262: (3, [2]), 277: (3, [count]), 278: (3, [height]),
            284: (3, [2])} | ({338: (3, list(extra))} if extra else {})  # fmt: skip
    return bombs.honest_tiff(width, height, tags, *(samples[..., i].tobytes() for i in range(count)))


def test_planes_of_sixteen_bits():
    """Found by comparing: they came out as noise, with no error."""
    samples = np.random.default_rng(0).integers(0, 65536, (9, 13, 4)).astype("<u2")
    rgb, rgba = planes(samples[..., :3]), planes(samples, 2)
    np.testing.assert_array_equal(read_image(rgb).rgb, (samples[..., :3] >> 8))
    picture = read_image(rgba)
    np.testing.assert_array_equal(picture.rgb, samples[..., :3] >> 8)
    np.testing.assert_array_equal(picture.alpha, samples[..., 3] >> 8)
    np.testing.assert_array_equal(from_pil(Image.open(io.BytesIO(rgb))).rgb, samples[..., :3] >> 8)


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_planes_whose_alpha_is_associated(dtype):
    samples = np.full((5, 6, 4), np.iinfo(dtype).max, dtype)
    samples[:2] = 0
    picture = read_image(planes(samples, 1))
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha[:, 0], [0, 0, 255, 255, 255])
    np.testing.assert_array_equal(picture.rgb[2:], 255)


def test_tiles_of_sixteen_bits():
    """Grey, whose one plane some programs say lies apart."""
    samples = np.arange(512, dtype="<u2").reshape(2, 16, 16) * 128
    tags = {258: (3, [16]), 284: (3, [2]), 322: (3, [16]), 323: (3, [16]), 325: (4, [512, 512])}
    start = len(bombs.tiff(32, 16, tags | {324: (4, [0, 0])}))
    file = bombs.tiff(32, 16, tags | {324: (4, [start, start + 512])}, samples.tobytes())
    np.testing.assert_array_equal(read_image(file).rgb[..., 0], np.rint(np.hstack(samples) / 257))
