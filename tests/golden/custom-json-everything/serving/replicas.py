"""Runs the server in several processes on one port, each with a model of its own.

The kernel spreads the connections over the processes that listen. While the model of one is loaded,
no other listens before its own is: it would be sent requests and refuse them.
"""

import asyncio
import logging
import mmap
import os
import signal
import socket
import sys
from contextlib import suppress

from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from starlette.types import Message, Receive, Scope, Send

from serving.metrics import RESTARTS
from serving.server import DrainingServer
from serving.server import serve as serve_alone
from serving.settings import settings
from serving.worker import Worker

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.1
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Replica(DrainingServer):
    """The server of one process."""

    def __init__(self, app: FastAPI, worker: Worker, loaded: mmap.mmap, place: int) -> None:
        """Take the place of this process among the bytes that say whose model is loaded."""
        super().__init__(self.hold_startup, worker)
        self.app = app
        self.loaded = loaded
        self.place = place
        self.parent = os.getppid()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let signals in, now that the server handles them, then start as ever."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self.watcher = asyncio.create_task(self.watch())
        await super().startup(sockets)

    async def hold_startup(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be the app, but hold back that its start is complete: the server waits for that."""

        async def hold(message: Message) -> None:
            # Another process may be the one that changes this, so there is no event to wait for.
            while any(self.loaded[:]) and not (self.worker.is_loaded or self.should_exit):  # noqa: ASYNC110
                await asyncio.sleep(CHECK_SECONDS)
            await send(message)

        await self.app(scope, receive, hold if scope["type"] == "lifespan" else send)

    async def watch(self) -> None:
        """Note a loaded model; end when nobody watches over this process any more."""
        while True:
            self.loaded[self.place] = self.worker.is_loaded
            self.should_exit |= os.getppid() != self.parent
            await asyncio.sleep(CHECK_SECONDS)


class Replicas:
    """Starts the processes, starts another for one that dies, and ends them together."""

    def __init__(self, app: FastAPI, worker: Worker) -> None:
        """Take what each of the processes serves, WORKERS of them."""
        self.app = app
        self.worker = worker
        # A byte for each process, in memory that all share.
        self.loaded = mmap.mmap(-1, settings.workers)
        self.places: dict[int, int] = {}  # which byte is whose, by process id
        self.stopping = False
        self.status = 0

    def run(self) -> None:
        """Return in each process when its server has ended; the one that watches over them exits.

        It exits after them: with 0 when it was told to stop, with 1 when a model did not load.
        """
        if sys.platform != "linux":
            sys.exit("WORKERS must be 1 here: only Linux spreads connections over processes")
        try:
            self._bind(shared=False).close()
        except OSError as error:
            sys.exit(f"PORT={settings.port} cannot be used: {error.strerror}")
        logger.info("%d processes share port %d", settings.workers, settings.port)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while True:
            for place in self._vacant():
                process = os.fork()
                if process == 0:
                    replica = Replica(self.app, self.worker, self.loaded, place)
                    replica.run([self._bind(shared=True)])
                    return
                self.places[process] = place
            received = signal.sigtimedwait(SIGNALS, 0.2)
            self._reap()
            # Woken by SIGCONT, after a debugger for one, Python returns any number for a signal.
            if received and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
                self._stop()
            if not self.places and self.stopping:
                sys.exit(self.status)

    def _bind(self, *, shared: bool) -> socket.socket:
        listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        listener.bind((settings.host, settings.port))
        return listener

    def _vacant(self) -> list[int]:
        """Return the places to fill now."""
        if self.stopping:
            return []
        vacant = sorted({*range(settings.workers)} - {*self.places.values()})
        if any(self.loaded[:]):
            return vacant
        # One loads alone: together they would fetch the same weights, or fail for the same reason.
        return [] if self.places else vacant[:1]

    def _reap(self) -> None:
        """See who has ended: one is replaced if its model was loaded, else all have to stop."""
        for process in list(self.places):
            ended, status = os.waitpid(process, os.WNOHANG)
            if not ended:
                continue
            place = self.places.pop(process)
            mark_process_dead(process)  # what it counted stays
            was_loaded, self.loaded[place] = self.loaded[place], 0
            if self.stopping:
                continue
            code = os.waitstatus_to_exitcode(status)
            if was_loaded:
                RESTARTS.inc()
                logger.error("Process %d ended with %d; starting another", process, code)
            else:
                if code != 1:  # else it has told why
                    logger.critical("Process %d ended with %d while it loaded", process, code)
                self.status = 1
                self._stop()

    def _stop(self) -> None:
        self.stopping = True
        for process in self.places:
            os.kill(process, signal.SIGTERM)


def serve(app: FastAPI, worker: Worker) -> None:
    """Serve until SIGTERM, or until the model makes it impossible to go on."""
    if settings.workers == 1:
        serve_alone(app, worker)
        return
    with suppress(KeyboardInterrupt):
        Replicas(app, worker).run()
