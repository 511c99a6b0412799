"""The same file gives the same pixels through the command line, Python and HTTP."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import psnr


def test_cli_python_and_http_agree(server, codec, photographs, tmp_path):
    tcm = Path(sys.executable).with_name("tcm")
    bitstreams, images = tmp_path / "bitstreams", tmp_path / "images"
    bitstreams.mkdir()
    images.mkdir()
    subprocess.run([tcm, "encode", "--device", "cpu", *photographs, bitstreams], check=True, timeout=600)
    files = [bitstreams / f"{path.stem}.tcm" for path in photographs]
    subprocess.run([tcm, "decode", "--device", "cpu", *files, images], check=True, timeout=600)
    for original, file in zip(photographs, files, strict=True):
        data = file.read_bytes()
        by_cli = np.asarray(Image.open(images / f"{file.stem}.png"))
        by_python = np.asarray(codec.decode(data))
        answer = server.client.post("/v1/decode", content=data)
        assert answer.status_code == 200, answer.text
        by_http = np.asarray(Image.open(io.BytesIO(answer.content)))
        np.testing.assert_array_equal(by_cli, by_python)
        np.testing.assert_array_equal(by_cli, by_http)
        assert psnr(Image.open(original).convert("RGB"), by_cli) > 24
        # and what HTTP wrote, Python reads
        encoded = server.client.post("/v1/encode", content=original.read_bytes())
        assert psnr(codec.decode(encoded.content), by_cli) > 40
