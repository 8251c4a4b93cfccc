"""What the model takes: the clip of a request, decoded as inference.py declares."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import numpy as np
from pydantic import BaseModel

from serving.errors import BadInput
from serving.settings import settings

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.filter import Graph

MAX_FRAMES = settings.max_frames
MAX_PIXELS = settings.max_pixels  # of all frames together
TOO_LONG = f"More than the {MAX_FRAMES} frames or {MAX_PIXELS} pixels that are taken."
MAX_DECODED = 100  # frames to decode for each one that is taken
UNREADABLE = "No readable MP4, QuickTime, WebM, AVI, MPEG-TS or Ogg clip."

# Containers that reach for other files or addresses (playlists, say) are not among these.
OPTIONS = {"format_whitelist": "mov,matroska,avi,mpegts,ogg", "max_pixels": str(MAX_PIXELS)}
CONTENT_TYPES = frozenset(
    f"video/{name}"
    for name in ("mp4", "quicktime", "webm", "x-matroska", "x-msvideo", "mp2t", "ogg")
)

MAX_PARTS = 2000  # of a form

ParamsT = TypeVar("ParamsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One decoded clip: `Model.predict` gets a list of these."""

    frames: np.ndarray  # uint8 (n, height, width, 3), RGB
    fps: float  # frames a second
    params: ParamsT


@dataclass(frozen=True)
class Decoder:
    """What the model wants of a clip; inference.py declares it."""

    several: ClassVar[bool] = False  # whether a request carries a list of them
    field: str = "file"  # the form field that carries the clip
    fps: int | None = None  # frames a second to take; None takes all there are
    size: tuple[int, int] | None = None  # (width, height) of the frames; None leaves them as sent

    def decode(self, files: list[bytes], params: ParamsT) -> list[Input[ParamsT]]:
        """Return one `Input` for each file of the request. Raises BadInput."""
        return [Input(*self._decode_video(file), params) for file in files]

    def _decode_video(self, file: bytes) -> tuple[np.ndarray, float]:
        """Return an encoded clip's frames and frame rate, decoding no more than is taken."""
        import av

        frames: list[np.ndarray] = []
        pixels = 0
        try:
            with av.open(
                BytesIO(file), "r", options=OPTIONS, metadata_errors="ignore"
            ) as container:
                stream = container.streams.video[0]
                if stream.width * stream.height > MAX_PIXELS:
                    raise BadInput(TOO_LONG)
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                for frame in self._sample(container.decode(stream), stream):
                    pixels += frame.width * frame.height
                    if len(frames) == MAX_FRAMES or pixels > MAX_PIXELS:
                        raise BadInput(TOO_LONG)
                    frames.append(frame.to_ndarray(format="rgb24"))
                return np.stack(frames), float(self.fps or stream.average_rate or 25)
        except av.FFmpegError as error:  # a MemoryError too: what is broken may declare any size
            raise BadInput(UNREADABLE) from error
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # whatever a broken file makes the decoder raise
            raise BadInput(UNREADABLE) from error

    def _sample(
        self, frames: Iterator["VideoFrame"], stream: "VideoStream"
    ) -> Iterator["VideoFrame"]:
        """Yield the frames at the wanted rate, in the wanted size."""
        if self.fps is None and self.size is None:
            yield from frames
            return
        import av

        graph = av.filter.Graph()
        steps = [graph.add_buffer(template=stream)]
        if self.fps is not None:
            steps.append(graph.add("fps", str(self.fps)))
        if self.size is not None:
            steps.append(graph.add("scale", f"{self.size[0]}:{self.size[1]}"))
        graph.link_nodes(*steps, graph.add("buffersink")).configure()
        for decoded, frame in enumerate(frames, start=1):
            if decoded > MAX_FRAMES * MAX_DECODED:
                raise BadInput(TOO_LONG)
            graph.vpush(frame)
            yield from _pull(graph)
        graph.vpush(None)
        yield from _pull(graph)


def _pull(graph: "Graph") -> Iterator["VideoFrame"]:
    """Yield what a filter graph has ready."""
    with suppress(BlockingIOError, EOFError):
        while True:
            yield graph.vpull()
