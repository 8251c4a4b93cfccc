"""What the model answers; replace this with known answers on recordings of your own."""

import wave
from io import BytesIO

import pytest

from conformance.plugin import ROOT, Service

ROUTE = "/detect-speech"


def test_example(service: Service) -> None:
    """The example has two sentences, with a second of silence between them."""
    file = (ROOT / "example-speech.wav").read_bytes()
    segments = service.client.post(ROUTE, files={"file": file}).json()["segments"]
    assert [item["start"] for item in segments] == pytest.approx([0.50, 3.14], abs=0.15)
    assert [item["end"] for item in segments] == pytest.approx([2.14, 4.65], abs=0.15)


def test_silence(service: Service) -> None:
    """In silence nobody speaks."""
    silence = BytesIO()
    with wave.open(silence, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(bytes(32_000))
    body = service.client.post(ROUTE, files={"file": silence.getvalue()}).json()
    assert body == {"segments": []}


def test_threshold_is_checked(service: Service) -> None:
    """A probability above 1 is 422."""
    file = (ROOT / "example-speech.wav").read_bytes()
    response = service.client.post(ROUTE, files={"file": file}, data={"threshold": "2"})
    assert response.status_code == 422
