"""What README and the model card claim of the embedded models is measured, and README's house has every room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model import Zoo

ROOT = Path(__file__).parents[1]
CARD = (ROOT / "docs" / "models.md").read_text()
CLAIM = re.compile(r"(\d+) % fewer bits than (JPEG|WebP)")


@pytest.mark.parametrize("document", ["README.md", "docs/models.md"])
def test_claims_of_saved_bits_are_the_measured_ones(document: str) -> None:
    measured = {name: float(rate) for rate, name in re.findall(r"([+-][\d.]+) % against (JPEG XL|\w+)", CARD)}
    claims = CLAIM.findall(" ".join((ROOT / document).read_text().split()))
    assert claims
    for percent, codec in claims:
        assert abs(int(percent) + measured[codec]) <= 0.5, f"{percent} % fewer than {codec}: measured {measured[codec]}"


def test_the_measured_table_is_that_of_the_installed_weights() -> None:
    measured = dict(re.findall(r"\| (tcm-xs-mse-[\d.]+)@(\w+) ", CARD))
    installed = {e.name: e.info.fingerprint for e in Zoo(ROOT / "none").entries()}
    assert measured == installed


@pytest.mark.parametrize("package", ["model", "service"])
def test_the_house_names_every_file(package: str) -> None:
    readme = (ROOT / "README.md").read_text()
    room = re.search(rf"^{package}/\n((  .*\n)+)", readme, re.MULTILINE)
    assert room
    files = {path.name for path in (ROOT / package).glob("*.py") if not path.name.startswith("__")}
    assert files - set(re.findall(r"\w+\.py", room[1])) == set()


def test_the_house_names_every_document() -> None:
    room = re.search(r"^docs/ (.*\n( .*\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert room
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == set(re.findall(r"\w+\.md", room[1]))
