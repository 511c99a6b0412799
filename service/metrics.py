"""What the service counts and measures, in a registry of its own. Base units, prefix `tcm_`."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib import metadata

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from service.errors import PROBLEMS

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ITEMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_PIXELS = (1e5, 2.5e5, 5e5, 1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 64e6)
_BITS_PER_PIXEL = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5)

_MAX_KEY_NAMES = 100  # labels must not grow without bound


def version() -> str:
    """Of this service; "unknown" where it runs without being installed."""
    try:
        return metadata.version("tcm-service")
    except metadata.PackageNotFoundError:
        return "unknown"


class Metrics:
    """One attribute a metric."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each was first counted
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "tcm_http_requests", "Requests answered.", ["route", "method", "code"], registry=registry
        )
        self.request_duration = Histogram(
            "tcm_http_request_duration_seconds",
            "From the request's headers to the last byte of its answer.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rejected = Counter(
            "tcm_requests_rejected", "Requests that a limit turned away.", ["reason"], registry=registry
        )
        for problem in PROBLEMS.values():  # all from the start: what appears late has no zero to rise from
            if problem.rejects:
                self.rejected.labels(problem.code)
        self.ready = Gauge("tcm_ready", "1 while the service is ready, as /readyz says.", registry=registry)
        self.places = Gauge(
            "tcm_requests_inside", "Requests for work that were let in and not answered yet.", registry=registry
        )
        self.device_rate = Gauge(
            "tcm_device_pixels_per_second",
            "How fast the device has been of late, padding included; 0 before its first batch.",
            registry=registry,
        )
        self.abandoned = Counter(
            "tcm_batches_abandoned", "Batches given up on the device: nobody waited for them.", registry=registry
        )
        self.queue_depth = Gauge("tcm_queue_depth", "Requests that wait for the device.", registry=registry)
        self.queue_pixels = Gauge(
            "tcm_queue_pixels", "Pixels of the requests that wait, padding included.", registry=registry
        )
        self.queue_wait = Histogram(
            "tcm_queue_wait_seconds", "Time a request waited for the device.", buckets=_SECONDS, registry=registry
        )
        self.batch_items = Histogram(
            "tcm_batch_items", "Requests that went through the device together.", buckets=_ITEMS, registry=registry
        )
        self.batch_pixels = Histogram(
            "tcm_batch_pixels", "Pixels of a batch, padding included.", buckets=_PIXELS, registry=registry
        )
        self.batch_pixels_limit = Gauge(
            "tcm_batch_pixels_limit",
            "Most pixels of a batch; lower than the setting after the device ran out of memory.",
            registry=registry,
        )
        self.stage_duration = Histogram(
            "tcm_stage_duration_seconds",
            "Time of one stage: of a request, or of a batch where it is the device's.",
            ["op", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.bits_per_pixel = Histogram(
            "tcm_encoded_bits_per_pixel",
            "Bits per pixel of encoded images.",
            ["model"],
            buckets=_BITS_PER_PIXEL,
            registry=registry,
        )
        self.input_bytes = Counter("tcm_input_bytes", "Bytes of request bodies.", registry=registry)
        self.output_bytes = Counter("tcm_output_bytes", "Bytes of response bodies.", registry=registry)
        self.models_loaded = Gauge("tcm_models_loaded", "Models resident on the device.", registry=registry)
        self.model_load_duration = Histogram(
            "tcm_model_load_duration_seconds", "Time to load a model.", buckets=_SECONDS, registry=registry
        )
        self.model_load_failures = Counter(
            "tcm_model_load_failures", "Models that could not be loaded.", ["model"], registry=registry
        )
        self.model_evictions = Counter(
            "tcm_model_evictions", "Models that left to keep the memory budget.", ["model"], registry=registry
        )
        self.device_memory = Gauge(
            "tcm_device_memory_bytes", "Memory of the resident models' weights.", ["device"], registry=registry
        )
        self.store_duration = Histogram(
            "tcm_store_operation_duration_seconds",
            "Time of one call to the medium of the store: write, read, stat, delete.",
            ["op"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.store_failures = Counter(
            "tcm_store_failures",
            "Calls that the medium refused (`error`) or left alone (`timeout`), writes that too many precede (`full`).",
            ["op", "reason"],
            registry=registry,
        )
        self.store_damaged = Counter(
            "tcm_store_damaged", "Reads that found other bytes than were stored.", registry=registry
        )
        self.reconstructions = Counter(
            "tcm_reconstructions",
            "Pictures of stored bitstreams: from the cache, shared with a request before, or made.",
            ["source"],
            registry=registry,
        )
        self.reconstruction_cache = Gauge(
            "tcm_reconstruction_cache_bytes", "Pictures and bitstreams that are kept in memory.", registry=registry
        )
        self.unread = Gauge(
            "tcm_unread_answer_bytes", "Bytes of answers that clients have not read yet.", registry=registry
        )
        self.keys_loaded = Gauge("tcm_keys_loaded", "API keys, expired ones included.", registry=registry)
        self.keys_healthy = Gauge(
            "tcm_keys_last_reload_successful", "0 while the keys file cannot be read.", registry=registry
        )
        self.keys_healthy.set(1)
        self.key_requests = Counter(
            "tcm_key_requests", "Requests by the name of their API key.", ["key"], registry=registry
        )
        self._key_names: set[str] = set()
        Gauge("tcm_build_info", "Always 1; the labels say what runs.", ["version", "python"], registry=registry).labels(
            version(), platform.python_version()
        ).set(1)

    def models(self, names: Iterable[str]) -> None:
        """Show the counters of these models from the start."""
        for name in names:
            self.model_load_failures.labels(name)
            self.model_evictions.labels(name)

    def count_key(self, name: str) -> None:
        """Add a request of a key; names beyond the first hundred share the label `other`."""
        if len(self._key_names) < _MAX_KEY_NAMES:
            self._key_names.add(name)
        self.key_requests.labels(name if name in self._key_names else "other").inc()

    def stages(self, op: str, seconds: Mapping[str, float]) -> None:
        """Add stages of one request, or of one batch."""
        for stage, duration in seconds.items():
            self.stage_duration.labels(op, stage).observe(duration)

    def batch(self, op: str, items: int, pixels: int, seconds: Mapping[str, float]) -> None:
        """Add a batch, once for all of its items."""
        self.batch_items.observe(items)
        self.batch_pixels.observe(pixels)
        self.stages(op, seconds)
