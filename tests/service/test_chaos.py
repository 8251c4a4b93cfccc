"""Clients that are slow, leave, or come in masses, at live services: others do not notice."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.live import Live, receive_all, wait_for
from tests.support.proxies import haproxy, nginx
from tests.support.slow_service import ask, calls, document, slow_service, started

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("chaos")

TIMEOUT_SECONDS = 1
PATIENCE_SECONDS = 15
wait = partial(wait_for, seconds=PATIENCE_SECONDS)
HEAD = b"POST /infer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered service that takes as long as a request says."""
    features = ["observability", *getattr(request, "param", ())]
    return slow_service(tmp_path_factory.mktemp("chaos") / "service", features=features)


in_both = pytest.mark.parametrize(
    "folder", [(), ("isolation",)], ids=["thread", "process"], indirect=True
)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Live]:
    """Return a service that waits for a second."""
    log = folder / "log"
    with started(folder, log, REQUEST_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS)) as running:
        yield running


@pytest.fixture(scope="module", params=[nginx, haproxy])
def front(
    request: pytest.FixtureRequest, service: Live, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """Return the service behind a proxy, which is configured as the docs say."""
    with request.param(tmp_path_factory.mktemp("proxy"), [service.url]) as url:
        yield replace(service, url=url)


def connect(service: Live) -> socket.socket:
    """Open a connection."""
    return service.connect(PATIENCE_SECONDS)


def get(connection: socket.socket) -> None:
    """Ask for /health, and leave the connection open."""
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        received = connection.recv(65536)
        assert received
        answer += received
    assert answer.startswith(b"HTTP/1.1 200 ")


def trickle(connection: socket.socket, content: bytes) -> bytes:
    """Send a byte every 0.1 s until the service closes the connection, and return its answer."""
    connection.settimeout(0.1)
    start, answer = time.monotonic(), b""
    for number in range(len(content)):
        with suppress(TimeoutError):
            try:
                connection.sendall(content[number : number + 1])
                received = connection.recv(65536)
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                break
            answer += received
            if not received:
                break
        assert time.monotonic() - start < PATIENCE_SECONDS
    else:
        pytest.fail("The connection is still open")
    return answer


# What slow clients send, by what they are slow with. With heads a proxy deals, with bodies both.
LONG = 1000 * b"a"


def nothing(connection: socket.socket) -> bytes:
    """Connect, and send nothing."""
    return receive_all(connection)


def head(connection: socket.socket) -> bytes:
    """Send the request's head byte by byte."""
    return trickle(connection, HEAD + b"X: " + LONG)


def second_head(connection: socket.socket) -> bytes:
    """Send a second head byte by byte, on a connection that is kept alive."""
    get(connection)
    return trickle(connection, HEAD + b"X: " + LONG)


@pytest.mark.parametrize("slow", [nothing, head, second_head])
def test_slow_head(front: Live, slow: Callable[[socket.socket], bytes]) -> None:
    """A request whose head does not come in time ends the connection, and reaches no service."""
    with connect(front) as connection:
        assert slow(connection)[:12] in {b"", b"HTTP/1.0 408", b"HTTP/1.1 408"}


def no_body(connection: socket.socket) -> bytes:
    """Announce a body, and send none of it."""
    connection.sendall(HEAD + b"Content-Length: 50\r\n\r\n")
    return receive_all(connection)


def half_a_body(connection: socket.socket) -> bytes:
    """Send half of a body."""
    connection.sendall(HEAD + b'Content-Length: 50\r\n\r\n{"values": [')
    return receive_all(connection)


def body(connection: socket.socket) -> bytes:
    """Send a body byte by byte."""
    connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
    return trickle(connection, LONG)


def chunks(connection: socket.socket) -> bytes:
    """Send a body of unknown length byte by byte."""
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    return trickle(connection, 200 * b"1\r\n \r\n")


@pytest.mark.parametrize("slow", [no_body, half_a_body, body, chunks])
def test_slow_body(service: Live, slow: Callable[[socket.socket], bytes]) -> None:
    """A body that is not complete in time is 408, and ends the connection."""
    with connect(service) as connection:
        answer = slow(connection)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert answer.endswith(b'{"detail":"The request took too long to arrive."}')


def test_refused_before_its_body(service: Live) -> None:
    """A client that asks whether to send its body, and may not, goes on with another connection."""
    with connect(service) as connection:
        connection.sendall(
            b"POST /infer HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = receive_all(connection)  # until the service ends the connection
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_slow_upload_in_time(service: Live) -> None:
    """A body that comes in several parts, but in time, is answered."""
    content = b'{"values": [1, 2, 3, 4]}'
    with connect(service) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content))
        for start in range(0, len(content), 6):
            time.sleep(0.1)
            connection.sendall(content[start : start + 6])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_long_call_in_time(service: Live) -> None:
    """The time is for the client alone: a model that takes longer is waited for."""
    assert ask(service.url, 2.5 * TIMEOUT_SECONDS).status_code == 200


def test_kept_connection(service: Live) -> None:
    """A connection whose requests come in time is kept, however long it has been open."""
    with connect(service) as connection:
        for _ in range(5):
            get(connection)
            time.sleep(TIMEOUT_SECONDS)


def test_head_alone(service: Live) -> None:
    """An answer without a body does not wait for one."""
    with connect(service) as connection:
        for _ in range(2):
            connection.sendall(b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n")


def test_unread_answers(front: Live) -> None:
    """A client that does not read what it asked for loses its connection."""
    requests = 50 * b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
    with connect(front) as connection:
        connection.settimeout(0.2)

        def is_lost() -> bool:
            try:
                connection.sendall(requests)
            except TimeoutError:
                return False
            except OSError:
                return True
            return False

        wait(is_lost)


def test_endless_head(front: Live) -> None:
    """A head without an end is refused before it costs memory."""
    before = memory(front)
    with connect(front) as connection:
        connection.sendall(HEAD + b"X: ")
        with suppress(OSError):
            for _ in range(200):
                connection.sendall(2**20 * b"a")
        assert receive_all(connection)[:12] in {b"", b"HTTP/1.1 400"}
    assert memory(front) - before < 20


def memory(service: Live) -> int:
    """Return the megabytes of memory that the service's process has."""
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) // 1024


@pytest.mark.parametrize("start", [b"", HEAD], ids=["nothing", "head"])
def test_silent_by_the_hundred(front: Live, start: bytes) -> None:
    """Clients that connect and say nothing, or half of a head, hold nobody up."""
    before = descriptors(front)
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connect(front)).sendall(start)
        for _ in range(10):
            assert ask(front.url).status_code == 200
        assert descriptors(front) - before <= 10


def descriptors(service: Live) -> int:
    """Return how many files and connections the service's process has open."""
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


def test_behind_a_proxy(front: Live) -> None:
    """A call that takes longer than a client may is waited for, and a large body comes in."""
    assert ask(front.url, 2.5 * TIMEOUT_SECONDS).status_code == 200
    large = json.dumps(document()).encode() + 10_000_000 * b" "
    headers = {"Content-Type": "application/json"}
    assert httpx.post(f"{front.url}/infer", content=large, headers=headers).status_code == 200


@in_both
def test_client_leaves_the_queue(folder: Path, tmp_path: Path) -> None:
    """A client that leaves while it waits frees its place, and its work is never done."""
    with (
        started(folder, tmp_path / "log", MAX_QUEUE_SIZE="1") as service,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(ask, service.url, 3.0)
        wait(lambda: -3.0 in calls(folder))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.url}/infer", json={"values": [-0.5, 0, 0, 0]}, timeout=0.5)
        wait(lambda: service.client.get("/ready").status_code == 200)
        assert not first.done()
        assert ask(service.url, 0.1).status_code == 200
        assert first.result().status_code == 200
        assert calls(folder)[-2:] == [-3.0, -0.1]
        assert "ERROR" not in service.log


@in_both
def test_client_leaves_its_body(folder: Path, tmp_path: Path) -> None:
    """Clients that leave in the middle of a body take no place, and leave a quiet line each."""
    with started(folder, tmp_path / "log", MAX_QUEUE_SIZE="1") as service:
        for _ in range(20):
            with connect(service) as connection:
                connection.sendall(HEAD + b'Content-Length: 50\r\n\r\n{"values": [')
        wait(lambda: service.log.count("The client left") == 20)
        assert ask(service.url).status_code == 200
        assert len(calls(folder)) == 2
        assert not re.search("Traceback|ERROR", service.log)
