"""`GET /metrics`: requests, the model's work, the GPUs' memory and the process, for Prometheus."""

import atexit
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from tempfile import mkdtemp
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving.gpu import read_gpus
from serving.settings import settings
from serving.worker import Call, Worker

# The process that a model may have to itself counts nothing.
ARE_SHARED = settings.workers > 1 and parent_process() is None


def share_values() -> None:
    """Have the library keep its values in files, where each of the processes finds all of them."""
    folder, owner = mkdtemp(prefix="metrics-"), os.getpid()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


if ARE_SHARED:
    share_values()
disable_created_metrics()  # a second series for each, with the time of its first value

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
PACES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LABELS = ("method", "route", "status")
# What a gauge is for all processes together.
SUM: dict[str, Any] = {"multiprocess_mode": "livesum"}
LATEST: dict[str, Any] = {"multiprocess_mode": "livemostrecent"}

REQUESTS = Counter("http_requests", "Requests that were answered.", LABELS)
DURATIONS = Histogram(
    "http_request_duration_seconds",
    "Time from a request's headers to the end of its answer.",
    LABELS,
    buckets=SECONDS,
)
IN_FLIGHT = Gauge("http_requests_in_flight", "Requests not answered yet.", **SUM)
QUEUE_DEPTH = Gauge("model_queue_depth", "Requests that wait.", **SUM)
RUNNING = Gauge("model_running", "Requests that the model works on.", **SUM)
WAITS = Histogram("model_queue_duration_seconds", "Time in the queue.", buckets=SECONDS)
BATCHES = Histogram("model_batch_size", "Requests in one call.", buckets=SIZES)
CALLS = Histogram("model_call_duration_seconds", "Time of one call.", buckets=SECONDS)
FIRST_TOKENS = Histogram(
    "model_first_token_seconds", "Time until an answer in parts begins.", buckets=SECONDS
)
SPEEDS = Histogram(
    "model_tokens_per_second", "Tokens of an answer after its first, in a second.", buckets=PACES
)
TIMEOUTS = Counter("model_timeouts", "Requests past INFER_TIMEOUT_SECONDS.")
RESTARTS = Counter("model_worker_restarts", "Times that a lost worker was replaced.")
LOAD = Gauge("model_load_seconds", "Time of the load, warm-up included.", **LATEST)

router = APIRouter()


# No coroutine: a scrape is written on a thread, while the event loop serves.
@router.get("/metrics", response_class=PlainTextResponse)
def show_metrics() -> Response:
    """Report what is counted, in Prometheus' text format."""
    registry = REGISTRY
    if ARE_SHARED:  # the sum of all processes, whichever is asked
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        registry.register(GpuMemory())
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class MeasuredWorker(Worker):
    """A worker whose loads and calls are counted."""

    def _load(self) -> bool:
        if self.is_loaded:
            RESTARTS.inc()
        start = time.monotonic()
        is_loaded = super()._load()
        LOAD.set(time.monotonic() - start)
        return is_loaded

    def _expire(self, call: Call) -> None:
        if not call.future.done():
            TIMEOUTS.inc()
        super()._expire(call)

    def _ask(self, calls: list[Call]) -> list[Any]:
        for call in calls:
            WAITS.observe(call.started - call.queued)
        start = time.monotonic()
        answers = super()._ask(calls)
        BATCHES.observe(len(calls))
        CALLS.observe(time.monotonic() - start)
        return answers

    def _tick(self) -> None:
        """Write down how many calls there are, for a scrape that another process answers."""
        QUEUE_DEPTH.set(len(self.waiting))
        RUNNING.set(len(self.running))
        super()._tick()


class GpuMemory(Collector):
    """The memory of each GPU; nothing where there is no driver to ask."""

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Leave the driver alone until somebody asks."""
        return ()

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


REGISTRY.register(GpuMemory())
