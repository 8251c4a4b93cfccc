"""Runs the model off the event loop, on one thread that belongs to it.

A call cannot be stopped once it runs. In a shared executor every call that outlives its deadline
would take a thread for good, and a handful of them the service. Here requests queue for one thread,
only so many may wait, and a place is free again when the work has really ended.
"""

import asyncio
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from serving.errors import Busy, CannotLoad, DeadlineExceeded, NotReady
from serving.runner import Job, Runner, request_id
from serving.settings import settings

WATCH_SECONDS = 0.25  # how often to look for calls that hang, and for clients that have left

T = TypeVar("T")
CallT = TypeVar("CallT", bound="Call")
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Call:
    """One request at the worker, and the future on the event loop that waits for its answer."""

    job: Job[Any]
    is_disconnected: Callable[[], Awaitable[bool]]  # whether its client has left
    future: asyncio.Future[Any]
    deadline: float
    queued: float = field(default_factory=time.monotonic)
    started: float = 0.0

    def resolve(self, answer: Any) -> None:
        """Set the answer, or the error in its place; on the event loop."""
        if self.future.done():
            request_id.set(self.job.request_id)
            outcome = f"failed: {answer!r}" if isinstance(answer, Exception) else "ended"
            seconds = time.monotonic() - self.queued
            logger.warning("A call %s %.1f s after it came; nobody waits", outcome, seconds)
        elif isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class Worker:
    """One daemon thread that loads the model, then answers requests in the order they came."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.failed = self.is_loaded = self._is_draining = self._is_stopping = False
        self.is_served = False  # by Service.serve: the process lives and dies with the model
        self.starting: set[str] = set()  # what else has to be there before requests should come
        self._changed = threading.Condition()
        self.waiting: deque[Call] = deque()
        self.running: list[Call] = []  # what the model works on

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another request."""
        return len(self.waiting) >= settings.max_queue_size

    def start(self) -> None:
        """Load in the background, then take requests."""
        self._loop = asyncio.get_running_loop()
        self.is_loaded = self._is_stopping = False  # FastAPI's TestClient may start it again
        self.loaded: Future[None] = Future()  # done after the first load, well or not
        self._watcher = self._loop.create_task(self._watch())
        # Daemon: a call that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def stop(self) -> None:
        """Take no more requests; what runs may end, what waits is rejected."""
        self._watcher.cancel()
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._reject_waiting()

    def drain(self) -> None:
        """Say that no more requests should come; those that come are still answered."""
        self._is_draining = True

    def fail(self) -> None:
        """Shut the server down as a supervisor would; the process then exits with 1."""
        self.failed = True
        self._loop.call_soon_threadsafe(self._reject_waiting)
        signal.raise_signal(signal.SIGTERM)

    def check(self) -> None:
        """Raise NotReady or Busy where a new request should not come, or would have to wait."""
        if self._is_draining:
            raise NotReady("Shutting down.")
        if not self.is_loaded:
            raise NotReady
        if self.starting:
            raise NotReady(f"Starting: {', '.join(self.starting)}.")
        if self._is_overdue():
            raise NotReady("The model hangs in a call that is past its deadline.")
        self.admit()

    def admit(self) -> None:
        """Raise Busy where there is no place for another request."""
        if self.is_full:
            raise Busy

    async def run(self, job: Job[T], is_disconnected: Callable[[], Awaitable[bool]]) -> T:
        """Return the answer to a request.

        Raises NotReady before the model is loaded, Busy where the queue is full, DeadlineExceeded
        after INFER_TIMEOUT_SECONDS, OutOfMemory, and else what the job raised.
        """
        call = self._enqueue(Call, job, is_disconnected)
        timer = self._loop.call_later(settings.infer_timeout_seconds, self._expire, call)
        try:
            answer: T = await call.future
        finally:
            timer.cancel()
            self._withdraw(call)
            del call  # else an error and its traceback would hold each other, and the request
        return answer

    def _enqueue(
        self, kind: type[CallT], job: Job[Any], is_disconnected: Callable[[], Awaitable[bool]]
    ) -> CallT:
        if not self.is_loaded:
            raise NotReady
        self.admit()
        deadline = time.monotonic() + settings.infer_timeout_seconds
        call = kind(job, is_disconnected, self._loop.create_future(), deadline)
        with self._changed:
            self.waiting.append(call)
            self._changed.notify()
        return call

    def _expire(self, call: Call) -> None:
        """Answer for a call that is past its deadline."""
        if not call.future.done():
            call.future.set_exception(DeadlineExceeded())

    def _withdraw(self, call: Call) -> None:
        """Take a call back, if it still waits."""
        if call.started:  # most calls: so the queue is neither locked nor searched for them
            return
        with self._changed:
            if call in self.waiting:
                self.waiting.remove(call)

    def _reject_waiting(self) -> None:
        with self._changed:
            calls, self.waiting = self.waiting, deque()
        for call in calls:
            call.resolve(NotReady("The service is stopping."))

    def _is_overdue(self) -> bool:
        """Tell whether the model works on nothing but what is past its deadline."""
        running, now = self.running, time.monotonic()
        return bool(running) and all(call.deadline < now for call in running)

    async def _watch(self) -> None:
        """Look after the calls on the event loop."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._tick()
            for call in list(self.waiting):
                if await call.is_disconnected() and not call.future.done():
                    self._withdraw(call)
                    call.resolve(ClientDisconnect())

    def _tick(self) -> None:
        """End the process where a call hangs for good: nothing else would stop it."""
        running = self.running
        limit = settings.infer_hang_seconds
        if running and time.monotonic() - running[0].started > limit and not self.failed:
            logger.critical("A call has hung for %d s; ending the process", limit)
            self.fail()

    def _work(self) -> None:
        """Body of the thread."""
        if self._load():
            while calls := self._next():
                self._answer(calls)

    def _load(self) -> bool:
        """Load the model, and tell whether it is."""
        try:
            self.runner.load()
        except BaseException as error:
            if not self._is_stopping:
                trace = not isinstance(error, CannotLoad)
                logger.critical("The model cannot be loaded: %s", error, exc_info=trace)
                if self.is_served or self.is_loaded:
                    self.fail()
                else:
                    self.loaded.set_exception(error)
            return False
        if not self.is_loaded:  # else it was loaded again
            self.is_loaded = True
            self.loaded.set_result(None)
        return True

    def _next(self) -> list[Call]:
        """Wait for calls, and return those to answer together; none when the worker stops."""
        with self._changed:
            self.running = []
            while not self.running:
                self._changed.wait_for(self._has_work)
                if self._is_stopping:
                    return []
                self.running = [call for call in self._take() if not call.future.done()]
            for call in self.running:
                call.started = time.monotonic()
            return self.running

    def _has_work(self) -> bool:
        return bool(self.waiting or self._is_stopping)

    def _take(self) -> list[Call]:
        """Take the next call from the queue."""
        return [self.waiting.popleft()]

    def _answer(self, calls: list[Call]) -> None:
        """Have the model answer, and wake the event loop once for all the answers."""
        self._call_soon(resolve_all, calls, self._ask(calls))

    def _ask(self, calls: list[Call]) -> list[Any]:
        """Return the model's answer to each call, or the error that it ended with."""
        return self.runner.answer([call.job for call in calls])

    def _call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: the process is on its way out
            logger.warning("A call ended after the server had stopped")


def resolve_all(calls: list[Call], answers: list[Any]) -> None:
    """Give each call its answer."""
    for call, answer in zip(calls, answers, strict=True):
        call.resolve(answer)
