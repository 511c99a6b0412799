"""The composition root: settings -> zoo -> pool -> scheduler -> store -> routes. All is made here.

A request passes `Observe` (its id, its log line, its numbers; with a `LastResort` of its own around the others),
`Farewell` (the last ones end their connections), `SecurityHeaders`, `Cors` where other origins may call, `CrossSite`
(pages of other origins change nothing), `LastResort` (whatever is raised is a problem), `Gate` (is there a place for
it?) and `BodyLimit` (bytes), then its handler in `routes/`.

Two counters are the process's, because uvicorn makes the connections and knows nothing of this: `Connection.unread` and
`FileAnswer.waiting`, bytes of answers that clients have yet to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from model.devices import pick_device
from model.zoo import Zoo, ZooEntry
from service import answers, openapi
from service.admission import Admission, Gate
from service.connection import Connection
from service.context import Context
from service.cors import Cors, CrossSite
from service.device import SLOWEST_RATE, Device
from service.farewell import Farewell
from service.file_answer import FileAnswer
from service.headers import SecurityHeaders
from service.health import Health
from service.keys import Keys
from service.last_resort import LastResort
from service.limits import BodyLimit
from service.metrics import Metrics, version
from service.observe import Observe
from service.pool import Pool
from service.quota import Quota
from service.reconstructions import Reconstructions
from service.routes import bitstreams, decode, encode, image, metrics, models, page, probes, problems
from service.scheduler import Scheduler
from service.settings import Settings, sizes
from service.signing import SigningKeys
from service.store.address import open_medium
from service.store.store import Store
from service.tracing import OFF, configured
from service.watchdog import Watchdog

log = structlog.get_logger()

_BATCH_PIXELS = {"cpu": 500_000, "cuda": 4_000_000}


def create_app(settings: Settings) -> FastAPI:
    """The service.

    Raises:
        UnknownModel: a model that the settings name is not installed.
        OSError: the keys file cannot be read, or the store's folder not be made.
        ValueError: the device that they name is not here, the keys file is none, or the store's package is missing.
    """
    if settings.metrics_key and settings.keys_file is None:
        raise ValueError("--metrics-key (TCM_METRICS_KEY) needs --keys-file (TCM_KEYS_FILE)")
    zoo = Zoo(settings.model_dir)
    measured = Metrics()
    device = pick_device(settings.device)
    watchdog = Watchdog(settings.hang_seconds)
    admission = Admission(measured, max_items=settings.max_queue_items, max_pixels=settings.max_queue_pixels)
    pool = Pool(str(device), settings.memory_budget, measured, watchdog, sizes(settings.warm_up))
    batches = Device(
        measured,
        admission.rate,
        watchdog,
        slowest_rate=SLOWEST_RATE[device.type],
        max_batch_items=settings.max_batch_items,
        max_batch_pixels=settings.max_batch_pixels or _BATCH_PIXELS[device.type],
    )
    scheduler = Scheduler(
        pool,
        measured,
        admission,
        watchdog,
        batches,
        workers=settings.workers,
        max_pixels=settings.max_pixels,
        image_seconds=settings.image_seconds,
    )
    patience = settings.store_timeout_ms / 1000
    store = Store(open_medium(settings.store, patience), measured, seconds=patience, ttl=settings.store_ttl)
    context = Context(
        settings=settings,
        zoo=zoo,
        default_entry=zoo.default(settings.default_model),
        metrics=measured,
        pool=pool,
        scheduler=scheduler,
        health=Health(),
        admission=admission,
        watchdog=watchdog,
        quota=Quota(settings.quota_per_minute, settings.quota_burst) if settings.quota_per_minute else None,
        store=store,
        reconstructions=Reconstructions(store, scheduler, zoo, measured, settings.image_cache_bytes),
        keys=Keys(settings.keys_file, measured) if settings.keys_file else None,
        signing=SigningKeys(settings.signing_keys.get_secret_value()) if settings.signing_keys else None,
    )
    measured.models(entry.name for entry in zoo.entries())
    measured.unread.set_function(lambda: Connection.unread + FileAnswer.waiting)
    measured.ready.set_function(lambda: context.health.reason is None)
    preloaded = _preloaded(settings, zoo)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for problem in zoo.problems:
            log.warning("model skipped", reason=problem)
        for shadowed in zoo.shadowed:
            log.warning("model of a name that is taken", reason=shadowed)
        # beside the server, so that probes are answered while models load
        tasks = [asyncio.create_task(context.health.prove(context.scheduler, preloaded))]
        if context.keys:
            tasks.append(asyncio.create_task(context.keys.follow()))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(context.scheduler.close)
        await asyncio.to_thread(pool.close)
        if tracing:
            await tracing.close()

    tracing = configured()
    app = FastAPI(
        title="TCM",
        summary="Learned image compression as a service.",
        description="TCM (CVPR 2023) models behind HTTP. Every error is an RFC 9457 problem, listed at /problems.",
        version=version(),
        openapi_tags=openapi.TAGS,
        docs_url=None,  # ours, in routes/page.py, needs no other host
        openapi_url=None,  # there, too
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=tracing.telemetry if tracing else OFF,
        exception_handlers=dict.fromkeys(answers.ANSWERED, _answer),
    )
    app.state.context = context
    for resource in (encode, decode, bitstreams, image, models, problems, probes, metrics, page):
        app.include_router(resource.router)
    app.mount("/static/swagger", page.Assets(directory=page.SWAGGER), name="swagger")
    app.mount("/static", page.Assets(directory=page.WEB), name="static")
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Gate, admission=admission)
    app.add_middleware(LastResort)
    app.add_middleware(CrossSite, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Farewell, health=context.health)
    app.add_middleware(Observe, metrics=measured, tracing=tracing)  # added last, so outermost
    openapi.complete(app, secured=context.keys is not None, metrics_secured=settings.metrics_key)
    return app


def _preloaded(settings: Settings, zoo: Zoo) -> list[ZooEntry]:
    """The models that the setting `preload` names."""
    entries: dict[str, ZooEntry] = {}
    for word in settings.preload:
        if word == "all":
            entries |= {entry.name: entry for entry in zoo.entries()}
        elif word != "none":
            entry = zoo.default(settings.default_model) if word == "default" else zoo.named(word)
            entries[entry.name] = entry
    return list(entries.values())


async def _answer(request: Request, error: Exception) -> Response:
    return answers.answer(request.scope, error)
