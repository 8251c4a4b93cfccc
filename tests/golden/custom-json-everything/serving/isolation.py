"""Keeps the model in a process of its own, which can be killed and may die."""

import logging
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Event, Thread
from typing import Any

from serving.errors import CannotLoad, NotReady, OutOfMemory
from serving.logs import configure_logging
from serving.runner import Job, Runner
from serving.streaming import END, StreamingRunner
from serving.worker import Call, Worker, resolve_all

# Not fork: a child would hold the clients' connections open.
context = get_context("spawn")

CLOSE_SECONDS = 10
MAX_DEATHS = 5  # in a row, with no call between them
NAME = "model"

# What the service says to each part of a stream.
MORE, ENOUGH = "more", "enough"

logger = logging.getLogger(__name__)


class ModelDied(Exception):
    """The process that the model ran in has ended; it has to be loaded again."""


def is_model_process() -> bool:
    """Tell whether this is that process: where main.py starts the service, it imports main.py."""
    return current_process().name == NAME


class IsolatedWorker(Worker):
    """A worker whose model may die, and is loaded again; what waits meanwhile is not lost."""

    def __init__(self, runner: "ModelProcess") -> None:
        super().__init__(runner)
        self._process = runner
        self._lost: ModelDied | None = None
        self._is_reloading = False
        runner.on_end = self._lose

    def check(self) -> None:
        """Raise NotReady while the model is loaded again, too."""
        if self._is_reloading and not self._is_draining:
            raise NotReady
        super().check()

    def _tick(self) -> None:
        """Kill the process of a call that is past its deadline."""
        with self._changed:  # so that it is not the next one that is killed
            if self._is_overdue():
                self._lost = self._process.kill()
        super()._tick()

    def _lose(self, error: ModelDied) -> None:
        """Have the model loaded again, for its process has ended; any thread calls this."""
        with self._changed:
            self._lost = error
            self._changed.notify()

    def _has_work(self) -> bool:
        if self._lost and not self._is_stopping and (self.waiting or not self._is_draining):
            raise self._lost
        return super()._has_work()

    def _next(self) -> list[Call]:
        while True:
            try:
                return super()._next()
            except ModelDied as error:
                self._process.wait()
                self._reload(error)

    def _answer(self, calls: list[Call]) -> None:
        try:
            super()._answer(calls)
        except ModelDied as error:
            failures = [error.__cause__ or error] * len(calls)
            if len(calls) == 1 or self._is_stopping:
                self._call_soon(resolve_all, calls, failures)
                self._reload(error)
            elif self._reload(error):  # one of them did that to the others
                for call in calls:
                    self._answer_alone(call)
            else:
                self._call_soon(resolve_all, calls, failures)

    def _answer_alone(self, call: Call) -> None:
        """Try a call of a lost batch again, if somebody still waits for it."""
        if not call.future.done():
            self.running, call.started = [call], time.monotonic()
            self._answer([call])

    def _reload(self, error: ModelDied) -> bool:
        """Load the model again; where it cannot be loaded, the worker stops."""
        with self._changed:
            self.running = []  # a call's deadline is not to end the load
            self._lost = None
        if self._is_stopping:
            return False
        self._is_reloading = True
        logger.warning("%s. Loading the model again", error)
        self._is_reloading = not self._load()
        self._is_stopping |= self._is_reloading
        return not self._is_reloading


class ModelProcess(StreamingRunner):
    """Has the work of a runner done in the process; one thread asks it, others may kill it."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner.model_class, runner.name, runner.example)
        self._runner = runner
        self._process = context.Process()
        self._busy = self._killed = False
        self._ended = Event()  # of this process; the next one has its own
        self._deaths = 0  # since the last call began
        self.on_end: Callable[[ModelDied], None] = lambda _: None  # called on a thread

    def load(self) -> None:
        """Start the process and return when the model is loaded; raises what that raised."""
        if self._deaths >= MAX_DEATHS:
            raise CannotLoad(f"its process ended {MAX_DEATHS} times in a row without a call")
        self._busy = True
        self._connection, theirs = context.Pipe()
        folder = tempfile.TemporaryDirectory()
        self._process = context.Process(
            target=_serve, args=(theirs, self._runner, folder.name), name=NAME, daemon=True
        )
        self._killed = False
        self._process.start()
        theirs.close()
        self._ended = Event()
        watched = self._process, folder, self._ended
        Thread(target=self._watch, args=watched, daemon=True).start()
        try:
            error = self._receive()
        except ModelDied as died:
            raise CannotLoad(str(died)) from died
        if error:
            raise error

    def answer(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Have the process answer jobs. Raises ModelDied, from what its call is to get."""
        self._deaths = 0
        self._send(jobs)
        answers: list[Any] = self._receive()
        return answers

    def stream(self, job: Job[Any]) -> Generator[Any, None, None]:
        """Have the process stream the answer to a job. Raises ModelDied."""
        self._deaths = 0
        self._send(job)
        try:
            while (part := self._receive()) is not END:
                yield part
                self._send(MORE)
        except GeneratorExit:
            self._send(ENOUGH)
            raise

    def kill(self) -> ModelDied:
        """End the process at once, with the call that it is in, unless that has just ended."""
        self._killed = True
        self._process.kill()
        return self._death()

    def wait(self) -> None:
        """Wait until the process has ended, and whoever wants to know has been told."""
        self._ended.wait()

    def close(self) -> None:
        """Let the process release the model and end; kill it if it does not."""
        if self._process.pid is None:
            return
        if not self._busy:
            self._connection.close()
            self._ended.wait(CLOSE_SECONDS)
        self._process.kill()

    def _send(self, message: Any) -> None:
        with suppress(ConnectionError):  # where it has died between two calls: receiving tells
            self._connection.send(message)

    def _receive(self) -> Any:
        self._busy = True
        try:
            return self._connection.recv()
        except (EOFError, OSError):  # it has died, or `close` was here first
            self._ended.wait()
        finally:
            self._busy = False
        raise self._death()

    def _death(self) -> ModelDied:
        """Return how the process ended; the cause is what the call that it was in is to get."""
        if self._killed:
            return ModelDied("The model's process was killed: a call was past its deadline")
        status = self._process.exitcode or 0
        if status == -signal.SIGKILL:
            died = ModelDied("The model's process was killed, most likely for its memory")
            died.__cause__ = OutOfMemory()
            return died
        how = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
        return ModelDied(f"The model's process {how}")

    def _watch(
        self, process: BaseProcess, folder: "tempfile.TemporaryDirectory[str]", ended: Event
    ) -> None:
        """Body of a thread, the only one to wait for this process: tell that it has ended."""
        process.join()
        folder.cleanup()
        self._deaths += 1
        self.on_end(self._death())
        ended.set()  # last, so that a call that died with it is the last to tell


def _serve(connection: Connection, runner: StreamingRunner, folder: str) -> None:
    """Body of the process: load, then answer until the service closes the connection.

    Its temporary files go into the folder, which is removed even where it is killed.
    """
    tempfile.tempdir = folder
    for number in (signal.SIGTERM, signal.SIGINT):  # the service decides when it ends
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_service, daemon=True).start()
    configure_logging()
    try:
        runner.load()
    except BaseException as error:  # noqa: BLE001 -- raised again by the service
        connection.send(_portable(error))
        return
    connection.send(None)
    with suppress(EOFError):
        while True:
            work = connection.recv()
            if isinstance(work, Job):
                _stream(connection, runner, work)
                continue
            connection.send([_portable(answer) for answer in runner.answer(work)])
    runner.close()


def _stream(connection: Connection, runner: StreamingRunner, job: Job[Any]) -> None:
    """Send each part as it comes, for as long as the service wants another."""
    with closing(runner.stream(job)) as parts:
        for part in parts:
            connection.send(_portable(part))
            if connection.recv() != MORE:
                return
    connection.send(END)


def _end_with_service() -> None:
    """End the process with the service's own, even in the middle of a call."""
    if service := parent_process():
        service.join()
    os._exit(1)


def _portable(outcome: Any) -> Any:
    """Return an answer that the service can read; an error takes its traceback along as text."""
    if not isinstance(outcome, BaseException):
        return outcome
    trace = "".join(traceback.format_tb(outcome.__traceback__))
    try:
        pickle.loads(pickle.dumps(outcome))  # noqa: S301 -- our own
    except Exception:  # noqa: BLE001 -- whatever a class of the model's own raises
        outcome = RuntimeError(repr(outcome))
    outcome.add_note(f"In the model's process:\n{trace}")
    return outcome
