"""What the model takes: the recording of a request, decoded as inference.py declares."""

from dataclasses import dataclass
from io import BytesIO
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel

from serving.errors import BadInput
from serving.settings import settings

MAX_AUDIO_SECONDS = settings.max_audio_seconds
UNREADABLE = "No readable WAV, MP3, FLAC, Ogg, MP4, WebM or AAC recording."

# Containers that reach for other files or addresses (playlists, say) are not among these.
# Pictures beside the sound are looked at too, but not large ones.
OPTIONS = {"format_whitelist": "wav,mp3,flac,ogg,mov,matroska,aac", "max_pixels": "1000000"}
SUBTYPES = ("wav", "x-wav", "wave", "mpeg", "mp3", "flac", "x-flac", "ogg", "mp4", "aac", "webm")
CONTENT_TYPES = frozenset(f"audio/{name}" for name in SUBTYPES)

MAX_PARTS = 2000  # of a form

ParamsT = TypeVar("ParamsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One decoded recording: `Model.predict` gets a list of these."""

    samples: np.ndarray  # float32, -1 to 1: (n,), or (2, n) where the decoder keeps stereo
    sample_rate: int  # Hz
    params: ParamsT


@dataclass(frozen=True)
class Decoder:
    """What the model wants of a recording; inference.py declares it."""

    several: ClassVar[bool] = False  # whether a request carries a list of them
    field: str = "file"  # the form field that carries the recording
    sample_rate: int = 16_000  # Hz; what most speech models take
    channels: Literal[1, 2] = 1  # 1 mixes to mono, 2 is stereo

    def decode(self, files: list[bytes], params: ParamsT) -> list[Input[ParamsT]]:
        """Return one `Input` for each file of the request. Raises BadInput."""
        return [Input(self._decode_audio(file), self.sample_rate, params) for file in files]

    def _decode_audio(self, file: bytes) -> np.ndarray:
        """Return the samples of a recording, decoding no more than is taken."""
        import av

        resampler = av.AudioResampler(format="fltp", rate=self.sample_rate)
        chunks: list[np.ndarray] = []
        samples = 0
        try:
            with av.open(
                BytesIO(file), "r", options=OPTIONS, metadata_errors="ignore"
            ) as container:
                stream = container.streams.audio[0]
                for frame in container.decode(stream):
                    # Before it is resampled: at a low rate a small file holds days.
                    samples += frame.samples
                    if samples > MAX_AUDIO_SECONDS * frame.sample_rate:
                        raise BadInput(f"Longer than {MAX_AUDIO_SECONDS} s.")
                    chunks += [self._mix(part.to_ndarray()) for part in resampler.resample(frame)]
                chunks += [self._mix(part.to_ndarray()) for part in resampler.resample(None)]
        except av.FFmpegError as error:  # a MemoryError too: what is broken may declare any size
            raise BadInput(UNREADABLE) from error
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # whatever a broken file makes the decoder raise
            raise BadInput(UNREADABLE) from error
        if not chunks:
            raise BadInput("The recording has no samples.")
        recording = np.concatenate(chunks, axis=1)
        return recording[0] if self.channels == 1 else recording

    def _mix(self, samples: np.ndarray) -> np.ndarray:
        """Return as many channels as wanted: those that there are, or the mean of all.

        FFmpeg's own mix would change the loudness, beyond -1 to 1 where both channels are loud.
        """
        if len(samples) == self.channels:
            return samples
        return np.repeat(samples.mean(axis=0, keepdims=True), self.channels, axis=0)
