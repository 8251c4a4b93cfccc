"""Sends requests at a fixed rate, whatever comes back, and prints what did come as JSON.

A client that waits for answers slows down with the server; a crowd does not. So each request has
its moment, and goes out on whichever connection is free.
"""

import argparse
import asyncio
import json
import time
from collections import deque
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import httptools  # type: ignore[import-not-found]  # of the peers' environments
import uvloop  # type: ignore[import-not-found]

OK = 200
WARM_UP_SECONDS = 1


class Connection(asyncio.Protocol):
    """A connection that sends the same request again and again."""

    def __init__(self, crowd: "Crowd") -> None:
        self.crowd = crowd
        self.start()

    def start(self) -> None:
        """Get ready for an answer."""
        self.parser = httptools.HttpResponseParser(self)
        self.sent = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait to be used."""
        self.transport = transport
        self.crowd.idle.append(self)

    def data_received(self, data: bytes) -> None:
        """Read some of an answer."""
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Note an answer, and wait to be used again."""
        self.crowd.answered(self.parser.get_status_code(), time.perf_counter() - self.sent)
        keeps = self.parser.should_keep_alive()
        self.start()
        if keeps:
            self.crowd.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Count a request that was not answered; a new connection takes this one's place."""
        if self.sent:
            self.crowd.lost += 1
        if self in self.crowd.idle:
            self.crowd.idle.remove(self)
        self.crowd.open()


class Crowd:
    """All connections, and what came back on them."""

    def __init__(self, url: str, request: bytes) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.request = request
        self.idle: deque[Connection] = deque()
        self.good: list[float] = []
        self.refused: list[float] = []
        self.lost = self.unsent = 0
        self.is_over = False
        self.tasks: set[asyncio.Task[object]] = set()

    def open(self) -> None:
        """Open a connection."""
        if not self.is_over:
            loop = asyncio.get_running_loop()
            task = loop.create_task(
                loop.create_connection(lambda: Connection(self), self.host, self.port)
            )
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def answered(self, status: int, seconds: float) -> None:
        """Note an answer."""
        (self.good if status == OK else self.refused).append(seconds)

    async def warm_up(self, rate: float) -> None:
        """Send for a while, and forget what came back: the queue was empty at first."""
        await self.send(rate, WARM_UP_SECONDS)
        self.good.clear()
        self.refused.clear()
        self.lost = self.unsent = 0

    async def send(self, rate: float, seconds: float) -> None:
        """Send so many requests per second, for so long."""
        start = time.perf_counter()
        sent = 0
        while (now := time.perf_counter()) - start < seconds:
            while sent < (now - start) * rate:
                sent += 1
                if self.idle:
                    connection = self.idle.popleft()
                    connection.sent = time.perf_counter()
                    connection.transport.write(self.request)
                else:
                    self.unsent += 1
            await asyncio.sleep(0.001)


def milliseconds(seconds: list[float], percentile: int) -> float:
    """Return a percentile of some times; 0 where there are none."""
    return quantiles(seconds, n=100)[percentile - 1] * 1000 if len(seconds) > 1 else 0.0


async def main() -> None:
    """Flood, and print what came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--content-type", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=500)
    options = parser.parse_args()
    body = options.body.read_bytes()
    parts = urlsplit(options.url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: {options.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    crowd = Crowd(options.url, head.encode() + body)
    for _ in range(options.connections):
        crowd.open()
    await asyncio.gather(*crowd.tasks)
    await crowd.warm_up(options.rate)
    await crowd.send(options.rate, options.seconds)
    crowd.is_over = True
    result = {
        "rate": len(crowd.good) / options.seconds,
        "refusals": len(crowd.refused) / options.seconds,
        "refusal_p50": milliseconds(crowd.refused, 50),
        "p99": milliseconds(crowd.good, 99),
        "lost": crowd.lost,
        "unsent": crowd.unsent / options.seconds,
    }
    print(json.dumps(result))


uvloop.run(main())
