"""The settings: environment, options and docs say the same."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service.settings import Settings, option

DOCS = Path(__file__).parents[2] / "docs"


def test_every_setting_is_described() -> None:
    page = (DOCS / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`TCM_{name.upper()}`" in page
        assert f"`{option(name)}`" in page


def test_the_docs_are_current() -> None:
    made = runpy.run_path(str(DOCS / "settings.py"))["document"]()
    assert (DOCS / "settings.md").read_text() == made, "run `python docs/settings.py > docs/settings.md`"


def test_lists_have_no_empty_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCM_PRELOAD", "default, ,")
    assert list(Settings.from_arguments([]).preload) == ["default"]


def test_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCM_PORT", "81")
    monkeypatch.setenv("TCM_MEMORY_BUDGET", "2GiB")
    monkeypatch.setenv("TCM_MODEL_DIR", "")
    settings = Settings.from_arguments(["--port", "82", "--max-body-bytes", "1kB"])
    assert settings.port == 82
    assert settings.memory_budget == 2 << 30
    assert settings.max_body_bytes == 1000
    assert settings.model_dir is None


@pytest.mark.parametrize(
    "wrong",
    [
        "--hang-seconds=inf", "--hang-seconds=1e12", "--timeout-ms=" + "9" * 22, "--image-seconds=inf",
        "--max-pixels=1" + "0" * 22, "--store-timeout-ms=" + "9" * 22, "--keep-alive-seconds=0",
        "--store=file:///x?y", "--store=file:///x#y",
    ],
)  # fmt: skip
def test_values_that_would_break_later_are_refused_at_once(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Settings.from_arguments([wrong])


def test_the_users_folder_may_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = Settings.from_arguments(["--model-dir", "~/models", "--keys-file", "~/keys.json"])
    assert settings.model_dir == Path("/home/somebody/models")
    assert settings.keys_file == Path("/home/somebody/keys.json")


@pytest.mark.parametrize("text", ["a, b", '["a", "b"]', "a,b,"])
def test_lists(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert Settings.from_arguments(["--preload", text]).preload == ("a", "b")
    monkeypatch.setenv("TCM_PRELOAD", text)
    assert Settings.from_arguments([]).preload == ("a", "b")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "http"),
        ("device", "gpu"),
        ("memory_budget", "lots"),
        ("memory_budget", "0"),
        ("max_pixels", "0"),
        ("max_pixels", "1000"),
        ("model_dir", "~nobodyhere/models"),
        ("keys_file", "~nobodyhere/keys"),
        ("log_level", "loud"),
        ("preload", "[broken"),
    ],
)
def test_values_that_do_not_fit(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Settings.from_arguments([option(name), value])


def test_addresses_as_others_say_them() -> None:
    settings = Settings.from_arguments(
        ["--cors-origins", "https://A.example:443,http://b.example:80,https://c.example:80", "--store", " file:///s "]
    )
    assert settings.cors_origins == ("https://a.example", "http://b.example", "https://c.example:80")
    assert settings.store == "file:///s"


@pytest.mark.parametrize("arguments", [["--prot", "80"], ["--port"], ["extra"]])
def test_options_that_do_not_exist(arguments: list[str]) -> None:
    with pytest.raises(SettingsError):
        Settings.from_arguments(arguments)
