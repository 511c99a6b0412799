"""The life of an image: PIL image -> pixels -> y, z -> symbols -> bytes, and back.

    encode:  picture ── g_a ──> y ── h_a ──> z ──> slices: symbols, σ ──> scale indexes ── rANS ──> payload ──> .tcm
    decode:  .tcm ──> payload ── rANS ──> z ──> slices, each: σ ── rANS ──> symbols ──> ŷ ── g_s ──> picture

Several pictures of one padded size can go through the networks together; each has a payload of its own that owes
nothing to its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model import fused, kernels, tiles
from model.alpha import decode_alpha, encode_alpha
from model.attention import in_kernels
from model.blocks import SliceAttention
from model.checkpoint import Weights, load
from model.container import DEFAULT_MAX_PIXELS, MAX_SIDE, Container, read_container, write_container
from model.devices import by_index, current, lock_of, memory_errors, pick_device, use_exact_arithmetic
from model.errors import CheckpointUnreadable, ModelError
from model.info import ModelInfo
from model.latent_coder import Analysis, LatentCoder
from model.pixels import Picture, Pixels, from_pil, to_pil
from model.precision import Transforms, pick_precision
from model.programs import Runner, give_back_unused, with_room
from model.recording import Pause, Steps
from model.stages import Heartbeat, Stages, unwatched
from model.turns import Turns, in_turn
from model.zoo import Zoo, ZooEntry

_T = TypeVar("_T")

_WORTH_HALVING = 1_000_000
"""Pixels of a batch, of at least four files; smaller halves would fill a GPU too little."""


class Codec:
    """One model on one device. Threads may share it: the device works on one call at a time.

    Attributes:
        info: which model this is.
        device: where it runs.
        net: the network, in evaluation mode on that device, in float32.
        dtype: of most layers of g_a, h_a and g_s.
        tiling: how large pictures are cut.
    """

    def __init__(
        self, weights: Weights, device: torch.device, precision: str = "auto", tiling: tiles.Tiling | None = None
    ) -> None:
        use_exact_arithmetic(device)
        self.info: ModelInfo = weights.info
        self.device = device = by_index(device)
        self.tiling = tiling or tiles.Tiling.of(weights.net.config.window)
        for attention in (*weights.net.atten_mean, *weights.net.atten_scale):
            cast("SliceAttention", attention[0]).drop_shut()  # before it takes the device's memory
        self.dtype = pick_precision(precision, device)
        self._lock = lock_of(device)
        with self._lock, current(device):
            with_room(device, lambda: self._settle(weights))

    def _settle(self, weights: Weights) -> None:
        self.net = weights.net.to(self.device).eval().requires_grad_(False)
        self._transforms = Transforms.of(self.net, self.dtype)
        self._latents = LatentCoder(self.net, self.info, weights.z_tables, self.device)
        record = self._can_be_recorded()
        # two where a batch may be halved: what one is doing must outlast what the other does
        self._runners = [Runner(self.device, record=record) for _ in range(2 if record else 1)]

    @classmethod
    def load(
        cls,
        model: str | Path | ZooEntry,
        device: str | torch.device = "auto",
        precision: str = "auto",
        zoo: Zoo | None = None,
    ) -> Codec:
        """A codec from the name of an installed model, or the path of a weights file.

        Args:
            device: auto (CUDA where there is one), cpu, cuda or cuda:N.
            precision: of g_a, h_a and g_s: auto (bfloat16 where it is native), float32, bfloat16 or float16. Files
                written in one are read in any other.
            zoo: where a name is looked up, if not in the folder of the environment.

        Raises:
            UnknownModel: no model of that name is installed.
            CheckpointUnreadable: the file is damaged, or no longer the one that the entry is of.
            CheckpointMismatch: it holds other weights than it says.
            OutOfMemory: there is not enough memory for it.
            ValueError: no such device or precision here.
        """
        if isinstance(model, ZooEntry):
            path = model.path
        elif isinstance(model, Path) or str(model).endswith(".safetensors"):
            path = Path(model)
        else:
            path = (zoo or Zoo()).named(model).path
        with memory_errors(torch.device("cpu"), f"loading {path}"):
            weights = load(path)
        if isinstance(model, ZooEntry) and weights.info.fingerprint != model.info.fingerprint:
            raise CheckpointUnreadable(
                f"{path}: holds weights {weights.info.fingerprint} now, not {model.info.fingerprint}: it was replaced "
                "since it was found. Start anew, and give new weights a name of their own"
            )
        return cls(weights, pick_device(device), precision)

    @classmethod
    def load_for(
        cls,
        data: bytes | bytearray | memoryview,
        device: str | torch.device = "auto",
        precision: str = "auto",
        zoo: Zoo | None = None,
    ) -> Codec:
        """The codec that reads this .tcm file: its model with the weights that wrote it, be they earlier ones.

        Raises:
            UnsupportedBitstream, CorruptBitstream: as `read_container` does.
            IncompatibleModel: these weights are not installed.
            CheckpointUnreadable, CheckpointMismatch, OutOfMemory, ValueError: as `load` does.
        """
        container = read_container(data, MAX_SIDE**2)
        entry = (zoo or Zoo()).by_fingerprint(container.fingerprint, container.model)
        return cls.load(entry, device, precision)

    @property
    def retries(self) -> int:
        """Files whose symbols came out in float64 only: this machine's float32 differs more than the guard forgives."""
        return self._latents.retries

    @property
    def memory_bytes(self) -> int:
        """Memory of the weights on the device; what convolutions make of them comes with the first picture."""
        return sum(t.numel() * t.element_size() for t in {id(t): t for t in self._tensors()}.values())

    def warm_up(self, width: int, height: int) -> None:
        """Code a grey picture of this size there and back, and again, to be as fast at the next as at any other.

        Kernels are compiled at the first picture, and a GPU's are recorded at the second one of a size.
        """
        for _ in range(2 if self.device.type == "cuda" else 1):
            grey = Picture(np.full((height, width, 3), 127, np.uint8))
            self.decode_container(read_container(self.encode_picture(grey)))

    def close(self) -> None:
        """Give the device's memory back. The codec is of no use afterwards."""
        with self._lock:
            for runner in self._runners:
                runner.forget()
            for tensor in self._tensors():
                tensor.data = tensor.data.new_empty(0)
            self._latents.close()
            if self.device.type == "cuda":
                give_back_unused()

    def _tensors(self) -> list[Tensor]:
        return [
            *self.net.parameters(),
            *self.net.buffers(),
            *self._transforms.own_tensors(),
            *self._latents.own_tensors(),
            *fused.kept([self.net, *self._transforms.layers()]),
        ]

    def _can_be_recorded(self) -> bool:
        """Whether its programs read nothing that may be gone when they are replayed."""
        gpu = self.device.type == "cuda"
        return gpu and kernels.available(torch.empty(0, dtype=self.dtype, device=self.device)) and in_kernels(self.net)

    # ---- an image

    def encode(self, image: Image.Image, *, keep_metadata: bool = True) -> bytes:
        """The .tcm file of an image of any mode and size; without `keep_metadata`, its colours are in sRGB.

        Raises:
            UnsupportedImage: an image of a kind that cannot be coded.
            CorruptImage: it has no pixels, or they are in a file that is damaged or truncated.
            TooManyPixels: a side is longer than a file can say.
            CheckpointMismatch: the weights give numbers that cannot be coded.
            OutOfMemory: the device has no memory left.
        """
        return self.encode_picture(from_pil(image, keep_metadata=keep_metadata))

    def decode(self, data: bytes | bytearray | memoryview, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        """The image in a .tcm file, of the size it was encoded with; metadata in `info`.

        Raises:
            UnsupportedBitstream: not a .tcm file that this version reads.
            CorruptBitstream: damaged or truncated.
            IncompatibleModel: written with other weights than these, or not reproducible with them.
            TooManyPixels: larger than `max_pixels`.
            OutOfMemory: the device has no memory left.
        """
        return to_pil(self.decode_container(read_container(data, max_pixels)))

    def encode_picture(self, picture: Picture) -> bytes:
        """As `encode`, of what `model.pixels` has read.

        Raises:
            CheckpointMismatch, OutOfMemory: as `encode` does.
        """
        return self.pack(picture, self.analyse([picture])[0])

    def decode_container(self, container: Container) -> Picture:
        """As `decode`, from a parsed file.

        Raises:
            CorruptBitstream, IncompatibleModel, OutOfMemory: as `decode` does.
        """
        padded = self.synthesise([container])[0]
        if isinstance(padded, ModelError):
            raise padded
        return self.unpack(container, padded)

    # ---- several images of one padded size, each with a bitstream that owes nothing to the others

    def padded(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that the networks see; only images that share it can be batched."""
        alignment = self.info.config.alignment
        return width + -width % alignment, height + -height % alignment

    def _check_padded(self, images: Sequence[Picture | Container]) -> None:
        if len(sizes := {self.padded(image.width, image.height) for image in images}) != 1:
            raise ValueError(f"a batch is of images of one padded size, not of {sorted(sizes)}")

    def analyse(
        self, pictures: Sequence[Picture], *, stages: Stages | None = None, heartbeat: Heartbeat = unwatched
    ) -> list[Analysis]:
        """The symbols of pictures that share a padded size: what needs the device, for `pack`.

        `heartbeat` is called before each tile and each slice; what it raises ends the work.

        Raises:
            ValueError: they do not share one.
            CheckpointMismatch: the weights give numbers that are not finite.
            OutOfMemory: the device has no memory left.
        """
        stages = Stages() if stages is None else stages
        self._check_padded(pictures)

        def work() -> list[NDArray[Any]]:
            runner = self._runners[0]
            pixels = self._to_device(pictures, runner)
            run = runner.run(("analyse", self.tiling), self._analysis, pixels.numel() // 3, stages, heartbeat)
            return runner.to_host(run.send(pixels))()

        return self._latents.analyses(self._on_device(work))

    def pack(
        self, picture: Picture, analysis: Analysis, *, name: str | None = None, stages: Stages | None = None
    ) -> bytes:
        """The .tcm file of a picture and its symbols. Any thread may do this while the device works on.

        Args:
            picture: whose metadata and alpha channel go with it.
            analysis: the symbols.
            name: of the model, where the same weights go by several.
            stages: where the time goes.

        Raises:
            CheckpointMismatch: the symbols are larger than any model's.
        """
        stages = Stages() if stages is None else stages
        payload = self._latents.payload(analysis, stages)
        with stages("container"):
            return write_container(
                Container(
                    model=name or self.info.name,
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

    def synthesise(
        self, containers: Sequence[Container], *, stages: Stages | None = None, heartbeat: Heartbeat = unwatched
    ) -> list[Pixels | ModelError]:
        """The padded pixels of files that share a padded size: what needs the device, for `unpack`.

        A file that these weights did not write or cannot reproduce gives an error in its place, and costs the others
        nothing. `heartbeat` is called before each slice and each tile; what it raises ends the work.

        Returns:
            uint8 (padded height, padded width, 3) each, or its error.

        Raises:
            ValueError: they do not share one.
            OutOfMemory: the device has no memory left.
        """
        stages = Stages() if stages is None else stages
        self._check_padded(containers)

        def work() -> list[Pixels | ModelError]:
            parts = self._shared_out(containers)
            works = [self._synthesising(part, runner, stages, heartbeat) for part, runner in parts]
            return [padded for part in in_turn(works) for padded in part]

        return self._on_device(work)

    def _shared_out(self, containers: Sequence[Container]) -> list[tuple[Sequence[Container], Runner]]:
        """Halves of a batch where that is worth it: on a GPU, which works on one while the other's symbols are read."""
        width, height = self.padded(containers[0].width, containers[0].height)
        if len(self._runners) < 2 or len(containers) < 4 or len(containers) * width * height < _WORTH_HALVING:
            return [(containers, self._runners[0])]
        middle = (len(containers) + 1) // 2
        return list(zip((containers[:middle], containers[middle:]), self._runners, strict=True))

    def _synthesising(
        self, containers: Sequence[Container], runner: Runner, stages: Stages, heartbeat: Heartbeat
    ) -> Turns[list[Pixels | ModelError]]:
        width, height = self.padded(containers[0].width, containers[0].height)
        in_height, in_width = height // tiles.STRIDE, width // tiles.STRIDE
        readers, y_hat = yield from self._latents.read(containers, in_height, in_width, runner, stages, heartbeat)
        if all(reader.error for reader in readers):
            return [reader.error for reader in readers if reader.error]
        pixels = len(containers) * width * height
        run = runner.run(("synthesise", self.tiling), self._synthesis, pixels, stages, heartbeat)
        rgb_comes = runner.to_host(run.send(y_hat))
        yield
        (rgb,) = rgb_comes()
        return [reader.error or padded for reader, padded in zip(readers, rgb, strict=True)]

    def unpack(self, container: Container, padded: Pixels) -> Picture:
        """The picture of a file and its padded pixels. Any thread may do this while the device works on.

        Raises:
            CorruptBitstream: its alpha channel is damaged.
        """
        width, height = container.width, container.height
        return Picture(
            rgb=np.ascontiguousarray(padded[:height, :width]),
            grey=container.grey,
            alpha=None if container.alpha is None else decode_alpha(container.alpha, width, height),
            icc=container.icc,
            exif=container.exif,
            xmp=container.xmp,
        )

    # ---- what happens to it

    def _to_device(self, pictures: Sequence[Picture], runner: Runner) -> Tensor:
        """(B, H, W, 3) in 0 … 255, padded by repeating the edge; still on the host."""
        width, height = self.padded(pictures[0].width, pictures[0].height)
        given = runner.to_be_given((len(pictures), height, width, 3), torch.uint8)
        for picture, into in zip(pictures, given.numpy(), strict=True):
            h, w = picture.rgb.shape[:2]
            into[:h, :w] = picture.rgb
            into[:h, w:] = into[:h, w - 1 : w]
            into[h:] = into[h - 1]
        return given

    def _analysis(self, pixels: Tensor, heartbeat: Heartbeat) -> Steps:
        """The program that is given pixels (B, H, W, 3) and gives what `LatentCoder.analyses` takes."""
        x = pixels.permute(0, 3, 1, 2).float().div_(255)
        y = tiles.analyse(_beating(self._transforms.g_a, heartbeat), x, self.tiling).contiguous()
        del x
        yield Pause("g_a")
        z = self._transforms.h_a(y).contiguous()
        yield Pause("hyper")
        yield from self._latents.writing(y, z, heartbeat)

    def _synthesis(self, y_hat: Tensor, heartbeat: Heartbeat) -> Steps:
        """The program that is given ŷ and gives pixels (B, H, W, 3), padding included."""
        x_hat = tiles.synthesise(_beating(self._transforms.g_s, heartbeat), y_hat, self.tiling)
        pixels = x_hat.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        yield Pause("g_s", (pixels.permute(0, 2, 3, 1).contiguous(),), last=True)

    def _on_device(self, work: Callable[[], _T]) -> _T:
        """One call at a time, without gradients; a full device is a named error."""
        with self._lock, current(self.device), torch.inference_mode():
            return with_room(self.device, work)


def _beating(transform: Callable[[Tensor], Tensor], heartbeat: Heartbeat) -> Callable[[Tensor], Tensor]:
    """The transform, with a heartbeat before each tile."""

    def watched(x: Tensor) -> Tensor:
        heartbeat()
        return transform(x)

    return watched
