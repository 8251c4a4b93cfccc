"""Runs the model off the event loop, on one thread that belongs to it.

A call cannot be stopped once it runs. In a shared executor every call that outlives its deadline
would take a thread for good, and a handful of them the service. Here requests queue for one thread,
only so many may wait, and a place is free again when the work has really ended.

Waking the event loop costs more than most of what it then does. So while requests queue, one tick
fetches their answers in groups, and looks after the deadlines of all.
"""

import asyncio
import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect

from device import get_device
from serving.limits import (
    Busy,
    CannotLoad,
    DeadlineExceeded,
    GpuOutOfMemory,
    NotReady,
    OutOfMemory,
    TooSlow,
    is_out_of_memory,
)

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.02
QUICK_SECONDS = 0.005  # a call that took longer is worth waking the event loop for
LOOK_SECONDS = 0.25  # how often to ask whether the clients of waiting requests are still there
LOOP_SHARE = 0.1  # of the time that the event loop may use while it refuses requests
MAX_PAUSE_SECONDS = 0.03
BURST_SECONDS = 0.002  # between two such pauses
MAX_AHEAD = 1000  # items of a stream that its client has not taken yet

END = None  # of a stream

T = TypeVar("T")

# Of the request that is worked for here; stands in its log lines, where the service gives ids.
request_id: ContextVar[str] = ContextVar("request_id", default="")


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """A request's work: what decodes it to the model's inputs, and what encodes the outputs."""

    decode: Callable[[], list[Any]]
    encode: Callable[[list[Any]], T]
    request_id: str = field(default_factory=request_id.get)


Headers = list[tuple[bytes, bytes]]
Predict = Callable[[list[Any]], list[Any]]
Answer = Callable[[Sequence[Job[Any]]], list[Any]]
Stream = Callable[[Job[Any]], Generator[Any, Any, None]]


class ModelDied(Exception):
    """The process that the model ran in has ended; it has to be loaded again."""


def attempt(function: Callable[[], T], job: Job[Any] | None = None) -> T | Exception:
    """Return what the function returns, for this request, or the error that it raised."""
    request_id.set(job.request_id if job else "")
    try:
        return function()
    except StopIteration as error:  # which no future takes
        return RuntimeError(f"The model raised {error!r}")
    except Exception as error:
        if not is_out_of_memory(error):
            return error
        logger.exception("Out of memory")
        is_gpu = get_device() != "cpu" and not isinstance(error, MemoryError)
    except BaseException as error:  # noqa: BLE001 -- sys.exit in a model must not end the thread
        return RuntimeError(f"The model raised {error!r}")
    # Not before the error is gone: its traceback holds what the call had allocated.
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()
    return GpuOutOfMemory() if is_gpu else OutOfMemory()


def predicted(predict: Predict, inputs: list[Any]) -> list[Any]:
    """Return the model's outputs, one for each input; there may be nothing to ask."""
    outputs = predict(inputs) if inputs else []
    if len(outputs) != len(inputs):
        raise RuntimeError(f"predict returned {len(outputs)} outputs for {len(inputs)} inputs")
    return outputs


def answer_each(predict: Predict, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Answer each request by a call of its own; an answer is the error where it failed."""

    def answer(job: Job[Any]) -> Any:
        return job.encode(predicted(predict, job.decode()))

    return [attempt(partial(answer, job), job) for job in jobs]


def stream_each(
    stream: Callable[[Any], Iterator[Any]], job: Job[Any]
) -> Generator[Any, None, None]:
    """Yield the outputs for a request's one input as they come; last the error, where it failed."""

    def encoded() -> Generator[Any, None, None]:
        for item in job.decode():
            for output in stream(item):
                yield job.encode([output])

    items = encoded()
    try:
        while (item := attempt(partial(next, items, END), job)) is not END:
            yield item
            if isinstance(item, Exception):
                return
    finally:
        attempt(items.close, job)


class Observer:
    """Is told what the worker does, on the event loop or the model's thread; ignores it."""

    def loaded(self, seconds: float) -> None:
        """Hear that the model can answer, so long after its load began."""

    def batch(self, size: int, seconds: float) -> None:
        """Hear that one call of the model has ended, for so many requests."""

    def timed_out(self) -> None:
        """Hear that a request got no answer within the deadline."""

    def restarted(self) -> None:
        """Hear that the model's process was lost, and the model is loaded again."""

    def refused(self, route: str, status: int, headers: Headers) -> Headers:  # noqa: ARG002
        """Hear that a request was refused before the app saw it; return headers for its answer."""
        return []

    def ticked(self) -> None:
        """Hear, many times a second while there are requests, that numbers may have changed."""

    def ended(self, process: int) -> None:
        """Hear that another process of the service has ended."""


@dataclass(frozen=True)
class Bounds:
    """What a worker keeps to."""

    max_queue: int  # requests that wait
    timeout: float  # seconds until an answer
    hang_limit: float  # seconds until a call has hung for good
    max_batch: int = 1  # requests that are answered together
    max_delay: float = 0.0  # seconds that a batch may take to fill up


@dataclass(eq=False, slots=True)
class Call:
    """One request at the worker, and the future on the event loop that waits for its answer."""

    job: Job[Any]
    future: asyncio.Future[Any]
    deadline: float
    gone: Callable[[], Awaitable[bool]]
    queued: float = field(default_factory=time.monotonic)
    started: float = 0.0

    def is_over(self, now: float) -> bool:
        """Tell whether it has its answer, or is past its deadline."""
        return self.future.done() or self.deadline <= now

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for what the model has yet to say."""
        return self.future.done()

    def give(self, answer: Any) -> None:
        """Hand over the answer, or the error in its place."""
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


@dataclass(eq=False, slots=True)
class StreamCall(Call):
    """A request whose answer comes in items: the first by the future, the others one by one."""

    items: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    has_ended: bool = False

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for what the model has yet to say."""
        return self.has_ended or self.future.cancelled()

    def give(self, answer: Any) -> None:
        """Hand over the next item, the error in its place, or the end."""
        self.has_ended |= answer is END or isinstance(answer, Exception)
        if self.future.done():
            self.items.put_nowait(answer)
        else:
            Call.give(self, answer)  # super() does not know a class with slots


CallT = TypeVar("CallT", bound=Call)


def give(call: Call, answer: Any) -> None:
    """Hand an answer, or an item of one, to those who still wait for it."""
    if not call.is_left:
        call.give(answer)


class Worker:
    """One daemon thread that loads the model, then answers requests in the order they came."""

    def __init__(
        self,
        load: Callable[[], None],
        answer: Answer,
        bounds: Bounds,
        *,
        stream: Stream | None = None,
        kill: Callable[[], None] | None = None,
    ) -> None:
        """Take what loads the model, what answers by it, and what ends a call, where that can be.

        All but `kill` is called on the worker's thread.
        """
        self.load = load
        self.answer = answer
        self.bounds = bounds
        self.streams = stream
        self.kill = kill
        self.failed = False
        self.refused = 0  # requests, for want of a place
        self.starting: set[str] = set()  # what else has to be there before requests should come
        self.observer = Observer()
        self._has_loaded = self._is_loaded = False
        self._lost: ModelDied | None = None
        self._changed = threading.Condition()
        self._waiting: deque[Call] = deque()
        self._running: list[Call] = []
        self._answered: deque[tuple[Call, Any]] = deque()
        self._pending: deque[Call] = deque()  # in the order of their deadlines
        self._ticking = self._stopping = self._draining = False
        self._looked = 0.0
        self._refused_before = 0
        self._loop_seconds = 0.0
        self._look: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another request."""
        return len(self._waiting) >= self.bounds.max_queue

    @property
    def waiting(self) -> int:
        """How many requests wait for the model."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests the model works on."""
        return len(self._running)

    def start(self) -> None:
        """Load in the background, then take requests. A load that fails ends the process."""
        self._loop = asyncio.get_running_loop()
        # Daemon: a call that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def stop(self) -> None:
        """Take no more requests; what runs may end, what waits is refused."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._refuse_waiting()

    def lose(self, error: ModelDied) -> None:
        """Have the model loaded again, for its process has ended; for any thread to call."""
        with self._changed:
            self._lost = error
            self._changed.notify()

    def is_loaded(self) -> bool:
        """Tell whether the model is loaded."""
        return self._is_loaded

    def drain(self) -> None:
        """Say that no more requests should come; those that come are still answered."""
        self._draining = True

    def check(self) -> None:
        """Raise NotReady or Busy where a new request should not come, or would have to wait."""
        if self._draining:
            raise NotReady("Shutting down.")
        if not self._is_loaded:
            raise NotReady
        if self.starting:
            raise NotReady(f"Starting: {', '.join(self.starting)}.")
        running = self._running
        if running and all(call.deadline < time.monotonic() for call in running):
            raise NotReady("The model hangs in a call that is past its deadline.")
        if self.is_full:
            raise Busy

    def admit(self) -> None:
        """Raise Busy where the queue is full, for a request whose body is not read yet."""
        if self.is_full:
            self.refused += 1
            raise Busy

    def refuse(self, route: str, status: int, headers: Headers) -> Headers:
        """Note that a request with these headers was refused; return more for its answer."""
        self.refused += 1
        return self.observer.refused(route, status, headers)

    async def run(self, job: Job[T], gone: Callable[[], Awaitable[bool]]) -> T:
        """Return the answer; `gone` tells whether anybody still waits for it.

        Raises NotReady before the model is loaded, Busy where the queue is full, DeadlineExceeded
        after the timeout, OutOfMemory where the framework says so, and else what the job raised.
        """
        call = self._enter(Call, job, gone)
        try:
            answer: T = await call.future
        except asyncio.CancelledError:
            self._withdraw(call)
            raise
        finally:
            del call  # else an error and its traceback would hold each other, and the request
        return answer

    async def stream(
        self, job: Job[T], gone: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[T, None]:
        """Yield the items of an answer as they come; who stops asking stops the model too.

        Raises as `run` does. The deadline is for each item, and the place is taken until the end.
        """
        call = self._enter(StreamCall, job, gone)
        try:
            item = await call.future
            while item is not END:
                if isinstance(item, Exception):
                    raise item
                yield item
                item = await call.items.get()
        finally:
            call.has_ended = True
            self._withdraw(call)

    def _enter(
        self, kind: type[CallT], job: Job[Any], gone: Callable[[], Awaitable[bool]]
    ) -> CallT:
        """Queue a request."""
        if not self._has_loaded:
            raise NotReady
        self.admit()
        call = kind(job, self._loop.create_future(), time.monotonic() + self.bounds.timeout, gone)
        self._pending.append(call)
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK_SECONDS, self._tick)
        with self._changed:
            self._waiting.append(call)
            self._changed.notify()
        return call

    def _tick(self) -> None:
        """Look after the calls on the event loop, as long as there are any."""
        request_id.set("")  # it runs in the context of the request that started it
        self._collect()
        now = time.monotonic()
        while self._pending and self._pending[0].is_over(now):
            self._expire(self._pending.popleft(), now)
        for call in self._running:  # a stream's deadline moves on while it runs
            self._expire(call, now)
        if self._waiting and not self._look and now - self._looked > LOOK_SECONDS:
            self._look = self._loop.create_task(self._drop_gone())
        self._watch(now)
        gave_way = self._give_way()
        self._ticking = bool(self._pending or self._running)
        self.observer.ticked()
        if self._ticking:
            self._loop.call_later(BURST_SECONDS if gave_way else TICK_SECONDS, self._tick)

    def _give_way(self) -> bool:
        """Leave the processor to the model for a while, and tell so, when requests are refused.

        Where both have one core, a crowd that asks again and again would keep the event loop so
        busy with refusals that few answers are left. It refuses them in bursts instead.
        """
        has_refused = self.refused != self._refused_before
        if has_refused:
            used = time.thread_time() - self._loop_seconds
            time.sleep(min(used / LOOP_SHARE - used, MAX_PAUSE_SECONDS))
            self._refused_before = self.refused
        self._loop_seconds = time.thread_time()
        return has_refused

    def _expire(self, call: Call, now: float) -> None:
        """Tell the client of a call that it took too long, if it did."""
        if call.deadline <= now and not call.is_left:
            self._withdraw(call)
            call.give(DeadlineExceeded())
            self.observer.timed_out()

    async def _drop_gone(self) -> None:
        """Drop the calls whose clients have left, so that work nobody wants is never done."""
        try:
            for call in list(self._waiting):
                if await call.gone() and self._withdraw(call):
                    give(call, ClientDisconnect())
        finally:
            self._looked = time.monotonic()
            self._look = None

    def _watch(self, now: float) -> None:
        """Do what can be done about a call that runs although nobody waits for it any more."""
        with self._changed:  # so that it is not the next one that is killed
            if not self._running or any(call.deadline > now for call in self._running):
                return
            if self.kill:
                self.kill()
                self._running = []
                self._is_loaded = False
                return
            hung = now - self._running[0].started > self.bounds.hang_limit
        if hung and not self.failed:
            logger.critical("A call has hung for %g s; ending the process", self.bounds.hang_limit)
            self.fail()

    def _withdraw(self, call: Call) -> bool:
        """Take a call back, if it still waits."""
        with self._changed:
            if call not in self._waiting:
                return False
            self._waiting.remove(call)
        return True

    def _refuse_waiting(self) -> None:
        with self._changed:
            calls = list(self._waiting)
            self._waiting.clear()
        for call in calls:
            give(call, NotReady("The service is stopping."))

    def fail(self) -> None:
        """Shut the server down as a supervisor would; `main` then exits with a status of 1."""
        self.failed = True
        self._loop.call_soon_threadsafe(self._refuse_waiting)
        signal.raise_signal(signal.SIGTERM)

    def _work(self) -> None:
        """Body of the thread."""
        goes_on = self._load()
        while goes_on:
            try:
                calls = self._next()
            except ModelDied as error:
                self._report(error)
                goes_on = self._load()
            else:
                goes_on = bool(calls) and self._answer(calls)

    def _answer(self, calls: list[Call]) -> bool:
        """Answer the calls together; False where the model could not be loaded again after that."""
        with self._changed:
            self._running = calls = [call for call in calls if not call.is_left]
        if not calls:
            return True
        start = time.monotonic()
        try:
            if isinstance(calls[0], StreamCall):
                answers = [self._answer_stream(calls[0])]
            else:
                answers = self.answer([call.job for call in calls])
        except ModelDied as error:
            if self._stopping:
                return False
            self._report(error)
            if len(calls) > 1 and self._load():  # one of them did that to the others
                return all(self._answer([call]) for call in calls)
            self._hand_over(calls, [error.__cause__ or error] * len(calls))
            return len(calls) == 1 and self._load()
        except Exception as error:  # noqa: BLE001 -- batch_key's, say; handed to the requests
            answers = [error] * len(calls)
        self.observer.batch(len(calls), time.monotonic() - start)
        self._hand_over(calls, answers)
        return True

    def _report(self, error: ModelDied) -> None:
        with self._changed:
            self._running = []  # a call's deadline is not to end the load
        self._is_loaded = False
        self._lost = None
        logger.warning("%s. Loading the model again", error)
        self.observer.restarted()

    def _answer_stream(self, call: StreamCall) -> Any:
        """Hand over the items of a stream; return its end, or the error that ended it."""
        if self.streams is None:
            raise RuntimeError("This worker was given nothing that streams")
        with closing(self.streams(call.job)) as items:
            for item in items:
                if isinstance(item, Exception):
                    return item
                if call.is_left:
                    break
                if call.items.qsize() > MAX_AHEAD:
                    return TooSlow("The stream is not read as fast as it comes.")
                now = time.monotonic()
                call.deadline = now + self.bounds.timeout
                self._hand_over([call], [item])
                call.started = now
        return END

    def _load(self) -> bool:
        start = time.monotonic()
        try:
            self.load()
        except ModelDied as error:
            if not self._stopping:
                logger.critical("The model failed to load: %s", error)
                self.fail()
        except CannotLoad as error:
            logger.critical("The model cannot be loaded: %s", error)
            self.fail()
        except BaseException:
            logger.critical("The model failed to load", exc_info=True)
            self.fail()
        else:
            self._has_loaded = self._is_loaded = True
            self.observer.loaded(time.monotonic() - start)
        return self._is_loaded

    def _next(self) -> list[Call]:
        """Wait for calls, and return as many as go into a batch; none when the worker stops.

        Raises ModelDied where the model was lost meanwhile.
        """
        with self._changed:
            self._running = []
            while not self._running and not self._stopping:
                self._changed.wait_for(self._has_work)
                if self.bounds.max_delay and self._waiting:
                    left = self._waiting[0].queued + self.bounds.max_delay - time.monotonic()
                    self._changed.wait_for(self._is_batch_full, left)
                self._running = self._take()
            now = time.monotonic()
            for call in self._running:
                call.started = now
            return self._running

    def _has_work(self) -> bool:
        if self._lost and not self._stopping and (self._waiting or not self._draining):
            raise self._lost
        return bool(self._waiting or self._stopping)

    def _take(self) -> list[Call]:
        """Take from the queue what goes into a batch; a stream is one by itself."""
        batch: list[Call] = []
        while self._waiting and len(batch) < self.bounds.max_batch:
            if batch and isinstance(self._waiting[0], StreamCall):
                break
            batch.append(self._waiting.popleft())
            if isinstance(batch[0], StreamCall):
                break
        return batch

    def _is_batch_full(self) -> bool:
        return len(self._waiting) >= self.bounds.max_batch or any(
            isinstance(call, StreamCall) for call in self._waiting
        )

    def _hand_over(self, calls: list[Call], answers: list[Any]) -> None:
        """Hand over answers: at once if no other call waits or this took long, else by the tick."""
        self._answered.extend(zip(calls, answers, strict=True))
        if not self._waiting or time.monotonic() - calls[0].started > QUICK_SECONDS:
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:  # the loop is closed: the process is on its way out
                logger.warning("A call ended after the server had stopped")

    def _collect(self) -> None:
        """Give the answers to those who wait for them; runs on the event loop."""
        while self._answered:
            call, answer = self._answered.popleft()
            if call.is_left:
                request_id.set(call.job.request_id)
                seconds = time.monotonic() - call.queued
                outcome = f"failed: {answer!r}" if isinstance(answer, Exception) else "ended"
                logger.warning("A call %s %.1f s after it came; nobody waits", outcome, seconds)
            else:
                call.give(answer)
