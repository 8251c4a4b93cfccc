"""What the model answers; replace this with known answers of your own model."""

import wave
from io import BytesIO

import numpy as np
import pytest

from conformance.plugin import ROOT, Service

ROUTE = "/transcribe"


def tone(frequency: float, rate: int) -> bytes:
    """Return half a second of a sine as a stereo WAV file."""
    samples = 0.3 * np.sin(2 * np.pi * frequency * np.arange(rate // 2) / rate)
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples * 32767).astype("<i2").repeat(2).tobytes())
    return file.getvalue()


def test_example(service: Service) -> None:
    """The example is an A4."""
    body = service.client.post(ROUTE, files={"file": (ROOT / "example.wav").open("rb")})
    assert body.json() == {"note": "A4", "frequency": 440.0}


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(("frequency", "note"), [(261.6, "C4"), (493.9, "B4"), (880.0, "A5")])
def test_tone(service: Service, frequency: float, note: str, rate: int) -> None:
    """A sine has its note's name, whatever its sample rate."""
    body = service.client.post(ROUTE, files={"file": tone(frequency, rate)})
    assert body.json()["note"] == note
