"""The `tcm` program as a script uses it: files, pipes, exit codes and one-line errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

import model
from model import errors
from model.checkpoint import save
from model.commands import coding
from model.commands.common import exit_code
from model.container import Container, write_container
from model.info import read_info
from model.pixels import read_image
from tests.conftest import DATA, make_tiny, psnr

TCM = Path(sys.executable).with_name("tcm")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def tcm(tmp_path):
    def run(*arguments, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "TCM_MODEL_DIR": str(tmp_path / "models"), "NO_COLOR": "1", "COLUMNS": "200"}
        return subprocess.run(
            [TCM, *map(str, arguments)], input=stdin, capture_output=True, cwd=tmp_path, env=environment, timeout=120
        )

    return run


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    lines = result.stderr.decode().strip().splitlines()
    assert len(lines) == 1, result.stderr.decode()
    return lines[0]


def test_there_and_back(tcm, tmp_path, photo):
    assert tcm("encode", DATA / "photo.png", "p.tcm").returncode == 0
    assert tcm("decode", "p.tcm", "back.png").returncode == 0
    assert psnr(Image.open(tmp_path / "back.png"), photo) > 24
    told = json.loads(tcm("info", "--json", "p.tcm").stdout)
    assert (told["model"], told["width"], told["height"]) == ("tcm-xs-mse-0.013", 384, 256)
    assert told["bytes"] == (tmp_path / "p.tcm").stat().st_size
    assert b"384" in tcm("info", "p.tcm").stdout


@pytest.mark.parametrize("name", ["[/x]", "[link=http://evil/]tcm-xs-mse-0.013", "[bold]x[/]", ":smile:", "a\\[b]"])
def test_what_files_and_paths_are_called_is_printed_as_it_is(tcm, tmp_path, name):
    """Found by reading: brackets were styles. One name was a traceback, another a link under a genuine one."""
    path = "photo [final] :smile:.tcm"
    (tmp_path / path).write_bytes(write_container(Container(name, "00" * 6, 64, 64, b"payload")))
    told = dict(line.split(maxsplit=1) for line in tcm("info", path).stdout.decode().splitlines())
    assert (told["model"].strip(), told["file"].strip()) == (name, path)


def test_what_is_told_of_them_is_so_too(tcm, tmp_path):
    name, path, folder = "[/x] :smile:", "photo [final].tcm", "models [old]"
    (tmp_path / path).write_bytes(write_container(Container(name, "00" * 6, 64, 64, b"payload")))
    result = tcm("decode", path, "x.png")
    assert f"{path}: incompatible-model: needs model {name!r} " in one_line(result)
    torch.save(make_tiny().state_dict(), tmp_path / "c.pth")
    result = tcm("import", "c.pth", "--name=tcm-tiny-mse-0.01", f"--model-dir={folder}")
    assert one_line(result).endswith(f"-> {folder}/tcm-tiny-mse-0.01.safetensors")


def test_models_are_checked(tcm, tmp_path, tiny_file):
    """The list is of what files say of themselves: one whose weights were damaged looked like any other."""
    folder = tmp_path / "models"
    folder.mkdir()
    assert b"files are whole" in tcm("models", "--check").stderr
    data = bytearray(tiny_file.read_bytes())
    data[-1000] ^= 1
    (folder / "tiny.safetensors").write_bytes(data)
    assert tcm("models").returncode == 0
    result = tcm("models", "--check", "--json")
    assert result.returncode == 5
    assert b"tiny.safetensors: damaged: its tensors are not those" in result.stderr
    assert any(row["path"].endswith("tiny.safetensors") for row in json.loads(result.stdout))
    data[-1000] ^= 1
    (folder / "tiny.safetensors").write_bytes(data)
    save(make_tiny(5), folder / "other.safetensors", name=read_info(tiny_file).name, lmbda=0.01, metric="mse")
    two = tcm("models", "--check")  # of one name, and both are whole
    assert (two.returncode, b"is for its files only" in two.stderr) == (0, True)
    (folder / "tiny.safetensors").write_bytes(data[:1000])
    assert tcm("models", "--check").returncode == 5


def test_a_mistyped_folder_of_models_is_said(tcm, tmp_path):
    """It was taken for an empty one: photographs became files of embedded models without a word."""
    (tmp_path / "file").write_bytes(b"")
    for command in (["models"], ["encode", DATA / "photo.png", "p.tcm"], ["decode", "p.tcm", "p.png"]):
        for folder in ("modles", "file"):
            result = tcm(*command, "--model-dir", folder)
            assert (result.returncode, f"{folder}: there is no such folder" in result.stderr.decode()) == (2, True)
    assert not (tmp_path / "p.tcm").exists()
    assert tcm("models").returncode == 0  # the variable's may be one that `tcm import` is yet to make


def test_pipes(tcm, photo, tmp_path):
    encoded = tcm("encode", "--quality", "2", "-", "-", stdin=(DATA / "photo.png").read_bytes())
    assert encoded.returncode == 0
    assert json.loads(tcm("info", "--json", "-", stdin=encoded.stdout).stdout)["model"] == "tcm-xs-mse-0.0035"
    decoded = tcm("decode", "--format", "webp", "-", "-", stdin=encoded.stdout)
    (tmp_path / "x.webp").write_bytes(decoded.stdout)
    assert Image.open(tmp_path / "x.webp").size == photo.size


def test_what_is_no_file_is_written_to_as_it_is(tcm, tmp_path):
    """Found by reading: a device or a pipe was replaced by a file, and a link by another file."""
    (tmp_path / "there.tcm").write_bytes(b"old")
    (tmp_path / "link.tcm").symlink_to("there.tcm")
    assert tcm("encode", DATA / "photo.png", "link.tcm").returncode == 0
    assert (tmp_path / "link.tcm").is_symlink()
    data = (tmp_path / "there.tcm").read_bytes()
    assert len(data) > 1000
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as thread:
        read = thread.submit((tmp_path / "pipe").read_bytes)
        assert tcm("encode", DATA / "photo.png", "pipe").returncode == 0
        assert read.result() == data
    assert (tmp_path / "pipe").is_fifo()
    assert tcm("encode", DATA / "photo.png", "/dev/stdout").stdout == data
    assert not list(tmp_path.glob("*.part"))


def test_many_files_and_one_bad_among_them(tcm, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "out").mkdir()
    result = tcm("encode", DATA / "photo.png", "bad.png", DATA / "sea.jpg", "out")
    assert result.returncode == 3
    assert b"bad.png: unsupported-image" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo.tcm", "sea.tcm"]
    result = tcm("decode", "out/photo.tcm", "out/sea.tcm", "--format", "jpeg", "out")
    assert result.returncode == 0
    assert Image.open(tmp_path / "out" / "sea.jpeg").size == (320, 213)


def test_no_original_is_lost(tcm, tmp_path):
    """Found by trying: the photograph was replaced by what was made of it, and nothing was said."""
    original = (DATA / "photo.png").read_bytes()
    (tmp_path / "photo.png").write_bytes(original)
    (tmp_path / "link.png").symlink_to("photo.png")
    result = tcm("encode", "photo.png", "link.png")
    assert result.returncode == 6
    assert "written over" in one_line(result)
    assert tcm("encode", "photo.png", ".").returncode == 0
    result = tcm("decode", "photo.tcm", ".")
    assert result.returncode == 6
    assert "photo.png is there already" in one_line(result)
    assert (tmp_path / "photo.png").read_bytes() == original
    assert tcm("decode", "photo.tcm", ".", "--force").returncode == 0
    assert (tmp_path / "photo.png").read_bytes() != original


def test_a_pattern_without_its_folder_loses_no_photograph(tcm, tmp_path):
    """Found by trying: `tcm encode *.png` of two files made the second one a bitstream."""
    original = (DATA / "photo.png").read_bytes()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(original)
    result = tcm("encode", "a.png", "b.png")
    assert result.returncode == 6
    assert "b.png is there already, and no .tcm file" in one_line(result)
    assert (tmp_path / "b.png").read_bytes() == original
    assert tcm("encode", "a.png", "b.png", "--force").returncode == 0
    assert tcm("encode", "a.png", "b.png").returncode == 0  # a bitstream, whatever it is called
    assert not (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_pattern_without_its_folder_loses_no_bitstream(tcm, tmp_path):
    """Found by trying: `tcm decode *.tcm` of two files made the second one a picture."""
    original = (GOLDEN / "tcm-xs-mse-0.05.odd.tcm").read_bytes()
    for name in ("a.tcm", "b.tcm"):
        (tmp_path / name).write_bytes(original)
    result = tcm("decode", "--format", "png", "a.tcm", "b.tcm")
    assert result.returncode == 6
    assert "b.tcm is there already, and a .tcm file" in one_line(result)
    assert (tmp_path / "b.tcm").read_bytes() == original
    assert tcm("decode", "--format", "png", "a.tcm", "b.tcm", "--force").returncode == 0
    assert tcm("decode", "--format", "png", "a.tcm", "b.tcm").returncode == 0  # a picture, whatever it is called


def test_links_that_lead_nowhere(tcm, tmp_path):
    """Found by trying: a loop of links was a traceback, and ended the work on all other files."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.tcm").symlink_to("loop")
    (tmp_path / "out" / "loop").symlink_to("photo.tcm")
    (tmp_path / "out" / "sea.tcm").symlink_to("/nowhere/sea.tcm")
    result = tcm("encode", DATA / "sea.jpg", DATA / "photo.png", "out")
    assert result.returncode == 6
    assert "out/sea.tcm is a link to /nowhere/sea.tcm" in one_line(result)
    assert (tmp_path / "out" / "photo.tcm").stat().st_size > 1000


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(tmp_path, closed):
    """Found by trying: what printed nothing failed for want of somewhere to print it."""
    program = f'exec "$0" encode "$1" x.tcm {closed}'
    assert subprocess.run(["sh", "-c", program, TCM, DATA / "photo.png"], cwd=tmp_path, timeout=60).returncode == 0
    assert (tmp_path / "x.tcm").stat().st_size > 1000


@pytest.mark.parametrize("arguments", [("encode", DATA / "photo.png", "-"), ("models", "--json"), ("encode", "--help")])
def test_what_is_asked_for_on_a_closed_stream_fails(arguments):
    command = ["sh", "-c", 'exec "$@" >&-', "sh", TCM, *arguments]
    result = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    assert result.returncode == 6
    assert "Bad file descriptor" in one_line(result)


def test_memory_that_runs_out_costs_no_other_file(tcm, tmp_path, monkeypatch, capsys):
    """Found by trying: it was a traceback, and the next file was not looked at."""
    (tmp_path / "out").mkdir()

    def read(data: bytes, *_, **__):
        if data.startswith(b"\x89PNG"):
            raise MemoryError
        return read_image(data)

    monkeypatch.setattr("model.pixels.read_image", read)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which the command lifts
    files = [str(DATA / "photo.png"), str(DATA / "sea.jpg")]
    with pytest.raises(typer.Exit) as ended:
        coding.encode([*files, str(tmp_path / "out")])
    assert ended.value.exit_code == 7
    assert "photo.png: not enough memory\n" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sea.tcm"]


def test_a_name_that_says_another_lambda_is_refused(tcm, tmp_path):
    """Found by trying: the file was then refused under its own name."""
    torch.save(make_tiny().state_dict(), tmp_path / "c.pt")
    result = tcm("import", "c.pt", "--name", "tcm-tiny-mse-0.02", "--lmbda", "0.05")
    assert result.returncode == 2
    assert "tcm-tiny-mse-0.02 says λ=0.02 for mse, not λ=0.05" in one_line(result)


def test_what_was_private_stays_so(tcm, tmp_path):
    (tmp_path / "a.tcm").touch(0o600)
    assert tcm("encode", DATA / "photo.png", "a.tcm").returncode == 0
    assert (tmp_path / "a.tcm").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a.tcm").stat().st_size > 100


def test_a_folder_that_is_not_there_is_no_file(tcm, tmp_path):
    result = tcm("encode", DATA / "photo.png", "compressed/")
    assert result.returncode == 2
    assert b"make it first" in result.stderr
    assert not (tmp_path / "compressed").exists()
    result = tcm("encode", DATA / "photo.png", "compressed/photo.tcm")
    assert result.returncode == 2
    assert b"make it first" in result.stderr


@pytest.mark.parametrize(("name", "file_format"), [("jpg", "JPEG"), ("TIF", "TIFF")])
def test_formats_by_the_names_that_people_use(tcm, tmp_path, name, file_format):
    assert tcm("decode", "--format", name, GOLDEN / "tcm-xs-mse-0.05.odd.tcm", "back").returncode == 0
    assert Image.open(tmp_path / "back").format == file_format


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("models",),
        ("models", "--json"),
        ("info", GOLDEN / "tcm-xs-mse-0.05.rgb.tcm"),
        ("info", "--json", GOLDEN / "tcm-xs-mse-0.05.rgb.tcm"),
        ("encode", DATA / "photo.png", "-"),
        ("store", "verify", "--json"),
        ("store", "ls"),
    ],
)
def test_output_that_nobody_takes_is_one_line(arguments, unbuffered, tmp_path):
    """Found by trying: exit code 120 and an exception ignored, or a traceback and the code of a damaged store."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "TCM_STORE": f"file://{tmp_path}"}
    reader, closed = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("wb") as full, os.fdopen(closed, "wb") as pipe:
        for taker in (full, pipe):
            result = subprocess.run(
                [TCM, *arguments], stdout=taker, stderr=subprocess.PIPE, timeout=60, env=environment
            )
            assert result.returncode == 6, result.stderr
            assert len([line for line in result.stderr.splitlines() if line.startswith(b"tcm: ")]) == 1, result.stderr
            assert b"Exception" not in result.stderr


def test_help_that_nobody_takes_is_one_line():
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run([TCM, "encode", "--help"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert result.returncode == 6
    assert one_line(result) == "tcm: [Errno 28] No space left on device"


def test_a_damaged_model_of_ours_is_not_given_another_fingerprint(tcm, tmp_path):
    """Found by trying: it became the default model."""
    weights = Path(model.__file__).parent / "weights" / "tcm-xs-mse-0.013.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "d.safetensors").write_bytes(damaged)
    result = tcm("import", "d.safetensors", "--name", "tcm-xs-mse-0.013")
    assert result.returncode == 5
    assert "fingerprint" in one_line(result)
    assert not (tmp_path / "models").exists()


def test_a_model_that_is_not_here_is_told_how_to_get(tcm, tmp_path):
    (tmp_path / "x.tcm").write_bytes(write_container(Container("tcm-s-mse-0.013", "00" * 6, 64, 64, b"payload")))
    assert "`tcm pull tcm-s-mse-0.013`" in one_line(tcm("decode", "x.tcm", "x.png"))
    result = tcm("encode", "--model", "tcm-s-mse-0.05", DATA / "sea.jpg", "y.tcm")
    assert "`tcm pull tcm-s-mse-0.05`" in one_line(result)


def test_two_files_of_one_name_are_reported(tcm, tmp_path):
    (tmp_path / "models").mkdir()
    for seed in (0, 1):
        net = make_tiny()
        with torch.no_grad():
            next(net.parameters()).add_(seed)
        save(net, tmp_path / "models" / f"{seed}.safetensors", name="tcm-tiny", lmbda=0.01, metric="mse")
    told = one_line(tcm("models"))
    assert "1.safetensors" in told
    assert "0.safetensors" in told


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("encode", "absent.png", "x.tcm"), 6, "absent.png"),
        (("encode", "text", "x.tcm"), 3, "unsupported-image"),
        (("encode", "--max-pixels", "10", DATA / "photo.png", "x.tcm"), 3, "too-many-pixels"),
        (("encode", "--model", "nothing", DATA / "photo.png", "x.tcm"), 5, "unknown-model"),
        (("encode", "--device", "quantum", DATA / "photo.png", "x.tcm"), 2, "no device"),
        (("encode", "--device", "mps", DATA / "photo.png", "x.tcm"), 2, "no device"),
        (("bench", "--json", "nowhere/x.json"), 6, "no such folder"),
        (("decode", "text", "x.png"), 4, "unsupported-bitstream"),
        (("decode", "damaged.tcm", "x.png"), 4, "corrupt-bitstream"),
        (("import", "text", "--name", "tcm-s-mse-0.013"), 5, "checkpoint-unreadable"),
        (("pull", "tcm-s-mse-9"), 5, "unknown-model"),
    ],
)
def test_errors_are_one_line_with_a_code_of_their_own(tcm, tmp_path, arguments, code, says):
    (tmp_path / "text").write_text("not what it should be")
    (tmp_path / "damaged.tcm").write_bytes(b"\x89TC\x01" + bytes(50))
    result = tcm(*arguments)
    assert result.returncode == code
    assert says in one_line(result)
    assert not (tmp_path / "x.tcm").exists()
    assert not (tmp_path / "x.png").exists()


def test_every_named_error_has_an_exit_code():
    """Found by reading: a lost device was 1, as several different failures are."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ModelError)]
    unnamed = [kind for kind in kinds if exit_code(kind("x")) == 1]
    assert unnamed == [errors.ModelError]


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "a.png"),
        ("encode", "a.png", "b.png", "not-a-folder"),
        ("encode", "--model", "m", "--quality", "3", "a", "b"),
        ("encode", "--quality", "7", "a", "b"),
        ("encode", "--metadata", "some", "a", "b"),
        ("import", "x.pth", "--name", "mine"),
        ("nonsense",),
    ],
)
def test_wrong_use_is_exit_code_2(tcm, arguments):
    assert tcm(*arguments).returncode == 2


def test_a_format_that_cannot_be_written(tcm, tmp_path):
    assert tcm("encode", DATA / "photo.png", "p.tcm").returncode == 0
    result = tcm("decode", "p.tcm", "back.xyz")
    assert result.returncode == 6
    assert "output-limit" in one_line(result)


def test_import_then_use(tcm, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in make_tiny().state_dict().items()}}, tmp_path / "c.pth.tar")
    result = tcm("import", "c.pth.tar", "--name", "tcm-tiny-mse-0.01")
    assert result.returncode == 0, result.stderr
    assert "λ=0.01" in one_line(result)
    assert tcm("import", "c.pth.tar", "--name", "tcm-tiny-mse-0.01").returncode == 6
    assert tcm("import", "c.pth.tar", "--name", "tcm-tiny-mse-0.01", "--force", "--half").returncode == 0
    listed = {row["name"]: row for row in json.loads(tcm("models", "--json").stdout)}
    assert listed["tcm-tiny-mse-0.01"]["lambda"] == 0.01
    assert listed["tcm-xs-mse-0.013"]["default"] is True
    assert b"tcm-tiny-mse-0.01" in tcm("models").stdout
    assert tcm("encode", "--model", "tcm-tiny-mse-0.01", DATA / "photo.png", "p.tcm").returncode == 0
    assert tcm("decode", "p.tcm", "p.png").returncode == 0
    (tmp_path / "models" / "tcm-tiny-mse-0.01.safetensors").unlink()
    result = tcm("decode", "p.tcm", "q.png")
    assert result.returncode == 5
    assert "needs model 'tcm-tiny-mse-0.01'" in one_line(result)


def test_a_model_of_ours_is_imported_as_it_is(tcm, tmp_path):
    """Found by reading: its rounding was lost, so that the copy wrote other files, under other weights."""
    embedded = Path(model.__file__).parent / "weights" / "tcm-xs-mse-0.013.safetensors"
    assert tcm("import", embedded, "--name", "tcm-ours-mse-0.013").returncode == 0
    ours, theirs = read_info(tmp_path / "models" / "tcm-ours-mse-0.013.safetensors"), read_info(embedded)
    assert (ours.fingerprint, ours.rounding) == (theirs.fingerprint, theirs.rounding)
    result = tcm("import", embedded, "--name", "tcm-xs-mse-0.05")
    assert result.returncode == 2
    assert "is a model of λ=0.013 for mse" in one_line(result)


@pytest.mark.parametrize(
    "code",
    [
        "import model.zoo; model.zoo.Zoo()",
        "from model.cli import main; sys.argv = ['tcm', 'models']; main()",
        "from model.cli import main; sys.argv = ['tcm', 'info', sys.argv[1]]; main()",
        "from model.cli import main; sys.argv = ['tcm', '--help']; main()",
    ],
)
def test_what_reads_headers_needs_no_torch(code):
    """Measured: a list of three models took 5.4 s with torch and takes 0.3 s without."""
    file = GOLDEN / "tcm-xs-mse-0.0035.rgb.tcm"
    without = f"import sys; sys.modules['torch'] = None; {code}"  # an import of it is an error
    result = subprocess.run([sys.executable, "-c", without, file], capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr.decode()


def test_help_names_every_command(tcm):
    result = tcm("--help")
    assert result.returncode == 0
    for command in ("encode", "decode", "info", "models", "import", "pull", "serve"):
        assert command.encode() in result.stdout


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")],
)
@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP")
def test_threads_wait_as_they_are_told(tmp_path, chosen, expected):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | chosen
    result = subprocess.run(
        [TCM, "decode", GOLDEN / "tcm-xs-mse-0.013.one-pixel.tcm", tmp_path / "back.png"],
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert re.search(r"GOMP_SPINCOUNT = '(\d+)'", result.stderr)[1] == expected
