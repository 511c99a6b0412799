"""API keys as a client meets them: made by `tcm keys`, asked for by the routes, changed while the service runs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from service import keys
from service.keys import Scope
from tests.service.browser import visit
from tests.service.conftest import DATA, Server, assert_problem, start, wait_for

TCM = Path(sys.executable).with_name("tcm")
TINY = "tcm-tiny-mse-0.01"
OPEN = {
    "/livez",
    "/readyz",
    "/startupz",
    "/healthz",
    "/v2/health/live",
    "/v2/health/ready",
    "/problems",
    "/problems/{code}",
}
UNKNOWN = "tcm_00000000_" + "0" * 64


def tcm_keys(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TCM_KEYS_FILE": str(file), "NO_COLOR": "1"}
    return subprocess.run([TCM, "keys", *arguments], env=environment, capture_output=True, text=True, timeout=60)


def make(file: Path, name: str, *scopes: Scope, expires: datetime | None = None) -> str:
    key, entry = keys.new_key(name, frozenset(scopes), expires)
    with keys.edit(file) as entries:
        entries.append(entry)
    return key


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def ours(file: Path) -> dict[str, str]:
    """Keys by what they are good for."""
    made = {scope.value: make(file, scope.value, scope) for scope in Scope}
    return made | {"all": make(file, "all", *Scope), "none": make(file, "none")}


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, tiny_file: Path, file: Path, ours: dict[str, str]
) -> Iterator[Server]:
    """A server that asks for keys, at /metrics too; its client has one that is good for everything."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "models").mkdir()
    (folder / "models" / tiny_file.name).write_bytes(tiny_file.read_bytes())
    running = start(
        folder, model_dir=folder / "models", default_model=TINY, preload="none", keys_file=file, metrics_key=True,
        max_body_bytes="300kB",
    )  # fmt: skip
    running.client.headers["X-API-Key"] = ours["all"]
    yield running
    assert running.stop() == 0


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def without_key(server: Server, method: str, path: str, head: str = "") -> bytes:
    """The first bytes of the answer to a request whose body never comes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        return connection.recv(4096)


def test_every_route_asks_for_a_key_before_it_reads(guarded: Server) -> None:
    paths = guarded.client.get("/openapi.json").json()["paths"]
    waiting = "Content-Length: 1000\r\nExpect: 100-continue\r\n"
    for path, item in paths.items():
        for method, operation in item.items():
            concrete = re.sub(r"\{\w+\}", "0" * 64, path)
            for verb in [method.upper()] + ["HEAD"] * (method == "get"):
                answered = without_key(guarded, verb, concrete, waiting if method == "post" else "")
                if path in OPEN:
                    assert not answered.startswith(b"HTTP/1.1 401"), path
                else:
                    assert answered.startswith(b"HTTP/1.1 401"), (verb, path, answered)
                    assert b"www-authenticate: Bearer" in answered
                    assert path == "/metrics" or operation["security"], path


def test_pages_are_open(guarded: Server) -> None:
    for path in ("/", "/docs", "/openapi.json", "/static/app.js"):
        assert httpx.get(guarded.url + path).status_code == 200


def test_both_headers(guarded: Server, ours: dict[str, str]) -> None:
    for headers in (bearer(ours["none"]), {"Authorization": f"bearer {ours['none']}"}, {"X-API-Key": ours["none"]}):
        assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("key", ["x", UNKNOWN, "tcm_", "é", "a" * 10_000])
def test_keys_that_are_none(guarded: Server, key: str) -> None:
    for headers in ({b"Authorization": b"Bearer " + key.encode()}, {b"X-API-Key": key.encode()}):
        response = httpx.get(f"{guarded.url}/v1/models", headers=headers)
        assert_problem(response, 401, "invalid-key")
        assert 'error="invalid_token"' in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}, {"X-API-Key": ""}]
)
def test_no_key_at_all(guarded: Server, headers: dict[str, str]) -> None:
    response = httpx.get(f"{guarded.url}/v1/models", headers=headers)
    assert_problem(response, 401, "key-required")
    assert response.headers["www-authenticate"] == 'Bearer realm="tcm"'


def test_the_id_alone_is_not_enough(guarded: Server, ours: dict[str, str]) -> None:
    for wrong in (ours["all"][:-1] + "g", ours["all"][:13] + "0" * 64, ours["all"] + "0", ours["all"].upper()):
        assert_problem(httpx.get(f"{guarded.url}/v1/models", headers=bearer(wrong)), 401, "invalid-key")


def test_scopes(guarded: Server, ours: dict[str, str], photo_file: bytes) -> None:
    encoded = httpx.post(f"{guarded.url}/v1/encode", content=photo_file, headers=bearer(ours["encode"]), timeout=60)
    assert encoded.status_code == 200
    decoded = httpx.post(f"{guarded.url}/v1/decode", content=encoded.content, headers=bearer(ours["decode"]))
    assert decoded.status_code == 200
    assert httpx.get(f"{guarded.url}/metrics", headers=bearer(ours["metrics"])).status_code == 200
    for method, path, scope in (
        ("POST", "/v1/encode", "encode"),
        ("POST", "/v1/decode", "decode"),
        ("GET", "/metrics", "metrics"),
    ):
        for other in set(ours) - {scope, "all"}:
            response = httpx.request(method, guarded.url + path, headers=bearer(ours[other]))
            problem = assert_problem(response, 403, "insufficient-scope")
            assert scope in str(problem["detail"])
            assert f'scope="{scope}"' in response.headers["www-authenticate"]


def test_size_goes_before_the_key_and_the_key_before_the_parameters(guarded: Server, ours: dict[str, str]) -> None:
    huge = without_key(guarded, "POST", "/v1/encode", "Content-Length: 400000\r\nExpect: 100-continue\r\n")
    assert huge.startswith(b"HTTP/1.1 413")
    assert_problem(httpx.post(f"{guarded.url}/v1/encode?quality=77"), 401, "key-required")
    assert_problem(
        httpx.post(f"{guarded.url}/v1/encode?quality=77", headers=bearer(ours["encode"])), 422, "invalid-parameter"
    )


def test_who_it_was(guarded: Server, ours: dict[str, str]) -> None:
    before = guarded.metric("tcm_key_requests_total", key="decode")
    httpx.get(f"{guarded.url}/v1/models", headers=bearer(ours["decode"]) | {"X-Request-ID": "who-1"})
    httpx.get(f"{guarded.url}/v1/models", headers=bearer(UNKNOWN) | {"X-Request-ID": "who-2"})
    [line] = guarded.requests("who-1")
    assert (line["key"], line["key_id"]) == ("decode", ours["decode"].split("_")[1])
    assert line["client"] == "127.0.0.1"
    [line] = guarded.requests("who-2")
    assert "key" not in line
    assert line["problem"] == "invalid-key"
    assert guarded.metric("tcm_key_requests_total", key="decode") == before + 1


def test_keys_change_without_a_restart(guarded: Server, file: Path) -> None:
    def status(key: str) -> int:
        return httpx.get(f"{guarded.url}/v1/models", headers=bearer(key)).status_code

    made = tcm_keys(file, "new", "web", "--expires", "30d")
    first = made.stdout.strip()
    assert made.returncode == 0
    assert first not in made.stderr + file.read_text()
    wait_for(lambda: status(first) == 200)
    second = tcm_keys(file, "new", "web").stdout.strip()  # a second of that name, then the first one goes
    wait_for(lambda: status(second) == 200)
    assert tcm_keys(file, "revoke", first.split("_")[1]).returncode == 0
    wait_for(lambda: status(first) == 401)
    assert status(second) == 200
    short = make(file, "short", expires=datetime.now(UTC) + timedelta(seconds=4))
    wait_for(lambda: status(short) == 200)
    wait_for(lambda: status(short) == 401)
    expired = httpx.get(f"{guarded.url}/v1/models", headers=bearer(short))
    told = assert_problem(expired, 401, "invalid-key")
    assert "expired" in str(told["detail"])
    [line] = guarded.requests(str(told["request_id"]))
    assert line["key_id"] in str(told["detail"])  # whose it was can be found


def test_a_broken_file_locks_nobody_out(guarded: Server, file: Path) -> None:
    good = file.read_bytes()
    for damage in (lambda: file.write_bytes(b'{"keys": [{}]}'), file.unlink):
        damage()
        wait_for(lambda: guarded.metric("tcm_keys_last_reload_successful") == 0)
        assert guarded.client.get("/v1/models").status_code == 200
        file.write_bytes(good)
        wait_for(lambda: guarded.metric("tcm_keys_last_reload_successful") == 1)
    away = file.rename(file.with_name("away"))
    os.mkfifo(file)  # reading it would never end
    wait_for(lambda: guarded.metric("tcm_keys_last_reload_successful") == 0)
    away.rename(file)
    wait_for(lambda: guarded.metric("tcm_keys_last_reload_successful") == 1)
    wait_for(lambda: any("keys.json" in str(e.get("reason")) for e in guarded.log()))
    away = file.rename(file.with_name("away"))
    wait_for(lambda: guarded.metric("tcm_keys_last_reload_successful") == 0)
    away.rename(file)  # as it was, to the nanosecond
    wait_for(lambda: guarded.metric("tcm_keys_last_reload_successful") == 1)
    before = file.stat()
    file.write_bytes(good.replace(b'"keys"', b'"kays"', 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time, as `cp -p` leaves it
    wait_for(lambda: guarded.metric("tcm_keys_last_reload_successful") == 0)
    file.write_bytes(good)
    wait_for(lambda: guarded.metric("tcm_keys_last_reload_successful") == 1)


def test_no_secret_in_the_log(guarded: Server, file: Path, ours: dict[str, str], photo_file: bytes) -> None:
    guarded.client.post("/v1/encode", content=photo_file)
    guarded.client.post("/v1/decode", content=photo_file)
    guarded.client.get("/v1/models", params={"key": ours["all"]}, headers={"X-Request-ID": "last-one"})
    assert guarded.requests("last-one")
    told = guarded.log_file.read_text()
    assert UNKNOWN not in told
    for secret in ours.values():
        assert secret.split("_")[2] not in told
    assert not any(entry.sha256 in told for entry in keys.read(file))


def test_the_schemes_are_described_where_they_apply(guarded: Server, server: Server) -> None:
    described = guarded.client.get("/openapi.json").json()
    schemes = described["components"]["securitySchemes"]
    assert {(s["type"], s.get("scheme"), s.get("name")) for s in schemes.values()} == {
        ("http", "bearer", None),
        ("apiKey", None, "X-API-Key"),
    }
    encode = described["paths"]["/v1/encode"]["post"]["security"]
    assert {name for alternative in encode for name in alternative} == set(schemes)
    assert len(encode) == 2  # either will do
    metrics = described["paths"]["/metrics"]["get"]["security"]
    assert {name for alternative in metrics for name in alternative} == set(schemes)
    open_to_all = server.client.get("/openapi.json").json()
    assert "securitySchemes" not in open_to_all["components"]
    assert "security" not in open_to_all["paths"]["/v1/encode"]["post"] | open_to_all["paths"]["/metrics"]["get"]
    assert server.client.get("/v1/models", headers=bearer("anything")).status_code == 200


def test_the_list(file: Path, ours: dict[str, str]) -> None:
    listed = json.loads(tcm_keys(file, "ls", "--json").stdout)
    [row] = [row for row in listed if row["name"] == "all"]
    assert row["id"] in ours["all"]
    assert row["scopes"] == sorted(Scope)
    assert "sha256" not in row
    assert row["id"] in tcm_keys(file, "ls").stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["new", "a b"], "a b"),
        (["new", "web", "--expires", "2020-01-01"], "past"),
        (["new", "web", "--expires", "soon"], "90d"),
        (["revoke", "nobody"], "nobody"),
    ],
)
def test_wrong_use(file: Path, ours: dict[str, str], arguments: list[str], named: str) -> None:
    before = file.read_bytes()
    result = tcm_keys(file, *arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert named in result.stderr
    assert file.read_bytes() == before


def test_the_file_is_private_and_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "keys.json"
    make(file, "a")
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    make(file, "b")
    assert file.stat().st_mode & 0o777 == 0o640
    assert [key.name for key in keys.read(file)] == ["a", "b"]
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    """Found by trying: what was revoked through a link was revoked in a copy, and good for ever where it counts."""
    file, link = tmp_path / "real" / "keys.json", tmp_path / "link.json"
    make(file, "web")
    link.symlink_to(file)
    assert tcm_keys(link, "revoke", "web").returncode == 0
    assert keys.read(file) == []
    assert link.is_symlink()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_key_that_nobody_sees_is_none(tmp_path: Path, unbuffered: str) -> None:
    """Found by trying: it was valid, and unknown to all."""
    file = tmp_path / "keys.json"
    environment = {**os.environ, "TCM_KEYS_FILE": str(file), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [TCM, "keys", "new", "web"], env=environment, stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (result.returncode, len(result.stderr.splitlines())) == (6, 1), result.stderr
    assert not file.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_file_stays_its_owners(tmp_path: Path) -> None:
    """Found by reading: what root revoked, the service could no longer read, and so went on accepting."""
    file = tmp_path / "keys.json"
    make(file, "a")
    os.chown(file, 10001, 10002)
    tcm_keys(file, "revoke", "a")
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (10001, 10002, 0o600)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"keys": [1]}', b"\xff"])
def test_files_that_are_none(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(damage)
    with pytest.raises(ValueError, match=r"keys\.json is no file of keys"):
        keys.read(file)


def test_a_list_of_keys_that_another_would_replace(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    make(file, "a")
    file.write_text(file.read_text().rstrip().removesuffix("}") + ', "keys": []}')
    with pytest.raises(ValueError, match="'keys' is given twice"):
        keys.read(file)


def test_two_keys_with_one_id(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    make(file, "a")
    twice = json.loads(file.read_text())
    twice["keys"] *= 2
    file.write_text(json.dumps(twice))
    with pytest.raises(ValueError, match="one id"):
        keys.read(file)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"TCM_KEYS_FILE": "/nowhere/keys.json"}, "/nowhere/keys.json"), ({"TCM_METRICS_KEY": "1"}, "TCM_KEYS_FILE")],
)
def test_it_does_not_start_without_its_keys(settings: dict[str, str], named: str) -> None:
    """Rather than start open."""
    result = subprocess.run(
        [sys.executable, "-m", "service", "--port", "0", "--device", "cpu"],
        env=os.environ | settings, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert result.returncode == 2
    assert named in result.stderr


def test_the_page_asks_for_a_key(guarded: Server, ours: dict[str, str]) -> None:
    with visit(guarded.url + "/") as seen:
        page = seen.page
        page.wait_for_selector("#locked:not([hidden])")
        page.fill("#key", ours["all"])
        page.dispatch_event("#key", "change")
        page.wait_for_selector("#model option", state="attached")
        photo = {"name": "p.png", "mimeType": "image/png", "buffer": (DATA / "photo.png").read_bytes()}
        page.set_input_files("#file", photo)
        page.locator("#psnr", has_text="dB").wait_for(timeout=60_000)
        assert seen.elsewhere(guarded.url) == []
