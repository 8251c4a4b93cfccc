"""What the model takes: the clip of a request, decoded as inference.py declares."""

import logging
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL
from io import BytesIO
from itertools import chain
from mimetypes import guess_extension
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel

from serving.errors import BadInput
from serving.settings import settings
from serving.threads import NUM_THREADS

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

MAX_FRAMES = settings.max_frames
MAX_PIXELS = settings.max_pixels  # of one frame as it was sent, and of all that the model gets
TOO_LONG = f"More than the {MAX_FRAMES} frames or {MAX_PIXELS} pixels that are taken."
MAX_DECODED = 100  # frames to decode for each one that may be taken, and pixels
MAX_THREADS = 4  # of the decoder; each holds a frame
UNREADABLE = (
    "No readable MP4, QuickTime, WebM, AVI, MPEG-TS or Ogg clip: "
    "it is of another format, or too damaged."
)
NO_DECODER = "There is no decoder for the codec of this clip: convert it, to H.264 for one."
FRAMES_PER_SECOND = 25  # of a clip that does not say

# Containers that reach for other files or addresses (playlists, say) are not among these.
OPTIONS = {"format_whitelist": "mov,matroska,avi,mpegts,ogg", "max_pixels": str(MAX_PIXELS)}
SUBTYPES = ("mp4", "quicktime", "webm", "x-matroska", "x-msvideo", "mp2t", "ogg", "3gpp")

MAX_ERRORS = 1000  # of the decoder; the rest is then given up
MAX_BREAKS = 10  # in the container
MAX_PARTS = 2000  # of a form

ParamsT = TypeVar("ParamsT", bound=BaseModel)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it was sent."""

    content: bytes
    name: str | None = None  # without folders; None where the sender says none
    content_type: str | None = None  # as it was sent, such as "text/plain; charset=utf-8"

    @classmethod
    def sent(cls, content: bytes, name: str | None, content_type: str | None) -> "Upload":
        """Return a file of which a header's bytes say the name, in UTF-8."""
        utf_8 = (name or "").encode("latin-1").decode(errors="replace")
        base = Path(utf_8).name
        return cls(content, None if base in ("", "..") else base, content_type or None)

    @contextmanager
    def path(self) -> Iterator[Path]:
        """Yield the path of a copy, whose suffix is the file's; the copy is gone afterwards."""
        found = re.search(r"(\.\w{1,16}){1,2}\Z", self.name or "", re.ASCII)
        essence = (self.content_type or "").partition(";")[0].strip()
        suffix = found[0] if found else guess_extension(essence) or ""
        with TemporaryDirectory() as folder:
            copy = Path(folder, f"file{suffix}")
            copy.write_bytes(self.content)
            yield copy


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One decoded clip: `Model.predict` gets a list of these."""

    frames: np.ndarray  # uint8 (n, height, width, 3), RGB, upright
    times: np.ndarray  # float64 (n,): when each frame is shown, in seconds from the start
    params: ParamsT
    warning: str = ""  # that not all of the file could be decoded
    sent: Upload | None = None  # None where a tensor came

    @property
    def file(self) -> Upload:
        """The file as it was sent. Raises BadInput where a tensor came."""
        if self.sent is None:
            raise BadInput("Send the file itself: the model reads it, and takes no tensor.")
        return self.sent


@dataclass(frozen=True)
class Decoder:
    """What the model wants of a clip; inference.py declares it."""

    several: ClassVar[bool] = False  # whether a request carries a list of them
    content_types = frozenset(f"video/{name}" for name in SUBTYPES)
    # What may be meant for a clip too; its content tells.
    media_types = ("video/", "application/ogg", "application/mp4", "application/x-matroska")
    field: str = "file"  # the form field that carries the clip
    fps: float | None = None  # frames a second to take at most; None takes all there are
    size: tuple[int, int] | None = None  # (width, height) of the frames; None keeps their shape
    max_side: int | None = None  # pixels that the longer side of a frame may have

    def decode(self, files: list[Upload], params: ParamsT) -> list[Input[ParamsT]]:
        """Return one `Input` for each file of the request. Raises BadInput."""
        return [self._decode_video(file, params) for file in files]

    def _decode_video(self, file: Upload, params: ParamsT) -> Input[ParamsT]:
        """Return what can be decoded of a clip, decoding no more than is taken."""
        import av

        lost: list[str] = []
        try:
            with av.open(
                BytesIO(file.content), "r", options=OPTIONS, metadata_errors="ignore"
            ) as container:
                stream = find_stream(container)
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                # By slices, most clips would be decoded on one thread, and damaged ones less well.
                stream.thread_type = "FRAME"
                stream.thread_count = min(NUM_THREADS, MAX_THREADS)
                timed = time_frames(decode_packets(container, stream, lost), stream)
                frames, times = self._take(timed)
        except av.FFmpegError as error:  # a MemoryError too: what is broken may declare any size
            raise BadInput(UNREADABLE) from error
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # whatever a broken file makes the decoder raise
            raise BadInput(UNREADABLE) from error
        return Input(frames, times, params, warn("clip", file.content, lost), file)

    def _take(self, timed: Iterable[tuple[float, "VideoFrame"]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames that the model wants, in its size and upright, and their times."""
        clip = np.empty((0, 0, 0, 3), np.uint8)
        times: list[float] = []
        last = None
        for time, frame in timed:
            place = time if self.fps is None else int(time * self.fps + 1e-6)
            if place == last:
                continue
            last = place
            if not times:
                is_turned, down, across = orientation_of(frame)
                width, height = self._size(frame, is_turned=is_turned)
                shape = (width, height) if is_turned else (height, width)
                # Memory is not taken before it is written to.
                room = min(MAX_FRAMES, MAX_PIXELS // (width * height))
                clip = np.empty((room, *shape, 3), np.uint8)
            if len(times) == len(clip):
                raise BadInput(TOO_LONG)
            pixels = frame.to_ndarray(
                format="rgb24", width=width, height=height, interpolation="AREA"
            )
            upright = pixels.swapaxes(0, 1) if is_turned else pixels
            clip[len(times)] = upright[::down, ::across]
            times.append(time)
        if not times:
            raise BadInput(UNREADABLE)
        return clip[: len(times)], np.array(times)

    def _size(self, frame: "VideoFrame", *, is_turned: bool) -> tuple[int, int]:
        """Return width and height to scale a frame to before it is turned."""
        if self.size:
            return self.size[::-1] if is_turned else self.size
        scale = min(1.0, (self.max_side or math.inf) / max(frame.width, frame.height))
        return max(1, round(frame.width * scale)), max(1, round(frame.height * scale))


def find_stream(container: "InputContainer") -> "VideoStream":
    """Return the stream of the clip; a cover picture is none. Raises BadInput."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if not stream.codec_context:
                raise BadInput(NO_DECODER)
            if stream.width * stream.height > MAX_PIXELS:
                raise BadInput(TOO_LONG)
            return stream
    raise BadInput("The file has no moving pictures.")


def time_frames(
    frames: Iterable["VideoFrame"], stream: "VideoStream"
) -> Iterator[tuple[float, "VideoFrame"]]:
    """Yield frames with their seconds from the clip's start. Raises BadInput for too many."""
    rate = stream.average_rate or stream.guessed_rate or FRAMES_PER_SECOND
    is_avi = stream.container.format.name == "avi"  # which has an order, and no times
    start = None if is_avi else stream.start_time
    time, pixels = 0.0, 0
    for number, frame in enumerate(frames):
        pixels += frame.width * frame.height
        if number >= MAX_FRAMES * MAX_DECODED or pixels > MAX_PIXELS * MAX_DECODED:
            raise BadInput(TOO_LONG)
        stamp = frame.dts if is_avi else frame.pts
        if stamp is not None and stream.time_base:
            start = stamp if start is None else start
            time = float((stamp - start) * stream.time_base)
        elif number:
            time += float(1 / rate)
        yield time, frame


def orientation_of(frame: "VideoFrame") -> tuple[bool, int, int]:
    """Return how a frame stands upright: whether rows are columns, the steps down and across."""
    # The matrix takes (x, y) to (a x + c y, b x + d y), as the container says.
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    a, b, _, c, d = (1, 0, 0, 0, 1) if matrix is None else np.frombuffer(matrix, np.int32)[:5]
    is_turned = abs(b) > abs(a)
    across, down = (c, b) if is_turned else (a, d)
    return is_turned, -1 if down < 0 else 1, -1 if across < 0 else 1


def decode_packets(
    container: "InputContainer", stream: "VideoStream", lost: list[str]
) -> Iterator["VideoFrame"]:
    """Yield what can be decoded of a stream, and note what cannot: it does not end the rest."""
    import av

    packets = (packet for packet in read_packets(container, stream, lost) if packet.size)
    for packet in chain(packets, [None]):  # an empty one would mean the end, as None does
        try:
            yield from stream.decode(packet)
        except av.FFmpegError as error:
            if error.errno == EINVAL:  # a frame of more than max_pixels
                raise BadInput(TOO_LONG) from error
            lost.append(str(error))
        if len(lost) > MAX_ERRORS:
            return


def read_packets(
    container: "InputContainer", stream: "VideoStream", lost: list[str]
) -> Iterator["Packet[VideoStream]"]:
    """Yield a stream's packets; reading goes on behind what is broken, where it can."""
    import av

    for _ in range(MAX_BREAKS):
        try:
            yield from container.demux(stream)
        except av.FFmpegError as error:
            lost.append(str(error))
        else:
            return


def warn(what: str, file: bytes, lost: list[str]) -> str:
    """Return, and log, that not all of a file could be decoded; "" where all was."""
    if lost:
        warning = f"The {what} is damaged or cut off: {len(lost)} of its parts cannot be decoded."
        logger.warning("%s The first: %s", warning, lost[0])
    elif lacks_end(file):
        warning = f"The {what} is cut off: the file says that it is longer."
        logger.warning(warning)
    else:
        warning = ""
    return warning


# Where formats say how long the file is, counted from the end of the match or a bit before.
LENGTHS: tuple[tuple[bytes, Literal["little", "big"]], ...] = (
    (rb"RIFF(.{4})", "little"),  # WAV, AVI
    (rb"(?=riff.{12}(.{8}))", "little"),  # W64
    (rb"FORM(.{4})", "big"),  # AIFF
    (rb"\.snd.{4}(.{4})", "big"),  # AU
    (rb"caff.{,9999}?data(.{8})", "big"),  # CAF
    (rb".{,99}?\x18\x53\x80\x67\x01(.{7})", "big"),  # Matroska, WebM
    # Of an MP3 its encoder may put the number of frames and of bytes first.
    (rb"(?:ID3|\xff).{,999999}?(?:Xing|Info)\0{3}[\3\7\x0b\x0f].{4}(.{4})", "big"),
)


def lacks_end(file: bytes) -> bool:
    """Tell whether a file is shorter than it says; not all formats do.

    What was written into a pipe says that it has no size, or the largest that there can be.
    """
    if file.startswith(b"OggS"):
        last = file.rindex(b"OggS")
        return not file[last + 5 : last + 6] > b"\3"  # the flag of a stream's last page
    for pattern, order in LENGTHS:
        if said := re.match(pattern, file, re.DOTALL):
            return len(file) + 64 < said.end() + int.from_bytes(said[1], order) < 2**31 - 2**16
    return False
