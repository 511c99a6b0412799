"""CompressAI's parts alone: a program starts without the rest, and whoever asks for the rest has it."""

from __future__ import annotations

import subprocess
import sys

import pytest

LONG_TO_LOAD = ["pandas", "torch_geometric", "torch._dynamo", "scipy.stats._stats_py"]


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


@pytest.mark.parametrize("what", ["model.codec", "service.app"])
def test_what_nobody_needs_is_not_loaded(what: str) -> None:
    assert run(f"import sys, {what}; print([name for name in {LONG_TO_LOAD} if name in sys.modules])") == "[]"


def test_the_rest_is_there_when_it_is_asked_for() -> None:
    run("""
import inspect, torch
from model import layers, network
inspect.getmodule(inspect.currentframe())  # asks every module for a name
import compressai, compressai.zoo, scipy.stats
from compressai import ans, available_entropy_coders, get_entropy_coder, set_entropy_coder
assert issubclass(layers.ResidualBlock, compressai.layers.ResidualBlock)
assert compressai.zoo.bmshj2018_factorized(1, pretrained=False) is not None
assert abs(scipy.stats.norm.ppf(0.975) - 1.96) < 1e-3
assert scipy.stats.distributions.norm is scipy.stats.norm
set_entropy_coder(get_entropy_coder())
assert "ans" in available_entropy_coders()
assert compressai.__version__.startswith("1.")
assert "zoo" in compressai.__all__
for package in (compressai, scipy.stats):
    try:
        package.no_such_name
    except AttributeError as error:
        assert package.__name__ in str(error)
    else:
        raise AssertionError
""")


def test_threads_that_ask_at_once_all_have_it() -> None:
    run("""
import threading
import model.network, scipy.stats
found, barrier = [], threading.Barrier(6)
def ask():
    barrier.wait()
    found.append(scipy.stats.norm)
threads = [threading.Thread(target=ask) for _ in range(6)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert found == [scipy.stats.norm] * 6
""")


def test_its_own_coder_works_with_the_parts_alone() -> None:
    run("""
import torch
from model.network import TCM
from model.config import SIZES
net = TCM(SIZES["xs"]).eval()
net.entropy_bottleneck.update()
z = torch.zeros(1, net.config.hyper_channels, 2, 2)
assert net.entropy_bottleneck.decompress(net.entropy_bottleneck.compress(z), (2, 2)).shape == z.shape
net.gaussian_conditional.update_scale_table([0.11, 1, 10])
""")


def test_a_package_that_is_loaded_stays_as_it_is() -> None:
    run("""
import compressai
everything = dict(vars(compressai))
import model.network
assert vars(compressai) == everything
assert type(compressai) is type(model)
""")
