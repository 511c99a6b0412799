"""`tcm store`, as an operator runs it beside the service."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.container import Container, write_container
from service import durations
from service.commands import store as store_command
from service.store.files import Files
from service.store.medium import Meta, identify, place

SCRIPT = "from model.cli import main; main()"


def tcm_store(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TCM_")} | variables
    command = [sys.executable, "-c", SCRIPT, "store", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Four bitstreams: two days old, two hours old, damaged, and sound bytes that are no bitstream."""
    files = Files(tmp_path)
    container = Container("tcm-xs-mse-0.013", "0123456789ab", 64, 64, b"payload")
    kinds = [write_container(container), write_container(container.__class__(**vars(container) | {"xmp": b"<x/>"}))]
    kinds += [write_container(container.__class__(**vars(container) | {"grey": True})), b"no bitstream"]
    for data in kinds:
        files.write(identify(data), data)
    old, recent, damaged = (tmp_path / place(identify(data)) for data in kinds[:3])
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    os.utime(recent, (time.time() - 7200,) * 2)
    damaged.write_bytes(kinds[2][:-1] + b"!")
    part = old.with_name(f".{old.stem}.0123456789abcdef.part")
    part.write_bytes(b"half")
    return tmp_path


def test_ls(store: Path) -> None:
    result = tcm_store("ls", "--json", TCM_STORE=store.as_uri(), TCM_STORE_TTL="1d")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["id"] for row in rows] == sorted(path.stem for path in store.rglob("*.tcm") if path.stem[0] != ".")
    assert set(rows[0]) == {"id", "bytes", "stored", "expires"}
    far = tcm_store("ls", "--json", "--ttl", "999999999w", TCM_STORE=store.as_uri())
    assert [json.loads(line)["expires"] for line in far.stdout.splitlines()] == [None] * 4
    shown = tcm_store("ls", "--store", store.as_uri(), "--ttl", "1d")
    assert shown.returncode == 0
    assert all(row["id"] in shown.stdout for row in rows)
    assert "no more" in shown.stdout
    assert "22h more" in shown.stdout
    assert "4 bitstreams" in shown.stderr


def test_ls_of_a_time_that_no_calendar_has(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Files, "entries", lambda _: iter([Meta("0" * 64, 1, 3e11), Meta("1" * 64, 1, 0.0)]))
    result = CliRunner().invoke(store_command.app, ["ls", "--store", store.as_uri()], catch_exceptions=False)
    assert result.exit_code == 0
    assert re.search("0{64} +1 +[?] ", result.output)
    assert "1970-01-01 00:00" in result.output


def test_verify(store: Path) -> None:
    result = tcm_store("verify", "--json", "--store", store.as_uri())
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert found["bitstreams"] == 4
    reasons = {one["id"]: one["reason"] for one in found["damaged"]}
    assert len(reasons) == 2
    assert "no readable bitstream" in reasons[identify(b"no bitstream")]
    shown = tcm_store("verify", "--store", store.as_uri())
    assert shown.returncode == 1
    assert all(name in shown.stdout for name in reasons)
    assert "2 damaged" in shown.stderr
    for name in reasons:
        Files(store).delete(name)
    assert tcm_store("verify", "--store", store.as_uri()).returncode == 0


def test_a_disk_that_cannot_read_one_hides_none_of_the_others(store: Path) -> None:
    """Found by reading: `verify` ended with the first error, and told of no damage that it had found."""
    names = sorted(path.stem for path in store.rglob("*.tcm") if path.stem[0] != ".")
    script = (
        "import os, errno; from service.store.files import Files; read = Files.read\n"
        "def failing(self, digest):\n"
        f"    if digest == {names[1]!r}: raise OSError(errno.EIO, os.strerror(errno.EIO))\n"
        "    return read(self, digest)\n"
        f"Files.read = failing; {SCRIPT}"
    )
    command = [sys.executable, "-c", script, "store", "verify", "--json", "--store", store.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    found = json.loads(result.stdout)
    reasons = {one["id"]: one["reason"] for one in found["damaged"]}
    assert "Input/output error" in reasons[names[1]]
    assert found["bitstreams"] == 3
    assert len(reasons) >= 2


def test_what_cannot_be_looked_at_is_not_sound(store: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`verify` saw nothing in folders of another user's, nor in one where a disk is to be mounted: none damaged."""
    empty = tmp_path_factory.mktemp("mount")
    for command in ("ls", "verify", "gc"):
        result = tcm_store(command, "--store", empty.as_uri())
        assert (result.returncode, "is it mounted?" in result.stderr) == (6, True), result.stderr
    (empty / ".tcm-store").touch()  # a service has
    assert tcm_store("verify", "--store", empty.as_uri()).returncode == 0
    caps = "-dac_override,-dac_read_search"
    without = [shutil.which("setpriv") or "false", f"--bounding-set={caps}", f"--inh-caps={caps}"]
    if os.geteuid() != 0 or subprocess.run([*without, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root's rights, to do without them")
    for folder in store.iterdir():
        folder.chmod(0o700)
        os.chown(folder, 65_534, 65_534)
    store.parent.chmod(0o755)
    for command in ("ls", "verify", "gc"):
        asked = [*without, sys.executable, "-c", SCRIPT, "store", command]
        told = subprocess.run(
            [*asked, "--store", store.as_uri()], capture_output=True, text=True, timeout=60, check=False
        )
        assert (told.returncode, "Permission denied" in told.stderr) == (6, True), told.stderr


def test_gc(store: Path) -> None:
    before = {path.name for path in store.rglob("*") if path.is_file()}
    dry = json.loads(tcm_store("gc", "--dry-run", "--json", "--ttl", "1d", "--store", store.as_uri()).stdout)
    assert {path.name for path in store.rglob("*") if path.is_file()} == before
    done = json.loads(tcm_store("gc", "--json", "--ttl", "1d", "--store", store.as_uri()).stdout)
    assert done["removed"] == dry["removed"]
    [gone] = done["removed"]
    assert {path.name for path in store.rglob("*") if path.is_file()} == before - {f"{gone}.tcm"}  # a part is young
    again = tcm_store("gc", "--store", store.as_uri(), "--ttl", "1d")
    assert again.returncode == 0
    assert "0 bitstreams" in again.stderr
    kept = tcm_store("gc", "--store", store.as_uri())
    assert "for ever" in kept.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "named"),
    [
        (["ls"], {"TCM_STORE": "none"}, 2, "TCM_STORE"),
        (["ls"], {"TCM_STORE": "/data"}, 2, "file:///absolute/folder"),
        (["ls"], {"TCM_STORE": "file:///nowhere/store"}, 6, "/nowhere/store"),
        (["gc", "--ttl", "soon"], {"TCM_STORE": "file:///tmp"}, 2, "30d"),
        (["sign", "0" * 64], {}, 2, "signing key"),
        (["sign", "short"], {"TCM_SIGNING_KEYS": "a:" + "s" * 32}, 2, "64 hexadecimal"),
        (["sign", "0" * 64, "--base", "x.org"], {"TCM_SIGNING_KEYS": "a:" + "s" * 32}, 2, "https://"),
        (["sign", "0" * 64, "--key", "b"], {"TCM_SIGNING_KEYS": "a:" + "s" * 32}, 2, "'b'"),
        (["ls"], {"TCM_STORE": "s3://b", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 6, "s3://b"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], variables: dict[str, str], code: int, named: str) -> None:
    access = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    result = tcm_store(*arguments, **access, **variables)
    assert result.returncode == code, result.stderr
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000), (" 2 W ", 1_209_600)],
)
def test_durations(text: str, seconds: int) -> None:
    assert durations.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "30", "0d", "-1d", "1y", "1.5h", "d", "9" * 10, "soon"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="30d"):
        durations.parse(text)
