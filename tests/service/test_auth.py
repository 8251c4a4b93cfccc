"""Who may ask: an independent issuer's tokens, its keys, policies, and what a refusal is like."""

import base64
import hashlib
import hmac
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from tests.support.environments import run, tool
from tests.support.live import Live, free_port, live, wait_for
from tests.support.openapi import export, validate
from tests.support.rendering import render
from tests.support.updating import add_to_main, change, python

KEY = "a-key-that-must-not-be-logged"
AUDIENCE = "my-model-server"
VALID = {"values": [1, 2, 3, 4]}
# A user's own routes.
OWN = '''

@app.delete("/models")
async def forget() -> dict[str, str]:
    """Change something."""
    return {}


@app.websocket("/talk")
async def talk(websocket: WebSocket) -> None:
    """Answer once."""
    await websocket.accept()
    await websocket.close()
'''
# Not the library that the services use.
ISSUER = ["joserfc>=1.4,<2"]
SIGN = """
import json, sys
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

keys = {}
def key(name):
    if name not in keys:
        options = {"kid": name, "use": "sig"}
        keys[name] = (
            ECKey.generate_key("P-256", options) if name == "curve"
            else RSAKey.generate_key(2048, options)
        )
    return keys[name]

tokens = {}
for name, algorithm, key_name, key_id, claims in json.load(sys.stdin):
    header = {"alg": algorithm} | ({"kid": key_id} if key_id else {})
    tokens[name] = jwt.encode(header, claims, key(key_name), algorithms=[algorithm])
public = {name: key.as_dict(private=False) for name, key in keys.items()}
print(json.dumps({"tokens": tokens, "keys": public, "pem": keys["old"].as_pem(False).decode()}))
"""


class Site(ThreadingHTTPServer):
    """A server whose one answer a test can change."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer: Callable[[Handler], None] = say({})
        self.asked: list[bytes] = []
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}/path"

    def stop(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers GET and POST."""

    server: Site

    def do_GET(self) -> None:
        """Note the body, and answer."""
        self.server.asked.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.server.answer(self)

    def do_POST(self) -> None:
        """Do the same."""
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def say(document: Any, status: int = 200, **headers: str) -> Callable[[Handler], None]:
    """Return what answers with JSON, or with bytes as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def site(port: int = 0) -> Iterator[Site]:
    """Run a site."""
    running = Site(port)
    try:
        yield running
    finally:
        running.stop()


def make(folder: Path, auth: str, **answers: Any) -> Path:
    """Render a service that needs no framework."""
    kind = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"}
    return render(folder, kind | {"auth": auth} | answers)


def ask(service: Live, credentials: str | None, **options: Any) -> httpx.Response:
    """Ask the model, with these credentials."""
    headers = {"Authorization": f"Bearer {credentials}"} if credentials else {}
    return service.client.post("/infer", json=VALID, headers=headers, **options)


# ---- Keys ----


@pytest.fixture(scope="module")
def by_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service that asks for a key, with routes of its owner's own."""
    project = make(tmp_path_factory.mktemp("by-key") / "service", "api-key")
    add_to_main(project, OWN)
    change(
        project / "main.py", "FastAPI, Request, Response", "FastAPI, Request, Response, WebSocket"
    )
    return project


@pytest.fixture(scope="module")
def policed(by_key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Site]]:
    """Return that service, live, and the policy decision point that it asks."""
    log = tmp_path_factory.mktemp("policed") / "log"
    env = {"API_KEYS": f"another-key-of-theirs,{KEY}", "PDP_TIMEOUT_SECONDS": "1"}
    with site() as policy, live(by_key, python(), log, PDP_URL=policy.url, **env) as service:
        policy.answer = say({"result": True})
        service.ready()
        yield service, policy


def talk(service: Live, *lines: str, body: bytes = b"") -> socket.socket:
    """Send a request by hand, and return the connection."""
    connection = service.connect(10)
    connection.sendall("\r\n".join([*lines, "Host: here", "", ""]).encode() + body)
    return connection


def read_answer(connection: socket.socket) -> str:
    """Return the next answer, whole: its head, and as much after it as the head declares."""
    received = b""
    while block := connection.recv(65536):
        received += block
        head, end, body = received.decode("latin-1").lower().partition("\r\n\r\n")
        declared = re.search(r"content-length: (\d+)", head)
        if end and len(body) >= int(declared[1] if declared else 0):
            break
    return received.decode("latin-1").lower()


def test_refusal_is_an_answer_like_others(policed: tuple[Live, Site]) -> None:
    """A 401 can be read by a browser, has an id, and is counted under its route."""
    service, _ = policed
    headers = {"Origin": "https://example.org"}
    response = service.client.post("/infer", json=VALID, headers=headers)
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["X-Request-ID"]
    metrics = service.client.get("/metrics").text
    assert 'http_requests_total{method="POST",route="/infer",status="401"}' in metrics
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}
    assert service.client.options("/infer", headers=headers | asked).status_code == 200


def test_own_routes(policed: tuple[Live, Site]) -> None:
    """The owner's own routes are under the rule; a web socket is opened to nobody."""
    service, _ = policed
    assert service.client.delete("/models").status_code == 401
    assert service.client.delete("/models", headers={"X-API-Key": KEY}).status_code == 200
    assert service.client.request("TRACE", "/infer").status_code == 401
    handshake = ["GET /talk HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade"]
    handshake += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    for more in ([], [f"Authorization: bearer {KEY}"]):
        with talk(service, *handshake, *more) as connection:
            assert read_answer(connection).startswith("http/1.1 404")


def test_connection_after_a_refusal(policed: tuple[Live, Site]) -> None:
    """The body of a refused request is dropped, and the next one on the connection answered.

    One that waits for leave to send its body gets none, and the connection ends.
    """
    service, _ = policed
    size = 3_000_000
    with talk(service, "POST /infer HTTP/1.1", f"Content-Length: {size}", body=size * b"a") as one:
        assert read_answer(one).startswith("http/1.1 401")
        one.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
        assert read_answer(one).startswith("http/1.1 200")
    expects = ["POST /infer HTTP/1.1", f"Content-Length: {size}", "Expect: 100-continue"]
    with talk(service, *expects) as two:
        answer = read_answer(two)
        assert answer.startswith("http/1.1 401")
        assert "connection: close" in answer
        while two.recv(65536):  # to the end, which comes by itself
            pass
    with talk(service, *expects, f"X-API-Key: {KEY}") as three:
        assert read_answer(three).startswith("http/1.1 100")


def test_what_a_policy_is_told(policed: tuple[Live, Site]) -> None:
    """A policy hears who asks for what, but not the key, which the log does not have either."""
    service, policy = policed
    assert ask(service, KEY).json() == {"next": 5.0}
    subject = hashlib.sha256(KEY.encode()).hexdigest()[:12]
    question = {"subject": subject, "method": "POST", "path": "/infer", "claims": {}}
    assert json.loads(policy.asked[-1]) == {"input": question}
    before = len(policy.asked)
    assert ask(service, f"{KEY}!").status_code == 401
    assert service.client.get("/health").status_code == 200
    assert len(policy.asked) == before


@pytest.mark.parametrize(
    "answer",
    [
        say({"result": False}),
        say({"result": "true"}),
        say({"result": 1}),
        say({"result": {"allow": "yes"}}),
        say({"allow": True}),
        say({}),
        say([True]),
        say(b"true, I think"),
        say({"result": True}, 500),
        say({"result": True}, 302, Location="/"),
    ],
)
def test_no_consent(policed: tuple[Live, Site], answer: Callable[[Handler], None]) -> None:
    """Whatever is not a policy's consent is 403."""
    service, policy = policed
    policy.answer = answer
    response = ask(service, KEY)
    policy.answer = say({"result": True})
    assert (response.status_code, response.json()["detail"]) == (403, "Not allowed.")


def test_slow_policy(policed: tuple[Live, Site]) -> None:
    """A policy that hangs, or drips, holds up nobody else, and is 503 in the end."""
    service, policy = policed
    done = Event()

    def hang(_: Handler) -> None:
        done.wait(20)

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not done.wait(0.2):
            handler.wfile.write(b" ")

    with ThreadPoolExecutor() as pool:
        for answer in (hang, drip):
            policy.answer = answer
            policy.asked.clear()
            waiting = pool.submit(ask, service, KEY)
            wait_for(lambda: policy.asked, seconds=20)
            assert service.client.get("/health").status_code == 200
            response = waiting.result()
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
        done.set()
    policy.answer = say({"result": True})
    assert ask(service, KEY).status_code == 200


def test_key_is_not_logged(by_key: Path, tmp_path: Path) -> None:
    """At no level is a key in the log; and where the policy is not there, it is 503."""
    port = free_port()
    env = {"API_KEYS": KEY, "LOG_LEVEL": "DEBUG", "PDP_URL": f"http://127.0.0.1:{port}/"}
    with live(by_key, python(), tmp_path / "log", **env) as service:
        service.ready()
        assert ask(service, KEY).status_code == 503
        assert ask(service, f"not-{KEY}").status_code == 401
        with site(port) as policy:
            policy.answer = say({"result": {"allow": True}})
            assert ask(service, KEY).status_code == 200
        assert "PDP_URL does not answer: ConnectError" in service.log
        assert KEY not in service.log


@pytest.mark.parametrize("auth", ["api-key", "jwt"])
def test_documents(auth: str, tmp_path: Path) -> None:
    """The documents are written without a key, are valid, and say where one is needed."""
    project = make(tmp_path / "service", auth, features=["openapi-export"])
    documents = export(project, tmp_path / "documents")
    validate(documents)
    for document in (documents["openapi.json"], documents["openapi-3.0.json"]):
        schemes = document["components"]["securitySchemes"]
        assert schemes["bearer"]["scheme"] == "bearer"
        operation = document["paths"]["/infer"]["post"]
        assert operation["security"] == [{name: []} for name in schemes]
        assert {"401", "403"} < operation["responses"].keys()
        assert "security" not in document["paths"]["/health"]["get"]


SECRET = 40 * "s"


@pytest.mark.parametrize(
    ("auth", "env", "told"),
    [
        ("api-key", {"API_KEYS": ""}, "API_KEYS must be"),
        ("api-key", {"API_KEYS": KEY, "PDP_URL": "localhost:8181"}, "PDP_URL must be a URL"),
        ("jwt", {}, "JWT_SECRET or JWT_JWKS_URL must be set, and not both"),
        (
            "jwt",
            {"JWT_SECRET": SECRET, "JWT_JWKS_URL": "https://a.example/"},
            "JWT_SECRET or JWT_JWKS_URL must be set, and not both",
        ),
        (
            "jwt",
            {"JWT_JWKS_URL": "https://a.example/", "JWT_ALGORITHM": "HS256"},
            "JWT_ALGORITHM must be one of RS256",
        ),
        (
            "jwt",
            {"JWT_SECRET": SECRET, "JWT_ALGORITHM": "none"},
            "JWT_ALGORITHM must be one of HS256",
        ),
        (
            "jwt",
            {"JWT_SECRET": SECRET, "JWT_ALGORITHM": "HS384"},
            "JWT_SECRET must be at least 48 bytes",
        ),
        ("jwt", {"JWT_JWKS_URL": "https:///keys"}, "JWT_JWKS_URL must be a URL"),
    ],
)
def test_settings(by_key: Path, by_token: Path, auth: str, env: dict[str, str], told: str) -> None:
    """A setting that cannot be ends the start with one line, which has no secret."""
    project = by_key if auth == "api-key" else by_token
    result = start(project, env, "main.py")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(told)
    assert SECRET not in line


def test_other_ways_to_start(by_key: Path) -> None:
    """Whoever starts the app in another way than main.py does gets no open service."""
    result = start(by_key, {}, "-m", "uvicorn", "main:app", "--port", str(free_port()))
    assert result.returncode != 0
    assert "API_KEYS must be" in result.stderr


def start(project: Path, env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Start a service that ends by itself."""
    return subprocess.run(
        [python(), *command],
        cwd=project,
        env=env | {"PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# ---- Tokens ----


@pytest.fixture(scope="module")
def by_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service that asks for a token, and has less patience than others with its issuer."""
    project = make(tmp_path_factory.mktemp("by-token") / "service", "jwt", features=[])
    file = project / "serving" / "auth.py"
    text = file.read_text("utf-8")
    for name, usual, seconds in (("RETRY", 5, 0.5), ("FRESH", 300, 1), ("STALE", 3600, 6)):
        assert f"\n{name}_SECONDS = {usual}\n" in text
        text = text.replace(f"\n{name}_SECONDS = {usual}\n", f"\n{name}_SECONDS = {seconds}\n")
    file.write_text(text, encoding="utf-8")
    return project


@pytest.fixture(scope="module")
def issued() -> dict[str, Any]:
    """Return tokens of an issuer by their names, and its public keys."""
    now = int(time.time())
    claims = {"aud": AUDIENCE, "iss": "https://issuer.example", "sub": "somebody", "exp": now + 900}
    wanted = [
        ("old", "RS256", "old", "old", claims),
        ("no-id", "RS256", "old", None, claims),
        ("new", "RS256", "new", "new", claims),
        ("of-nobody", "RS256", "of-nobody", "of-nobody", claims),
        ("in-its-name", "RS256", "of-nobody", "old", claims),
        ("curve", "ES256", "curve", "curve", claims),
        ("longer-hash", "RS384", "old", "old", claims),
        ("padded", "PS256", "old", "old", claims),
        ("expired", "RS256", "old", "old", claims | {"exp": now - 60}),
        ("not-yet", "RS256", "old", "old", claims | {"nbf": now + 900}),
        ("elsewhere", "RS256", "old", "old", claims | {"aud": "other"}),
        ("other-issuer", "RS256", "old", "old", claims | {"iss": "https://other.example"}),
        ("for-ever", "RS256", "old", "old", {k: v for k, v in claims.items() if k != "exp"}),
    ]
    wanted += [(f"flood-{n}", "RS256", "of-nobody", f"made-up-{n}", claims) for n in range(40)]
    printed = run([tool("issuer", *ISSUER), "-c", SIGN], input=json.dumps(wanted))
    found: dict[str, Any] = json.loads(printed)
    confused = {"alg": "HS256", "kid": "old"}  # by what everybody can read
    found["tokens"]["confused"] = sign(confused, claims, found["pem"], "sha256")
    unsigned = f"{encoded({'alg': 'none', 'kid': 'old'})}.{encoded(claims)}."
    return found | {"tokens": found["tokens"] | {"unsigned": unsigned}}


def encoded(document: Any) -> str:
    """Return JSON, or bytes, as it stands in a token."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def sign(header: dict[str, Any], claims: dict[str, Any], secret: str, digest: str) -> str:
    """Return a token that is signed with a secret, by hand."""
    signed = f"{encoded(header)}.{encoded(claims)}"
    return f"{signed}.{encoded(hmac.digest(secret.encode(), signed.encode(), digest))}"


def key_set(issued: dict[str, Any], *names: str) -> Callable[[Handler], None]:
    """Return the site's answer with these of the issuer's keys."""
    encryption = issued["keys"]["old"] | {"use": "enc", "kid": "enc"}
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"}
    return say({"keys": [encryption, secret, *(issued["keys"][name] for name in names)]})


def test_tokens_of_an_issuer(by_token: Path, issued: dict[str, Any], tmp_path: Path) -> None:
    """Only what the issuer signed for this service is taken; keys may change, and it may be away.

    The service starts before the issuer, and survives it.
    """
    tokens, port = issued["tokens"], free_port()
    url = f"http://127.0.0.1:{port}/keys"
    env = {"JWT_JWKS_URL": url, "JWT_ISSUER": "https://issuer.example"}

    def status(name: str) -> int:
        return ask(service, tokens[name]).status_code

    with live(by_token, python(), tmp_path / "log", **env) as service, ExitStack() as stack:
        service.ready()
        assert status("old") == 503
        assert "JWT_JWKS_URL has no keys: ConnectError" in service.log
        issuer = stack.enter_context(site(port))
        issuer.answer = key_set(issued, "old", "curve")
        wait_for(lambda: status("old") == 200, seconds=20)
        assert status("no-id") == 200  # there is one key for the algorithm

        told = {
            "expired": "has expired",
            "not-yet": "not valid yet",
            "elsewhere": "another audience",
            "other-issuer": "another issuer",
            **dict.fromkeys(["of-nobody", "curve"], "not known"),
            **dict.fromkeys(["in-its-name", "longer-hash", "padded"], "not valid"),
            **dict.fromkeys(["confused", "unsigned", "for-ever"], "not valid"),
        }
        for name, words in told.items():
            response = ask(service, tokens[name])
            assert response.status_code == 401, name
            challenge = response.headers["WWW-Authenticate"]
            assert challenge.startswith('Bearer error="invalid_token", error_description="'), name
            assert words in response.json()["detail"], name

        before, start = len(issuer.asked), time.monotonic()
        for number in range(40):
            assert status(f"flood-{number}") == 401
        assert len(issuer.asked) - before <= (time.monotonic() - start) / 0.5 + 2

        issuer.answer = key_set(issued, "new")
        wait_for(lambda: status("new") == 200, seconds=20)
        assert status("old") == 401
        assert status("no-id") == 401  # it is of another key
        issuer.answer = say(b"<html>")
        wait_for(lambda: "JSONDecodeError" in service.log or status("new") != 200, seconds=20)
        assert status("new") == 200
        issuer.stop()
        assert status("new") == 200
        wait_for(lambda: status("of-nobody") == 503, seconds=20)
        wait_for(lambda: status("new") == 503, seconds=20)
        assert service.client.get("/ready").status_code == 200
        assert not [token for token in tokens.values() if token in service.log]
        assert "Traceback" not in service.log


def test_claims_for_a_policy(by_token: Path, tmp_path: Path) -> None:
    """A token that is written by hand is taken, with a longer hash; the policy hears its claims."""
    secret = "s3cret-" * 10
    claims = {"aud": ["b", "a"], "sub": "somebody", "exp": time.time() + 60, "role": "reader"}
    token = sign({"alg": "HS512", "typ": "JWT"}, claims, secret, "sha512")
    env = {"JWT_SECRET": secret, "JWT_ALGORITHM": "HS512", "JWT_AUDIENCE": "a"}
    with site() as policy:
        policy.answer = say({"result": True})
        log = tmp_path / "log"
        with live(by_token, python(), log, PDP_URL=policy.url, **env) as service:
            service.ready()
            assert ask(service, token).status_code == 200
            assert secret not in service.log
    told = json.loads(policy.asked[-1])["input"]
    assert (told["subject"], told["claims"]) == ("somebody", claims)
