"""Triton's statistics of a model: how many requests there were, and where their time went."""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from serving.runner import Job
from serving.worker import Worker

T = TypeVar("T")


@dataclass
class Duration:
    """How often something was done, and how many nanoseconds that took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, times: int = 1) -> None:
        """Count what has been done."""
        self.count += times
        self.ns += ns


@dataclass
class InferStats:
    """What became of requests, and where their time went."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)


class TimedJob(Generic[T]):
    """A job that takes the time where the model runs, which may be another process.

    All processes of a machine share this clock.
    """

    def __init__(self, job: Job[T]) -> None:
        self.job = job
        self.times: list[int] = []

    def decode(self) -> list[Any]:
        """Return the inputs."""
        self.times = [time.monotonic_ns()]
        inputs = self.job.decode()
        self.times.append(time.monotonic_ns())
        return inputs

    def encode(self, outputs: list[Any]) -> tuple[T, int, list[int]]:
        """Return the answer, how many outputs it has, and when each step began; when all ended."""
        self.times.append(time.monotonic_ns())
        answer = self.job.encode(outputs)
        return answer, len(outputs), [*self.times, time.monotonic_ns()]


class Statistics:
    """Counts the requests of the protocol, over HTTP and over gRPC, since the start."""

    def __init__(self) -> None:
        self.last_inference = 0  # milliseconds since 1970
        self.inference_count = 0  # of inputs
        self.execution_count = 0  # of calls of the model
        self.stats = InferStats()
        self.last_predicted = 0

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count a request, from its arrival on."""
        start = time.monotonic_ns()
        try:
            yield
        except BaseException:
            self.stats.fail.add(time.monotonic_ns() - start)
            raise
        self.stats.success.add(time.monotonic_ns() - start)

    async def run(
        self, worker: Worker, job: Job[T], is_disconnected: Callable[[], Awaitable[bool]]
    ) -> T:
        """Return what `Worker.run` does, and note the time of each step."""
        timed = TimedJob(job)
        queued = time.monotonic_ns()
        work = Job(timed.decode, timed.encode, job.request_id)
        answer, count, times = await worker.run(work, is_disconnected)
        started, decoded, predicted, ended = times
        self.stats.queue.add(started - queued)
        self.stats.compute_input.add(decoded - started)
        self.stats.compute_infer.add(predicted - decoded)
        self.stats.compute_output.add(ended - predicted)
        self.last_inference = time.time_ns() // 1_000_000
        self.inference_count += count
        # Requests of one batch are all decoded before one of them is encoded.
        self.execution_count += started > self.last_predicted
        self.last_predicted = predicted
        return answer

    def as_dict(self) -> dict[str, Any]:
        """Return what a client is told, of the model's name aside."""
        return {
            "last_inference": self.last_inference,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": asdict(self.stats),
        }


statistics = Statistics()  # of this process
