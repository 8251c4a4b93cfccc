"""Requests that offer an upgrade, at live services: what is in their body stays their body."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from socket import socket

import httpx
import pytest

from tests.support.live import Live, receive_all, wait_for
from tests.support.slow_service import ask, calls, document, fill, slow_service, started
from tests.support.updating import change

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("http-upgrade")

PATIENCE_SECONDS = 30
wait = partial(wait_for, seconds=PATIENCE_SECONDS)
PARSERS = ["httptools", "h11"]

OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "tls": b"UPGRADE: TLS/1.0\r\nCONNECTION: keep-alive\r\nCONNECTION: UPGRADE\r\n",
    "two": b"connection: keep-alive,\tupgrade\r\nupgrade: h2c\r\nupgrade: foo/2\r\n",
    "proxy": b"Upgrade: foo\r\nProxy-Connection: upgrade\r\n",
}
INNER = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Request-ID: smuggled\r\n\r\n"
LAST = b"GET /no-such HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
VALID = json.dumps(document()).encode()

# Java's client offers HTTP/2 by default; with an argument it is told not to.
JAVA = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Ask {
    public static void main(String[] args) throws Exception {
        HttpClient.Builder builder = HttpClient.newBuilder();
        if (args.length > 1) {
            builder.version(HttpClient.Version.HTTP_1_1);
        }
        HttpRequest request = HttpRequest.newBuilder(URI.create(args[0]))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString("{\\"values\\": [1, 2, 3, 4]}"))
            .build();
        HttpResponse<String> response =
            builder.build().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(response.statusCode() + " " + response.body());
    }
}
"""


# A route of the owner's that answers for longer than a body may take.
LONG_ANSWER = """
import asyncio

from starlette.responses import StreamingResponse


@app.post("/long")
async def long_answer(request: Request) -> Response:
    await request.body()

    async def parts() -> AsyncIterator[str]:
        for number in range(5):
            await asyncio.sleep(0.5)
            yield str(number)

    return StreamingResponse(parts())


app.include_router(model_router)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered service that takes as long as a request says."""
    project = slow_service(
        tmp_path_factory.mktemp("upgrade") / "service",
        contracts=["oip"],
        features=["observability", "replicas"],
    )
    change(project / "main.py", "\napp.include_router(model_router)\n", LONG_ANSWER)
    return project


@pytest.fixture(scope="module", params=PARSERS)
def parser(request: pytest.FixtureRequest) -> str:
    """Return the value of HTTP_PARSER."""
    return str(request.param)


@pytest.fixture(scope="module")
def service(folder: Path, parser: str) -> Iterator[Live]:
    """Return a service with this parser, whose log has no traceback in the end."""
    with started(folder, folder / f"log-{parser}", HTTP_PARSER=parser) as running:
        yield running
        assert not re.search("Traceback|ERROR", running.log)


def head(request: str, offer: bytes, length: int | None, version: str = "1.1") -> bytes:
    """Return the head of a request; without a length its body is chunked."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    start = f"{request} HTTP/{version}\r\nHost: a\r\nOrigin: http://elsewhere\r\n"
    rest = f"Content-Type: application/json\r\n{framing}\r\n\r\n"
    return start.encode() + offer + rest.encode()


def send(connection: socket, *packets: bytes) -> None:
    """Send packets apart from each other, until the service wants no more."""
    for number, packet in enumerate(packets):
        if number:
            time.sleep(0.05)
        with suppress(OSError):
            connection.sendall(packet)


def answers(connection: socket) -> list[tuple[int, bytes, bytes]]:
    """Return the status, head and body of all answers until the service closes the connection."""
    received = receive_all(connection)
    found = []
    while received:
        start, _, received = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", start)
        size = int(length[1]) if length else 0
        found.append((int(start[9:12]), start.lower(), received[:size]))
        received = received[size:]
    return found


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("request_line", ["POST /infer", "PUT /infer", "GET /health", "POST /no"])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_is_no_request(
    service: Live, parser: str, offer: bytes, request_line: str, *, chunked: bool
) -> None:
    """A request in the body is never answered, and the request around it once."""
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER) if chunked else INNER
    start = head(request_line, offer, None if chunked else len(body))
    status = {"POST /infer": 400, "PUT /infer": 405, "GET /health": 200, "POST /no": 404}
    for packets in ([start + body], [start, body], [start, body[:9], body[9:]]):
        with service.connect(PATIENCE_SECONDS) as connection:
            send(connection, *packets)
            if parser == "h11":  # which leaves the connection open
                send(connection, LAST)
            found = answers(connection)
        assert found[0][0] == status[request_line]
        assert [answer[0] for answer in found[1:]] == ([404] if parser == "h11" else [])
        assert not any(b"smuggled" in answer[1] for answer in found)
        if parser == "httptools":
            assert b"\r\nconnection: close" in found[0][1]


@pytest.mark.parametrize("request_line", ["OPTIONS /infer", "CONNECT /infer", "CONNECT /health"])
def test_other_methods(service: Live, parser: str, request_line: str) -> None:
    """Nor is it where the answer comes from elsewhere: a preflight, or a method not allowed."""
    preflight = OFFERS["h2c"] + b"Access-Control-Request-Method: POST\r\n"
    offer = preflight if "OPTIONS" in request_line else b""
    with service.connect(PATIENCE_SECONDS) as connection:
        send(connection, head(request_line, offer, len(INNER)), INNER)
        if parser == "h11":
            send(connection, LAST)
        found = answers(connection)
    assert [answer[0] for answer in found[1:]] == ([404] if parser == "h11" else [])
    assert b"smuggled" not in b"".join(answer[1] for answer in found)


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_body_is_read_or_missed(service: Live, parser: str, offer: bytes, version: str) -> None:
    """h11 reads the body; with httptools the client is told what to do, as for any other error."""
    for body in (VALID, b" " * 2**20 + VALID):
        with service.connect(PATIENCE_SECONDS) as connection:
            send(connection, head("POST /infer", offer, len(body), version) + body)
            if parser == "h11" and version == "1.1":
                send(connection, LAST)
            [(status, start, answer), *rest] = answers(connection)
        assert len(rest) == (parser == "h11" and version == "1.1")
        assert b"\r\naccess-control-allow-origin: *" in start
        assert b"\r\nx-request-id: " in start
        if parser == "h11":
            assert (status, json.loads(answer)) == (200, {"next": 0.0})
        else:
            assert status == 400
            assert "without the Upgrade header" in json.loads(answer)["detail"]
    metrics = service.client.get("/metrics").text
    assert re.search(rf'http_requests_total{{.*"/infer",status="{status}"}} [1-9]', metrics)


def test_open_inference_protocol(service: Live, parser: str) -> None:
    """Where errors have another form, this one has it, too."""
    model = service.client.get("/v2").json()["name"]
    headers = {"Connection": "Upgrade", "Upgrade": "h2c"}
    tensor = {"name": "values", "shape": [1, 4], "datatype": "FP64", "data": [0, 0, 0, 0]}
    answer = service.client.post(
        f"/v2/models/{model}/infer", json={"inputs": [tensor]}, headers=headers
    )
    if parser == "httptools":
        assert answer.status_code == 400
        assert "without the Upgrade header" in answer.json()["error"]
    else:
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_without_a_body(service: Live, parser: str, offer: bytes) -> None:
    """Where no body can be lost, the offer is passed over; httptools would lose what comes next.

    So there the answer ends the connection, and the client knows that it has to ask again.
    """
    get = b"GET /health HTTP/1.1\r\nHost: a\r\n" + offer + b"\r\n"
    with service.connect(PATIENCE_SECONDS) as connection:
        send(connection, get, get, head("POST /infer", offer, 0), LAST)
        found = answers(connection)
    statuses = [answer[0] for answer in found]
    assert statuses == ([200] if parser == "httptools" else [200, 200, 400, 404])


@pytest.mark.parametrize(
    "header", [b"Upgrade: h2c\r\n", b"Connection: upgrade\r\n", b"Connection: h2c\r\n"]
)
def test_no_offer(service: Live, header: bytes) -> None:
    """One half of an offer is none."""
    with service.connect(PATIENCE_SECONDS) as connection:
        send(connection, head("POST /infer", header, len(VALID)), VALID, LAST)
        assert [answer[0] for answer in answers(connection)] == [200, 404]


def test_full_queue(folder: Path, parser: str, tmp_path: Path) -> None:
    """With a full queue the body is no request either."""
    env = {"MAX_QUEUE_SIZE": "1", "HTTP_PARSER": parser}
    with (
        started(folder, tmp_path / "log", **env) as service,
        ThreadPoolExecutor() as pool,
        service.connect(PATIENCE_SECONDS) as connection,
    ):
        taken = fill(folder, service, pool)
        plain = head("POST /infer", OFFERS["h2c"], len(INNER))
        send(connection, plain.replace(b"Origin", b"X-Origin"), INNER)
        if parser == "h11":
            send(connection, LAST)
        found = answers(connection)
        assert [answer[0] for answer in found] == ([503, 404] if parser == "h11" else [503])
        assert [call.result().status_code for call in taken] == [200, 200]


def test_end_with_open_connections(folder: Path, parser: str, tmp_path: Path) -> None:
    """SIGTERM ends the service cleanly, whatever has been offered on connections that are open."""
    env = {"HTTP_PARSER": parser, "REQUEST_TIMEOUT_SECONDS": "1"}
    with started(folder, tmp_path / "log", **env) as service, ExitStack() as stack:
        for request_line in ("GET /health", "POST /infer", "PUT /infer"):
            for offer in OFFERS.values():
                for length in (0, 50, None):
                    connection = stack.enter_context(service.connect(PATIENCE_SECONDS))
                    send(connection, head(request_line, offer, length))
        assert httpx.get(f"{service.url}/health").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_SECONDS) == 0
    assert not re.search("Traceback|ERROR", service.log)


@pytest.mark.parametrize("body", [b"", VALID[:9]])
def test_slow_body(folder: Path, parser: str, tmp_path: Path, body: bytes) -> None:
    """The body's deadline holds with either parser, and ends with the body."""
    env = {"HTTP_PARSER": parser, "REQUEST_TIMEOUT_SECONDS": "1"}
    with (
        started(folder, tmp_path / "log", **env) as service,
        service.connect(PATIENCE_SECONDS) as connection,
    ):
        send(connection, head("POST /infer", b"", len(VALID)) + body)
        [(status, start, answer)] = answers(connection)
        assert status == 408
        assert b"\r\nconnection: close" in start
        assert json.loads(answer) == {"detail": "The request took too long to arrive."}
        assert ask(service.url, 2.5).status_code == 200
        long = httpx.post(f"{service.url}/long", content=b"a", timeout=PATIENCE_SECONDS)
        assert (long.status_code, long.text) == (200, "01234")


def test_requests_are_finished(folder: Path, tmp_path: Path) -> None:
    """With h11, too, SIGTERM lets what runs and what waits be answered, and drains."""
    env = {"HTTP_PARSER": "h11", "DRAIN_SECONDS": "3"}
    with started(folder, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:
        running = pool.submit(ask, service.url, 2.0)
        wait(lambda: -2.0 in calls(folder))
        waiting = [pool.submit(ask, service.url, 0.2) for _ in range(3)]
        wait(lambda: "model_queue_depth 3.0" in service.client.get("/metrics").text)
        service.process.send_signal(signal.SIGTERM)
        wait(lambda: service.client.get("/ready").status_code == 503)
        # From the next look of the server at the signal on, a tenth of a second later.
        wait(lambda: httpx.get(f"{service.url}/health").headers.get("Connection") == "close")
        assert [call.result().status_code for call in [running, *waiting]] == [200] * 4
        assert service.process.wait(PATIENCE_SECONDS) == 0
    assert "ERROR" not in service.log


def test_replicas(folder: Path, parser: str, tmp_path: Path) -> None:
    """Several processes on the port all have the parser that was chosen."""
    headers = {"Connection": "Upgrade", "Upgrade": "h2c"}
    expected = {"httptools": {400}, "h11": {200}}[parser]
    with started(folder, tmp_path / "log", HTTP_PARSER=parser, WORKERS="2") as service:
        statuses = {ask(service.url, headers=headers).status_code for _ in range(20)}
        assert statuses == expected


def test_curl(service: Live, parser: str) -> None:
    """What `curl --http2` sends is answered, or it is told what to change."""
    curl = shutil.which("curl")
    version = subprocess.run([curl or "false", "--version"], capture_output=True, check=False)
    if b" HTTP2" not in version.stdout:
        pytest.skip("there is no curl that speaks HTTP/2")
    command = [str(curl), "-sS", "--max-time", "20", "-w", " %{http_code}"]
    sent = [*command, "--json", VALID.decode(), f"{service.url}/infer"]
    offered = subprocess.run([*sent, "--http2"], capture_output=True, check=True, text=True)
    assert offered.stdout.endswith(" 200" if parser == "h11" else " 400")
    assert ("HTTP_PARSER=h11" in offered.stdout) == (parser == "httptools")
    plain = subprocess.run([*sent, "--http1.1"], capture_output=True, check=True, text=True)
    assert plain.stdout.endswith(" 200")


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command that sends a request with Java's own client."""
    if not shutil.which("javac"):
        pytest.skip("there is no JDK")
    home = tmp_path_factory.mktemp("java")
    (home / "Ask.java").write_text(JAVA, encoding="utf-8")
    subprocess.run(["javac", "Ask.java"], cwd=home, check=True)
    return ["java", "-cp", str(home), "Ask"]


def test_java(service: Live, parser: str, java: list[str]) -> None:
    """Java's client is answered with h11, or as HTTP/1.1; else it is told so."""

    def say(*arguments: str) -> str:
        command = [*java, f"{service.url}/infer", *arguments]
        done = subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=PATIENCE_SECONDS
        )
        return done.stdout

    assert say("HTTP_1_1") == '200 {"next":5.0}\n'
    if parser == "h11":
        assert say() == '200 {"next":5.0}\n'
    else:
        assert say().startswith("400 ")
        assert "HTTP_PARSER=h11" in say()
