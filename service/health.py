"""When the service is ready: after its preloaded models have made a round trip of a known image, and not before."""

from __future__ import annotations

import gc
import io
import math
import time
from collections.abc import Sequence

import structlog
from PIL import Image, ImageChops, ImageStat

from model.stages import Stages
from model.zoo import ZooEntry
from service.scheduler import Scheduler

log = structlog.get_logger()

MIN_PSNR = 18.0
"""dB on the known image. The poorest of models gives more; wrong weights or a broken device give less."""


class Health:
    """What the probes say.

    Attributes:
        trial: why the trial of the models is not passed; None once it is.
        stopping: whether the process has been told to stop.
        lost: why it can do no work any more; None as long as it can.
    """

    def __init__(self) -> None:
        self.trial: str | None = "the models are being loaded"
        self.stopping = False
        self.lost: str | None = None

    @property
    def reason(self) -> str | None:
        """Why no requests should come; None if they should."""
        return self.lost or ("the server is being stopped" if self.stopping else self.trial)

    async def prove(self, scheduler: Scheduler, entries: Sequence[ZooEntry]) -> None:
        """Load and try these models, then declare the service ready, or say why it never will be."""
        for entry in entries:
            self.trial = f"model {entry.name!r} is being tried"
            try:
                with scheduler.admission.exempt():
                    psnr = await round_trip(scheduler, entry)
                if psnr < MIN_PSNR:
                    raise ValueError(f"the known image came back with {psnr:.1f} dB instead of {MIN_PSNR:g}")
            except Exception as error:
                scheduler.admission.unfit = self.trial = f"model {entry.name!r} failed its trial: {error}"
                log.exception("model failed its trial", model=entry.name)
                return
            log.info("model tried", model=entry.name, psnr=round(psnr, 2))
        start = time.perf_counter()
        gc.collect()
        gc.freeze()  # half a million objects that stay: a full collection would stop everything for as long as this one
        self.trial = None
        log.info("ready", collection_seconds=round(time.perf_counter() - start, 3))


async def round_trip(scheduler: Scheduler, entry: ZooEntry) -> float:
    """PSNR in dB of a known image after encoding and decoding with this model."""
    image = known_image()
    encoded = await scheduler.encode(_png(image), entry, stages=Stages())
    container = await scheduler.inspect(encoded.data, stages=Stages())
    decoded = await scheduler.decode(container, entry, "png", stages=Stages())
    return _psnr(image, Image.open(io.BytesIO(decoded)))


def known_image() -> Image.Image:
    """A small picture of gradients, no multiple of the network's padding."""
    across, around = Image.linear_gradient("L"), Image.radial_gradient("L")
    return Image.merge("RGB", (across, around, across.transpose(Image.Transpose.ROTATE_90))).resize((144, 112))


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _psnr(a: Image.Image, b: Image.Image) -> float:
    if a.size != b.size or a.mode != b.mode:
        return -math.inf
    squares = ImageStat.Stat(ImageChops.difference(a, b)).sum2
    mse = sum(squares) / (len(squares) * a.width * a.height)
    return 10 * math.log10(255**2 / max(mse, 1e-9))
