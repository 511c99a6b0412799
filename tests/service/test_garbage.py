"""What a request needed is given back when it ends, not when the collector of reference circles comes round."""

from __future__ import annotations

import gc
import http.client
import io
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from PIL import Image

from model.container import read_container, write_container
from service.app import create_app
from service.protocol import Protocol
from service.settings import Settings

LARGE = 10_000  # bytes: a circle of the framework's that holds less is its own business


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("garbage") / "store"


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """Of a service in this process, whose memory can be looked into."""
    listener = socket.create_server(("127.0.0.1", 0))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TCM_")]:
            patch.delenv(name)
        app = create_app(Settings(store=folder.as_uri()))
    server = uvicorn.Server(uvicorn.Config(app, http=Protocol, ws="none", log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    number = listener.getsockname()[1]
    while ask(number, "GET", "/readyz")[0] != 200:
        time.sleep(0.1)
    yield number
    server.should_exit = True
    thread.join()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def leave(port: int, body: bytes) -> None:
    """Go as soon as the work has begun."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.1)
    time.sleep(0.3)


def without(folder: Path, work: Callable[[], tuple[int, bytes]]) -> None:
    """While the store is not there."""
    away = folder.rename(folder.with_name("away"))
    status, _ = work()
    away.rename(folder)
    assert status == 503


def circles() -> dict[str, int]:
    """Large things that only the collector can free, and their bytes."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    garbage = list(gc.garbage)
    gc.garbage.clear()
    found: dict[str, int] = {}
    for holder in garbage:
        for held in gc.get_referents(holder):
            size = len(held) if isinstance(held, bytes | bytearray) else getattr(held, "nbytes", 0)
            if isinstance(size, int) and size > LARGE:
                found[f"{type(holder).__name__} holds {type(held).__name__}"] = size
    return found


def test_handlers_need_no_threads(port: int) -> None:
    """A probe that waits for one comes late, or not at all."""
    for path in ("/livez", "/readyz", "/v1/models", "/metrics"):
        assert ask(port, "GET", path)[0] == 200
    assert not [thread.name for thread in threading.enumerate() if "AnyIO" in thread.name]


@pytest.mark.parametrize("what", ["encode", "decode", "refuse", "leave", "no store"])
def test_a_request_leaves_nothing_large_behind(port: int, folder: Path, photo: Image.Image, what: str) -> None:
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    image = buffer.getvalue()
    status, bitstream = ask(port, "POST", "/v1/encode", image)
    assert status == 200
    large = write_container(replace(read_container(bitstream), exif=random.Random(0).randbytes(100_000)))
    work = {
        "encode": lambda: ask(port, "POST", "/v1/encode", image),
        "decode": lambda: ask(port, "POST", "/v1/decode", bitstream),
        "refuse": lambda: ask(port, "POST", "/v1/decode", image),
        "leave": lambda: leave(port, image),
        "no store": lambda: without(folder, lambda: ask(port, "POST", "/v1/bitstreams", large)),
    }[what]
    work()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            work()
        ask(port, "POST", "/v1/encode", image)  # the device remembers the last batch until the next
        time.sleep(0.2)
        assert circles() == {}
    finally:
        gc.enable()
