"""Who may ask (MS-62), asked of a live process."""

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import grpc
import jwt
import pytest

from conformance import spec
from conformance.plugin import PATIENCE_SECONDS, Launcher, Service, connect
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
            is_guarded = method not in OPEN
            assert (response.status_code == 401) == is_guarded, f"{method} {path}"
            assert ("security" in operation) == is_guarded, f"{method} {path}"
    assert stranger.client.post("/no-such").status_code == 401


def test_ms_62_probes_are_open(stranger: Service) -> None:
    """Whoever looks after the service needs no credentials."""
    assert stranger.client.get("/health").status_code == 200
    assert stranger.client.get("/ready").status_code == 200


def test_ms_62_over_grpc(service: Service) -> None:
    """Over gRPC it is UNAUTHENTICATED before a message is sent; what runs no model is open."""
    if service.grpc_port is None:
        pytest.skip("the port of the deployment's gRPC is not known")
    is_over = Event()

    def send_nothing() -> Iterator[bytes]:
        is_over.wait()
        yield b""

    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        prefix = "/inference.GRPCInferenceService/"
        is_live = channel.unary_unary(f"{prefix}ServerLive")
        is_live(b"", timeout=PATIENCE_SECONDS, wait_for_ready=True)
        infer = channel.stream_unary(f"{prefix}ModelInfer")
        for metadata in ((), (("authorization", "Bearer somebody-else"),)):
            with pytest.raises(grpc.RpcError) as refused:
                infer(send_nothing(), timeout=PATIENCE_SECONDS, metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        is_over.set()


SECRET = spec.ENVIRONMENT["JWT_SECRET"]


def token(key: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Return a token that is valid but for what is said here; None leaves a claim out."""
    usual = {"aud": spec.ENVIRONMENT["JWT_AUDIENCE"], "exp": time.time() + 600}
    chosen = {name: value for name, value in (usual | claims).items() if value is not None}
    return jwt.encode(chosen, key, algorithm)


def ask_with(service: Service, samples: Samples, credentials: str) -> int:
    """Send a request with this token, and return the status."""
    headers = {"Authorization": f"Bearer {credentials}"}
    with connect(str(service.client.base_url), headers) as client:
        response = client.post(**samples.valid)
    challenge = response.headers.get("WWW-Authenticate", "")
    assert challenge.startswith('Bearer error="invalid_token"') == (response.status_code == 401)
    return response.status_code


@pytest.mark.usefixtures("launcher")  # whose secret is known
def test_ms_62_token(service: Service, samples: Samples) -> None:
    """A valid token lets a request in; it may have other claims, and be for others as well."""
    assert ask_with(service, samples, token()) == 200
    audiences = ["somebody", spec.ENVIRONMENT["JWT_AUDIENCE"]]
    assert ask_with(service, samples, token(aud=audiences, role="any")) == 200


@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize(
    "claims",
    [
        {"exp": time.time() - 60},
        {"exp": None},
        {"exp": "9999999999"},
        {"exp": float("inf")},
        {"nbf": time.time() + 600},
        {"nbf": True},
        {"aud": "somebody"},
        {"aud": None},
        {"key": "a secret that somebody else has, and that is as long as it has to be"},
        {"algorithm": "HS512"},
        {"algorithm": "none", "key": ""},
    ],
    ids=str,
)
def test_ms_62_wrong_token(service: Service, samples: Samples, claims: dict[str, Any]) -> None:
    """One that has expired, or is for others, or is signed in another way, is 401."""
    assert ask_with(service, samples, token(**claims)) == 401


@pytest.mark.parametrize("credentials", ["nonsense", "a.b.c", f"{5000 * 'W1tb'}.e30.c2ln"])
def test_ms_62_no_token(stranger: Service, samples: Samples, credentials: str) -> None:
    """What is no token at all is 401, too."""
    assert ask_with(stranger, samples, credentials) == 401


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("JWT_SECRET", {"JWT_SECRET": ""}),
        ("JWT_SECRET", {"JWT_SECRET": "too short"}),
        ("JWT_ALGORITHM", {"JWT_ALGORITHM": "RS256"}),
    ],
)
def test_ms_62_secret_is_long(launcher: Launcher, name: str, env: dict[str, str]) -> None:
    """Without a secret that fits the algorithm the service does not start, and says why."""
    running = launcher.start_fake("{}", **env)
    assert running.wait_for_exit() != 0
    [line] = running.log.splitlines()
    assert line.startswith(name)
    assert " must be " in line


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
