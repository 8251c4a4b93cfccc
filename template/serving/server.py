"""Serves the app with uvicorn, and stops without losing a request."""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from types import FrameType

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config, Server

from serving.errors import ServiceError
from serving.settings import settings
from serving.worker import Worker

# Longer than proxies keep a connection that they do not use (nginx and AWS: 60 s). Who closes first
# may close on a request that is on its way.
KEEP_ALIVE_SECONDS = 75

logger = logging.getLogger(__name__)


class UnsupportedUpgrade(ServiceError):
    """The request has a body and offers to change the protocol, so that its body is lost."""

    status = 400
    message = (
        "The body cannot be read, as the request offers an upgrade. Send it without the Upgrade "
        "header, as plain HTTP/1.1, or start the service with HTTP_PARSER=h11."
    )


class Closing:
    """Has an answer end its connection: during the drain, and after an upgrade that was offered.

    httptools, whichever protocol is offered and to whichever method, takes what follows such a
    request's head for that protocol's bytes. So a body is lost, and must not be read as the next
    request: a route that asks for it gets an error.
    """

    def __init__(self, app: ASGIApp, server: "DrainingServer") -> None:
        self.app = app
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, below ROOT_PATH, and without its body where that is lost."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Mounted apps need the whole path, as ASGI has it, also where a proxy has cut it.
        root, path = settings.root_path, scope["path"]
        path = path if f"{path}/".startswith(f"{root}/") else root + path
        scope = {**scope, "root_path": root, "path": path}
        loses_body = settings.http_parser == "httptools" and offers_upgrade(scope)

        async def reject() -> Message:
            raise UnsupportedUpgrade

        async def close(message: Message) -> None:
            if message["type"] == "http.response.start" and (loses_body or self.server.should_exit):
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, reject if loses_body and has_body(scope) else receive, close)


def offers_upgrade(scope: Scope) -> bool:
    """Tell whether httptools takes what follows the request's head for another protocol's bytes."""
    if scope["method"] == "CONNECT":
        return True
    options = {b"connection", b"proxy-connection"}  # the second is no standard, and taken as well
    return any(name == b"upgrade" for name, _ in scope["headers"]) and any(
        name in options and b"upgrade" in value.lower() for name, value in scope["headers"]
    )


def has_body(scope: Scope) -> bool:
    """Tell whether a request declares a body."""
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > 0


class DrainingServer(Server):
    """Tells on SIGTERM that it will stop, goes on for DRAIN_SECONDS, then finishes what it has."""

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        # What has come so far may take as long as any other request.
        grace = settings.request_timeout_seconds + settings.infer_timeout_seconds
        if settings.stop_seconds is not None:
            grace = min(grace, max(0, settings.stop_seconds - settings.drain_seconds))
        config = Config(
            Closing(app, self),
            host=settings.host,
            port=settings.port,
            lifespan="on",
            http=settings.http_parser,
            ws="none",
            log_config=None,
            access_log=logging.getLogger("uvicorn.access").isEnabledFor(logging.INFO),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=grace,
        )
        super().__init__(config)
        self.worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to stop; a second signal ends the process at once.

        uvicorn's own would raise the signal again in the end, which makes another exit status.
        """
        if self.should_exit:
            os._exit(1 if self.worker.failed else 128 + sig)
        self.should_exit = True
        self.worker.drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking connections when nobody sends any more, and finish the requests.

        Until a proxy has seen that /ready is 503, it sends requests here, and would hand a
        rejection on to its client. So they are answered; each answer closes its connection.
        """
        if settings.drain_seconds and not self.worker.failed:
            logger.info("Draining for %d s", settings.drain_seconds)
            await asyncio.sleep(settings.drain_seconds)
        for _ in range(2):  # connections that the kernel has taken already are lost with its queue
            await asyncio.sleep(0)
        await super().shutdown(sockets)


def serve(app: ASGIApp, worker: Worker) -> None:
    """Serve until SIGTERM, or until the model makes it impossible to go on."""
    with suppress(KeyboardInterrupt):
        server = DrainingServer(app, worker)
        # asyncio would have "::" take IPv6 alone.
        server.run([server.config.bind_socket()] if ":" in settings.host else None)
