"""`tcm eval`: honest numbers, resumable, and a picture."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import load
from model.codec import Codec
from model.evaluation.coders import PillowCoder, TCMCoder
from model.evaluation.curves import Point, bd_rate, curves
from model.evaluation.measure import images_in, load_records, measure
from model.evaluation.metrics import ms_ssim, psnr
from model.zoo import EMBEDDED_DIR
from tests.conftest import DATA


@pytest.fixture
def folder(tmp_path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    (images / "photo.png").write_bytes((DATA / "photo.png").read_bytes())
    (images / "sea.jpg").write_bytes((DATA / "sea.jpg").read_bytes())
    (images / "broken.png").write_bytes(b"no image")
    return images


def test_psnr_and_ms_ssim():
    a = np.zeros((200, 200, 3), np.uint8)
    b = a + 10
    assert psnr(a, b) == pytest.approx(20 * np.log10(25.5))
    assert psnr(a, a) == float("inf")
    assert ms_ssim(a, a) == pytest.approx(1)
    assert ms_ssim(a[:100], b[:100]) is None


def test_a_run_goes_on_where_it_stopped(folder, tmp_path, codec):
    coders = [TCMCoder(codec), PillowCoder("JPEG", "JPEG", 50)]
    results, skipped = tmp_path / "r.jsonl", []
    records = measure(coders, images_in(folder), results, skipped=skipped.append)
    assert len(records) == 4
    assert len(skipped) == 1
    assert "broken.png" in skipped[0]
    assert len(load_records(results)) == 4
    (folder / "photo.png").rename(folder / "renamed.png")
    known = measure(coders, images_in(folder), results)
    assert {r.image for r in known} == {"renamed.png", "sea.jpg"}  # what they are called now
    (folder / "renamed.png").rename(folder / "photo.png")
    with results.open("a") as file:
        file.write('{"coder": "cut o')  # killed in the middle of a line
    measured: list[str] = []
    coders[1] = PillowCoder("JPEG", "JPEG", 60)
    again = measure(coders, images_in(folder), results, advance=measured.append)
    assert [r for r in again if r.coder != "JPEG"] == [r for r in records if r.coder != "JPEG"]  # times included
    for r in records:
        if r.estimated_bits is not None:
            assert r.estimated_bits == pytest.approx(
                8 * r.size, rel=0.03
            )  # small pictures: header, EXIF and padding count


def points(rates, qualities):
    return [Point("", r, q, None, 0, 0, 1, None) for r, q in zip(rates, qualities, strict=True)]


class Picky(PillowCoder):
    """One that codes nothing wider than 350 pixels."""

    def encode(self, picture):
        if picture.width > 350:
            raise ValueError("too wide")
        return super().encode(picture)


def test_what_was_cut_off_costs_one_record(folder, tmp_path):
    """Found by trying: the next one was written behind it, and lost with it."""
    results, coders = tmp_path / "r.jsonl", [PillowCoder("JPEG", "JPEG", 50)]
    measure(coders, images_in(folder), results)
    results.write_bytes(results.read_bytes()[:-40])
    measure(coders, images_in(folder), results)
    assert len(load_records(results)) == 2


def test_grey_is_measured_as_it_is_coded(codec, photo, tmp_path):
    """Found by trying: as colours, a grey photograph came out 0.3 dB worse than `tcm decode` gives it."""
    images = tmp_path / "images"
    images.mkdir()
    photo.convert("L").save(images / "grey.png")
    photo.convert("L").convert("RGB").save(images / "no colour.png")
    coders = [TCMCoder(codec), PillowCoder("JPEG", "JPEG", 50)]
    records = {(r.coder, r.image): r for r in measure(coders, images_in(images), tmp_path / "r.jsonl")}
    for path in images_in(images):
        image = Image.open(path)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=50)
        assert records["JPEG", path.name].size == len(out.getvalue())
        data = codec.encode(image)
        found = records[coders[0].name, path.name]
        back = codec.decode(data).convert("RGB")
        assert (found.size, found.psnr) == (len(data), psnr(np.asarray(image.convert("RGB")), np.asarray(back)))


def test_a_point_is_of_the_same_images_throughout(folder, tmp_path):
    """Found by trying: images too small for MS-SSIM counted in the bits beside it."""
    (folder / "broken.png").unlink()
    coders = [PillowCoder("JPEG", "JPEG", 50)]
    [point] = curves(measure(coders, images_in(folder), tmp_path / "r.jsonl"))["JPEG"]
    assert point.ms_ssim is not None
    Image.open(DATA / "photo.png").resize((120, 80)).save(folder / "small.png")
    records = measure(coders, images_in(folder), tmp_path / "r.jsonl")
    slow = [replace(records[0], encode_s=1000.0), *records[1:]]
    [point] = curves(slow)["JPEG"]
    assert (point.ms_ssim, point.images) == (None, 3)
    assert point.encode_s < 100


def test_curves_are_of_the_same_images(folder, tmp_path):
    """What one coder cannot code is left out for all; a folder that is called like a picture stops nothing."""
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "folder.png").mkdir()
    skipped: list[str] = []
    coders = [PillowCoder("JPEG", "JPEG", 50), Picky("WebP", "WEBP", 50)]
    records = measure(coders, images_in(folder), tmp_path / "r.jsonl", skipped=skipped.append)
    assert {(r.coder, r.image) for r in records} == {("JPEG", "sea.jpg"), ("WebP", "sea.jpg")}
    assert any("photo.png" in why and "q50" in why and "too wide" in why for why in skipped)
    with pytest.raises(ValueError, match="not one of the images"):
        measure(coders, [folder / "broken.png"], tmp_path / "r.jsonl")


def test_a_disk_that_takes_no_results_ends_it(folder, tmp_path):
    """Not every image in vain, as if each were at fault."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            measure([PillowCoder("JPEG", "JPEG", 50)], images_in(folder), tmp_path / "r.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_bd_rate_of_a_codec_that_needs_half_the_bits():
    anchor = points([0.2, 0.4, 0.8, 1.6], [28, 31, 34, 37])
    assert bd_rate(anchor, points([0.1, 0.2, 0.4, 0.8], [28, 31, 34, 37])) == pytest.approx(-50, abs=0.5)
    assert bd_rate(anchor, anchor) == pytest.approx(0, abs=1e-6)
    assert bd_rate(anchor, points([0.1], [30])) is None
    assert bd_rate(anchor, points([0.1, 0.2], [10, 12])) is None
    for other in ([33, 31, 35, 37], [31, 31, 35, 37], [31, 33, 35, math.inf]):  # no curve of better for more
        assert bd_rate(anchor, points([0.1, 0.2, 0.3, 0.4], other)) is None


def test_names_that_say_no_rate_are_curves_of_their_own(tiny_file):
    weights = load(tiny_file)
    names = ("my-baseline", "my-attention", "tcm-tiny-mse-0.01")
    codecs = [Codec(replace(weights, info=replace(weights.info, name=name)), torch.device("cpu")) for name in names]
    assert [TCMCoder(codec).name for codec in codecs] == ["my-baseline", "my-attention", "tcm-tiny-mse"]


def test_a_package_that_is_missing_is_named(folder, tmp_path):
    """Without the extra `eval`, as pip installs it."""
    (tmp_path / "bjontegaard.py").write_text("raise ModuleNotFoundError('none', name='bjontegaard')")
    tcm = Path(sys.executable).with_name("tcm")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([tcm, "eval", folder], capture_output=True, text=True, env=environment, timeout=200)
    assert result.returncode == 2
    assert result.stderr.strip() == "tcm: this needs bjontegaard: pip install 'tcm-service[eval]'"


def test_the_command(folder, tmp_path):
    tcm = Path(sys.executable).with_name("tcm")
    outputs = ["--plot", "rd.png", "--json", "all.json", "--csv", "all.csv", "--results", "r.jsonl"]
    (folder / "broken.png").unlink()
    (folder / "sea.jpg").unlink()
    strange = folder.rename(tmp_path / "cost $a_{x$\udcff")  # no formula, and a name that is no text
    (strange / "photo.png").rename(strange / "photo\udcff.png")
    models = ["--model=tcm-xs-mse-0.013", f"--model={EMBEDDED_DIR / 'tcm-xs-mse-0.05.safetensors'}"]  # name, and file
    command = [tcm, "eval", strange, "--per-image", *models, *outputs]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "BD-rate (PSNR) of tcm-xs-mse against JPEG" in result.stdout
    assert Image.open(tmp_path / "rd.png").size[0] > 500
    told = json.loads((tmp_path / "all.json").read_text())
    assert [p["images"] for p in told["curves"]["tcm-xs-mse"]] == [1, 1]
    assert told["bd_rate"]["tcm-xs-mse"].keys() >= {"JPEG", "WebP"}
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + len(told["images"])
    assert r"photo\udcff.png" in result.stdout
    assert curves([]) == {}


def test_two_models_of_one_name_are_not_one_curve(folder):
    """Found by a reviewer: before and after were points of one curve, and its BD-rate was that of neither."""
    tcm = Path(sys.executable).with_name("tcm")
    models = ["--model=tcm-xs-mse-0.05", f"--model={EMBEDDED_DIR / 'tcm-xs-mse-0.05.safetensors'}"]
    result = subprocess.run([tcm, "eval", folder, *models], capture_output=True, text=True, timeout=200)
    assert result.returncode == 2
    assert "called tcm-xs-mse-0.05" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("option", "code", "says"),
    [("--plot=x.xyz", 2, "a picture is one of"), ("--json=nowhere/x", 6, "nowhere"), ("--csv=nowhere/x", 6, "nowhere")],
)
def test_what_cannot_be_written_is_said_before_the_work(folder, option, code, says):
    tcm = Path(sys.executable).with_name("tcm")
    result = subprocess.run([tcm, "eval", folder, option], capture_output=True, text=True, timeout=60)
    assert result.returncode == code
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_picture_that_comes_back_exactly_makes_no_broken_json(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (200, 200), "white").save(tmp_path / "images" / "white.png")
    tcm = Path(sys.executable).with_name("tcm")
    command = [tcm, "eval", "images", "--model", "tcm-xs-mse-0.013", "--json", "all.json", "--results", "r.jsonl"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert result.returncode == 0, result.stderr

    def refuse(constant):
        raise ValueError(constant)

    told = json.loads((tmp_path / "all.json").read_text(), parse_constant=refuse)
    assert None in [record["psnr"] for record in told["images"]]
    assert "exactly as it was" in result.stdout
