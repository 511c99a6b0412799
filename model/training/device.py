"""Where a run computes: device, precision, memory format, and the processes of a `torchrun`."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from model.blocks import MixedBlock
from model.borrowed import layers
from model.network import TCM


class _LoweredBlocks(nn.Module):
    """A transform whose branches compute in bfloat16: those of the mixed blocks, and of the upsampling ones.

    The sums that they add to, and the layers that carry the signal itself, stay in float32, else the floor of
    bfloat16's eight bits shows at high rates.
    """

    def __init__(self, layers: nn.Sequential, device: str) -> None:
        super().__init__()
        self.layers, self.device = layers, device

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if isinstance(layer, layers.ResidualBlockUpsample):
                with torch.autocast(self.device, dtype=torch.bfloat16):
                    branch = layer.igdn(layer.conv(layer.leaky_relu(layer.subpel_conv(x))))
                x = layer.upsample(x) + branch
            else:
                with torch.autocast(self.device, dtype=torch.bfloat16, enabled=isinstance(layer, MixedBlock)):
                    x = layer(x)
        return x


class _LoweredSlice(nn.Module):
    """A part of the slice loop in bfloat16, but for the `last` layers: μ counts in quantiser steps."""

    def __init__(self, layers: nn.Sequential, device: str, last: int) -> None:
        super().__init__()
        cut = len(layers) - last
        self.body, self.last, self.device = layers[:cut], layers[cut:], device

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            x = self.body(x.to(torch.bfloat16, memory_format=torch.channels_last))
        return self.last(x.float()) if len(self.last) else x


_SLICE_PARTS = {
    "atten_mean": 0,
    "atten_scale": 0,
    "cc_mean_transforms": 1,
    "cc_scale_transforms": 1,
    "lrp_transforms": 1,
}
"""Parts of the slice loop, and how many of their layers stay in float32."""


@dataclass(frozen=True)
class Place:
    """One process of a run.

    Attributes:
        device: its own.
        rank: its number among `processes`; 0 logs and saves.
        processes: of the whole run.
        bf16: whether g_a and g_s run in bfloat16.
    """

    device: torch.device
    rank: int
    processes: int
    bf16: bool

    @property
    def first(self) -> bool:
        """Whether this process speaks for the run."""
        return self.rank == 0

    def put(self, x: Tensor) -> Tensor:
        """Images onto the device, in the network's memory format."""
        x = x.to(self.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last) if self.device.type == "cuda" else x

    def prepare(self, net: TCM) -> None:
        """Move a network here: channels_last on CUDA; contiguous on a CPU, where channels_last once crashed."""
        net.to(self.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            net.to(memory_format=torch.channels_last)

    def lower(self, net: TCM) -> TCM:
        """A network that shares `net`'s parameters and computes in bfloat16 what bears it, where this place does."""
        if not self.bf16:
            return net
        lowered = copy.copy(net)
        lowered._modules = dict(net._modules)
        for name in ("g_a", "h_a", "h_mean_s", "h_scale_s", "g_s"):
            setattr(lowered, name, nn.Sequential(_LoweredBlocks(getattr(net, name), self.device.type)))
        for name, last in _SLICE_PARTS.items():
            parts = (nn.Sequential(_LoweredSlice(part, self.device.type, last)) for part in getattr(net, name))
            setattr(lowered, name, nn.ModuleList(parts))
        return lowered

    def share_gradients(self, net: nn.Module) -> None:
        """Average the gradients over all processes (each has its own crops)."""
        if self.processes > 1:
            gradients = [p.grad for p in net.parameters() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            distributed.all_reduce(flat)
            flat /= self.processes
            for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def mean(self, values: list[float]) -> list[float]:
        """The same numbers in all processes: their average."""
        if self.processes == 1 or not values:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        return (shared / self.processes).tolist()

    def leave(self) -> None:
        """Take leave of the other processes."""
        if self.processes > 1:
            distributed.barrier()
            distributed.destroy_process_group()

    def largest(self, values: list[float]) -> list[float]:
        """The same numbers in all processes: of each the largest that one of them has."""
        if self.processes == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return shared.tolist()


def find_place(precision: str) -> Place:
    """This process's place, from torchrun's environment and the hardware.

    Args:
        precision: "fp32", "bf16", or "auto": bf16 on a GPU that has it. On a CPU (Zen 4, avx512_bf16) bf16 took 1.4
            to 3.5 times as long as fp32 for the short-cut network, so that "auto" means fp32 there.
    """
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if processes > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Place(device, rank, processes, bf16=precision == "bf16" or (precision == "auto" and capable))
