"""What the model answers; replace this with known answers of your own model."""

from conformance.plugin import Service

ROUTE = "/infer"


def test_known_answer(service: Service) -> None:
    """Even a small model knows this one; by its chat template, it also knows where to end."""
    request = {"prompt": "Name the capital of France.", "max_tokens": 64}
    body = service.client.post(ROUTE, json=request).json()
    assert "Paris" in body["text"]
    assert 0 < body["tokens"] < 64


def test_same_answer_twice(service: Service) -> None:
    """At temperature 0 the answer depends on the prompt alone."""
    request = {"prompt": "Water boils at", "max_tokens": 12}
    answers = [service.client.post(ROUTE, json=request).json() for _ in range(2)]
    assert answers[0] == answers[1]


def test_prompt_beyond_the_context(service: Service) -> None:
    """A prompt that the model has no room for is 400."""
    response = service.client.post(ROUTE, json={"prompt": "word " * 3000})
    assert response.status_code == 400
