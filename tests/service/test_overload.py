"""More than the model can do, and more than fits into memory."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.live import Live
from tests.support.slow_service import ask, document, fill, slow_service, started

MAX_QUEUE_SIZE = 4
CALL_SECONDS = 0.05
SECONDS = 3
CLIENTS = 60  # each asks again at once: many times what the model can do
MAX_GROWTH_MB = 50


@pytest.fixture(scope="module", params=[(), ("isolation",)], ids=["thread", "process"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered service that takes as long as a request says."""
    features = ["observability", *request.param]
    return slow_service(tmp_path_factory.mktemp("overload") / "service", features=features)


def resident_mb(service: Live) -> float:
    """Return the memory of the service's process that is in use."""
    pages = Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096 / 1e6


def insist(service: Live, end: float) -> Counter[int]:
    """Ask again and again, and return how often each status came."""
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=service.url, timeout=30) as client:
        while time.monotonic() < end:
            response = client.post("/infer", json=document(CALL_SECONDS))
            statuses[response.status_code] += 1
            if response.status_code == 503:
                assert response.headers["Retry-After"] == "1"
    return statuses


def test_overload(folder: Path, tmp_path: Path) -> None:
    """What there is a place for is answered, the rest rejected; nothing piles up."""
    with started(folder, tmp_path / "log", MAX_QUEUE_SIZE=str(MAX_QUEUE_SIZE)) as service:
        ask(service.url).raise_for_status()
        before = resident_mb(service)
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            end = time.monotonic() + SECONDS
            crowd = [pool.submit(insist, service, end) for _ in range(CLIENTS)]
            while time.monotonic() < end:
                assert service.client.get("/health").status_code == 200
                time.sleep(0.05)
            statuses: Counter[int] = sum((client.result() for client in crowd), Counter())
        assert set(statuses) == {200, 503}
        assert min(statuses[200], statuses[503]) > MAX_QUEUE_SIZE
        assert resident_mb(service) - before < MAX_GROWTH_MB
        assert ask(service.url).status_code == 200


def test_full_queue(folder: Path, tmp_path: Path) -> None:
    """A rejection has the id that was sent, CORS headers, and is counted; other routes go on."""
    env = {"MAX_QUEUE_SIZE": "1", "MAX_UPLOAD_MB": "1"}
    with started(folder, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:
        taken = fill(folder, service, pool)
        headers = {"X-Request-ID": "mine", "Origin": "https://elsewhere"}
        large = httpx.post(f"{service.url}/infer", content=2_000_000 * b" ", headers=headers)
        for answer in (ask(service.url, headers=headers), large):
            assert answer.status_code == 503
            assert answer.json() == {"detail": "Too many requests are waiting."}
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert answer.headers["X-Request-ID"] == "mine"
            assert answer.headers["Retry-After"] == "1"
        assert service.client.post("/no-such").status_code == 404
        assert service.client.get("/infer").status_code == 405
        assert {call.result().status_code for call in taken} == {200}
        counted = 'http_requests_total{method="POST",route="/infer",status="503"} 2.0'
        assert counted in service.client.get("/metrics").text


def test_many_large_bodies(folder: Path, tmp_path: Path) -> None:
    """The bodies of all requests together take no more than they may; then there is room again."""
    head = b"POST /infer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 1000000\r\n\r\n"
    env = {"MAX_UPLOAD_MB": "1", "MAX_BODIES_MB": "4"}
    with started(folder, tmp_path / "log", **env) as service, ExitStack() as stack:
        for number in range(1, 6):
            connection = service.connect(30)
            stack.enter_context(connection).sendall(head + 999_000 * b" ")
            connection.settimeout(2 if number < 5 else 30)
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                assert number < 5
            else:
                assert number == 5, answer
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nretry-after: 1\r\n" in answer.lower()
                assert b"\r\nconnection: close\r\n" in answer.lower()
        stack.close()
        assert ask(service.url).status_code == 200
        assert "Traceback" not in service.log
