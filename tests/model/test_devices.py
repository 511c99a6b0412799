"""What a codec does about the GPU that it is given, as far as that shows without one."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch

from model import Codec, kernels, programs
from model import codec as codec_module
from model.checkpoint import load
from model.devices import lock_of
from model.errors import OutOfMemory


@pytest.mark.parametrize(("given", "index"), [("cuda", 1), ("cuda:0", 0)])
def test_a_codec_knows_which_gpu_it_has(tiny_file, monkeypatch, given, index):
    """For whom works on another one, "cuda" is that: another's recordings were forgotten, without its lock."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(codec_module, "current", lambda _: nullcontext())
    monkeypatch.setattr(Codec, "_settle", lambda *_: None)
    codec = Codec(load(tiny_file), torch.device(given), "float32")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert codec.device == torch.device("cuda", index)
    assert codec._lock is lock_of(codec.device)


def test_memory_that_runs_out_in_trying_the_kernels(tiny_file, monkeypatch):
    """Others give back what they recorded, and where they have nothing it is a named error."""
    others = [True, True, False]
    monkeypatch.setattr(programs, "forget_all", lambda _: others.pop(0))
    full = [True, False, True, True]

    def try_kernels(_):
        if full.pop(0):
            raise torch.OutOfMemoryError
        return False

    monkeypatch.setattr(Codec, "_can_be_recorded", try_kernels)
    assert len(Codec(load(tiny_file), torch.device("cpu"))._runners) == 1
    with pytest.raises(OutOfMemory):
        Codec(load(tiny_file), torch.device("cpu"))


def test_a_closed_codec_leaves_nothing_to_torch(tiny_file, monkeypatch):
    """What the host has for the GPU is the second."""
    codec = Codec(load(tiny_file), torch.device("cpu"))
    codec.device = torch.device("cuda:0")
    given_back = mock.Mock()
    monkeypatch.setattr(torch.cuda, "empty_cache", given_back.device)
    monkeypatch.setattr(torch._C, "_host_emptyCache", given_back.host, raising=False)
    codec.close()
    assert given_back.mock_calls == [mock.call.device(), mock.call.host()]


NO_MEMORY = [
    torch.OutOfMemoryError(),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: <CUresult.CUDA_ERROR_OUT_OF_MEMORY: 2>"),  # cuda-bindings
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),  # since cuDNN 9
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_kernels_that_found_no_memory_are_tried_again(monkeypatch, error):
    device = torch.device("cuda", 7)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "ones", mock.Mock(side_effect=error))
        with pytest.raises(type(error)):
            kernels._works(device)
    monkeypatch.setattr(torch, "ones", mock.Mock(side_effect=RuntimeError("no compiler")))
    with pytest.warns(RuntimeWarning, match="no compiler"):
        assert not kernels._works(device)
    kernels._works.cache_clear()
