"""Every option of the service, once: `TCM_PORT` in the environment is `--port` of `tcm serve` and a row in the docs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
)
from pydantic_settings import BaseSettings, CliApp, NoDecode, SettingsConfigDict

from model.container import DEFAULT_MAX_PIXELS, MAX_SIDE
from model.sizes import parse_size
from service import durations
from service.signing import SigningKeys
from service.store.address import check

PREFIX = "TCM_"
PROGRAM = "tcm serve"
_MOST_WARM = 1 << 24
_LEAST_PIXELS = 1 << 14
"""The picture that models are tried with must be let in."""
_DAY_MS = 86_400_000


def _split(value: object) -> object:
    """`a,b` or `["a", "b"]` as a list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _as_browsers_say_it(origin: str) -> str:
    """Without the port that everybody means."""
    usual = {"https": ":443", "http": ":80"}.get(origin.partition(":")[0], "")
    return origin.removesuffix(usual) if usual else origin


_Origin = Annotated[
    str,
    StringConstraints(pattern=r"^(\*|https?://[A-Za-z0-9.\-\[\]:]+)$", to_lower=True),
    AfterValidator(_as_browsers_say_it),
]


def _users(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


_Path = Annotated[Path, AfterValidator(_users)]


def _duration(value: object) -> object:
    return durations.parse(value) if isinstance(value, str) else value


def _are_sizes(value: tuple[str, ...]) -> tuple[str, ...]:
    for width, height in sizes(value):
        if width * height > _MOST_WARM:
            raise ValueError(f"{width}x{height} is too large to be made ready for: at most 16 megapixels")
    return value


def _are_signing_keys(value: SecretStr) -> SecretStr:
    SigningKeys(value.get_secret_value())
    return value


class Settings(BaseSettings):
    """Serve learned image compression over HTTP. Every option can also be given in the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        cli_prog_name=PROGRAM,
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_show_env_vars=True,
        cli_exit_on_error=False,
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where the models run: auto (CUDA if present), cpu, cuda or cuda:N. One process serves one device.",
    )
    model_dir: _Path | None = Field(
        None, description="Directory of imported models, beside the embedded ones; by default that of `tcm import`."
    )
    default_model: str | None = Field(
        None, description="Model of requests that name none; by default the embedded one of the middle λ."
    )
    preload: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        ("default",),
        description="Models to load and try before the service is ready: names separated by commas (or a JSON list), "
        "`default`, `all` or `none`. Others are loaded when first asked for.",
    )
    warm_up: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_are_sizes)] = Field(
        ("768x512",),
        description="Sizes, WIDTHxHEIGHT, that a model is made ready for when it is loaded, or `none`: its kernels are "
        "compiled (seconds), and on a GPU recorded for each size (a fraction of one, which else the second request of "
        "a size takes). On a CPU any size makes it ready for all.",
    )
    memory_budget: ByteSize | None = Field(
        None,
        gt=0,
        description="Device memory for weights, e.g. 2GiB; beyond it the least recently used idle models leave. "
        "By default all stay.",
    )
    max_body_bytes: ByteSize = Field(
        ByteSize(32 << 20), gt=0, description="Largest request body, e.g. 32MiB; more is answered with 413."
    )
    max_pixels: int = Field(
        DEFAULT_MAX_PIXELS,
        ge=_LEAST_PIXELS,
        le=MAX_SIDE**2,
        description="Most pixels of an image, read from its header; more is answered with 422.",
    )
    image_seconds: PositiveFloat = Field(
        30.0,
        le=_DAY_MS / 1000,
        description="Most processor time that decoding one image file may take; more is answered with 422. Files are "
        "decoded in processes of their own, whose memory is limited, too.",
    )
    timeout_ms: PositiveInt = Field(
        120_000, le=_DAY_MS, description="Deadline of a whole request, and the most that its `timeout_ms=` may ask for."
    )
    workers: int = Field(
        4,
        ge=1,
        le=64,
        description="Threads that read image files, as many that take bitstreams apart, as many that code symbols "
        "and write files, and half as many that write WebP and AVIF.",
    )
    max_batch_items: PositiveInt = Field(
        8,
        description="Most requests that go through the device together; 1 for one at a time. Batches form of what "
        "waits while the device is busy; a lone request never waits.",
    )
    max_batch_pixels: PositiveInt | None = Field(
        None,
        description="Most pixels of such a batch, each image padded to a multiple of 128; a larger image goes alone. "
        "By default 4000000 on a GPU and 500000 on a CPU, whose caches larger batches leave.",
    )
    max_queue_items: PositiveInt = Field(
        64,
        description="Most requests that are waited for or worked on at once; more are answered with 503 before their "
        "bodies are read.",
    )
    max_queue_pixels: PositiveInt = Field(
        100_000_000, description="Most pixels of all those together; a single image may be larger."
    )
    max_unread_bytes: ByteSize = Field(
        ByteSize(1 << 30),
        gt=0,
        description="Most bytes of answers that may wait for slow clients to read them; an image or a bitstream beyond "
        "is answered with 503.",
    )
    quota_per_minute: PositiveInt | None = Field(
        None,
        description="Requests for work (POST) that the API keys of one name may make in a minute of each replica, or "
        "each network address where there are no keys; more are answered with 429. By default there is no quota.",
    )
    quota_burst: PositiveInt = Field(10, description="Of that quota, the requests that may come at once.")
    keep_alive_seconds: PositiveInt = Field(
        75,
        le=3600,
        description="How long a connection may be idle between two requests. Longer than the load balancer keeps "
        "its own (60 s with most), or a request can meet the end of its connection.",
    )
    drain_seconds: float = Field(
        5,
        ge=0,
        le=3600,
        description="How long requests are still taken after SIGTERM, while load balancers learn from /readyz that "
        "no more should come. What has begun is then finished.",
    )
    hang_seconds: float = Field(
        60,
        ge=2,
        le=_DAY_MS / 1000,
        description="After so long without progress (longer for large images), a batch, a file or the load of a model "
        "counts as hung: /livez fails, and the process exits with code 70.",
    )
    store: Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(check)] | None = Field(
        None,
        description="Where /v1/bitstreams keeps what it is given: file:///absolute/folder, s3://bucket/prefix "
        "(credentials and endpoint in AWS_…; needs the extra `s3`) or `none`. By default a folder in the user's data "
        "directory. Replicas share one.",
    )
    store_ttl: Annotated[PositiveInt, BeforeValidator(_duration)] | None = Field(
        None,
        description="How long a bitstream lives after it was last stored, e.g. 12h, 30d or 8w; then it is not found, "
        "and `tcm store gc` removes it. By default for ever.",
    )
    store_timeout_ms: PositiveInt = Field(
        10_000, le=_DAY_MS, description="After which a call to the store that does not return is answered with 503."
    )
    image_cache_bytes: ByteSize = Field(
        ByteSize(256 << 20),
        ge=0,
        description="Memory for pictures of stored bitstreams, so that asking again decodes nothing; 0 for none.",
    )
    signing_keys: Annotated[SecretStr, AfterValidator(_are_signing_keys)] | None = Field(
        None,
        description="Keys of signed URLs, as id:secret,id:secret; the first one signs, all are accepted. Best given in "
        "the environment. With them, bitstreams are read with a signed URL or an API key.",
    )
    keys_file: _Path | None = Field(
        None,
        description="File of API keys, made by `tcm keys new`; followed, so that keys change without a restart. "
        "Without one, whoever reaches the service may use it.",
    )
    metrics_key: bool = Field(
        False,
        description="Whether /metrics asks for a key with the scope `metrics`. Probes are always open.",
    )
    cors_origins: Annotated[tuple[_Origin, ...], NoDecode, BeforeValidator(_split)] = Field(
        (),
        description="Origins whose pages may call the service from a browser, e.g. https://example.org, separated by "
        "commas (or a JSON list); * for any. By default none but its own.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged; probes and /metrics log at debug unless they fail."
    )

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Settings:
        """From options such as `--port 80`, then the environment, then the defaults.

        Raises:
            SettingsError: an option that does not exist, or lacks its value.
            ValidationError: a value that does not fit.
            SystemExit: `--help` was given, and is printed.
        """
        return CliApp.run(cls, list(arguments))


def sizes(words: Sequence[str]) -> list[tuple[int, int]]:
    """Width and height of each size that `warm_up` names.

    Raises:
        ValueError: one of them is no size.
    """
    return [parse_size(word) for word in words if word != "none"]


SECRETS = frozenset({"signing_keys"})
"""Settings whose values are never shown."""


def option(name: str) -> str:
    """The command-line option of a setting."""
    return "--" + name.replace("_", "-")
