"""What the model answers; replace this with known answers of your own model."""

import pytest

from conformance.plugin import ROOT, Service

ROUTE = "/match"


@pytest.mark.parametrize(
    ("text", "score"), [("red", 0.77), ("a blue disc", 0.23), ("red and blue", 1.0), ("green", 0.0)]
)
def test_example(service: Service, text: str, score: float) -> None:
    """The example is a red field with a blue disc on a quarter of it."""
    file = (ROOT / "example.png").read_bytes()
    body = service.client.post(ROUTE, files={"file": file}, data={"text": text})
    assert body.json()["score"] == pytest.approx(score, abs=0.03)


def test_text_without_a_color(service: Service) -> None:
    """A text that the model can do nothing with is 400, and says what would be right."""
    file = (ROOT / "example.png").read_bytes()
    response = service.client.post(ROUTE, files={"file": file}, data={"text": "a dog"})
    assert response.status_code == 400
    assert "Name one or several" in response.json()["detail"]


def test_text_is_required(service: Service) -> None:
    """A picture without a text is 422."""
    response = service.client.post(ROUTE, files={"file": (ROOT / "example.png").read_bytes()})
    assert response.status_code == 422
