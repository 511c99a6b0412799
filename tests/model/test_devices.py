"""What a codec does about the GPU that it is given, as far as that shows without one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from model import Codec
from model import codec as codec_module
from model.checkpoint import load
from model.devices import lock_of


@pytest.mark.parametrize(("given", "index"), [("cuda", 1), ("cuda:0", 0)])
def test_a_codec_knows_which_gpu_it_has(tiny_file, monkeypatch, given, index):
    """For whom works on another one, "cuda" is that: another's recordings were forgotten, without its lock."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(codec_module, "current", lambda _: nullcontext())
    monkeypatch.setattr(Codec, "_settle", lambda *_: None)
    monkeypatch.setattr(Codec, "_can_be_recorded", lambda _: True)
    codec = Codec(load(tiny_file), torch.device(given), "float32")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert {codec.device, *(runner.device for runner in codec._runners)} == {torch.device("cuda", index)}
    assert codec._lock is lock_of(codec.device)
