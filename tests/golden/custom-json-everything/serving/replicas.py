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
from typing import cast

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config

from serving.server import Door, DrainingServer, configure
from serving.server import run as run_one
from serving.threads import WORKERS
from serving.worker import Worker

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Replica(DrainingServer):
    """The server of one process."""

    def __init__(self, config: Config, worker: Worker, loaded: mmap.mmap, place: int) -> None:
        """Take the place of this process among the bytes that say whose model is loaded."""
        super().__init__(config, worker)
        self.loaded = loaded
        self.place = place
        self.parent = os.getppid()
        self.app = cast("ASGIApp", config.app)
        config.app = self.listen_when_loaded
        config.interface = "asgi3"  # which is not seen of a method

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let signals in, now that the server handles them, then start as ever."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        await super().startup(sockets)

    async def listen_when_loaded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be the app, but hold back that its start is complete: the server waits for that."""

        async def hold(message: Message) -> None:
            # Another process may be the one that changes this, so there is no event to wait for.
            while any(self.loaded[:]) and not (self.worker.is_loaded() or self.should_exit):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await send(message)

        await self.app(scope, receive, hold if scope["type"] == "lifespan" else send)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: note a loaded model; end when nobody watches over this any more."""
        self.loaded[self.place] = self.worker.is_loaded()
        self.should_exit |= os.getppid() != self.parent
        return await super().on_tick(counter)


class Replicas:
    """Starts the processes, starts another for one that dies, and ends them together."""

    def __init__(self, config: Config, worker: Worker, count: int) -> None:
        """Take what each of so many processes serves."""
        self.config = config
        self.worker = worker
        self.loaded = mmap.mmap(-1, count)  # a byte for each process, in memory that all share
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
            sys.exit(f"PORT={self.config.port} cannot be used: {error.strerror}")
        logger.info("%d processes share port %d", len(self.loaded), self.config.port)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while True:
            for place in self._vacant():
                process = os.fork()
                if process == 0:
                    server = Replica(self.config, self.worker, self.loaded, place)
                    server.run([self._bind(shared=True)])
                    return
                self.places[process] = place
            received = signal.sigtimedwait(SIGNALS, 0.2)
            self._reap()
            if received and received.si_signo != signal.SIGCHLD:
                self._stop()
            if not self.places and self.stopping:
                sys.exit(self.status)

    def _bind(self, *, shared: bool) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        listener.bind((self.config.host, self.config.port))
        return listener

    def _vacant(self) -> list[int]:
        """Return the places to fill now."""
        if self.stopping:
            return []
        vacant = sorted({*range(len(self.loaded))} - {*self.places.values()})
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
            self.worker.observer.ended(process)
            was_loaded, self.loaded[place] = self.loaded[place], 0
            if self.stopping:
                continue
            code = os.waitstatus_to_exitcode(status)
            if was_loaded:
                self.worker.observer.restarted()
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


def run(
    app: FastAPI, door: Door, *, port: int, timeout: int, stop_within: int | None = None
) -> int:
    """Serve until SIGTERM, and return the exit status: 1 where the model cannot go on, else 0."""
    if WORKERS == 1:
        return run_one(app, door, port=port, timeout=timeout, stop_within=stop_within)
    config = configure(app, door, port=port, timeout=timeout, stop_within=stop_within)
    with suppress(KeyboardInterrupt):
        Replicas(config, door.worker, WORKERS).run()
    return 1 if door.worker.failed else 0
