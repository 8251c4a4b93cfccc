"""What the model answers; replace this with known answers of your own model."""

import wave
from io import BytesIO
from typing import Any

import pytest
from transformers import pipeline

from conformance.plugin import ROOT, Service

ROUTE = "/transcribe"


def test_answer_of_the_framework(service: Service, model_env: dict[str, str]) -> None:
    """The service says what transformers itself says of the same recording."""
    from inference import DECODER, Params
    from serving import Upload

    transcribe: Any = pipeline("automatic-speech-recognition", model=model_env["MODEL_NAME"])
    file = (ROOT / "example-speech.wav").read_bytes()
    body = service.client.post(ROUTE, files={"file": file}).raise_for_status().json()
    assert body["text"]
    [recording] = DECODER.decode([Upload(file)], Params())
    assert body["text"] == transcribe(recording.samples)["text"]


@pytest.mark.parametrize("samples", [1, 399])
def test_too_short(service: Service, samples: int) -> None:
    """A recording that is too short for the model is 400."""
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(bytes(2 * samples))
    assert service.client.post(ROUTE, files={"file": file.getvalue()}).status_code == 400
