"""Serves the app: stops without losing a request, and is not held up by slow clients."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any

from fastapi import FastAPI
from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.limits import REQUEST_TIMEOUT_SECONDS, Busy, ErrorBody, NoUpgrades, env_int
from serving.worker import Headers, Worker

DRAIN_SECONDS = env_int("DRAIN_SECONDS", 0)
MAX_CONNECTIONS = env_int("MAX_CONNECTIONS", 800, minimum=1)
HTTP_PARSER = os.getenv("HTTP_PARSER", "httptools").lower()

if HTTP_PARSER not in {"httptools", "h11"}:
    sys.exit(f"HTTP_PARSER must be httptools or h11; not {HTTP_PARSER!r}")

# Longer than proxies keep a connection that they do not use (nginx and AWS: 60 s). Who closes first
# may close on a request that is on its way.
KEEP_ALIVE_SECONDS = 75
# httptools has no limit of its own.
MAX_HEAD_BYTES = 64 * 1024
CHECK_SECONDS = 0.5

BUSY = ErrorBody(detail=Busy.reason).model_dump_json().encode()
BUSY_HEAD = b"HTTP/1.1 %%d %%b\r\nretry-after: %d\r\n" % Busy.retry_after
BUSY_TAIL = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BUSY), BUSY)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Door:
    """Where requests for the model come in, and what may come."""

    worker: Worker
    routes: Mapping[str, int]  # each with the status of a request that has no place
    max_bytes: int

    def refuses(self, method: bytes, path: str, headers: Headers) -> bool:
        """Tell whether a request has no place, and nobody else would have a word to say to that."""
        if not self.worker.is_full or method != b"POST" or path not in self.routes:
            return False
        named = dict(headers)
        size = named.get(b"content-length", b"0")
        return b"origin" not in named and size.isdigit() and int(size) <= self.max_bytes


class Refused(RequestResponseCycle):
    """In the place of the answer to a request that the app never saw."""

    response_complete = True
    more_body = False

    def __init__(self) -> None:
        self.message_event = asyncio.Event()


class Joined:
    """In the place of the transport for one answer: sends the head with the first of the body.

    uvicorn writes them one by one, which makes two packets, and two system calls on the way of
    every answer. A head with no body yet goes out when the event loop comes round.
    """

    __slots__ = ("head", "is_first", "loop", "transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport = transport
        self.loop = loop
        self.head = b""
        self.is_first = True

    def write(self, data: bytes) -> None:
        """Hold the head, and send it with what comes next."""
        if self.is_first:
            self.is_first = False
            self.head = data
            self.loop.call_soon(self.flush)
        elif self.head and data:
            self.transport.writelines((self.head, data))
            self.head = b""
        else:
            self.transport.write(data)

    def flush(self) -> None:
        """Send the head, if it is still here."""
        if self.head and not self.transport.is_closing():
            self.transport.write(self.head)
        self.head = b""

    def close(self) -> None:
        """Close the connection once everything is sent."""
        self.flush()
        self.transport.close()

    def is_closing(self) -> bool:
        """Tell whether the connection is being closed."""
        return self.transport.is_closing()


class Connection(HttpToolsProtocol):
    """One client's connection, which ends when the client keeps it waiting.

    Timers would cost each request something; instead the server looks at all connections now and
    then, and `since` is when this one was first seen to wait.
    """

    since: float
    head_bytes = 0
    _last_cycle: RequestResponseCycle | None = None

    def __init__(self, *, door: Door, **options: Any) -> None:
        """Take the door besides what uvicorn gives."""
        super().__init__(**options)
        self.door = door

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; where there are too many, the one that waited longest goes."""
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [other for other in self.connections if isinstance(other, Connection)]
            idle = [other for other in idle if other.is_idle and not other.transport.is_closing()]
            longest = min(idle, key=lambda other: other.since)
            logger.info("Closing a connection: there are more than %d", MAX_CONNECTIONS)
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and refuse a head that is too large."""
        super().data_received(data)
        if self.scope is None or "path" in self.scope:
            self.head_bytes = 0
            return
        self.head_bytes += len(data)
        if self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_headers_complete(self) -> None:
        """Have the request answered; or refuse it here, where there is no place for it.

        Through the app a refusal costs several times as much: when most are refused, so much that
        the model on the same core would have answered a good part of them.
        """
        path = str(self.url.partition(b"?")[0], "latin-1")
        refuses = self.door.refuses(self.parser.get_method(), path, self.headers)
        refuses = refuses and self.parser.should_keep_alive() and not self.parser.should_upgrade()
        if not (refuses and self.is_idle):
            super().on_headers_complete()
            self.cycle.transport = Joined(self.transport, self.loop)  # type: ignore[assignment]
            return
        status = HTTPStatus(self.door.routes[path])
        told = self.door.worker.refuse(path, status, self.headers)
        lines = [b"%b: %b\r\n" % line for line in (*self.server_state.default_headers, *told)]
        head = BUSY_HEAD % (status, status.phrase.encode())
        self.transport.write(head + b"".join(lines) + BUSY_TAIL)
        self.scope["path"] = path  # its head is complete
        self.cycle = Refused()
        self.on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: to send a request's head, or to read."""
        if self.transport.is_closing() or self.flow.write_paused:
            return True
        return self.is_idle and self.timeout_keep_alive_task is None

    def check(self) -> None:
        """End the connection where its client has been too slow."""
        now = self.loop.time()
        if not self.waits or self.cycle is not self._last_cycle:
            self.since, self._last_cycle = now, self.cycle
        elif now - self.since > REQUEST_TIMEOUT_SECONDS:
            self.transport.abort()


class DrainingServer(Server):
    """Tells on SIGTERM that it will stop, goes on for DRAIN_SECONDS, then finishes what it has."""

    def __init__(self, config: Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker
        self._checks: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to stop; a second signal ends the process at once.

        uvicorn's own would raise the signal again in the end, which makes another exit status.
        """
        if self.should_exit:
            os._exit(1 if self.worker.failed else 128 + sig)
        self.should_exit = True
        self.worker.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and look after the connections from then on."""
        await super().startup(sockets)
        self._checks = asyncio.create_task(self._check_connections())

    async def _check_connections(self) -> None:
        refused = 0
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if refused != self.worker.refused:
                count, refused = self.worker.refused - refused, self.worker.refused
                logger.warning("Requests refused, for the queue was full: %d", count)
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.check()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking connections when nobody sends any more, and finish the requests.

        Until a proxy has seen that /ready is 503, it sends requests here, and would hand a refusal
        on to its client. So they are answered; each answer closes its connection.
        """
        if DRAIN_SECONDS and not self.worker.failed:
            logger.info("Draining for %d s", DRAIN_SECONDS)
            self.server_state.default_headers.append((b"connection", b"close"))
            await asyncio.sleep(DRAIN_SECONDS)
        for _ in range(2):  # connections that the kernel has taken already are lost with its queue
            await asyncio.sleep(0)
        await super().shutdown(sockets)


def configure(
    app: FastAPI, door: Door, *, port: int, timeout: int, stop_within: int | None = None
) -> Config:
    """Say what is served where; a request may take so many seconds once it has come.

    After SIGTERM it may take no more than `stop_within`, with what the drain takes.
    """
    served: Any = app
    http: Any = "h11"
    if HTTP_PARSER == "httptools":
        served, http = NoUpgrades(app), partial(Connection, door=door)
    grace = REQUEST_TIMEOUT_SECONDS + timeout  # what has come so far may take as long as any other
    if stop_within is not None:
        grace = min(grace, max(0, stop_within - DRAIN_SECONDS))
    return Config(
        served,
        host="0.0.0.0",  # noqa: S104 -- a container is reached from outside
        port=port,
        http=http,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ws="none",
        log_config=None,
        access_log=logging.getLogger("uvicorn.access").isEnabledFor(logging.INFO),
        proxy_headers=False,  # nothing here asks for the client's address
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace,
    )


def run(
    app: FastAPI, door: Door, *, port: int, timeout: int, stop_within: int | None = None
) -> int:
    """Serve until SIGTERM, and return the exit status: 1 where the model cannot go on, else 0."""
    config = configure(app, door, port=port, timeout=timeout, stop_within=stop_within)
    with suppress(KeyboardInterrupt):
        DrainingServer(config, door.worker).run()
    return 1 if door.worker.failed else 0
