"""What the model takes: the recording of a request, decoded."""

from dataclasses import dataclass
from io import BytesIO
from typing import Generic

import numpy as np

from limits import BadInput, env_int
from uploads import ParamsT, Upload

MAX_AUDIO_SECONDS = env_int("MAX_AUDIO_SECONDS", 600, minimum=1)
SAMPLE_RATE = 16_000  # Hz; what most speech models take
UNREADABLE = "No readable WAV, MP3, FLAC, Ogg, MP4, WebM or AAC recording."

# Containers that reach for other files or addresses (playlists, say) are not among these.
# Pictures beside the sound are looked at too, but not large ones.
OPTIONS = {"format_whitelist": "wav,mp3,flac,ogg,mov,matroska,aac", "max_pixels": "1000000"}
SUBTYPES = ("wav", "x-wav", "wave", "mpeg", "mp3", "flac", "x-flac", "ogg", "mp4", "aac", "webm")
CONTENT_TYPES = frozenset(f"audio/{name}" for name in SUBTYPES)


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One decoded recording: `Model.predict` gets a list of these."""

    samples: np.ndarray  # float32 (n,), mono, -1 to 1
    sample_rate: int  # Hz
    params: ParamsT


def decode(upload: Upload[ParamsT]) -> list[Input[ParamsT]]:
    """Return one `Input` for each file of the request. Raises BadInput."""
    return [Input(decode_audio(file), SAMPLE_RATE, upload.params) for file in upload.files]


def decode_audio(file: bytes) -> np.ndarray:
    """Return a recording as mono samples at SAMPLE_RATE, decoding no more than is taken."""
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    chunks: list[np.ndarray] = []
    samples = 0
    try:
        with av.open(BytesIO(file), "r", options=OPTIONS, metadata_errors="ignore") as container:
            stream = container.streams.audio[0]
            for frame in container.decode(stream):
                # Before it is resampled: at a low rate a small file holds days.
                samples += frame.samples
                if samples > MAX_AUDIO_SECONDS * frame.sample_rate:
                    raise BadInput(f"Longer than {MAX_AUDIO_SECONDS} s.")
                chunks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            chunks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    except av.FFmpegError as error:  # a MemoryError too: what is broken may declare any size
        raise BadInput(UNREADABLE) from error
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # whatever a broken file makes the decoder raise
        raise BadInput(UNREADABLE) from error
    if not chunks:
        raise BadInput("The recording has no samples.")
    return np.concatenate(chunks)
