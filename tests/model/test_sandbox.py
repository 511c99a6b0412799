"""Image files in a process of their own: the same pictures, and an end to what costs too much."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import model
from model.errors import CorruptImage, ModelError, NoProcess, TooManyPixels, UnsupportedImage
from model.pixels import Picture, read_image
from model.sandbox import GivenUp, Reading, Sandbox
from tests import bombs
from tests.conftest import DATA
from tests.fuzz import seeds


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox(max_pixels=1 << 20, seconds=1)
    yield box
    box.close()


def described(read, data: bytes):
    """The picture, field by field, or its error."""
    try:
        picture: Picture = read(data)
    except ModelError as error:
        return type(error), str(error)
    planes = [None if plane is None else (plane.shape, plane.tobytes()) for plane in (picture.rgb, picture.alpha)]
    return planes, picture.grey, picture.icc, picture.exif, picture.xmp


def test_pictures_and_errors_are_those_of_the_reader(sandbox):
    files = [*seeds.images(), b"no image", (DATA / "photo.png").read_bytes()[:9000]]
    for data in files:
        assert described(sandbox.read_image, data) == described(read_image, data)


def test_several_threads(sandbox):
    data = (DATA / "photo.png").read_bytes()
    expected = read_image(data).rgb
    with ThreadPoolExecutor(3) as threads:
        for picture in threads.map(lambda _: sandbox.read_image(data), range(9)):
            np.testing.assert_array_equal(picture.rgb, expected)
    picture.rgb[0, 0] = 0  # torch wants memory that may be written


def test_limits_of_pixels_and_metadata(sandbox):
    data = (DATA / "sea.jpg").read_bytes()
    with pytest.raises(TooManyPixels, match="limit of 1000"):
        sandbox.read_image(data, 1000)
    with pytest.raises(UnsupportedImage):
        sandbox.read_image(b"hello")
    assert sandbox.read_image(data, keep_metadata=False).exif is None


def test_the_size_is_announced_before_it_is_decoded(sandbox):
    class Refused(Exception):
        pass

    told = []
    sandbox.read_image((DATA / "photo.png").read_bytes(), announce=told.append)
    assert told == [384 * 256]
    strip = io.BytesIO()
    Image.new("L", (1, 3000)).save(strip, "PNG")
    sandbox.read_image(strip.getvalue(), announce=told.append)
    assert told[1:] == [128 * 3000]  # as the networks see it: 64 such strips of 458 bytes were an hour's work

    def refuse(_: int) -> None:
        raise Refused

    with pytest.raises(Refused):
        sandbox.read_image((DATA / "photo.png").read_bytes(), announce=refuse)
    assert sandbox.read_image((DATA / "photo.png").read_bytes()).width == 384


def test_a_limit_above_that_of_pillow(sandbox):
    """Which is 179 megapixels; ours may be set higher."""
    told = []
    with pytest.raises(CorruptImage, match="truncated"):
        sandbox.read_image(bombs.png(20_000, 10_000, bombs.idat(bytes(1))), 1 << 28, announce=told.append)
    assert told == [200_000_000]


def test_a_refused_picture_costs_no_process(sandbox):
    """Under load, many are refused for their pixels."""
    data = (DATA / "photo.png").read_bytes()
    sandbox.read_image(data)
    before = [process._child.pid for process in sandbox._idle]
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            sandbox.read_image(data, announce=lambda _: 1 / 0)
    assert sandbox.read_image(data).width == 384
    assert [process._child.pid for process in sandbox._idle] == before


def test_no_picture_stays_in_memory(sandbox):
    sandbox.read_image((DATA / "photo.png").read_bytes())
    assert [os.fstat(process._shared).st_size for process in sandbox._idle] == [0] * len(sandbox._idle)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_processes_that_cannot_be_had_leave_nothing_behind(monkeypatch):
    box, before = Sandbox(), descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", mock.Mock(side_effect=BlockingIOError("no more processes")))
        for _ in range(3):
            with pytest.raises(NoProcess, match="no more processes"):
                box.read_image(b"")
    with monkeypatch.context() as patch:
        patch.setattr("model.sandbox_client.Process._answer", mock.Mock(side_effect=ValueError("anything")))
        for _ in range(3):
            with pytest.raises(ValueError, match="anything"):
                box.read_image(b"")
    assert descriptors() == before
    assert box.read_image((DATA / "photo.png").read_bytes()).width == 384
    box.close()


def test_a_process_that_does_not_start_is_said_so(monkeypatch):
    box = Sandbox()
    with monkeypatch.context() as patch:
        patch.setattr("model.sandbox_client._PROGRAM", "raise SystemExit(1)")
        with pytest.raises(NoProcess, match="ended at once"):
            box.read_image(b"")
    assert box.read_image((DATA / "photo.png").read_bytes()).width == 384
    box.close()


@pytest.mark.parametrize(
    "says",
    [
        'os.ftruncate(shared, 3 + (6 << 30)); say(PIXEL | {"icc": 6 << 30})',
        'say({"height": 1})',
        "say([])",
        'os.write(1, b"no JSON\\n")',
        'os.write(1, b"[" * 60_000 + b"\\n")',
        'say(PIXEL | {"icc": "x"})',
        'os.ftruncate(shared, 4); say(PIXEL | {"icc": True})',
        'say({"pixels": "x"})',
        'say({"pixels": 100}); sys.stdin.buffer.readline(); '
        'os.ftruncate(shared, 3 * 10**6); say(PIXEL | {"width": 1000, "height": 1000})',
    ],
    ids=[
        "a huge profile",
        "no width",
        "a list",
        "no JSON",
        "too deep",
        "a text",
        "a truth",
        "no number",
        "more than announced",
    ],
)
def test_a_process_that_was_taken_over_is_not_believed(monkeypatch, says):
    """Its answers filled our memory, passed the admission's count, or were a 500; and it got the next file."""
    program = f"""
import json, os, sys
shared = int(sys.argv[2])
say = lambda message: os.write(1, json.dumps(message).encode() + b"\\n")
PIXEL = dict(width=1, height=1, grey=False, alpha=False, icc=None, exif=None, xmp=None)
say(dict(ready=True))
for line in sys.stdin.buffer:
    {says}
"""
    monkeypatch.setattr("model.sandbox_client._PROGRAM", program)
    box = Sandbox()
    with pytest.raises(CorruptImage):
        box.read_image(b"some file", announce=lambda _: None)
    assert not box._idle
    box.close()


def test_who_gives_up_ends_the_process_at_work(sandbox):
    reading = Reading()
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(sandbox.read_image, bombs.jpeg_of_scans(1000, 60_000), reading=reading)
        time.sleep(0.3)
        assert not work.done()
        reading.give_up()
        with pytest.raises(GivenUp):
            work.result(timeout=10)
    assert sandbox.read_image((DATA / "photo.png").read_bytes()).width == 384


def test_who_gives_up_at_the_last_moment_leaves_no_dying_process(sandbox, monkeypatch):
    """Found by trying: the next picture was said to have crashed its decoder."""
    data, reading = (DATA / "photo.png").read_bytes(), Reading()
    with monkeypatch.context() as patch:
        picture = type(sandbox)._give_back.__globals__["Process"]._picture
        patch.setattr("model.sandbox_client.Process._picture", lambda *some: [picture(*some), reading.give_up()][0])
        before = list(sandbox._idle)
        assert sandbox.read_image(data, reading=reading).width == 384
    assert len(sandbox._idle) == max(0, len(before) - 1)
    assert sandbox.read_image(data).width == 384


def test_who_gives_up_before_or_after_costs_no_process(sandbox):
    data = (DATA / "photo.png").read_bytes()
    early, late = Reading(), Reading()
    early.give_up()
    sandbox.read_image(data, reading=late)
    processes = list(sandbox._idle)
    late.give_up()
    with pytest.raises(GivenUp):
        sandbox.read_image(data, reading=early)
    assert sandbox._idle == processes
    assert all(process.alive() for process in processes)


def test_more_descriptors_than_select_knows():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this machine allows no more descriptors")
    program = (
        "import os, resource; from model.sandbox import Sandbox; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (2048, {hard})); held = [os.dup(0) for _ in range(1100)]; "
        f"box = Sandbox(); print(box.read_image(open({str(DATA / 'photo.png')!r}, 'rb').read()).width); box.close()"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    assert done.stdout.split() == [b"384"]


def test_answers_that_come_together_are_both_seen(sandbox, monkeypatch):
    """The size and the picture of a small file may both be there when the first is read."""
    monkeypatch.setattr("model.sandbox_client._PATIENCE", 20)
    out, sizes = io.BytesIO(), []
    Image.new("RGB", (1, 1)).save(out, "PNG")
    for _ in range(200):
        sandbox.read_image(out.getvalue(), announce=sizes.append)
    assert sizes == [128 * 128] * 200


def test_time_has_an_end(sandbox):
    start = time.process_time()
    with pytest.raises(CorruptImage, match="more than 1 s of processor time"):
        sandbox.read_image(bombs.jpeg_of_scans(1000, 60_000))
    assert time.process_time() - start < 1  # none of it here
    assert sandbox.read_image((DATA / "photo.png").read_bytes()).width == 384


def test_memory_has_an_end():
    sandbox = Sandbox(max_pixels=1 << 20)  # with time enough to fill it on any machine
    with pytest.raises(CorruptImage, match="MiB of memory"):
        sandbox.read_image(bombs.file_of(Image.new("1", (30_000, 30_000)), "PNG"), max_pixels=10**9)
    assert sandbox.read_image((DATA / "photo.png").read_bytes()).width == 384
    sandbox.close()


def test_a_crash_costs_one_file(sandbox):
    sandbox.read_image((DATA / "photo.png").read_bytes())
    process = sandbox._idle[-1]
    os.kill(process._child.pid, signal.SIGSEGV)
    process._child.wait()
    assert sandbox.read_image((DATA / "photo.png").read_bytes()).width == 384
    with ThreadPoolExecutor(1) as thread:  # and in the middle of its work
        victim = sandbox._idle[-1]
        work = thread.submit(sandbox.read_image, bombs.jpeg_of_scans(1000, 60_000))
        time.sleep(0.1)
        os.kill(victim._child.pid, signal.SIGSEGV)
        with pytest.raises(CorruptImage, match="crashed"):
            work.result()


def test_a_process_that_is_killed_says_nothing_of_the_file(sandbox):
    """As the kernel does when memory runs out: a sound photograph was called damaged."""
    data = (DATA / "photo.png").read_bytes()

    sandbox.read_image(data)
    process = sandbox._idle[-1]
    with pytest.raises(NoProcess, match="was killed"):
        sandbox.read_image(data, announce=lambda _: process._child.kill())
    assert sandbox.read_image(data).rgb.shape == (256, 384, 3)


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="no kernel that is told so")
def test_the_kernel_ends_it_before_its_parent(sandbox):
    """When a container's memory ran out, the service went, with all requests, and the reader behind it."""
    sandbox.read_image((DATA / "photo.png").read_bytes())
    assert Path(f"/proc/{sandbox._idle[-1]._child.pid}/oom_score_adj").read_text() == "1000\n"


def test_a_service_manager_that_stops_all_processes_costs_no_file(sandbox):
    """systemd sends SIGTERM to every process of a unit, and the parent finishes what it has begun."""
    data = (DATA / "photo.png").read_bytes()
    sandbox.read_image(data)
    process = sandbox._idle[-1]
    os.kill(process._child.pid, signal.SIGTERM)
    assert sandbox.read_image(data).width == 384
    assert process.alive()


def test_what_lies_in_the_working_directory_is_not_run(tmp_path):
    """A package called model is nothing rare where people work with models."""
    (tmp_path / "model").mkdir()
    for name in ("__init__", "sandbox_process"):
        (tmp_path / "model" / f"{name}.py").write_text("raise SystemExit('not ours')")
    program = (
        f"import sys; sys.path.insert(0, {str(Path(model.__file__).parents[1])!r}); "
        "from model.sandbox import Sandbox; box = Sandbox(); "
        f"print(box.read_image(open({str(DATA / 'photo.png')!r}, 'rb').read()).width); box.close()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE
    )
    assert done.stdout.split() == [b"384"]


def test_processes_end_with_their_parent():
    program = (
        "from model.sandbox import Sandbox; import os; box = Sandbox(); "
        f"box.read_image(open({str(DATA / 'photo.png')!r}, 'rb').read()); "
        "print(box._idle[0]._child.pid, flush=True); os._exit(0)"
    )
    pid = int(subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE).stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return  # nobody here to reap it
        time.sleep(0.05)
    raise AssertionError("it lives on")


# ---- what is small and costs much: a right answer or a named error, within the limits


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: bombs.png_of_comments(100),
        lambda: bombs.png_of_profiles(50),
        lambda: bombs.png_of_chunks(20_000),
        lambda: bombs.png_of_raw_profile(16 << 20),
        lambda: bombs.jpeg_of_exif(20_000),
        lambda: bombs.jpeg_of_padding(1 << 20),
        lambda: bombs.gif_of_canvas(65_535, 65_535),
        lambda: bombs.gif_of_frame(65_535, 65_535),
        lambda: bombs.gif_of_comments(50_000),
        lambda: bombs.webp_of_canvas(1 << 24, 255),
        lambda: bombs.webp_of_canvas(16_384, 16_384),
        lambda: bombs.avif_of_lies(3000, 64),
        lambda: bombs.avif_of_lies(64, 16_384),
        lambda: bombs.avif_of_boxes(1_000_000),
        lambda: bombs.tiff_of_tiles(64, 30_000),
        lambda: bombs.tiff_of_strips(50_000),
        lambda: bombs.tiff_of_overlaps(2000, 1 << 20),
        lambda: bombs.tiff_of_rationals(50_000),
        lambda: bombs.bmp_of_runs(300),
        lambda: bombs.ppm_of_numbers(200),
    ],
)
def test_bombs(sandbox, bomb):
    try:
        picture = sandbox.read_image(bomb(), 1 << 20)
    except (CorruptImage, TooManyPixels, UnsupportedImage):
        return
    assert picture.width * picture.height <= 1 << 20
