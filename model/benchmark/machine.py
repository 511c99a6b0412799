"""What the machine is, and what it could do at best."""

from __future__ import annotations

import contextlib
import platform
import re
import resource
import sys
import time
from pathlib import Path

import torch

from model.threads import cores


def describe(device: torch.device) -> str:
    """One line: processor or GPU, cores, versions."""
    software = f"Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {software}"
    return f"{_processor()}, {torch.get_num_threads()} threads of {cores()} cores, {software}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        flags = [f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in fields.get("flags", "").split()]
        return f"{fields.get('model name', platform.machine())} ({flags[0] if flags else 'no vector flags'})"
    return platform.processor() or platform.machine()


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """The best rate of a square matrix product seen within so many seconds, FLOP/s."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """What `peak_memory` says begins anew with what is held now; only Linux can, of a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most memory held since `forget_peak`, or ever: of the GPU, or of this process, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
