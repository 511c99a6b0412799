"""What several test files share: photographs, the embedded models, and networks of tiny widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import TCM, Codec, TCMConfig
from model.checkpoint import Weights, load, save

DATA = Path(__file__).parent / "data"
TINY = TCMConfig(
    N=8, M=16, hyper_channels=8, head_dim=(4, 8, 4, 8, 4, 8), hyper_head_dim=4, slices=4, slice_widths=(12, 10),
    attention_width=16, attention_head_dim=8,
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-photographs", action="store_true", help="every photograph at hand, not the first few")
    parser.addoption("--containers", action="store_true", help="bring up the stack of docker-compose.yml (minutes)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """384x256, RGB."""
    return Image.open(DATA / "photo.png").convert("RGB")


@pytest.fixture(scope="session")
def photographs(pytestconfig: pytest.Config) -> list[Path]:
    """Photographs never trained on: the held-out ones where they lie beside the project, else those of the tests."""
    held_out = Path(__file__).parents[2] / "shared" / "data" / "holdout"
    found = sorted(held_out.glob("*.png")) or sorted(DATA.glob("photo.*"))
    return found if pytestconfig.getoption("--all-photographs") else found[:3]


@pytest.fixture(scope="session")
def codec() -> Codec:
    """The embedded middle λ on the CPU."""
    return Codec.load("tcm-xs-mse-0.013", device="cpu")


def make_tiny(seed: int = 0, config: TCMConfig = TINY) -> TCM:
    """A network of tiny widths with random weights that give several bits an element."""
    torch.manual_seed(seed)
    net = TCM(config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("relative_position_params"):
                parameter.normal_(0, 0.5)
        net.g_a[-1].weight.mul_(40)
        for transform in net.cc_scale_transforms:
            transform[-1].bias.fill_(1.5)
    return net


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tcm-tiny-mse-0.01.safetensors"
    save(make_tiny(), path, name="tcm-tiny-mse-0.01", lmbda=0.01, metric="mse")
    return path


@pytest.fixture(scope="session")
def tiny_weights(tiny_file: Path) -> Weights:
    return load(tiny_file)


@pytest.fixture(scope="session")
def tiny_codec(tiny_file: Path) -> Codec:
    return Codec.load(tiny_file, device="cpu")


def psnr(a: object, b: object) -> float:
    """dB between two 8-bit images."""
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return float(10 * np.log10(255**2 / np.maximum((difference**2).mean(), 1e-9)))
