from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from model.config import TCMConfig

SMALL = TCMConfig(
    N=24, M=32, hyper_channels=8, head_dim=(12,) * 6, hyper_head_dim=12, depth=1, slices=2, slice_widths=(12, 8),
    attention_width=8, attention_head_dim=4, window=4, hyper_window=2,
)  # fmt: skip
"""Windows of 4 and 2: crops of 64 are enough."""


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads wait for each other in oneDNN's backward pass: 8 ms a convolution where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten smooth pictures of 160x128, a damaged one, one too small, and a text file."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(10):
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = noise.resize((160, 128), Image.Resampling.BICUBIC).filter(ImageFilter.SHARPEN)
        picture.save(folder / f"{i:02d}.png")
    whole = (folder / "00.png").read_bytes()
    (folder / "05-damaged.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (40, 40)).save(folder / "06-small.png")
    (folder / "readme.txt").write_text("not an image")
    return folder
