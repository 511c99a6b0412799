"""`tcm serve`: the settings as options, one process, one device."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from model import environment
from model.stdio import open_what_is_closed
from service import logs
from service.settings import PREFIX, PROGRAM, SECRETS, Settings, option

if TYPE_CHECKING:
    from service.context import Context

USAGE_ERROR = 2
BACKLOG = 2048
_DESCRIPTORS = 1 << 16


def serve(ctx: typer.Context) -> None:
    """Serve the models over HTTP; `tcm serve --help` lists the settings."""
    raise typer.Exit(run(ctx.args))


def run(arguments: Sequence[str]) -> int:
    """Serve until told to stop. Returns the exit code: 0, 1 (cannot serve) or 2 (wrong settings)."""
    open_what_is_closed()  # or a client's connection would be where faults are written to
    try:
        settings = Settings.from_arguments(arguments)
    except SettingsError as error:
        return _fail(str(error).removeprefix("error parsing CLI: "), USAGE_ERROR)
    except ValidationError as error:
        return _fail(_one_line(error), USAGE_ERROR)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    return _serve(settings)


def _serve(settings: Settings) -> int:
    # until the server handles it: the first process of a container gets no signal that it has no handler for
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # a terminal that closes; without one, nobody says reload
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    _all_descriptors()
    logs.configure(settings.log_level)
    environment.prepare()
    # only now: `--help` and wrong options need no torch
    import uvicorn

    from model.errors import UnknownModel
    from model.pixels import no_limit_of_pillow
    from service.app import create_app
    from service.priority import prefer_event_loop
    from service.protocol import Protocol
    from service.server import Server, end

    prefer_event_loop()
    no_limit_of_pillow()
    try:
        app = create_app(settings)
    except (UnknownModel, OSError, ValueError) as error:
        return _fail(str(error), USAGE_ERROR)
    try:
        forwarded = _forwarded_allow_ips()
    except ValueError as error:
        return _fail(str(error), USAGE_ERROR)
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # which repeats the address
        return _fail(f"cannot listen on {settings.host}:{settings.port}: {reason}", 1)

    here: Context = app.state.context
    _announce(here, listener.getsockname()[1])
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=forwarded,
        reset_contextvars=True,  # or what is pipelined behind a request begins with its context
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.timeout_ms // 1000 + 1,  # no request lives longer
    )
    with contextlib.suppress(KeyboardInterrupt), listener:
        Server(config, here).run(sockets=[listener])
    if not here.scheduler.closed:
        end(0)  # the device is at a long step that nobody waits for; an orderly exit would
    return 0


def _announce(here: Context, port: int) -> None:
    """Say where it listens and what it has, and what is odd about its settings."""
    settings = here.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    installed = [entry.name for entry in here.zoo.entries()]
    log = structlog.get_logger()
    for name in unknown_variables():
        log.warning("unknown setting", variable=name)
    with contextlib.suppress(OSError):  # one that may not be looked at is among the zoo's problems
        if settings.model_dir is not None and not settings.model_dir.is_dir():
            log.warning("there is no such folder of models", model_dir=str(settings.model_dir))
    log.info(
        "listening",
        url=url,
        device=here.pool.device,
        default_model=here.default_entry.name,
        models=installed,
        store=here.store.url,
    )
    if sys.stderr.isatty():
        sys.stderr.write(f"\n  {url}  on {here.pool.device}\n  models: {', '.join(installed)}\n\n")


def _all_descriptors() -> None:
    """As many connections and processes as the machine allows, not as shells begin with: often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # some machines allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _forwarded_allow_ips() -> str:
    """Whose `X-Forwarded-For` is believed; nobody's if unsaid, where uvicorn believes all of this machine.

    Raises:
        ValueError: a part is no address or network, which uvicorn would compare with addresses, letter by letter.
    """
    text = os.environ.get("FORWARDED_ALLOW_IPS", "")
    for part in map(str.strip, text.split(",")):
        try:
            if part and text.strip() != "*":
                ipaddress.ip_network(part)
        except ValueError as error:
            raise ValueError(f"FORWARDED_ALLOW_IPS is addresses and networks between commas, or *: {error}") from None
    return text.strip()


def _listen(host: str, port: int) -> socket.socket:
    if ":" not in host:
        return socket.create_server((host, port), backlog=BACKLOG)
    both = socket.has_dualstack_ipv6()  # so that :: is every address, of either kind
    return socket.create_server((host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=both)


def unknown_variables() -> list[str]:
    """Variables of the environment that look like settings and are none: most often a slip of the pen."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def _one_line(error: ValidationError) -> str:
    return "; ".join(
        f"{option(name)} ({PREFIX}{name.upper()}): {e['msg']}" + ("" if name in SECRETS else f", not {e['input']!r}")
        for e in error.errors()
        for name in [str(e["loc"][0])]
    )


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {message}\n")
    return code
