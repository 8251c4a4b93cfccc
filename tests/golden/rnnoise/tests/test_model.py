"""What the model answers; replace this with known answers on recordings of your own."""

import json
import wave
from io import BytesIO

import numpy as np
import pytest

from conformance.plugin import ROOT, Service

ROUTE = "/denoise"
RATE = 16_000  # Hz, of the example; answers have three times as many samples
SENTENCE = slice(int(0.6 * RATE), int(2.0 * RATE))
PAUSE = slice(int(2.3 * RATE), int(3.0 * RATE))  # before the second sentence


def encode(samples: np.ndarray, rate: int = RATE) -> bytes:
    """Return a WAV of samples from -1 to 1."""
    with wave.open(file := BytesIO(), "wb") as writer:
        writer.setparams((1, 2, rate, 0, "NONE", ""))
        writer.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def decode(file: bytes) -> np.ndarray:
    """Return the samples of a WAV, from -1 to 1."""
    with wave.open(BytesIO(file)) as reader:
        return np.frombuffer(reader.readframes(reader.getnframes()), "<i2") / 32767


def denoise(service: Service, file: bytes) -> tuple[np.ndarray, float]:
    """Return the cleaned samples, and the part of them that is speech."""
    answer = service.client.post(ROUTE, files={"file": file}, headers={"Accept": "audio/wav"})
    answer.raise_for_status()
    return decode(answer.content), json.loads(answer.headers["X-Output-speech"])


def decibels(samples: np.ndarray) -> float:
    """Return the energy of samples; silence has -100."""
    return float(10 * np.log10(np.mean(samples**2) + 1e-10))


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Return the example: two sentences, with a second of silence between them."""
    return decode((ROOT / "example-speech.wav").read_bytes())


def test_noise_is_removed(service: Service, speech: np.ndarray) -> None:
    """The noise in the pause is gone, and the sentence is as loud as it was, at the same time."""
    noisy = speech + np.random.default_rng(0).normal(0, 0.02, len(speech))
    answer, share = denoise(service, encode(noisy))
    cleaned = answer[::3]
    assert len(answer) == 3 * len(speech)
    assert decibels(cleaned[PAUSE]) < decibels(noisy[PAUSE]) - 10
    assert decibels(cleaned[SENTENCE]) == pytest.approx(decibels(speech[SENTENCE]), abs=3)
    assert np.corrcoef(cleaned[SENTENCE], speech[SENTENCE])[0, 1] > 0.9
    assert share == pytest.approx(0.6, abs=0.1)


def test_loud_speech(service: Service, speech: np.ndarray) -> None:
    """Speech that is louder than it should be has no clicks when it is cleaned."""
    answer, _ = denoise(service, encode(5 * speech))
    assert np.abs(np.diff(answer)).max() < 1


def test_silence(service: Service) -> None:
    """Silence stays silence, in which nobody speaks."""
    answer, share = denoise(service, encode(np.zeros(RATE)))
    assert not answer.any()
    assert share == 0


@pytest.mark.parametrize("samples", [1, 479, 481])
def test_length(service: Service, samples: int) -> None:
    """A recording that is not a multiple of 10 ms keeps its length."""
    answer, _ = denoise(service, encode(np.full(samples, 0.1), 48_000))
    assert len(answer) == samples


def test_nothing_is_remembered(service: Service, speech: np.ndarray) -> None:
    """A recording is cleaned the same way, whatever was cleaned before."""
    file = encode(speech)
    first, _ = denoise(service, file)
    denoise(service, encode(np.random.default_rng(0).uniform(-1, 1, RATE)))
    again, _ = denoise(service, file)
    assert np.array_equal(first, again)
