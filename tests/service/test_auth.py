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

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("auth")

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

GENERATE = """
import json, sys
from joserfc.jwk import RSAKey

made = {name: RSAKey.generate_key(bits) for name, bits in json.load(sys.stdin).items()}
print(json.dumps({name: key.as_dict(private=True) for name, key in made.items()}))
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
    env["ROOT_PATH"] = "/models/next"
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
    subject = hashlib.sha256(KEY.encode()).hexdigest()[:12]
    question = {"subject": subject, "method": "POST", "path": "/infer", "claims": {}}
    for path in ("/infer", "/models/next/infer"):
        answer = service.client.post(path, json=VALID, headers={"X-API-Key": KEY})
        assert answer.json() == {"next": 5.0}
        assert json.loads(policy.asked.pop()) == {"input": question}
    assert service.client.get("/docs").status_code == 200  # as every GET, and asks nobody
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
    return make_impatient(tmp_path_factory.mktemp("by-token") / "service", retry=0.5, stale=6)


def make_impatient(folder: Path, *, retry: float, stale: int) -> Path:
    """Render a service that asks for a token, and fetches keys as often as this, in seconds."""
    project = make(folder, "jwt", features=[])
    file = project / "serving" / "auth.py"
    text = file.read_text("utf-8")
    changes = (("RETRY", 5, retry), ("FRESH", 300, 2 * retry), ("STALE", 3600, stale))
    for name, usual, seconds in changes:
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


# ---- What no issuer should sign, and sets that it should not publish ----

NOW = int(time.time())
GOOD: dict[str, Any] = {"aud": AUDIENCE, "sub": "somebody", "exp": NOW + 86_400}
# Of a claim that is a time: each is 401, by whatever library.
NO_TIMES = ["true", "null", '"9999999999"', '"soon"', "NaN", "Infinity", "-Infinity", "1e999"]
NO_TIMES += ["[]", "[9999999999]", "{}"]
# Of a token's header: 401.
ODD_HEADERS: dict[str, list[Any]] = {
    "alg": ["none", "rs256", 5, None, [], {}, ["RS256"]],
    "crit": ["unknown", None, {}, [], ["unknown"], ["exp"], ["b64"], [5], [[]]],
    "kid": ["other", 5, None, True, [], {}, ["good"]],
}
# Of a key: it is not used.
ODD_MEMBERS: dict[str, list[Any]] = {
    "kty": ["", "rsa", "oct", "EC", "OKP", "new", 5, None, [], {}],
    "n": ["", "!", "é", 5, None, [], {}],
    "e": ["", "AA", "Ag", "!", 5, None, [], 400 * "_"],
    "kid": [5, True, ["good"], {}],
    "alg": ["", "RS512", "none", 5, [], {}],
    "use": ["", "enc", 5, [], {}],
    "key_ops": ["sign", 5, None, {}, [], ["sign"], [5], [[]]],
}


@pytest.fixture(scope="module")
def keys() -> dict[str, dict[str, str]]:
    """Return private RSA keys, by what the tests use them for."""
    sizes = dict.fromkeys(
        ["good", "twin", "no-id", "no-id-2", "private", "enc", "signs", "alg"], 2048
    )
    sizes |= {"short": 1024}
    printed = run([tool("issuer", *ISSUER), "-c", GENERATE], input=json.dumps(sizes))
    found: dict[str, dict[str, str]] = json.loads(printed)
    return found


@pytest.fixture(scope="module")
def trusting(
    keys: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Live, Site]]:
    """Return a service whose policy allows all, and the issuer that has its keys."""
    folder = tmp_path_factory.mktemp("trusting")
    project = make_impatient(folder / "service", retry=0.1, stale=3600)
    with site() as issuer, site() as policy:
        issuer.answer = say({"keys": [public(keys["good"], kid="good")]})
        policy.answer = say({"result": True})
        env = {"JWT_JWKS_URL": issuer.url, "PDP_URL": policy.url}
        with live(project, python(), folder / "log", **env) as service:
            service.ready()
            yield service, issuer


def public(key: dict[str, str], **members: Any) -> dict[str, Any]:
    """Return the public half of a key, as a set has it."""
    return {"kty": "RSA", "n": key["n"], "e": key["e"]} | members


def sign_rsa(key: dict[str, str], claims: Any = GOOD, header: Any = None, **members: Any) -> str:
    """Return a token with an RS256 signature, by hand: no library makes most of these."""
    signed = f"{encoded(header or {'alg': 'RS256'} | members)}.{encoded(claims)}"
    digest = bytes.fromhex("3031300d060960864801650304020105000420")  # SHA-256, in PKCS #1
    digest += hashlib.sha256(signed.encode()).digest()
    modulus, exponent = (int.from_bytes(decoded(key[name])) for name in "nd")
    size = len(decoded(key["n"]))
    padded = b"\0\1" + (size - len(digest) - 3) * b"\xff" + b"\0" + digest
    return f"{signed}.{encoded(pow(int.from_bytes(padded), exponent, modulus).to_bytes(size))}"


def decoded(text: str) -> bytes:
    """Return the bytes of what stands in a key."""
    return base64.urlsafe_b64decode(text + "==")


def with_claim(name: str, value: str) -> bytes:
    """Return valid claims but for one, whose JSON is given."""
    others = {key: claim for key, claim in GOOD.items() if key != name}
    return f"{json.dumps(others)[:-1]}, {json.dumps(name)}: {value}}}".encode()


def test_odd_tokens(trusting: tuple[Live, Site], keys: dict[str, dict[str, str]]) -> None:
    """A token is taken or 401, whatever the issuer has signed; a policy hears what is JSON."""
    service, _ = trusting
    good = keys["good"]
    times = ("exp", "nbf", "iat")
    right = [sign_rsa(good), sign_rsa(good, kid="good"), sign_rsa(good, kid="good", typ="at+jwt")]
    right += [
        sign_rsa(good, with_claim("exp", value)) for value in (f"{NOW + 86_400.5}", 300 * "9")
    ]
    right += [
        sign_rsa(good, with_claim(name, value))
        for name in ("nbf", "iat")
        for value in ("0", "-1", "-1e300", "0.5", f"{NOW}")
    ]
    right += [sign_rsa(good, with_claim("more", 100 * "[" + 100 * "]"))]
    wrong = [sign_rsa(good, with_claim(name, value)) for name in times for value in NO_TIMES]
    wrong += [sign_rsa(good, with_claim("exp", value)) for value in ("-1", "0", "-1e300", "0.5")]
    wrong += [sign_rsa(good, with_claim(name, 5000 * "9")) for name in times]
    wrong += [sign_rsa(good, {"aud": AUDIENCE}), sign_rsa(good, GOOD | {"nbf": 1e300})]
    for value in ("NaN", "1e999", '{"a": [-Infinity]}', '"\\ud800"', '{"\\udfff": 1}'):
        wrong.append(sign_rsa(good, with_claim("more", value)))
    wrong += [sign_rsa(good, with_claim("more", n * "[" + n * "]")) for n in (300, 900, 5000)]
    wrong += [sign_rsa(good, with_claim("more", n * '{"a":' + "1" + n * "}")) for n in (900, 9000)]
    for name in ("sub", "aud", "jti"):
        wrong += [sign_rsa(good, with_claim(name, value)) for value in ("5", "[5]", "{}", "true")]
    wrong += [sign_rsa(good, with_claim("sub", '"\\ud800"'))]
    wrong += [sign_rsa(good, text) for text in (b"", b"[]", b"5", b"null", b"{", b"\xff", b'"a"')]
    for name, values in ODD_HEADERS.items():
        wrong += [sign_rsa(good, **{"unknown": 1, name: value}) for value in values]
    wrong += [sign_rsa(good, b64=False), sign_rsa(good, b64=False, crit=["b64"])]
    deep = b'{"alg": "RS256", "x": ' + 25_000 * b"[" + 25_000 * b"]" + b"}"
    for header in (b"[]", b"5", b"null", b"{", b"\xff", deep, b"{}", b'{"alg": NaN}'):
        wrong.append(sign_rsa(good, GOOD, header))
    wrong += [f"{token}{more}" for token in right[:1] for more in (".", "!", ".a.b", "\xe9")]
    mistakes = []
    for status, tokens in ((200, right), (401, wrong)):
        for token in tokens:
            headers = {b"Authorization": b"Bearer " + token.encode("latin-1")}
            answer = service.client.post("/infer", json=VALID, headers=headers)
            if answer.status_code != status:
                parts = [decoded(part) for part in token.split(".")[:2]]
                mistakes.append((answer.status_code, [part[:200] for part in parts]))
    assert not mistakes
    assert "Traceback" not in service.log


def test_odd_keys(trusting: tuple[Live, Site], keys: dict[str, dict[str, str]]) -> None:
    """Keys that are none, or not for this, are not used, and take nothing from the others.

    Several may share an id, or have none: a token is valid by any of them.
    """
    service, issuer = trusting
    good = public(keys["good"], kid="good")
    curves: list[Any] = [{"kty": "EC", "crv": crv, "x": "AA", "y": "AA"} for crv in ("P-256", 5)]
    curves += [{"kty": "OKP", "crv": "X25519", "x": "AA"}, {"kty": "oct", "k": good["n"]}]
    found = [None, 5, "text", [], {}, {"kty": "RSA"}, {"kid": "good"}, *curves]
    for name, values in ODD_MEMBERS.items():  # each with the id of the good one
        found += [good | {name: value} for value in values]
    found += [{key: value for key, value in good.items() if key != gone} for gone in ("n", "e")]
    found += [
        {**keys["private"], "kid": "private"},
        public(keys["short"], kid="short"),
        public(keys["enc"], kid="enc", use="enc"),
        public(keys["signs"], kid="signs", key_ops=["sign"]),
        public(keys["alg"], kid="alg", alg="RS512"),
        public(keys["twin"], kid="good"),
        good | {"key_ops": ["verify"], "use": "sig", "alg": "RS256", "x5c": 50 * [50 * ["a"]]},
        public(keys["no-id"]),
        public(keys["no-id-2"], kid=None, use=None, alg=None),
    ]
    issuer.answer = say({"keys": found})
    wait_for(lambda: ask(service, sign_rsa(keys["twin"], kid="good")).is_success, seconds=20)
    signed: list[tuple[int, str, dict[str, str]]] = [
        *((200, name, {}) for name in ("good", "twin", "no-id", "no-id-2")),
        *((200, name, {"kid": "good"}) for name in ("good", "twin")),
        *((200, name, {"kid": "some"}) for name in ("no-id", "no-id-2")),
        *(
            (401, name, {"kid": name})
            for name in ("private", "short", "enc", "signs", "alg", "twin")
        ),
        *((401, name, {}) for name in ("private", "short", "enc", "signs", "alg")),
        *((401, name, {"kid": "good"}) for name in ("private", "short", "no-id")),
    ]
    mistakes = [
        (answer.status_code, name, header)
        for status, name, header in signed
        if (answer := ask(service, sign_rsa(keys[name], **header))).status_code != status
    ]
    assert not mistakes
    assert "it is a private key" in service.log
    assert "1024 bits" in service.log
    assert "Traceback" not in service.log
    assert keys["private"]["d"] not in service.log


def test_odd_sets(trusting: tuple[Live, Site], keys: dict[str, dict[str, str]]) -> None:
    """What is no set leaves the keys that are known; thousands of keys hold nobody up."""
    service, issuer = trusting
    good = public(keys["good"], kid="good")
    good_token = sign_rsa(keys["good"], kid="good")
    many = [good | {"kid": str(number)} for number in range(9000)]
    issuer.answer = say({"keys": [*many, good]})
    issuer.asked.clear()
    seconds = []
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(lambda: [ask(service, good_token) for _ in range(300)])
        while len(issuer.asked) < 5 and not asking.done():
            start = time.monotonic()
            assert service.client.get("/health").status_code == 200
            seconds.append(time.monotonic() - start)
    assert {answer.status_code for answer in asking.result()} == {200}
    assert sorted(seconds)[-4] < 0.3  # of five fetches, each of which would hold one up
    assert ask(service, sign_rsa(keys["good"], kid="8999")).status_code == 200
    deep = [b'{"keys": ' + n * b"[" for n in (300, 100_000)]
    deep += [b'{"keys": [' + 50_000 * b'{"a":' + b"1" + 50_000 * b"}" + b"]}"]
    huge = b'{"keys": [' + 5_000_000 * b" " + b"]}"
    documents = [b"", b"null", b"5", b"[]", b"{}", b'{"keys": {}}', b'{"keys": "a"}', b"\xff"]
    for document in [*documents, *deep, huge]:
        issuer.answer = say(document)
        issuer.asked.clear()
        # Not the fetch that may go on now, but the next.
        wait_for(lambda: ask(service, good_token) and len(issuer.asked) > 1, seconds=20)
        assert ask(service, good_token).status_code == 200, document[:99]
    assert "more than 4000000 bytes" in service.log
    issuer.answer = say({"keys": []})
    wait_for(lambda: ask(service, sign_rsa(keys["good"])).status_code == 401, seconds=20)
    assert "Traceback" not in service.log
