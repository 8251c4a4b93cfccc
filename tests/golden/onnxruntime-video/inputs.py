"""What the model takes: the clip of a request, decoded."""

from dataclasses import dataclass
from io import BytesIO
from typing import Generic

import numpy as np

from limits import BadInput, env_int
from uploads import ParamsT, Upload

MAX_FRAMES = env_int("MAX_FRAMES", 1_000, minimum=1)
MAX_PIXELS = env_int("MAX_PIXELS", 100_000_000, minimum=1)  # of all frames together
TOO_LONG = f"More than the {MAX_FRAMES} frames or {MAX_PIXELS} pixels that are taken."
UNREADABLE = "No readable MP4, QuickTime, WebM, AVI, MPEG-TS or Ogg clip."

# Containers that reach for other files or addresses (playlists, say) are not among these.
OPTIONS = {"format_whitelist": "mov,matroska,avi,mpegts,ogg", "max_pixels": str(MAX_PIXELS)}
CONTENT_TYPES = frozenset(
    f"video/{name}"
    for name in ("mp4", "quicktime", "webm", "x-matroska", "x-msvideo", "mp2t", "ogg")
)


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One decoded clip: `Model.predict` gets a list of these."""

    frames: np.ndarray  # uint8 (n, height, width, 3), RGB
    fps: float  # frames a second
    params: ParamsT


def decode(upload: Upload[ParamsT]) -> list[Input[ParamsT]]:
    """Return one `Input` for each file of the request. Raises BadInput."""
    return [Input(*decode_video(file), upload.params) for file in upload.files]


def decode_video(file: bytes) -> tuple[np.ndarray, float]:
    """Return an encoded clip's frames and frame rate, decoding no more than is taken."""
    import av

    frames: list[np.ndarray] = []
    pixels = 0
    try:
        with av.open(BytesIO(file), "r", options=OPTIONS, metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 25)
            if stream.width * stream.height > MAX_PIXELS:
                raise BadInput(TOO_LONG)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for frame in container.decode(stream):
                pixels += frame.width * frame.height
                if len(frames) == MAX_FRAMES or pixels > MAX_PIXELS:
                    raise BadInput(TOO_LONG)
                frames.append(frame.to_ndarray(format="rgb24"))
        return np.stack(frames), fps
    except av.FFmpegError as error:  # a MemoryError too: what is broken may declare any size
        raise BadInput(UNREADABLE) from error
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # whatever a broken file makes the decoder raise
        raise BadInput(UNREADABLE) from error
