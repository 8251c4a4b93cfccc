"""`GET /metrics`: requests, the model's work, the GPUs' memory and the process, for Prometheus."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.gpu import read_gpus
from serving.runner import Runner
from serving.worker import Call, Worker

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What is counted: by the worker, and for each request."""

    def __init__(self, worker: Worker) -> None:
        """Register all series with a registry of their own."""
        disable_created_metrics()  # a second series for each, with the time of its first value
        self.registry = registry = CollectorRegistry()
        self.in_flight = 0
        labels = ("method", "route", "status")
        self._requests = Counter(
            "http_requests", "Requests that were answered.", labels, registry=registry
        )
        self._durations = Histogram(
            "http_request_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            labels,
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "model_batch_size", "Requests in one call.", buckets=REQUESTS, registry=registry
        )
        self.calls = Histogram(
            "model_call_duration_seconds", "Time of one call.", buckets=SECONDS, registry=registry
        )
        self.timeouts = Counter(
            "model_timeouts", "Requests past INFER_TIMEOUT_SECONDS.", registry=registry
        )
        self.restarts = Counter(
            "model_worker_restarts", "Times that a lost worker was replaced.", registry=registry
        )
        self.load = Gauge(
            "model_load_seconds",
            "Time of the load, warm-up included.",
            registry=registry,
        )
        self._show("http_requests_in_flight", "Requests not answered yet.", lambda: self.in_flight)
        self._show("model_queue_depth", "Requests that wait.", lambda: len(worker.waiting))
        self._show("model_running", "Requests that it works on.", lambda: len(worker.running))
        ProcessCollector(registry=registry)
        registry.register(GpuMemory())

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, status).inc()
        self._durations.labels(method, route, status).observe(seconds)

    def _show(self, name: str, about: str, value: Callable[[], int]) -> None:
        """Add a gauge for what there is of something now."""
        Gauge(name, about, registry=self.registry).set_function(value)


class MeasuredWorker(Worker):
    """A worker whose loads and calls are counted."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.metrics = Metrics(self)

    def _load(self) -> bool:
        if self.is_loaded:
            self.metrics.restarts.inc()
        start = time.monotonic()
        is_loaded = super()._load()
        self.metrics.load.set(time.monotonic() - start)
        return is_loaded

    def _expire(self, call: Call) -> None:
        if not call.future.done():
            self.metrics.timeouts.inc()
        super()._expire(call)

    def _ask(self, calls: list[Call]) -> list[Any]:
        start = time.monotonic()
        answers = super()._ask(calls)
        self.metrics.batches.observe(len(calls))
        self.metrics.calls.observe(time.monotonic() - start)
        return answers


class GpuMemory(Collector):
    """The memory of each GPU; nothing where there is no driver to ask."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask the driver."""
        found = read_gpus().gpus
        if not found:
            return
        used = GaugeMetricFamily("gpu_memory_used_bytes", "Memory in use.", labels=["gpu"])
        total = GaugeMetricFamily("gpu_memory_total_bytes", "Memory there is.", labels=["gpu"])
        for gpu in found:
            used.add_metric([str(gpu.index)], gpu.memory_used_mb * 2**20)
            total.add_metric([str(gpu.index)], gpu.memory_total_mb * 2**20)
        yield used
        yield total


def create_router(metrics: Metrics) -> APIRouter:
    """Return the route that Prometheus asks."""
    router = APIRouter()

    # No coroutine: a scrape is written on a thread, while the event loop serves.
    @router.get("/metrics", response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """Report what is counted, in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
