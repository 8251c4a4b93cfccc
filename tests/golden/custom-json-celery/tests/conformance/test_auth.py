"""Who may ask (MS-62), asked of a live process."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from conformance import spec
from conformance.plugin import Launcher, Service, connect
from conformance.samples import Samples
from conformance.test_conformance import ask, declare_a_terabyte

OPEN = {"get", "head", "options"}


@pytest.fixture(scope="module")
def stranger(service: Service) -> Iterator[Service]:
    """Return the service as somebody without credentials sees it."""
    with connect(str(service.client.base_url), {}) as client:
        yield Service(client)


class Policy(ThreadingHTTPServer):
    """A policy decision point, which gives one answer until a test gives it another."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PolicyHandler)
        self.answer: dict[str, Any] = {"result": True}
        self.asked: list[dict[str, Any]] = []
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}/v1/data/service/allow"

    def stop(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()


class PolicyHandler(BaseHTTPRequestHandler):
    """Answers one request for a decision."""

    server: Policy

    def do_POST(self) -> None:
        """Note the question and give the answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body)["input"])
        answer = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def test_ms_62_no_credentials(stranger: Service, samples: Samples) -> None:
    """A request without credentials is 401, and told what to send."""
    response = ask(stranger, samples.valid)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["detail"].startswith("Send a")


def test_ms_62_body_is_not_read(stranger: Service, samples: Samples) -> None:
    """It is 401 before a byte of its body is sent."""
    assert declare_a_terabyte(stranger, samples)[0] == 401


def test_ms_62_every_route(stranger: Service) -> None:
    """So it is on every route, but for requests that only look; the document says the same."""
    document = stranger.client.get("/openapi.json").raise_for_status().json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            response = stranger.client.request(method, path)
            is_guarded = method not in OPEN or f"{spec.ROUTE}/tasks" in path  # who asked may look
            assert (response.status_code == 401) == is_guarded, f"{method} {path}"
            assert ("security" in operation) == is_guarded, f"{method} {path}"
    assert stranger.client.post("/no-such").status_code == 401


def test_ms_62_probes_are_open(stranger: Service) -> None:
    """Whoever looks after the service needs no credentials."""
    assert stranger.client.get("/health").status_code == 200
    assert stranger.client.get("/ready").status_code == 200


@pytest.mark.usefixtures("launcher")  # whose keys are known
@pytest.mark.parametrize("key", ["first-key-of-the-tests", "second-key-of-the-tests"])
def test_ms_62_key(service: Service, samples: Samples, key: str) -> None:
    """Each of API_KEYS lets a request in, as a bearer's or in a header of its own."""
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
        with connect(str(service.client.base_url), headers) as client:
            assert client.post(**samples.valid).status_code == 200


@pytest.mark.parametrize("key", ["first-key-of-the-test", "first-key-of-the-tests,", "é" * 20])
def test_ms_62_wrong_key(stranger: Service, samples: Samples, key: str) -> None:
    """Any other is 401, and told that it is wrong."""
    for name, value in {"Authorization": f"Bearer {key}", "X-API-Key": key}.items():
        with connect(str(stranger.client.base_url), {}) as client:
            client.headers.encoding = "utf-8"
            client.headers[name] = value
            response = client.post(**samples.valid)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')


@pytest.mark.parametrize("keys", ["", " , ", "fifteen-letters", "long-enough-key,short"])
def test_ms_62_keys_are_long(launcher: Launcher, keys: str) -> None:
    """Without keys, or with a short one, the service does not start, and says why."""
    running = launcher.start_fake("{}", API_KEYS=keys)
    assert running.wait_for_exit() != 0
    [line] = running.log.splitlines()
    assert line.startswith("API_KEYS must be")


def test_ms_62_policy(launcher: Launcher, samples: Samples) -> None:
    """A policy decision point has the last word: no consent is 403, no answer 503."""
    policy = Policy()
    running = launcher.start_fake(
        "{}", WARMUP="0", PDP_URL=policy.url, PDP_TIMEOUT_SECONDS="5", LOG_LEVEL="DEBUG"
    )
    running.wait_until("/ready", 200)
    statuses = []
    for answer in ({"result": True}, {"result": {"allow": True}}, {"result": False}, {}):
        policy.answer = answer
        statuses.append(ask(running, samples.missing).status_code)
    assert statuses == [422, 422, 403, 403]
    assert policy.asked[0].keys() == {"subject", "method", "path", "claims"}
    assert (policy.asked[0]["method"], policy.asked[0]["path"]) == ("POST", samples.route)
    policy.stop()
    assert ask(running, samples.missing).status_code == 503
    assert running.client.get("/ready").status_code == 200
    [credentials] = spec.credentials().values()
    assert credentials.removeprefix("Bearer ") not in running.log
