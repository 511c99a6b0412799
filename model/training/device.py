"""Where a run computes: device, precision, memory format, and the processes of a `torchrun`."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from model.network import TCM


class _Lowered(nn.Module):
    """All of a transform but its last layer in bfloat16: y counts in quantiser steps and needs its fractions."""

    def __init__(self, layers: nn.Sequential, device: str) -> None:
        super().__init__()
        self.body, self.last, self.device = layers[:-1], layers[-1], device

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            x = self.body(x)
        return self.last(x.float())  # type: ignore[no-any-return]


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
        """A network that shares `net`'s parameters and runs the transforms in bfloat16, where this place does."""
        if not self.bf16:
            return net
        lowered = copy.copy(net)
        lowered._modules = dict(net._modules)
        lowered.g_a = nn.Sequential(_Lowered(net.g_a, self.device.type))
        lowered.g_s = nn.Sequential(_Lowered(net.g_s, self.device.type))
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

    def agree(self, flag: bool) -> bool:
        """True everywhere as soon as it is true somewhere: all processes stop at the same step."""
        if self.processes == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(votes)
        return bool(votes > 0)


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
