"""What the model answers; replace this with known answers on texts of your own."""

import math

import pytest

from conformance.plugin import Service

ROUTE = "/embed"


def embed(service: Service, text: str) -> list[float]:
    """Return the service's embedding of a text."""
    body = service.client.post(ROUTE, json={"text": text}).raise_for_status().json()
    embedding: list[float] = body["embedding"]
    return embedding


def similarity(one: list[float], other: list[float]) -> float:
    """Return the cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_meaning(service: Service) -> None:
    """Sentences of like meaning lie close together, as sentence-transformers itself has it."""
    eating = embed(service, "A man is eating food.")
    assert similarity(eating, embed(service, "A man eats something.")) == pytest.approx(
        0.875, abs=0.005
    )
    assert similarity(eating, embed(service, "The stock market fell.")) == pytest.approx(
        -0.036, abs=0.005
    )


def test_length(service: Service) -> None:
    """An embedding has 384 numbers and the length 1, however long the text."""
    for text in ("Hi", "word " * 1000):
        embedding = embed(service, text)
        assert len(embedding) == 384
        assert math.hypot(*embedding) == pytest.approx(1, abs=1e-4)
