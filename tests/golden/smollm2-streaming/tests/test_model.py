"""What the model answers; replace this with known answers of your own model."""

import json
from typing import Any

from conformance.plugin import Service

ROUTE = "/chat"
PARIS = {"role": "user", "content": "Name the capital of France."}
NAME = {"role": "user", "content": "What is my name?"}
ANNA = [
    {"role": "user", "content": "My name is Anna."},
    {"role": "assistant", "content": "Hello Anna!"},
]


def chat(service: Service, *messages: dict[str, str]) -> Any:
    """Return the service's answer to a conversation."""
    request = {"messages": messages, "max_tokens": 32}
    return service.client.post(ROUTE, json=request).raise_for_status().json()


def test_known_answer(service: Service) -> None:
    """Even a small model knows this one; by its chat template, it also knows where to end."""
    answer = chat(service, PARIS)
    assert "Paris" in answer["text"]
    assert 0 < answer["tokens"] < 32


def test_conversation(service: Service) -> None:
    """The model has read what was said before."""
    assert "Anna" not in chat(service, NAME)["text"]
    assert "Anna" in chat(service, *ANNA, NAME)["text"]


def test_same_answer_in_parts(service: Service) -> None:
    """The tokens that come one by one make the text that comes at once."""
    request = {"messages": [PARIS]}
    lines = service.client.post(f"{ROUTE}/stream", json=request).text.splitlines()
    *parts, end = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert "".join(part["text"] for part in parts) == chat(service, PARIS)["text"]
    assert len(parts) > 1
    assert end == {}


def test_conversation_that_cannot_be_answered(service: Service) -> None:
    """One beyond the context is 400, and so is one that ends with the assistant's own words."""
    for messages in ([{"role": "user", "content": "word " * 3000}], ANNA):
        for route in (ROUTE, f"{ROUTE}/stream"):
            response = service.client.post(route, json={"messages": messages})
            assert response.status_code == 400
