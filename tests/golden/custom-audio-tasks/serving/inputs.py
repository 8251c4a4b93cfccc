"""What the model takes: the recording of a request, decoded as inference.py declares."""

import logging
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import chain, groupby, pairwise
from mimetypes import guess_extension
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel

from serving.errors import BadInput
from serving.settings import settings

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream, Packet
    from av.container import InputContainer
    from av.filter import Graph

MAX_AUDIO_SECONDS = settings.max_audio_seconds
UNREADABLE = (
    "No readable WAV, MP3, FLAC, Ogg, MP4, WebM, AAC, AIFF, CAF, AU, WMA or AMR recording: "
    "it is of another format, or too damaged."
)
NO_DECODER = "There is no decoder for the codec of this recording: convert it, to FLAC for one."

# Containers that reach for other files or addresses (playlists, say) are not among these.
# Pictures beside the sound are looked at too, but not large ones.
FORMATS = "wav,w64,mp3,flac,ogg,mov,matroska,aac,aiff,caf,au,asf,amr,avi,mpegts"
OPTIONS = {"format_whitelist": FORMATS, "max_pixels": "1000000"}
SUBTYPES = ("wav", "mpeg", "flac", "ogg", "mp4", "webm", "aac", "aiff", "x-caf", "basic")

MAX_ERRORS = 1000  # of the decoder; the rest is then given up
MAX_BREAKS = 10  # in the container
MAX_LINKS = 100  # of a chained Ogg file
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
    """One decoded recording: `Model.predict` gets a list of these."""

    samples: np.ndarray  # float32, -1 to 1: (n,), or (2, n) where the decoder keeps stereo
    sample_rate: int  # Hz
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
    """What the model wants of a recording; inference.py declares it."""

    several: ClassVar[bool] = False  # whether a request carries a list of them
    content_types = frozenset(f"audio/{name}" for name in (*SUBTYPES, "x-ms-wma", "amr"))
    # What may be meant for a recording too, be it beside pictures; its content tells.
    media_types = ("audio/", "video/", "application/ogg", "application/mp4")
    field: str = "file"  # the form field that carries the recording
    sample_rate: int = 16_000  # Hz; what most speech models take
    channels: Literal[1, 2] = 1  # 1 mixes to mono, 2 is stereo

    def decode(self, files: list[Upload], params: ParamsT) -> list[Input[ParamsT]]:
        """Return one `Input` for each file of the request. Raises BadInput."""
        return [self._decode_audio(file, params) for file in files]

    def _decode_audio(self, file: Upload, params: ParamsT) -> Input[ParamsT]:
        """Return what can be decoded of a recording, decoding no more than is taken."""
        lost: list[str] = []
        try:
            pieces = list(self._resample(decode_links(file.content, lost)))
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # whatever a broken file makes the decoder raise
            raise BadInput(UNREADABLE) from error
        if not pieces:
            raise BadInput(UNREADABLE if lost else "The recording has no samples.")
        recording = np.concatenate(pieces, axis=1)
        samples = recording[0] if self.channels == 1 else recording
        warning = warn("recording", file.content, lost)
        return Input(samples, self.sample_rate, params, warning, file)

    def _resample(self, frames: Iterable["AudioFrame"]) -> Iterator[np.ndarray]:
        """Yield the samples at the decoder's rate: a piece for each run of frames of one form."""
        import av

        seconds = 0.0
        for (rate, layout, form), run in groupby(frames, form_of):
            graph = av.filter.Graph()
            graph.link_nodes(
                graph.add_abuffer(None, rate, form, layout, time_base=Fraction(1, rate)),
                # Of less than its filter takes, the resampler would return nothing.
                graph.add("apad", pad_len=str(64 * math.ceil(rate / self.sample_rate))),
                graph.add("aresample", str(self.sample_rate)),
                graph.add("aformat", sample_fmts="fltp"),
                graph.add("abuffersink"),
            ).configure()
            samples = 0
            parts: list[np.ndarray] = []
            for frame in chain(run, [None]):
                if frame:
                    samples += frame.samples
                    # Before it is resampled: at a low rate a small file holds days.
                    if seconds + samples / rate > MAX_AUDIO_SECONDS:
                        raise BadInput(f"Longer than {MAX_AUDIO_SECONDS} s.")
                    frame.pts = None  # which jumps where something is lost
                graph.push(frame)
                parts += map(self._mix, pull(graph))
            seconds += samples / rate
            yield np.concatenate(parts, axis=1)[:, : math.ceil(samples * self.sample_rate / rate)]

    def _mix(self, samples: np.ndarray) -> np.ndarray:
        """Return as many channels as wanted: those that there are, or the mean of all.

        FFmpeg's own mix would change the loudness, beyond -1 to 1 where both channels are loud.
        """
        if len(samples) == self.channels:
            return samples
        return np.repeat(samples.mean(axis=0, keepdims=True), self.channels, axis=0)


def decode_links(file: bytes, lost: list[str]) -> Iterator["AudioFrame"]:
    """Yield a recording's frames; a chained Ogg file is several files, one behind the other."""
    import av

    for link in split_links(file):
        try:
            with av.open(
                BytesIO(link), "r", options=OPTIONS, metadata_errors="ignore"
            ) as container:
                stream = container.streams.best("audio")
                if not isinstance(stream, av.AudioStream):
                    raise BadInput("The file has no sound.")
                if not stream.codec_context:
                    raise BadInput(NO_DECODER)
                yield from decode_packets(container, stream, lost)
        except av.FFmpegError as error:  # a MemoryError too: what is broken may declare any size
            lost.append(str(error))


def split_links(file: bytes) -> list[bytes]:
    """Return the links of a chained Ogg file, or the file: FFmpeg reads few kinds of chains.

    A link begins with a page of each of its streams that says so.
    """
    if not file.startswith(b"OggS"):
        return [file]
    pages = [(page.start(), page[1] == b"\2") for page in re.finditer(rb"OggS\0([\0-\7])", file)]
    starts = [at for (_, first), (at, second) in pairwise(pages) if second and not first]
    return [file[a:b] for a, b in pairwise([0, *starts[:MAX_LINKS], len(file)])]


def form_of(frame: "AudioFrame") -> tuple[int, str, str]:
    """Return what may change inside a recording: sample rate, channels, format."""
    return frame.sample_rate, frame.layout.name, frame.format.name


def pull(graph: "Graph") -> Iterator[np.ndarray]:
    """Yield what a filter graph has ready."""
    with suppress(BlockingIOError, EOFError):
        while True:
            yield graph.pull().to_ndarray()


def decode_packets(
    container: "InputContainer", stream: "AudioStream", lost: list[str]
) -> Iterator["AudioFrame"]:
    """Yield what can be decoded of a stream, and note what cannot: it does not end the rest."""
    import av

    packets = (packet for packet in read_packets(container, stream, lost) if packet.size)
    for packet in chain(packets, [None]):  # an empty one would mean the end, as None does
        try:
            yield from stream.decode(packet)
        except av.FFmpegError as error:
            lost.append(str(error))
        if len(lost) > MAX_ERRORS:
            return


def read_packets(
    container: "InputContainer", stream: "AudioStream", lost: list[str]
) -> Iterator["Packet[AudioStream]"]:
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
