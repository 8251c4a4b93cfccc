"""OpenAI's API, asked of a live process, or of the deployment at --url."""

import json
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from conformance.plugin import Launcher, Service
from conformance.test_conformance import assert_tells_nothing, failing

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SPEECH, IMAGES = "/v1/audio/speech", "/v1/images/generations"
QUESTIONS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    COMPLETIONS: {"prompt": "Hello"},
    EMBEDDINGS: {"input": ["Hello", "world"]},
    SPEECH: {"input": "Hello", "voice": "default"},
    IMAGES: {"prompt": "A cat"},
}
# The field that names the form of a file, and some of its values.
FORMS = {SPEECH: ("response_format", ["wav", "mp3"]), IMAGES: ("output_format", ["png", "webp"])}
SOUNDS = {f"audio/{name}": name for name in ("aac", "flac", "wav", "pcm")}
SOUNDS |= {"audio/mpeg": "mp3", "audio/ogg": "opus"}
HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def speaking(launcher: Launcher, answer: str) -> Service:
    """Return a service whose fake model can chat, speak and draw."""
    running = launcher.start_fake(answer)
    running.wait_until("/ready", 200)
    return running


def name_of(service: Service) -> str:
    """Return what the model is called."""
    models = service.client.get("/v1/models").raise_for_status().json()
    assert models["object"] == "list"
    [model] = models["data"]
    assert (model["object"], type(model["created"])) == ("model", int)
    return str(model["id"])


def questions(service: Service) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each route that the document has, with a question that has a short, certain answer."""
    paths = service.client.get("/openapi.json").json()["paths"]
    for path, question in QUESTIONS.items():
        if path in paths:
            content = paths[path]["post"]["requestBody"]["content"]["application/json"]
            known = content["schema"]["properties"]
            options = {"max_tokens": 8, "temperature": 0, "seed": 1}
            taken = {name: value for name, value in options.items() if name in known}
            yield path, {"model": name_of(service), **question, **taken}


def assert_error(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check that this is an error in OpenAI's form, and return what it says."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    return error


def test_ms_72_models(service: Service) -> None:
    """The model is listed, and found by its name; another is 404."""
    name = name_of(service)
    model = service.client.get(f"/v1/models/{name}").raise_for_status().json()
    assert model["id"] == name
    assert_error(service.client.get("/v1/models/no-such-model"), 404)


def test_ms_72_only_what_there_is(service: Service) -> None:
    """What the model cannot do is 404, in the form of the API."""
    paths = service.client.get("/openapi.json").json()["paths"]
    for path in (*QUESTIONS, "/v1/images/edits", "/v1/no-such"):
        if path not in paths:
            assert_error(service.client.post(path, json={}), 404)


def test_ms_72_refused(service: Service, speaking: Service) -> None:
    """What is wrong with a request is told in the form of the API, with the field's name."""
    for running in (service, speaking):
        post = running.client.post
        for path, question in questions(running):
            assert_error(post(path, content=b"", headers=HEADERS), 400)
            assert_error(post(path, content=b"{", headers=HEADERS), 400)
            assert_error(post(path, content=b"x", headers={"Content-Type": "text/plain"}), 415)
            assert assert_error(post(path, json={}), 400)["param"] in {"model", *question}
            other = {**question, "model": "no-such-model"}
            assert assert_error(post(path, json=other), 404)["param"] == "model"
            unknown = {**question, "no_such_field": 1}
            assert assert_error(post(path, json=unknown), 400)["param"] == "no_such_field"


def test_ms_72_answers(service: Service, speaking: Service) -> None:
    """What the document has is answered, and a stream makes the same answer."""
    assert CHAT in dict(questions(speaking))
    for running in (service, speaking):
        for path, question in questions(running):
            if path in FORMS:
                continue
            answer = running.client.post(path, json=question).raise_for_status().json()
            assert answer["model"] == question["model"]
            if path == EMBEDDINGS:
                assert [each["index"] for each in answer["data"]] == [0, 1]
                continue
            [choice] = answer["choices"]
            whole = choice["message"]["content"] if path == CHAT else choice["text"]
            chunks = in_chunks(running, path, question)
            deltas = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
            texts = [x["delta"].get("content") if path == CHAT else x["text"] for x in deltas]
            assert "".join(text or "" for text in texts) == whole
            assert deltas[-1]["finish_reason"] == choice["finish_reason"]


def test_ms_72_forms(service: Service, speaking: Service) -> None:
    """A file comes in the form that is asked for, or not at all."""
    assert FORMS.keys() <= dict(questions(speaking)).keys()
    for running in (service, speaking):
        asked = {path: body for path, body in questions(running) if path in FORMS}
        for path, question in asked.items():
            field, names = FORMS[path]
            answer = running.client.post(path, json=question)
            if running is service and answer.status_code == 400:  # its voices have other names
                continue
            own = form_of(path, answer.raise_for_status())
            for name in {own, *names}:
                response = running.client.post(path, json={**question, field: name})
                if name == own or response.is_success:
                    assert form_of(path, response.raise_for_status()) == name
                else:
                    assert assert_error(response, 400)["param"] == field


def form_of(path: str, response: httpx.Response) -> str:
    """Return the form of the file in an answer, as the API calls it."""
    if path == SPEECH:
        assert response.content
        return SOUNDS[response.headers["content-type"].partition(";")[0]]
    answer = response.json()
    [picture] = answer["data"]
    assert b64decode(picture["b64_json"], validate=True)
    return str(answer["output_format"])


def in_chunks(service: Service, path: str, question: dict[str, Any]) -> list[Any]:
    """Return the chunks of a stream, which has to end as OpenAI's do."""
    response = service.client.post(path, json={**question, "stream": True})
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    *chunks, end = [
        line.removeprefix("data: ")
        for line in response.raise_for_status().text.splitlines()
        if line.startswith("data: ")
    ]
    assert end == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def test_ms_72_full(launcher: Launcher, answer: str) -> None:
    """With a full queue a request is turned away in the form of the API, with a time to wait."""
    running = launcher.start_fake(answer, MAX_QUEUE_SIZE="1")
    running.wait_until("/ready", 200)
    question = dict(questions(running))[CHAT]
    running.predict_hangs()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(running.client.post, CHAT, json=question)]
        running.wait_for_call()
        calls.append(pool.submit(running.client.post, CHAT, json=question))
        running.wait_until("/ready", 503)
        refused = running.client.post(CHAT, content=b"no JSON", headers=HEADERS)
        assert refused.status_code in (429, 503)
        assert_error(refused, refused.status_code)
        assert int(refused.headers["Retry-After"]) > 0
        running.predict_works()
        assert [call.result().status_code for call in calls] == [200, 200]


def test_ms_70_at_chat(speaking: Service) -> None:
    """What the model fails with is not in the answer, and not in the events of a stream."""
    question = dict(questions(speaking))[CHAT]
    for error in failing(speaking):
        response = speaking.client.post(CHAT, json=question)
        assert response.is_server_error
        assert_error(response, response.status_code)
        assert_tells_nothing(response.text)
        speaking.predict_does(f"if part: raise {error}")
        response = speaking.client.post(CHAT, json={**question, "stream": True})
        assert '"error"' in response.text
        assert "[DONE]" not in response.text
        assert_tells_nothing(response.text)
