"""The model of other-servers.md, before a live server that speaks OpenAI's API."""

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.code_blocks import blocks
from tests.support.live import Live, held_port, live, wait_for
from tests.support.rendering import render
from tests.support.updating import put_model, python
from tests.support.variants import ROOT

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("other-servers")

PAGE = ROOT / "docs/how-to/other-servers.md"
SUBJECTS = ROOT / "tests/support/subjects"
WORDS = ["Good", " day", ", Ann\u2028a", "."]  # chat_server.py says them
MANY = 2_000  # parts of its endless stream


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run the server that has the model."""
    with run_server(tmp_path_factory.mktemp("server")) as running:
        yield running


def run_server(folder: Path, **env: str) -> AbstractContextManager[Live]:
    """Run the server that has the model, on PORT or a free port."""
    return live(SUBJECTS, python(), folder / "log", script="chat_server.py", **env)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the page's service, with another contract, and put the page's model into it."""
    answers = {"model_type": "custom", "input_kind": "json", "endpoint": "chat"}
    lists = {"features": ["observability", "streaming"], "contracts": ["model-engine"]}
    folder = render(tmp_path_factory.mktemp("other") / "answers", answers | lists)
    [model] = [
        block.text
        for block in blocks(PAGE.read_text(encoding="utf-8"))
        if block.mark == "test: file answers/inference.py"
    ]
    put_model(folder, model)
    return folder


@pytest.fixture(scope="module")
def service(project: Path, server: Live) -> Iterator[Live]:
    """Run the service in front of the server."""
    server.ready()
    with run(project, server.url) as running:
        running.ready()
        yield running


def run(project: Path, url: str, **env: str) -> AbstractContextManager[Live]:
    """Run the service in front of a server."""
    env = {"MODEL_NAME": "talker", "SERVER_KEY": "k-1", "SERVER_SECONDS": "1"} | env
    return live(project, python(), project / "log", SERVER_URL=f"{url}/v1", **env)


def say(text: str) -> dict[str, Any]:
    """Return a request."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 9}


def stream(service: Live, text: str) -> list[tuple[str, Any]]:
    """Return the events of an answer in parts: the name and the data of each."""
    response = service.client.post("/chat/stream", json=say(text)).raise_for_status()
    events = re.findall(r"(?:event: (\w+)\n)?data: (.*)\n\n", response.text)
    return [(name, json.loads(data)) for name, data in events]


def test_answer(service: Live, server: Live) -> None:
    """The server's answer is the service's, by its own route and by another contract."""
    expected = {"text": "".join(WORDS), "finish_reason": "stop"}
    assert service.client.post("/chat", json=say("hello")).json() == expected
    noted = server.client.get("/noted").json()
    asked = {"model": "talker", "stream": False, "temperature": 0}
    assert noted["asked"][-1] == asked | say("hello")
    assert noted["keys"][-1] == "Bearer k-1"
    answer = service.client.post("/predict", json={"args": say("hello")}).json()
    assert expected in (answer, answer.get("result"))


def test_parts(service: Live) -> None:
    """The server's parts are the service's, one for one."""
    *parts, last, end = stream(service, "hello")
    assert parts == [("", {"text": word, "finish_reason": None}) for word in WORDS]
    assert last == ("", {"text": "", "finish_reason": "stop"})
    assert end == ("end", {})


@pytest.mark.parametrize("route", ["/chat", "/chat/stream"])
@pytest.mark.parametrize(
    ("wish", "status", "words"),
    [
        ("too long", 400, "maximum context length is 8"),
        ("flat error", 400, "Too long."),
        ("busy", 503, "Too many requests"),
        ("down", 503, "Too many requests"),
        ("slow", 504, "timed out"),
        ("unknown", 500, "Internal server error."),
    ],
)
def test_failures(service: Live, route: str, wish: str, status: int, words: str) -> None:
    """A failure of the server has the status that tells a client what to do."""
    response = service.client.post(route, json=say(wish))
    assert response.status_code == status
    assert words in response.json()["detail"]
    assert ("Retry-After" in response.headers) == (wish in ("busy", "down"))


def test_what_is_the_servers_own(service: Live) -> None:
    """What no client can mend is a 500; what the server has said is in the log alone."""
    for wish in ("unknown", "no JSON"):
        response = service.client.post("/chat", json=say(wish))
        assert response.status_code == 500
        assert "secret-name" not in response.text
    assert "No such model: secret-name" in service.log


@pytest.mark.parametrize(
    ("wish", "status", "words"),
    [
        ("fails in the middle", 500, "CUDA error"),
        ("ends in the middle", 500, "before its end"),
        ("hangs in the middle", 504, ""),
    ],
)
def test_broken_stream(service: Live, wish: str, status: int, words: str) -> None:
    """A stream that breaks ends with an error, and never as if it were whole."""
    *parts, (name, failure) = stream(service, wish)
    assert parts
    assert (name, failure["status"]) == ("error", status)
    assert words in service.log


def test_client_that_leaves(service: Live, server: Live) -> None:
    """Where a client leaves a stream, the server stops to make it."""
    with service.client.stream("POST", "/chat/stream", json=say("endless")) as response:
        next(response.iter_lines())

    def ended() -> Any:
        return server.client.get("/noted").json()["ended"]

    wait_for(ended, seconds=60)
    assert ended()[-1] < MANY - 1
    assert service.client.post("/chat", json=say("hello")).status_code == 200


def test_wrong_start(project: Path, server: Live) -> None:
    """Without the server, or the model there, the start ends with one line that says so."""
    with held_port() as port:
        nobody = f"http://127.0.0.1:{port}"
        for url, name, line in (
            (nobody, "talker", f"SERVER_URL={nobody}/v1 does not answer"),
            (server.url, "other", "MODEL_NAME=other: the server has talker"),
        ):
            with run(project, url, MODEL_NAME=name) as running:
                assert running.process.wait(60) == 1
                assert line in running.log
                assert "Traceback" not in running.log


def test_server_that_goes(project: Path, tmp_path: Path) -> None:
    """A server that went away is a 503, and the service answers when it is back."""
    with held_port() as port, run_server(tmp_path, PORT=port) as before:
        before.ready()
        with run(project, before.url) as service:
            service.ready()
            before.process.kill()
            before.process.wait()
            response = service.client.post("/chat", json=say("hello"))
            assert response.status_code == 503
            assert response.json() == {"detail": "The model's server does not answer."}
            with run_server(tmp_path, PORT=port) as back:
                back.ready()
                assert service.client.post("/chat", json=say("hello")).status_code == 200
