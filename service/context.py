"""The parts of the service, put together once in `app.create_app`; a handler names them as its parameter `here`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from model.zoo import Zoo, ZooEntry
from service.admission import Admission
from service.health import Health
from service.keys import Keys
from service.metrics import Metrics
from service.pool import Pool
from service.quota import Quota
from service.reconstructions import Reconstructions
from service.scheduler import Scheduler
from service.settings import Settings
from service.signing import SigningKeys
from service.store.store import Store
from service.watchdog import Watchdog


@dataclass(frozen=True)
class Context:
    """Everything a handler may use.

    Attributes:
        default_entry: the model of requests that name none.
        keys: who may use it; None where everybody may.
        signing: keys of signed URLs; None where there are none.
    """

    settings: Settings
    zoo: Zoo
    default_entry: ZooEntry
    metrics: Metrics
    pool: Pool
    scheduler: Scheduler
    health: Health
    admission: Admission
    watchdog: Watchdog
    quota: Quota | None
    store: Store
    reconstructions: Reconstructions
    keys: Keys | None
    signing: SigningKeys | None


async def _context(request: Request) -> Context:  # not on a thread, which would take longer than all else
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(_context)]
