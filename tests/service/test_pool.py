"""Models are loaded when first asked for, once, and leave when the budget needs their room."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model import Zoo
from model.checkpoint import save
from model.codec import Codec
from model.container import read_container
from model.errors import DeviceLost
from model.pixels import from_pil, to_pil
from service.metrics import Metrics
from service.pool import Pool
from service.watchdog import Watchdog
from tests.conftest import make_tiny, psnr
from tests.golden.files import FOLDER, INDEX
from tests.golden.kinds import KINDS
from tests.service.conftest import BUDGET_FOR_TWO, MODEL, Server, assert_problem, open_image, start

A, B, C = "tcm-xs-mse-0.0035", "tcm-xs-mse-0.013", "tcm-xs-mse-0.05"


def loaded(server: Server) -> set[str]:
    return {m["name"] for m in server.client.get("/v1/models").json()["models"] if m["loaded"]}


def encode(server: Server, model: str, photo_file: bytes) -> int:
    return server.client.post("/v1/encode", params={"model": model}, content=photo_file).status_code


def test_load_on_first_use_and_eviction(tight: Server, photo_file: bytes) -> None:
    loads = tight.metric("tcm_model_load_duration_seconds_count")
    with ThreadPoolExecutor(3) as clients:  # who ask at once share one load
        assert list(clients.map(lambda _: encode(tight, A, photo_file), range(3))) == [200] * 3
    assert tight.metric("tcm_model_load_duration_seconds_count") == loads + 1
    assert encode(tight, B, photo_file) == 200
    assert {A, B} <= loaded(tight)
    assert encode(tight, A, photo_file) == 200  # so that B is the one least recently used
    assert encode(tight, C, photo_file) == 200
    assert loaded(tight) >= {A, C}
    assert B not in loaded(tight)
    assert len({A, B, C} & loaded(tight)) == 2
    assert tight.metric("tcm_model_evictions_total", model=B) == 1
    assert tight.metric("tcm_device_memory_bytes") <= BUDGET_FOR_TWO
    assert tight.metric("tcm_models_loaded") == len(loaded(tight))
    assert encode(tight, B, photo_file) == 200  # and it comes back


def test_a_file_names_the_model_that_was_asked_for(tmp_path: Path, photo_file: bytes) -> None:
    """Of one set of weights by two names, the one that was asked for first was in every file."""
    for name in ("tiny-a", "tiny-b"):
        save(make_tiny(), tmp_path / f"{name}.safetensors", name=name, lmbda=0.01, metric="mse")
    save(make_tiny(), tmp_path / "c.safetensors", name="by-rate", lmbda=0.01, metric="mse", rounding=8.66)
    server = start(tmp_path, model_dir=tmp_path, preload="none")
    for name in ("tiny-b", "tiny-a"):
        answer = server.client.post("/v1/encode", params={"model": name}, content=photo_file)
        assert (answer.headers["tcm-model"], read_container(answer.content).model) == (name, name)
    assert server.metric("tcm_models_loaded") == 1
    other = server.client.post("/v1/encode", params={"model": "by-rate"}, content=photo_file)
    assert len(other.content) < len(answer.content)  # the same weights, but each symbol the cheapest
    assert server.stop() == 0


def test_the_memory_of_a_model_counts_what_its_first_picture_adds(tmp_path: Path, photo_file: bytes) -> None:
    """Without a warm-up, residents counted for about half of what they take, and the budget was passed for good."""
    server = start(tmp_path, warm_up="none")
    try:
        server.client.post("/v1/encode", content=photo_file).raise_for_status()
        warm = Codec.load(MODEL, "cpu")
        warm.encode(open_image(photo_file))
        assert server.metric("tcm_device_memory_bytes") >= 0.99 * warm.memory_bytes
    finally:
        server.stop()


def test_every_model_at_once_under_a_budget_for_two(tight: Server, photo_file: bytes) -> None:
    with ThreadPoolExecutor(6) as clients:
        answers = clients.map(lambda model: encode(tight, model, photo_file), [A, B, C, C, B, A])
        assert list(answers) == [200] * 6
    assert tight.metric("tcm_device_memory_bytes") <= BUDGET_FOR_TWO


def test_files_of_earlier_weights_are_read_beside_later_ones(tight: Server, photo_file: bytes) -> None:
    """They have the same name, and both are resident."""
    file, expected = next((f, e) for f, e in golden("rgb") if e["model"] == B)
    assert encode(tight, B, photo_file) == 200
    for _ in range(2):
        answer = tight.client.post("/v1/decode", content=file)
        assert answer.status_code == 200
        assert answer.headers["tcm-model"] == B
        found = psnr(open_image(answer.content), to_pil(from_pil(KINDS["rgb"]())).convert("RGB"))
        assert abs(found - expected["psnr"]) < 0.05
    (now, also) = next(
        (m["fingerprint"], m["also_read"]) for m in tight.client.get("/v1/models").json()["models"] if m["name"] == B
    )
    assert expected["fingerprint"] in [now, *also]
    assert {line["weights"] for line in tight.lines("model loaded")} >= {now, expected["fingerprint"]}


def golden(kind: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for one in json.loads((FOLDER / INDEX).read_text()):
        if one["kind"] == kind:
            yield (FOLDER / one["name"]).read_bytes(), one


def test_a_model_that_does_not_load(tight: Server, photo_file: bytes) -> None:
    name = "tcm-sick-mse-0.01"
    response = tight.client.post("/v1/encode", params={"model": name}, content=photo_file)
    problem = assert_problem(response, 503, "model-unavailable")
    assert name in str(problem["detail"])
    assert tight.metric("tcm_model_load_failures_total", model=name) == 1
    (reason,) = [e for e in tight.lines("model-unavailable") if e["request_id"] == problem["request_id"]]
    assert reason["level"] == "error"
    assert "fingerprint" in str(reason["exception"])
    assert encode(tight, "tcm-tiny-mse-0.01", photo_file) == 200


def lost(*_: object, **__: object) -> Any:
    raise DeviceLost("cuda:0 does nothing any more")


def warmed_up_in_vain(load: Callable[..., Codec]) -> Callable[..., Codec]:
    def load_and_lose(*arguments: Any) -> Codec:
        codec = load(*arguments)
        codec.warm_up = lost  # type: ignore[method-assign]
        return codec

    return load_and_lose


@pytest.mark.parametrize("while_warming_up", [False, True])
def test_a_device_that_fails_for_good_while_a_model_loads(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, while_warming_up: bool
) -> None:
    """Each request was told that a model is unavailable, and the process lived on."""
    monkeypatch.setattr(Codec, "load", warmed_up_in_vain(Codec.load) if while_warming_up else lost)
    metrics, watchdog = Metrics(), Watchdog(60)
    pool = Pool("cpu", None, metrics, watchdog, [(64, 64)])
    try:
        with pytest.raises(DeviceLost):
            asyncio.run(pool.acquire(Zoo(tiny_file.parent).get("tcm-tiny-mse-0.01")))
    finally:
        pool.close()
    assert watchdog.lost() == "cuda:0 does nothing any more"
    assert metrics.model_load_failures.labels("tcm-tiny-mse-0.01")._value.get() == 1


def test_models_that_do_not_fit_together_take_turns(tmp_path, photo_file: bytes) -> None:
    """A budget for one and requests for three: each is served, instead of evicting one another for ever."""
    server = start(tmp_path, model_dir=tmp_path / "models", memory_budget=BUDGET_FOR_TWO // 2, preload="none")
    with ThreadPoolExecutor(6) as clients:
        answers = clients.map(lambda model: encode(server, model, photo_file), [A, B, C, C, B, A])
        assert list(answers) == [200] * 6
    assert server.stop() == 0
