"""Keeps the model in a process of its own, which can be killed and may die."""

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Event, Thread
from typing import Any

from serving.limits import CannotLoad, OutOfMemory
from serving.worker import END, Answer, Job, ModelDied, Stream

# Not fork: a child would hold the clients' connections open.
context = get_context("spawn")

CLOSE_SECONDS = 10
MAX_DEATHS = 5  # in a row, with no call between them
NAME = "model"

# What the service says to each item of a stream.
MORE, ENOUGH = "more", "enough"


def is_model_process() -> bool:
    """Tell whether this is that process, which imports all that the service does."""
    return current_process().name == NAME


class ModelProcess:
    """The process, started and asked by one thread; others may kill it."""

    def __init__(
        self,
        load: Callable[[], None],
        answer: Answer,
        unload: Callable[[], None],
        stream: Stream | None = None,
    ) -> None:
        """Take what the process does: functions of modules that it can import."""
        self._functions = load, answer, unload, stream
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
        self._process = context.Process(
            target=_serve, args=(theirs, *self._functions), name=NAME, daemon=True
        )
        self._killed = False
        self._process.start()
        theirs.close()
        self._ended = Event()
        Thread(target=self._watch, args=(self._process, self._ended), daemon=True).start()
        error = self._receive()
        if error:
            raise error

    def answer(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Have the process answer requests. Raises ModelDied, from what its call is to get."""
        self._deaths = 0
        self._send(jobs)
        answers: list[Any] = self._receive()
        return answers

    def stream(self, job: Job[Any]) -> Generator[Any, None, None]:
        """Have the process stream the answer to a request. Raises ModelDied."""
        self._deaths = 0
        self._send(job)
        try:
            while (item := self._receive()) is not END:
                yield item
                self._send(MORE)
        except GeneratorExit:
            self._send(ENOUGH)
            raise

    def kill(self) -> None:
        """End the process at once, with the call that it is in."""
        self._killed = True
        self._process.kill()

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

    def _watch(self, process: BaseProcess, ended: Event) -> None:
        """Body of a thread, the only one to wait for this process: tell that it has ended."""
        process.join()
        self._deaths += 1
        self.on_end(self._death())
        ended.set()  # last, so that a call that died with it is the last to tell


def _serve(
    connection: Connection,
    load: Callable[[], None],
    answer: Answer,
    unload: Callable[[], None],
    stream: Stream | None,
) -> None:
    """Body of the process: load, then answer until the service closes the connection."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the service decides when it ends
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_service, daemon=True).start()
    try:
        load()
    except BaseException as error:  # noqa: BLE001 -- raised again by the service
        connection.send(_portable(error))
        return
    connection.send(None)
    with suppress(EOFError):
        while True:
            work = connection.recv()
            if isinstance(work, Job) and stream:
                with closing(stream(work)) as items:
                    _send_items(connection, items)
            else:
                connection.send([_portable(outcome) for outcome in answer(work)])
    unload()


def _send_items(connection: Connection, items: Iterator[Any]) -> None:
    """Send each item as it comes, for as long as the service wants another."""
    for item in items:
        connection.send(_portable(item))
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
