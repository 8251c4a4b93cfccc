"""What a live service makes of the details of HTTP: odd JSON, paths, origins, events."""

import gzip
import json
import math
import mimetypes
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.support.live import Live, live, receive_all, wait_for
from tests.support.rendering import render
from tests.support.updating import add_to_main, put_model, python

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("http")

MODEL = '''"""Repeats what it is told."""

import time
from collections.abc import Iterator

from pydantic import BaseModel

from serving import Input

MODEL_NAME = "echo"


class Params(BaseModel):
    """The request's body."""

    values: list[float] = []
    by_name: dict[str, list[float]] = {}
    text: str = ""
    most: float = float("inf")
    answer: float = 0
    pause: float = 0


class Output(BaseModel):
    """What came."""

    number: float = 0
    maybe: float | None = None
    text: str = ""


EXAMPLE: dict[str, object] = {"values": [1]}


class Model:
    """Repeats."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Repeat the text; as told, overflow in either field."""
        outputs = []
        for params in (item.params for item in inputs):
            large = 1e308 * params.answer * 1e308
            texts = {"required": Output(number=large), "optional": Output(maybe=large)}
            outputs.append(texts.get(params.text, Output(text=params.text)))
        return outputs

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Repeat the text twice."""
        yield Output(text=item.params.text)
        time.sleep(item.params.pause)
        yield Output(text=item.params.text)
'''

ROOT = "/models/echo"
OWN_FILES = """
from fastapi.staticfiles import StaticFiles
app.mount("/own", StaticFiles(directory="own"))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the service."""
    answers = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"}
    features = ["observability", "streaming"]
    folder = tmp_path_factory.mktemp("http") / "service"
    put_model(render(folder, {**answers, "features": features}), MODEL)
    add_to_main(folder, OWN_FILES)
    (folder / "own").mkdir()
    (folder / "own" / "example.txt").write_text("a user's own")
    return folder


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[Live]:
    """Run the service."""
    with live(project, python(), project / "log") as running:
        running.ready()
        yield running


@pytest.fixture(scope="module")
def below(project: Path) -> Iterator[Live]:
    """Run the service below a prefix."""
    with live(project, python(), project / "log-below", ROOT_PATH=ROOT) as running:
        running.ready()
        yield running


def post(service: Live, body: bytes, **headers: str) -> tuple[int, Any]:
    """Return the status and the detail of the answer to a body, or all of the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = service.client.post("/infer", content=body, headers=named)
    return answer.status_code, answer.json().get("detail", answer.json())


@pytest.mark.parametrize(
    "number",
    [
        *("NaN", "Infinity", "-Infinity", "1e999", "-1E+400", "1" + 400 * "0", '"nan"', '"-inf"'),
        *("1.7976931348623159e308", '"1e999"', '"Infinity"', '"1e9_99"', '"\\u006ean"'),
        *("1" + 250 * "0" + "e99", '"iNf"'),
    ],
)
@pytest.mark.parametrize("field", ['"values": [0, %s]', '"by_name": {"a": [%s]}', '"most": %s'])
def test_number_that_is_none(service: Live, number: str, field: str) -> None:
    """NaN, infinity and what a float cannot hold never reach the model, however it is written."""
    body = f"{{{field % number}}}"
    status, detail = post(service, body.encode())
    assert (status, detail) == (
        400,
        "JSON has no NaN, no infinity, and no number beyond 1.79e308.",
    )


@pytest.mark.parametrize("text", ["NaN", "Infinity", "information", "1e999", '"NaN"'])
def test_words_are_no_numbers(service: Live, text: str) -> None:
    """A text may say what it likes."""
    status, answer = post(service, json.dumps({"text": text, "values": [1.7e308]}).encode())
    assert (status, answer["text"]) == (200, text)


def test_answer_that_is_no_number(service: Live) -> None:
    """NaN becomes null where the answer's schema allows that; else it is a 500, and logged."""
    for answer in (1, -1):
        assert post(service, json.dumps({"text": "optional", "answer": answer}).encode()) == (
            200,
            {"number": 0, "maybe": None, "text": ""},
        )
        body = json.dumps({"text": "required", "answer": answer}).encode()
        assert post(service, body) == (500, "Internal server error.")
    assert service.log.count("ValueError: NaN or infinity in number of the answer") == 2


def test_no_content_type(service: Live) -> None:
    """A body that does not say what it is, is taken for JSON; one that says otherwise is not."""
    assert post(service, b'{"text": "a"}')[0] == 200
    assert post(service, b'{"text": "a"}', Content_Type="")[0] == 200
    assert post(service, b"text=a", Content_Type="application/x-www-form-urlencoded") == (
        415,
        "Send application/json.",
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark(service: Live, encoding: str) -> None:
    """It is named."""
    status, detail = post(service, '{"text": "a"}'.encode(encoding))
    assert (status, "byte order mark" in detail) == (400, True)


@pytest.mark.parametrize(
    "text", ["\\ud800", "\\udc00", "\\ud800\\u0041", "a\\udbff b", "\\uDFFF\\uD800"]
)
def test_lone_surrogate(service: Live, text: str) -> None:
    """It is named, in a text and in a key; a pair of them is a character."""
    for body in (f'{{"text": "{text}"}}', f'{{"{text}": 1}}'):
        status, detail = post(service, body.encode())
        assert (status, "surrogate" in detail) == (400, True), detail
    assert post(service, b'{"text": "\\ud83d\\ude00"}')[1]["text"] == "\U0001f600"


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "X-Gzip", "gzip, identity"])
def test_compressed_body(service: Live, encoding: str) -> None:
    """Nothing is unpacked, and the answer says so."""
    body = gzip.compress(b'{"text": "a"}')
    expected = (415, f"Content-Encoding {encoding} is not taken: send the body unpacked.")
    assert post(service, body, Content_Encoding=encoding) == expected
    for none in ("identity", "Identity", ""):
        assert post(service, b'{"text": "a"}', Content_Encoding=none)[0] == 200


def test_large_document(service: Live) -> None:
    """What is parsed beside the event loop is checked like any other document."""
    numbers = 4_000_000 * "0,"
    assert post(service, f'{{"values": [{numbers}0]}}'.encode())[0] == 200
    assert post(service, f'{{"values": [{numbers}1e999]}}'.encode())[0] == 400
    assert post(service, f'{{"values": [{numbers}"a"]}}'.encode())[0] == 422
    assert post(service, f'{{"values": [{numbers}'.encode())[0] == 400
    assert not math.isnan(post(service, b'{"text": "a"}')[1]["number"])


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes(service: Live, path: str) -> None:
    """Probes may be HEAD and OPTIONS; the OpenAPI document has the one operation."""
    head = service.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == service.client.get(path).headers["content-length"]
    assert service.client.options(path).status_code == 200
    assert set(service.client.get("/openapi.json").json()["paths"][path]) == {"get"}


@pytest.mark.parametrize("path", ["/health/", "/infer/", "/infer/stream/", "/docs/", "/infer//"])
def test_slash_at_the_end(service: Live, path: str) -> None:
    """It is another path, which is 404: a redirect would lead from https to http."""
    for method in ("GET", "POST"):
        answer = service.client.request(method, path, headers={"X-Forwarded-Proto": "https"})
        assert (answer.status_code, "location" in answer.headers) == (404, False)
        assert answer.json() == {"detail": "Not Found"}


def test_root_path(below: Live) -> None:
    """Below a prefix all answers, whether the proxy takes it off or not; the documents know it."""
    for prefix in ("", ROOT):
        assert below.client.get(f"{prefix}/health").status_code == 200
        assert below.client.post(f"{prefix}/infer", json={"text": "a"}).json()["text"] == "a"
        document = below.client.get(f"{prefix}/openapi.json").json()
        assert document["servers"] == [{"url": ROOT}]
        assert 'route="/infer"' in below.client.get(f"{prefix}/metrics").text
    for path in (ROOT[:-1], f"{ROOT}s/health", f"{ROOT}{ROOT}/health"):
        assert below.client.get(path).status_code == 404
    assert "Warning" not in below.log


def test_docs_without_internet(service: Live, below: Live) -> None:
    """All that /docs loads comes from the service, below its prefix; no other such page is there.

    A user's own files are found there as well, whether the proxy takes the prefix off or not.
    """
    for running, root in ((service, ""), (below, ROOT)):
        for prefix in {"", root}:
            page = running.client.get(f"{prefix}/docs").raise_for_status().text
            links = re.findall("""(?:src|href)="(.*?)"|url: '(.*?)'""", page)
            paths = {urljoin(f"{root}/docs", "".join(link)) for link in links}
            suffixes = [".css", ".js", ".json", ".png"]
            assert sorted(Path(path).suffix for path in paths) == suffixes, page
            for path in paths | {f"{root}/own/example.txt"}:
                assert path.startswith(f"{root}/"), path
                answer = running.client.get(prefix + path.removeprefix(root)).raise_for_status()
                media_type = answer.headers["content-type"].partition(";")[0]
                assert media_type == mimetypes.guess_type(path)[0]
                if media_type == "text/css":
                    assert not re.findall(r"url\(['\"]?(?!['\"]?data:)|@import", answer.text)
            assert running.client.get(f"{prefix}/redoc").status_code == 404


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("::", ["127.0.0.1", "::1"]),
        ("::1", ["::1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
    ],
)
def test_host(project: Path, tmp_path: Path, host: str, addresses: list[str]) -> None:
    """It listens where it is told to, and nowhere else."""
    with live(project, python(), tmp_path / "log", HOST=host) as service:
        wait_for(
            lambda: connects(addresses[0], service.port), seconds=60, complaint=lambda: service.log
        )
        if host != "localhost":  # which may be both
            reached = [
                address for address in ("127.0.0.1", "::1") if connects(address, service.port)
            ]
            assert reached == addresses


def connects(address: str, port: int) -> bool:
    """Tell whether something listens there."""
    with suppress(ConnectionRefusedError):
        socket.create_connection((address, port), 10).close()
        return True
    return False


ADDED = '''
@app.get("/seen")
async def seen(request: Request) -> list[str]:
    """Tell what a request says of itself."""
    return [request.client.host if request.client else "", str(request.base_url)]

'''
FORWARDED = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "Host": "a.example"}


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [
        *((trusted, ["192.0.2.7", "https://a.example/"]) for trusted in ("", "*", "127.0.0.0/8")),
        *((trusted, ["127.0.0.1", "http://a.example/"]) for trusted in ("192.0.2.1", "10.0.0.0/8")),
    ],
)
def test_forwarded_headers(project: Path, tmp_path: Path, trusted: str, seen: list[str]) -> None:
    """They count where FORWARDED_ALLOW_IPS has the sender; without it, from this machine."""
    folder = Path(shutil.copytree(project, tmp_path / "service"))
    add_to_main(folder, ADDED)
    env = {"FORWARDED_ALLOW_IPS": trusted} if trusted else {}
    with live(folder, python(), tmp_path / "log", **env) as service:
        assert service.ready().get("/seen", headers=FORWARDED).json() == seen


def complaint(project: Path, **env: str) -> str:
    """Return the line that a start ends with, before anything is loaded."""
    command = [python(), "main.py"]
    result = subprocess.run(
        command, cwd=project, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    return line


ORIGIN = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}


def test_private_network(service: Live) -> None:
    """A browser that asks for a private network's address first is let in."""
    asked = ORIGIN | {"Access-Control-Request-Private-Network": "true"}
    answer = service.client.options("/infer", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"
    answer = service.client.options("/infer", headers=ORIGIN)
    assert "access-control-allow-private-network" not in answer.headers


def test_readable_headers(service: Live) -> None:
    """A page may read a request's id, and when to come again."""
    for answer in (
        service.client.get("/health", headers=ORIGIN),
        service.client.post("/infer", content=b"a", headers=ORIGIN),
    ):
        names = answer.headers["access-control-expose-headers"].split(", ")
        assert {"X-Request-ID", "Retry-After"} <= set(names)


@pytest.mark.parametrize(
    ("origins", "right"),
    [
        ("https://a.example/", "https://a.example"),
        ("https://a.example/page", "https://a.example"),
        ("a.example", "https://a.example"),
        ("localhost:3000", "https://localhost:3000"),
        ("//a.example", "https://app.example"),
        ("https://A.example", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://user@a.example", "https://a.example"),
        ("https://a.example?b", "https://a.example"),
        ("https://*.a.example", "https://app.example"),
        ("https://", "https://app.example"),
        ("https://b.example,https://a.example/", "https://a.example"),
        ("https://a.example https://b.example", "https://app.example"),
        ("HTTPS://a.example", "https://a.example"),
        ("https:///a", "https://app.example"),
        ("'https://a.example'", "https://app.example"),
        ("https://a..example", "https://app.example"),
        ("https://[::1", "https://app.example"),
    ],
)
def test_origin_that_matches_none(project: Path, origins: str, right: str) -> None:
    """An origin that no browser sends ends the start with one line that has the right form."""
    line = complaint(project, CORS_ORIGINS=origins)
    wrong = origins.rpartition(",")[2]
    form = f"CORS_ORIGINS must be '*', or whole origins as browsers send them, such as '{right}'"
    assert line == f"{form}; not {wrong!r}"


def test_origins_that_match(project: Path, tmp_path: Path) -> None:
    """Ports, addresses, other schemes and files are origins, too."""
    origins = (
        "http://localhost:3000, https://[::1]:8443,chrome-extension://abcdef,null,http://1.2.3.4"
    )
    with live(project, python(), tmp_path / "log", CORS_ORIGINS=origins) as service:
        client = service.ready()
        for origin in map(str.strip, origins.split(",")):
            answer = client.get("/health", headers={"Origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("path", ["models", "/models/", "https://a.example/b", "/", "/a b", "/a?b"])
def test_root_path_that_is_none(project: Path, path: str) -> None:
    """A wrong one ends the start with one line."""
    line = complaint(project, ROOT_PATH=path)
    form = "ROOT_PATH must be a path such as '/models/ocr', with a slash at its start alone"
    assert line == f"{form}; not {path!r}"


def test_line_ends_in_events(service: Live) -> None:
    """What ends a line elsewhere than in JSON does not end an event's data."""
    text = "a\u2028b\u2029c\x85d\ne\rf\x0bg\x0ch\x1ci"
    answer = service.client.post("/infer/stream", json={"text": text})
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [json.loads(data).get("text") for data in events] == [text, text, None]


def test_comments_meanwhile(project: Path, tmp_path: Path) -> None:
    """A slow part has comments before it, which clients skip; the deadline goes on."""
    env = {"STREAM_COMMENT_SECONDS": "1", "INFER_TIMEOUT_SECONDS": "4"}
    with live(project, python(), tmp_path / "log", **env) as service:
        client = service.ready()
        slow = client.post("/infer/stream", json={"text": "a", "pause": 2.5}).text.split("\n\n")
        assert slow.count(": keep-alive") >= 1
        assert [each[:5] for each in slow if each != ": keep-alive"] == [
            "data:",
            "data:",
            "event",
            "",
        ]
        late = client.post("/infer/stream", json={"text": "a", "pause": 6}).text
        assert late.count("data: ") == 2
        assert '"status": 504' in late


def test_http_1_0(service: Live) -> None:
    """A client that knows no chunks gets the events as they are."""
    body = b'{"text": "a"}'
    head = f"POST /infer/stream HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with service.connect(30) as connection:
        connection.sendall(head + body)
        answer = receive_all(connection).decode()
    headers, _, events = answer.partition("\r\n\r\n")
    assert "transfer-encoding" not in headers.lower()
    assert events.startswith('data: {"number"')
    assert events.endswith("\n\nevent: end\ndata: {}\n\n")
