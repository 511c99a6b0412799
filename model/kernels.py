"""CUDA kernels for maps in channels-last memory: what torch has only slowly, or in many passes (model/kernels.cu).

They are compiled when first needed, for the GPU at hand and the sizes of the model, by the compiler (NVRTC) that comes
with torch's CUDA build: about a tenth of a second each, no toolkit and no C compiler needed.

Maps are (B, H, W, C) here: contiguous, or a run of channels of a contiguous map where that is said.
"""

from __future__ import annotations

import ctypes
import functools
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.devices import tells_of_memory

Activation = Literal["none", "leaky_relu", "relu", "gelu"]

VECTOR = 4
"""Channels come in multiples of this."""

_ACTIVATIONS = {"none": 0, "leaky_relu": 1, "relu": 2, "gelu": 3}
_TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
_BLOCK_CHANNELS = 64  # of all heads of a block of `attend`: they must fit in shared memory


def available(x: Tensor) -> bool:
    """Whether they work on such a tensor."""
    return x.is_cuda and x.dtype in _TYPES and _works(x.device)


@functools.cache
def _works(device: torch.device) -> bool:
    if torch.version.hip:
        return False
    try:
        with torch.cuda.device(device):
            x = torch.ones(1, 1, 1, VECTOR, device=device)
            return finish(x, x[0, 0, 0]).sum().item() == 2 * VECTOR
    except Exception as error:
        if tells_of_memory(error):
            raise  # it is asked again
        # whatever is missing there, torch's own kernels do
        warnings.warn(f"slower on {device}: the kernels cannot be compiled ({error})", RuntimeWarning, stacklevel=2)
        return False


def compile_kernel(name: str, architecture: str, defines: tuple[tuple[str, object], ...]) -> bytes:
    """Machine code of one kernel; needs the compiler, but no GPU.

    Args:
        name: as in kernels.cu, whose section has its name in capitals.
        architecture: such as sm_90.
        defines: what the section wants defined.

    Raises:
        RuntimeError: it cannot be compiled; says what the compiler says.
        ImportError: torch was not built for CUDA, and the compiler did not come with it.
    """
    from cuda.bindings import nvrtc

    section = {"scatter": "WINOGRAD", "gather": "WINOGRAD"}.get(name, name.upper())
    lines = [f"#define {key} {value}" for key, value in ((section, 1), *defines)]
    source = "\n".join([*lines, Path(__file__).with_name("kernels.cu").read_text()])

    def checked(result: tuple[Any, ...]) -> Any:
        if int(result[0]):
            raise RuntimeError(f"{name}: {result[0]}{_log(nvrtc, program)}")
        return result[1] if len(result) > 1 else None

    program = None
    program = checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
    code = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, code))
    return bytes(code)


def _log(nvrtc: Any, program: Any) -> str:
    if program is None:
        return ""
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    return "\n" + str(log, errors="replace")


class _Kernel:
    """A compiled kernel on one GPU."""

    def __init__(self, name: str, device: torch.device, defines: tuple[tuple[str, object], ...]) -> None:
        from cuda.bindings import driver

        self._launch, self._device = driver.cuLaunchKernel, device
        major, minor = torch.cuda.get_device_capability(device)
        code = compile_kernel(name, f"sm_{major}{minor}", defines)
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # torch has made its context by now
            self._module = _checked(driver.cuModuleLoadData(code))
            self._function = _checked(driver.cuModuleGetFunction(self._module, name.encode()))

    def __call__(self, blocks: int, threads: int, *arguments: Tensor | int, rows: int = 1) -> None:
        values = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        types = tuple(ctypes.c_void_p if isinstance(a, Tensor) else ctypes.c_int for a in arguments)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        _checked(self._launch(self._function, blocks, rows, 1, threads, 1, 1, 0, stream, (values, types), 0))


def _checked(result: tuple[Any, ...]) -> Any:
    if int(result[0]):
        raise RuntimeError(f"CUDA error: {result[0]}")
    return result[1] if len(result) > 1 else None


_kernel = functools.cache(_Kernel)


def _get(name: str, x: Tensor, **defines: object) -> _Kernel:
    return _kernel(name, x.device, tuple(sorted({"ACTIVATION": 0, **defines}.items())))


def _blocks(count: int, threads: int) -> int:
    return -(-count // threads)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm over the channels of (B, H, W, C)."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    lanes = min(32, 1 << max(0, math.ceil(math.log2(channels / VECTOR))))
    kernel = _get("layer_norm", x, TYPE=_TYPES[x.dtype], BIAS=_TYPES[weight.dtype], C=channels, LANES=lanes)
    out = torch.empty_like(x)
    kernel(_blocks(rows * lanes, 256), 256, x, weight, bias, out, rows, channels)
    return out


def suits_attention(side: int, head_dim: int) -> bool:
    """Whether `attend` is made for such windows."""
    return side in (4, 8) and head_dim in (8, 16, 32)


def attend(qkv: Tensor, table: Tensor, heads: int, side: int, *, shift: int) -> Tensor:
    """softmax(q·kᵀ/√d + bias)·v in each window, read where it lies.

    Args:
        qkv: (B, H, W, 3·heads·d), H and W multiples of `side`.
        table: the bias by relative position, (heads, 2·side - 1, 2·side - 1).
        heads: of the attention.
        side: of a window, 4 or 8.
        shift: by which windows are shifted, each way.

    Returns:
        (B, H, W, heads·d).
    """
    b, height, width, channels = qkv.shape
    head_dim = channels // 3 // heads
    together = max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * head_dim <= _BLOCK_CHANNELS))
    kernel = _get(
        "attend", qkv, TYPE=_TYPES[qkv.dtype], BIAS=_TYPES[table.dtype], SIDE=side, D=head_dim, HEADS=together,
        ALL=heads, SCALE=f"{head_dim**-0.5!r}f",
    )  # fmt: skip
    out = qkv.new_empty(b, height, width, channels // 3)
    count = b * (height // side) * (width // side)
    kernel(count, together * side * side, qkv, table, out, height, width, shift, rows=heads // together)
    return out


def finish(
    x: Tensor,
    bias: Tensor | None,
    activation: Activation = "none",
    plus: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """act(x + bias + plus) in one pass.

    Args:
        x: (B, H, W, C), contiguous.
        bias: (C,).
        activation: act.
        plus: the same shape as `x`, or with one item for all of the batch; may be a run of a map's channels.
        out: where the result goes, a new map by default; may be a run of a map's channels.
    """
    channels = x.shape[-1]
    rows = x.numel() // channels
    out = torch.empty_like(x) if out is None else out
    kernel = _get(
        "finish", x, TYPE=_TYPES[x.dtype], BIAS=_TYPES[x.dtype if bias is None else bias.dtype],
        PLUS=_TYPES[x.dtype if plus is None else plus.dtype], OUT=_TYPES[out.dtype], C=channels,
        HAS_BIAS=int(bias is not None), HAS_PLUS=int(plus is not None), ACTIVATION=_ACTIVATIONS[activation],
    )  # fmt: skip
    kernel(
        _blocks(rows * channels // VECTOR, 256), 256, x, x if bias is None else bias, x if plus is None else plus, out,
        rows, rows if plus is None else plus.numel() // channels, 0 if plus is None else plus.stride(2), out.stride(2),
    )  # fmt: skip
    return out


def shuffle(x: Tensor, bias: Tensor, activation: Activation = "none") -> Tensor:
    """act(x + bias) of a sub-pixel convolution's (B, H, W, 4C) -> (B, 2H, 2W, C)."""
    b, height, width, channels = x.shape
    out = x.new_empty(b, 2 * height, 2 * width, channels // 4)
    kernel = _get(
        "shuffle", x, TYPE=_TYPES[x.dtype], BIAS=_TYPES[bias.dtype], OUT=_TYPES[x.dtype], C=channels,
        ACTIVATION=_ACTIVATIONS[activation],
    )  # fmt: skip
    kernel(_blocks(x.numel() // VECTOR, 256), 256, x, bias, out, b * height * width, width)
    return out


def normalise(x: Tensor, power: Tensor, plus: Tensor, *, inverse: bool) -> Tensor:
    """GDN's last step: plus + x / √power, or plus + x·√power; all contiguous, in the precision of `plus`."""
    out = torch.empty_like(plus)
    kernel = _get("normalise", x, TYPE=_TYPES[x.dtype], PLUS=_TYPES[plus.dtype], INVERSE=int(inverse))
    vectors = x.numel() // VECTOR
    kernel(_blocks(vectors, 256), 256, x, power, plus, out, vectors)
    return out


def winograd_weights(weight: Tensor) -> Tensor:
    """Weights (K, C, 3, 3) of a convolution as `conv3x3` wants them, (16, C, K)."""
    g = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    both = torch.einsum("ay,bx,kcyx->abck", g, g, weight.double())
    return both.reshape(16, *both.shape[2:]).to(weight.dtype).contiguous()


def conv3x3(
    x: Tensor, weights: Tensor, bias: Tensor | None, activation: Activation = "none", plus: Tensor | None = None
) -> Tensor:
    """act(conv(x) + bias + plus) of a 3x3 convolution with zeros around, in float32 throughout.

    By F(2x2, 3x3) (Lavin, Gray 2016), which takes 16 products for 36: float32 has no tensor cores.

    Args:
        x: (B, H, W, C), H and W even.
        weights: `winograd_weights` of the layer.
        bias: (K,).
        activation: act.
        plus: (B or 1, H, W, K).
    """
    b, height, width, channels = x.shape
    tiles, given = b * height * width // 4, weights.shape[2]
    spread = x.new_empty(16, tiles, channels)
    scatter = _get("scatter", x, C=channels, HAS_BIAS=0, HAS_PLUS=0)
    scatter(_blocks(spread[0].numel() // VECTOR, 128), 128, x, spread, tiles, height, width, x.stride(2))
    products = torch.bmm(spread, weights)
    out = x.new_empty(b, height, width, given)
    gather = _get(
        "gather", x, C=given, HAS_BIAS=int(bias is not None), HAS_PLUS=int(plus is not None),
        ACTIVATION=_ACTIVATIONS[activation],
    )  # fmt: skip
    gather(
        _blocks(products[0].numel() // VECTOR, 128), 128, products, x if bias is None else bias,
        x if plus is None else plus, out, tiles, height, width, 1 if plus is None else plus.numel() // given,
    )  # fmt: skip
    return out
