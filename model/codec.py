"""The life of an image: PIL image -> pixels -> y, z -> symbols -> bytes, and back.

    encode:  picture ── g_a ──> y ── h_a ──> z ──> slices: symbols, scale indexes ── rANS ──> payload ──> .tcm
    decode:  .tcm ──> payload ── rANS ──> z ──> slices, each: σ ── rANS ──> symbols ──> ŷ ── g_s ──> picture

Several pictures of one padded size can go through the networks together; each has a payload of its own that owes
nothing to its neighbours.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model import guard, tiles
from model.checkpoint import ModelInfo, Weights, load
from model.container import DEFAULT_MAX_PIXELS, Container, read_container, write_container
from model.entropy import Coder, SymbolMismatch
from model.errors import CheckpointMismatch, IncompatibleModel, OutOfMemory
from model.latents import code_slices
from model.network import pad_to
from model.pixels import Picture, decode_alpha, encode_alpha, from_pil, to_pil
from model.stages import Stages
from model.tables import gaussian_tables, guard_tables, scale_boundaries, scale_indexes
from model.zoo import Zoo, ZooEntry

Symbols = NDArray[np.int32]
Indexes = NDArray[np.int16]
Parts = list[tuple[Symbols, Indexes]]
"""What is coded for one picture, in reading order: z, then each slice of y."""


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{device!r} is no device: auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{device!r} asked for, but {torch.cuda.device_count()} CUDA devices are here")
    return chosen


class Codec:
    """One model on one device. Threads may share it: the device works on one call at a time.

    Attributes:
        info: which model this is.
        device: where it runs.
        net: the network, in evaluation mode on that device.
        tiling: how large pictures are cut.
    """

    def __init__(self, weights: Weights, device: torch.device, tiling: tiles.Tiling | None = None) -> None:
        if device.type == "cuda":  # what writer and reader must agree on is computed in full float32
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.info: ModelInfo = weights.info
        self.device = device
        self.tiling = tiling or tiles.Tiling()
        self.net = weights.net.to(device).eval().requires_grad_(False)
        self._coder = Coder(gaussian_tables() + guard_tables() + weights.z_tables)
        self._boundaries = scale_boundaries().to(device)
        self._medians = self.net.medians()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model: str | Path | ZooEntry, device: str | torch.device = "auto", zoo: Zoo | None = None) -> Codec:
        """A codec from the name of an installed model, or the path of a weights file.

        Raises:
            UnknownModel: no model of that name is installed.
            CheckpointUnreadable: the file is damaged.
            ValueError: no such device here.
        """
        if isinstance(model, ZooEntry):
            path = model.path
        elif isinstance(model, Path) or str(model).endswith(".safetensors"):
            path = Path(model)
        else:
            path = (zoo or Zoo()).get(model).path
        return cls(load(path), pick_device(device))

    @property
    def memory_bytes(self) -> int:
        """Memory of the weights on the device."""
        tensors = [*self.net.parameters(), *self.net.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def close(self) -> None:
        """Give the device's memory back. The codec is of no use afterwards."""
        with self._lock:
            for tensor in (*self.net.parameters(), *self.net.buffers()):
                tensor.data = tensor.data.new_empty(0)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    # ---- an image

    def encode(self, image: Image.Image, *, keep_metadata: bool = True) -> bytes:
        """The .tcm file of an image of any mode and size.

        Raises:
            UnsupportedImage: an image of a kind that cannot be coded.
            OutOfMemory: the device has no memory left.
        """
        return self.encode_picture(from_pil(image, keep_metadata=keep_metadata))

    def decode(self, data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        """The image in a .tcm file, of the size it was encoded with; metadata in `info`.

        Raises:
            UnsupportedBitstream: not a .tcm file that this version reads.
            CorruptBitstream: damaged or truncated.
            IncompatibleModel: written with other weights than these, or not reproducible with them.
            TooManyPixels: larger than `max_pixels`.
        """
        return to_pil(self.decode_container(read_container(data, max_pixels)))

    def encode_picture(self, picture: Picture, *, stages: Stages | None = None) -> bytes:
        """As `encode`, with the time of each stage added to `stages`."""
        return self.encode_batch([picture], stages=stages)[0]

    def decode_container(self, container: Container, *, stages: Stages | None = None) -> Picture:
        """As `decode`, from a parsed file."""
        return self.decode_batch([container], stages=stages)[0]

    # ---- several images of one padded size

    def padded(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that the networks see; only images that share it can be batched."""
        alignment = self.info.config.alignment
        return width + -width % alignment, height + -height % alignment

    def encode_batch(self, pictures: Sequence[Picture], *, stages: Stages | None = None) -> list[bytes]:
        """The .tcm files of pictures that share a padded size."""
        stages = Stages() if stages is None else stages
        with self._on_device():
            parts = self._analyse(self._to_device(pictures), stages)
        with stages("entropy"):
            payloads = [self._coder.encode(part) for part in parts]
        return [self._pack(picture, payload) for picture, payload in zip(pictures, payloads, strict=True)]

    def decode_batch(self, containers: Sequence[Container], *, stages: Stages | None = None) -> list[Picture]:
        """The pictures of files that share a padded size.

        Raises:
            IncompatibleModel: one of them was not written with these weights, or cannot be reproduced with them.
        """
        stages = Stages() if stages is None else stages
        for container in containers:
            if container.fingerprint != self.info.fingerprint:
                raise IncompatibleModel(
                    f"needs model {container.model!r} with weights {container.fingerprint}; "
                    f"this is {self.info.name!r} with weights {self.info.fingerprint}"
                )
        with self._on_device():
            y_hat = self._read_latents(containers, stages)
            with stages("g_s"):
                x_hat = tiles.synthesise(self.net.g_s, y_hat, self.tiling)
                rgb = self._to_pixels(x_hat)
        return [self._unpack(container, rgb[b]) for b, container in enumerate(containers)]

    # ---- what happens to it

    def _to_device(self, pictures: Sequence[Picture]) -> Tensor:
        """(B, 3, H, W) in [0, 1], padded."""
        batch = []
        for picture in pictures:
            x = torch.from_numpy(picture.rgb).to(self.device).permute(2, 0, 1)[None]
            batch.append(pad_to(x.float().div_(255), self.info.config.alignment))
        return torch.cat(batch)

    def _analyse(self, x: Tensor, stages: Stages) -> list[Parts]:
        """The symbols of each picture, and the indexes of their tables."""
        net = self.net
        with stages("g_a"):
            y = tiles.analyse(net.g_a, x, self.tiling)
        with stages("hyper"):
            z_symbols = torch.round(net.h_a(y) - self._medians)
            z_hat = z_symbols + self._medians
            if not (torch.isfinite(z_symbols).all() and torch.isfinite(y).all()):
                raise CheckpointMismatch(f"the weights of {self.info.name!r} give numbers that are not finite")
        z = self._z_indexes(z_symbols.shape[2] * z_symbols.shape[3])
        parts: list[Parts] = [[(symbols, z)] for symbols in _rows(z_symbols)]
        y_slices = y.chunk(net.config.slices, dim=1)

        def code(i: int, mean: Tensor, scale: Tensor) -> Tensor:
            symbols = torch.round(y_slices[i] - mean)
            with stages("guard"):
                shifts = [guard.choose_shifts(row) for row in scale.float().flatten(1).cpu().numpy()]
            for part, s, t, shift in zip(parts, _rows(symbols), self._indexes(scale, shifts), shifts, strict=True):
                part += [*guard.to_parts(shift), (s, t)]
            return symbols + mean

        with stages("slices"):
            code_slices(net, z_hat, code)
        return parts

    def _read_latents(self, containers: Sequence[Container], stages: Stages) -> Tensor:
        """ŷ (B, M, h, w)."""
        c = self.info.config
        width, height = self.padded(containers[0].width, containers[0].height)
        h, w = height // tiles.STRIDE, width // tiles.STRIDE
        z_shape = (len(containers), c.hyper_channels, h // 4, w // 4)
        in_slice = c.slice_channels * h * w
        count = math.prod(z_shape[1:]) + c.slices * (guard.symbol_count(in_slice) + in_slice)
        try:
            decoders = [self._coder.decoder(container.payload, count) for container in containers]

            def read(indexes: Sequence[Indexes], shape: tuple[int, ...]) -> Tensor:
                with stages("entropy"):
                    symbols = np.stack([d.read(index) for d, index in zip(decoders, indexes, strict=True)])
                    return torch.from_numpy(symbols).to(self.device).float().view(shape)

            def code(_: int, mean: Tensor, scale: Tensor) -> Tensor:
                shifts = [guard.read_shifts(decoder, in_slice) for decoder in decoders]
                return read(self._indexes(scale, shifts), tuple(mean.shape)) + mean

            with stages("slices"):
                z_hat = read([self._z_indexes((h // 4) * (w // 4))] * len(containers), z_shape) + self._medians
                latents = code_slices(self.net, z_hat, code)
            for decoder in decoders:
                decoder.finish()
        except SymbolMismatch as error:
            raise IncompatibleModel(
                f"the file is sound, but its symbols cannot be reproduced here with {self.info.name!r} "
                f"(weights {self.info.fingerprint}): {error}"
            ) from None
        return latents.y_hat

    def _z_indexes(self, positions: int) -> Indexes:
        """The table of each element of z: one a channel, behind all others."""
        count = len(self._coder.tables)
        return np.repeat(np.arange(count - self.info.config.hyper_channels, count, dtype=np.int16), positions)

    def _indexes(self, scales: Tensor, shifts: Sequence[NDArray[np.int32]]) -> list[Indexes]:
        """The table of each element of a slice, by item of the batch."""
        moved = torch.stack([guard.shifted(scale, shift) for scale, shift in zip(scales, shifts, strict=True)])
        return list(scale_indexes(moved, self._boundaries).flatten(1).cpu().numpy())

    def _to_pixels(self, x_hat: Tensor) -> NDArray[np.uint8]:
        """(B, H, W, 3), padding included."""
        return x_hat.clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _pack(self, picture: Picture, payload: bytes) -> bytes:
        return write_container(
            Container(
                model=self.info.name,
                fingerprint=self.info.fingerprint,
                width=picture.width,
                height=picture.height,
                payload=payload,
                grey=picture.grey,
                alpha=None if picture.alpha is None else encode_alpha(picture.alpha),
                icc=picture.icc,
                exif=picture.exif,
                xmp=picture.xmp,
            )
        )

    def _unpack(self, container: Container, padded: NDArray[np.uint8]) -> Picture:
        width, height = container.width, container.height
        return Picture(
            rgb=np.ascontiguousarray(padded[:height, :width]),
            grey=container.grey,
            alpha=None if container.alpha is None else decode_alpha(container.alpha, width, height),
            icc=container.icc,
            exif=container.exif,
            xmp=container.xmp,
        )

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """One call at a time, without gradients; a full device is a named error."""
        with self._lock, torch.inference_mode():
            try:
                yield
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise self._out_of_memory() from error
            except RuntimeError as error:
                if "can't allocate memory" in str(error):  # how torch's CPU allocator says it
                    raise self._out_of_memory() from error
                raise

    def _out_of_memory(self) -> OutOfMemory:
        return OutOfMemory(f"{self.device} has not enough memory left for an image of this size")


def _rows(symbols: Tensor) -> list[Symbols]:
    """The symbols of each item of a batch, flattened, on the CPU."""
    return list(symbols.to(torch.int32).flatten(1).contiguous().cpu().numpy())
