"""Draw the README's picture: a photograph beside what comes back, with bits per pixel and PSNR.

python docs/side_by_side.py PHOTO OUT.jpg [MODEL]
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model import Codec


def main(photo: str, out: str, model: str = "tcm-xs-mse-0.013") -> None:
    original = Image.open(photo).convert("RGB")
    original.info.clear()
    codec = Codec.load(model)
    data = codec.encode(original)
    back = codec.decode(data)
    error = np.mean((np.asarray(original, float) - np.asarray(back, float)) ** 2)
    width, height = original.size
    captions = (
        f"original, {width}x{height}",
        f"{model}: {len(data):,} bytes, {8 * len(data) / (width * height):.2f} bits per pixel, "
        f"PSNR {10 * np.log10(255**2 / error):.2f} dB",
    )
    gap, bar = 8, 34
    sheet = Image.new("RGB", (2 * width + gap, height + bar), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(20)
    for i, (image, caption) in enumerate(zip((original, back), captions, strict=True)):
        sheet.paste(image, (i * (width + gap), 0))
        draw.text((i * (width + gap) + 4, height + 5), caption, "black", font)
    sheet.save(out, quality=88)
    print(captions[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
