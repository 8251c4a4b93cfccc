"""Runs the model off the event loop, on one thread that belongs to it.

A call cannot be stopped once it runs. In a shared executor every call that outlives its deadline
would take a thread for good, and a handful of them the service. Here calls queue for one thread,
only so many may wait, and a place is free again when the work has really ended.
"""

import asyncio
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from limits import (
    Busy,
    CannotLoad,
    DeadlineExceeded,
    NotReady,
    OutOfMemory,
    Refusal,
    is_out_of_memory,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Call(Generic[T]):
    """One piece of work, and the future on the event loop that waits for it."""

    function: Callable[[], T]
    future: asyncio.Future[T]
    queued: float = field(default_factory=time.monotonic)
    # The request's own: what the model logs for it carries the request's id.
    context: Context = field(default_factory=copy_context)
    started: float | None = None
    expired: bool = False


class Observer:
    """Is told what the worker does, on the event loop or the model's thread; ignores it."""

    def loaded(self, seconds: float) -> None:
        """Hear that the model can answer, so long after its load began."""

    def batch(self, size: int, seconds: float) -> None:
        """Hear that one call of the model has ended, for so many requests."""

    def timed_out(self) -> None:
        """Hear that a request got no answer within the deadline."""

    def restarted(self) -> None:
        """Hear that the model runs in a new process, for the old one was lost."""


class Worker:
    """One daemon thread that loads the model, then runs calls in the order they came."""

    def __init__(self, *, max_queue: int, timeout: float, hang_limit: float) -> None:
        """Bound the work: calls that may wait, seconds for an answer, seconds until it is hung."""
        self.max_queue = max_queue
        self.timeout = timeout
        self.hang_limit = hang_limit
        self.failed = False
        self.observer = Observer()
        self._waiting: deque[Call[Any]] = deque()
        self._running: Call[Any] | None = None
        self._changed = threading.Condition()
        self._stopping = False

    @property
    def waiting(self) -> int:
        """How many requests wait for the model."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests the model works on."""
        return int(self._running is not None)

    def start(self, load: Callable[[], None]) -> None:
        """Load in the background, then take calls. A load that fails ends the process."""
        # Daemon: a call that hangs must not keep the process from ending.
        threading.Thread(target=self._work, args=(load,), name="model", daemon=True).start()

    def stop(self) -> None:
        """Take no more calls; what runs may end, what waits is dropped."""
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify()

    def check(self) -> None:
        """Raise NotReady or Busy where a new call would not be served."""
        running = self._running
        if running and running.expired:
            raise NotReady("The model hangs in a call that is past its deadline.")
        self._refuse_if_full()

    async def admit(self) -> None:
        """Refuse a request before its body is read, where the queue is full already."""
        self._refuse_if_full()

    async def run(self, function: Callable[[], T]) -> T:
        """Run the function on the model's thread and return its result.

        Raises Busy at once where the queue is full, DeadlineExceeded after the timeout,
        OutOfMemory where the framework says so, and otherwise what the function raised.
        """
        loop = asyncio.get_running_loop()
        call: Call[T] = Call(function, loop.create_future())
        with self._changed:
            self._refuse_if_full()
            self._waiting.append(call)
            self._changed.notify()
        timer = loop.call_later(self.timeout, self._expire, call)
        try:
            return await call.future
        except Refusal:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                logger.exception("Out of memory")
                raise OutOfMemory from error
            raise
        finally:
            timer.cancel()
            self._withdraw(call)  # where the request was cancelled while it waited

    def _refuse_if_full(self) -> None:
        if len(self._waiting) >= self.max_queue:
            raise Busy

    def _expire(self, call: Call[Any]) -> None:
        """Answer a call that is past its deadline, and watch it if it cannot be withdrawn."""
        if call.future.done():
            return
        call.future.set_exception(DeadlineExceeded())
        self.observer.timed_out()
        if not self._withdraw(call) and call.started:
            call.expired = True
            left = max(0.0, call.started + self.hang_limit - time.monotonic())
            asyncio.get_running_loop().call_later(left, self._give_up, call)

    def _withdraw(self, call: Call[Any]) -> bool:
        """Drop a call that still waits, so that work nobody wants is never done."""
        with self._changed:
            if call not in self._waiting:
                return False
            self._waiting.remove(call)
            return True

    def _give_up(self, call: Call[Any]) -> None:
        """End the process when a call hangs for good: a thread cannot be killed."""
        if self._running is call:
            logger.critical("A call has hung for %g s; ending the process", self.hang_limit)
            self._end_process()

    def _end_process(self) -> None:
        """Shut the server down as a supervisor would; `main` then exits with a status of 1."""
        self.failed = True
        signal.raise_signal(signal.SIGTERM)

    def _work(self, load: Callable[[], None]) -> None:
        """Body of the thread."""
        start = time.monotonic()
        try:
            load()
        except CannotLoad as error:
            logger.critical("The model cannot be loaded: %s", error)
            self._end_process()
            return
        except BaseException:
            logger.critical("The model failed to load", exc_info=True)
            self._end_process()
            return
        self.observer.loaded(time.monotonic() - start)
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Wait for a call and run it; False when the worker stops."""
        with self._changed:
            self._running = None
            while not self._waiting and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return False
            call = self._running = self._waiting.popleft()
            call.started = time.monotonic()
        try:
            result = call.context.run(call.function)
        except Exception as error:  # noqa: BLE001 -- handed to the request that waits for it
            self._deliver(call, error=error)
        except BaseException as error:  # noqa: BLE001 -- sys.exit in a model must not end the thread
            self._deliver(call, error=RuntimeError(f"The model raised {error!r}"))
        else:
            self._deliver(call, result=result)
        return True

    def _deliver(
        self, call: Call[T], *, result: Any = None, error: Exception | None = None
    ) -> None:
        """Hand the outcome to the event loop, or to the log where nobody waits any more."""
        if call.started:
            self.observer.batch(1, time.monotonic() - call.started)
        if isinstance(error, StopIteration):  # which no future takes
            error = RuntimeError(f"The model raised {error!r}")

        def settle() -> None:
            if call.future.done():
                seconds = time.monotonic() - call.queued
                outcome = f"failed: {error!r}" if error else "ended"
                logger.warning("A call %s %.1f s after it came; nobody waits", outcome, seconds)
            elif error:
                call.future.set_exception(error)
            else:
                call.future.set_result(result)

        try:
            call.future.get_loop().call_soon_threadsafe(settle, context=call.context)
        except RuntimeError:  # the loop is closed: the process is on its way out
            logger.warning("A call ended after the server had stopped")
