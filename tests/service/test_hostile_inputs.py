"""Hostile requests to a live service of each input kind: all are refused, and none does harm."""

import json
import random
import re
import select
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.environments import run
from tests.support.live import live, receive_all
from tests.support.malformed import MAKE_MEDIA, Malformed, corpus, pictures
from tests.support.rendering import render
from tests.support.updating import python
from tests.support.variants import choices, example_of, table

# Of what is taken as it is nothing is decoded (test_files.py).
KINDS = [kind for kind in choices("input_kind") if kind != "file"]
# The stock models' own examples are just within these.
LIMITS = {
    "MAX_UPLOAD_MB": "2",
    "MAX_PIXELS": "1000000",
    "MAX_AUDIO_SECONDS": "2",
    "MAX_FRAMES": "20",
    "INFER_TIMEOUT_SECONDS": "20",
}
# More than a decoder needs for what is within the limits, and less than any of the bombs takes.
TOLERATED_MB = 100
TYPES = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4"}
REFUSALS = {400, 413, 415, 422}

# Clips are made with the packages of the services: more frames than are taken, larger ones, ones
# that grow after a harmless start, and one so large that a look at its first frame costs memory.
MAKE_CLIPS = """
import sys
from io import BytesIO
from pathlib import Path

import av
from PIL import Image

def clip(name, codec, sizes, pixels="yuv420p"):
    with av.open(str(Path(sys.argv[1], name)), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = sizes[0]
        stream.pix_fmt = pixels
        for number, size in enumerate(sizes):
            if codec == "mjpeg":
                file = BytesIO()
                Image.new("L", size).save(file, "JPEG", quality=1)
                packet = av.Packet(file.getvalue())
                packet.stream, packet.pts, packet.dts = stream, number, number
                container.mux(packet)
            else:
                frame = av.VideoFrame(*size, format=pixels)
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                container.mux(stream.encode(frame))
        if codec != "mjpeg":
            container.mux(stream.encode(None))

clip("many-frames.mp4", "libx264", [(16, 16)] * 21)
clip("large-frames.mp4", "libx264", [(1100, 1100)] * 3)
clip("huge-frame.mp4", "libx264", [(8192, 8192)])
clip("growing.avi", "mjpeg", [(64, 64)] * 10 + [(8000, 8000)], "yuvj420p")
clip("growing-to-the-limit.avi", "mjpeg", [(64, 64)] * 3 + [(990, 990)] * 16, "yuvj420p")
"""


@dataclass
class Service:
    """A live service with small limits."""

    kind: str
    folder: Path
    process: subprocess.Popen[bytes]
    client: httpx.Client
    media: str = field(init=False)
    form_field: str = field(init=False)
    route: str = field(init=False)

    def __post_init__(self) -> None:
        """Look up what the kind of input means for a request."""
        row = table("input_kinds")[self.kind]
        self.media, self.form_field = row["media"], row["field"]
        self.route = f"/{row['endpoint']}"
        self.params = {"text": "a red picture"} if self.kind == "multimodal" else {}

    @property
    def log(self) -> str:
        """What the service has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def example(self) -> bytes:
        """The file of the real example."""
        name = example_of(self.kind)
        return (self.folder / name).read_bytes()

    def post(self, **request: Any) -> httpx.Response:
        """Send a request to the model."""
        return self.client.post(self.route, **request)

    def upload(
        self, content: bytes, content_type: str = "application/octet-stream", count: int = 1
    ) -> httpx.Response:
        """Send a file, by the form, so many times in one request."""
        files = [(self.form_field, ("upload", content, content_type))] * count
        return self.post(files=files, data=self.params)

    def send(self, content: bytes, content_type: str | None, **headers: str) -> httpx.Response:
        """Send a body as it is."""
        typed = {"Content-Type": content_type} if content_type is not None else {}
        return self.post(content=content, params=self.params, headers=typed | headers)

    @property
    def raw_example(self) -> tuple[bytes, str]:
        """The real example as a whole body, and its content type."""
        if self.media == "json":
            return b'{"values": [1, 2, 3, 4]}', "application/json"
        return self.example, TYPES[self.media]

    def post_example(self) -> httpx.Response:
        """Send the real example."""
        if self.media == "json":
            return self.post(json={"values": [1, 2, 3, 4]})
        return self.upload(self.example, TYPES[self.media])

    def megabytes(self, name: str) -> int:
        """Return how much memory its processes have (VmRSS), or had at their peaks (VmHWM)."""
        pid = self.process.pid
        children: list[str] = []
        for path in Path("/proc", str(pid), "task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
                children += path.read_text(encoding="utf-8").split()
        kilobytes = 0
        for process in (str(pid), *children):
            status = Path("/proc", process, "status").read_text(encoding="utf-8")
            kilobytes += int(re.findall(rf"{name}:\s+(\d+) kB", status)[0])
        return kilobytes // 1024


Start = Callable[[str, tuple[str, ...]], Service]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return a function that starts the service of an input kind and isolation, once."""
    stack = ExitStack()

    @cache
    def start(kind: str, isolation: tuple[str, ...]) -> Service:
        answers: dict[str, Any] = {"model_type": "custom", "input_kind": kind}
        answers["features"] = ["observability", *isolation]
        folder = render(tmp_path_factory.mktemp("hostile") / kind, answers)
        running = stack.enter_context(live(folder, python(), folder / "log", **LIMITS))
        service = Service(kind, folder, running.process, running.ready())
        service.post_example().raise_for_status()
        return service

    with stack:
        yield start


@pytest.fixture
def isolation() -> tuple[str, ...]:
    """Return the feature for a process of its own, where a test says so."""
    return ()


@pytest.fixture
def service(kind: str, isolation: tuple[str, ...], services: Start) -> Iterator[Service]:
    """Return the service of the kind; whatever a test does to it, it goes on as before.

    It keeps its memory, answers /health and the real example, and has logged no error.
    """
    running = services(kind, isolation)
    logged, peak = len(running.log), running.megabytes("VmHWM")
    yield running
    assert running.client.get("/health").status_code == 200
    assert running.post_example().status_code == 200
    news = running.log[logged:]
    assert not re.search(r'" 5\d\d|Traceback|ERROR|CRITICAL', news), news
    assert running.megabytes("VmHWM") - peak < TOLERATED_MB


def files_of(script: str, folder: Path) -> Path:
    """Run a script that writes files into a folder, and return the folder."""
    run([python(), "-c", script, str(folder)])
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with hostile clips."""
    return files_of(MAKE_CLIPS, tmp_path_factory.mktemp("clips"))


def cases(names: Callable[[str], Any], kinds: list[str] = KINDS) -> pytest.MarkDecorator:
    """Parametrize a test by input kind and by names, of which each kind has its own."""
    cells = [(kind, name) for kind in kinds for name in names(kind)]
    return pytest.mark.parametrize(
        ("kind", "name"),
        [
            pytest.param(kind, name, id=f"{kind}-{name}", marks=pytest.mark.xdist_group(kind))
            for kind, name in cells
        ],
    )


def every(kinds: list[str]) -> pytest.MarkDecorator:
    """Parametrize a test by input kind."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in kinds]
    )


def media_of(kind: str) -> str:
    """Return what the files of an input kind are."""
    return str(table("input_kinds")[kind]["media"])


FILE_KINDS = [kind for kind in KINDS if media_of(kind) != "json"]


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """Return a PNG file that declares a size, with the pixels of its first rows only."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0))
    text = chunk(b"zTXt", b"a\0\0" + extra) if extra else b""
    rows = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + header + text + rows + chunk(b"IEND", b"")


def picture(file_format: str, side: int) -> bytes:
    """Return a black square in a format."""
    file = BytesIO()
    Image.new("L", (side, side)).save(file, file_format)
    return file.getvalue()


def flac(sample_rate: int, blocks: int) -> bytes:
    """Return a recording of silence: 14 bytes for each block of 65,535 samples."""

    def checksum(data: bytes, polynomial: int, bits: int) -> int:
        value = 0
        for byte in data:
            value ^= byte << (bits - 8)
            for _ in range(8):
                value = (value << 1) ^ (polynomial if value >> (bits - 1) else 0)
                value &= (1 << bits) - 1
        return value

    length = 65_535
    shape = sample_rate << 44 | 15 << 36 | blocks * length  # one channel, 16 bits a sample
    parts = [b"fLaC\x80\0\0\x22", struct.pack(">HH6xQ16x", length, length, shape)]
    for number in range(blocks):
        header = b"\xff\xf8\x70\x08" + chr(number).encode() + struct.pack(">H", length - 1)
        frame = header + bytes([checksum(header, 0x07, 8)]) + b"\0\0\0"
        parts.append(frame + struct.pack(">H", checksum(frame, 0x8005, 16)))
    return b"".join(parts)


def wav(samples: int, declared: int | None = None) -> bytes:
    """Return a recording of silence at 16 kHz, which may declare another number of bytes."""
    size = 2 * samples if declared is None else declared
    header = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", min(size + 36, 2**32 - 1), b"WAVEfmt ", 16,
                         1, 1, 16_000, 32_000, 2, 16, b"data", size)  # fmt: skip
    return header + bytes(2 * samples)


def large(file_format: str) -> Callable[[Path], bytes]:
    """Return what makes a picture that is a little over MAX_PIXELS."""
    return lambda _: picture(file_format, 1100)


def clip(name: str) -> Callable[[Path], bytes]:
    """Return what reads a clip from their folder."""
    return lambda clips: (clips / name).read_bytes()


# Files that are over a limit, or no file of the kind at all: by media, made when they are sent.
FILES: dict[str, dict[str, Callable[[Path], bytes]]] = {
    "image": {
        "bomb.png": lambda _: png(50_000, 50_000),
        **{f"large.{name}": large(name) for name in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")},
        "picture.ppm": lambda _: b"P6 2 2 255\n" + bytes(12),
        "picture.svg": lambda _: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "picture.eps": lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
    },
    "audio": {
        "three-seconds.wav": lambda _: wav(48_000),
        "eleven-hours.flac": lambda _: flac(16_000, 10_000),
        "slow.flac": lambda _: flac(1, 1),
        "rather-slow.flac": lambda _: flac(8, 1),
        "empty.wav": lambda _: wav(0),
        "clip-without-sound.mp4": clip("many-frames.mp4"),
        "clip-with-a-huge-picture.mp4": clip("huge-frame.mp4"),
    },
    "video": {
        "many-frames.mp4": clip("many-frames.mp4"),
        "large-frames.mp4": clip("large-frames.mp4"),
        "huge-frame.mp4": clip("huge-frame.mp4"),
        "growing.avi": clip("growing.avi"),
        "growing-to-the-limit.avi": clip("growing-to-the-limit.avi"),
        "sound.wav": lambda _: wav(100),
    },
}
for made in FILES.values():
    made["random"] = lambda _: random.Random(1).randbytes(50_000)  # noqa: S311
    made["text"] = lambda _: b"Just some text.\n" * 50
    made["zeros"] = lambda _: bytes(50_000)


@cases(lambda kind: FILES[media_of(kind)], FILE_KINDS)
def test_hostile_file(service: Service, clips: Path, name: str) -> None:
    """What is over a limit, or no file of the kind, is 400 at once, with what is wrong with it."""
    content = FILES[service.media][name](clips)
    start = time.monotonic()
    for content_type in ("application/octet-stream", TYPES[service.media]):
        for response in (
            service.upload(content, content_type),
            service.send(content, content_type),
        ):
            assert response.status_code == 400, response.text
            assert isinstance(response.json()["detail"], str)
    assert time.monotonic() - start < 10


@every([kind for kind in KINDS if media_of(kind) == "audio"])
def test_longest_recording(service: Service) -> None:
    """A recording of exactly MAX_AUDIO_SECONDS is taken."""
    assert service.upload(wav(32_000)).status_code == 200


@every([kind for kind in KINDS if media_of(kind) == "image"])
def test_largest_picture(service: Service) -> None:
    """A picture of exactly MAX_PIXELS is taken."""
    assert service.upload(picture("PNG", 1000)).status_code == 200


@every(["image-batch"])
def test_many_pictures(service: Service) -> None:
    """Many pictures that are each within MAX_PIXELS take no more memory than one may."""
    assert service.upload(picture("PNG", 1000), count=400).status_code in {200, 400}


@every(FILE_KINDS)
def test_damaged_file(service: Service) -> None:
    """A file that is cut off, has wrong bytes, or is bloated inside, is answered or refused."""
    chance = random.Random(0)  # noqa: S311 -- the same damage in each run
    whole = service.example
    files = [whole[: len(whole) * tenths // 10] for tenths in range(1, 10)]
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 3, 30])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        files.append(bytes(damaged))
    if service.media == "image":
        jpeg = picture("JPEG", 300)
        files += [jpeg[: len(jpeg) // 2], png(100, 100, zlib.compress(bytes(100_000_000)))]
    if service.media == "audio":
        files += [wav(1000, 2**32 - 1), wav(1000, 1), wav(1000)[:30], flac(16_000, 1)[:-20]]
    for file in files:
        response = service.upload(file)
        assert response.status_code in {200, 400}, response.text


@every(FILE_KINDS)
def test_empty_file(service: Service) -> None:
    """An empty file is 400, and so is one empty file among others."""
    filled = (service.form_field, ("a", service.example))
    empty = (service.form_field, ("b", b""))
    for files in ([empty], [filled, empty]):
        response = service.post(files=files, data=service.params)
        assert (response.status_code, response.json()) == (400, {"detail": "Empty upload."})


@every(FILE_KINDS)
def test_playlist(service: Service) -> None:
    """A file that names other files or addresses is refused, and nothing is fetched for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a"
        example = example_of(service.kind)
        for target in (f"{address}.ts", "file:///etc/hostname", "/etc/hostname", example):
            for playlist in (
                f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
                f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n",
                f"ffconcat version 1.0\nfile '{target}'\n",
                f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
                f"v=0\ns={target}\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
                f'<svg xmlns:x="http://www.w3.org/1999/xlink"><image x:href="{target}"/></svg>',
            ):
                response = service.upload(playlist.encode(), TYPES[service.media])
                assert response.status_code == 400
                assert socket.gethostname() not in response.text
        assert select.select([server], [], [], 0.5)[0] == []


def part(name: str, content: bytes = b"a", more: str = "") -> bytes:
    """Return a part of a form whose boundary is "x"."""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + content + b"\r\n"


FORM = "multipart/form-data; boundary=x"
FILE = '; filename="a"'
# Bodies that no input kind takes, and their content types.
BODIES: dict[str, tuple[Callable[[str], bytes], str | None]] = {
    "no-type-not-utf8": (lambda _: b"\xff\xfe\xfd\x80", None),
    "empty-type": (lambda _: b"\xff\xfe\xfd\x80", ""),
    "odd-type": (lambda _: b"a", "a/b/c; ; =;charset="),
    "form-without-boundary": (lambda name: part(name, more=FILE) + b"--x--", "multipart/form-data"),
    "form-of-2000-fields": (lambda name: 2000 * part("a") + part(name, more=FILE) + b"--x--", FORM),
    "form-of-2000-files": (lambda name: 2000 * part(name, more=FILE) + b"--x--", FORM),
    "form-with-a-large-field": (lambda _: part("text", 2**20 * b"a" + b"a") + b"--x--", FORM),
    "form-with-another-boundary": (lambda name: part(name, more=FILE) + b"--x--", FORM + "y"),
    "form-without-end": (lambda name: part(name, more=FILE)[:-2], FORM),
    "form-without-names": (lambda _: b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n", FORM),
    "form-without-headers": (lambda _: b"--x\r\n\r\na\r\n--x--", FORM),
    "form-with-broken-headers": (lambda _: b"--x\r\n: a\r\nb\r\n\r\na\r\n--x--", FORM),
    "form-with-endless-header": (lambda _: b"--x\r\n" + 99_999 * b"a", FORM),
    "form-that-starts-wrong": (lambda _: b"\r\n-x\r\n\0\xff", FORM),
    "form-of-nothing": (lambda _: b"", FORM),
    "form-with-the-file-as-text": (lambda name: part(name) + b"--x--", FORM),
    "form-with-the-text-as-file": (lambda _: part("text", more=FILE) + b"--x--", FORM),
    "form-in-no-charset": (lambda name: part(name, b"\xff") + b"--x--", FORM + "; charset=nope"),
    "form-in-undefined": (lambda name: part(name) + b"--x--", FORM + "; charset=undefined"),
    "form-in-idna": (lambda name: part(name, b"xn--a") + b"--x--", FORM + "; charset=idna"),
    "form-in-hex": (lambda name: part(name, b"zz") + b"--x--", FORM + "; charset=hex"),
    "url-encoded-form": (lambda name: f"{name}=a&" .encode() * 5000,
                         "application/x-www-form-urlencoded"),
    "gzip-bomb": (lambda _: zlib.compress(bytes(100_000_000), wbits=31), None),
    "over-the-limit": (lambda _: bytes(2 * 1024 * 1024 + 1), "application/octet-stream"),
}  # fmt: skip


@cases(lambda _: BODIES)
def test_odd_body(service: Service, name: str) -> None:
    """A body that makes no sense is a 4xx, with JSON that says why."""
    make, content_type = BODIES[name]
    headers = {"Content-Encoding": "gzip"} if "gzip" in name else {}
    response = service.send(make(service.form_field), content_type, **headers)
    assert response.status_code in REFUSALS, response.text
    assert response.json()["detail"]


@every(KINDS)
def test_content_type_in_capitals(service: Service) -> None:
    """Content types are compared without case and parameters."""
    if service.media == "json":
        response = service.send(b'{"values": [1, 2, 3, 4]}', "Application/JSON; Charset=UTF-8")
    else:
        response = service.send(service.example, f"{TYPES[service.media].upper()} ; Q=1")
    assert response.status_code == 200


@every(FILE_KINDS)
def test_field_given_twice(service: Service) -> None:
    """Of files and fields that come twice the last one counts; in a batch each file does."""
    batch = service.kind == "image-batch"
    contents = [service.example if batch else b"no file of the kind", service.example]
    files = [(service.form_field, ("a", content)) for content in contents]
    params = {name: ["nothing", value] for name, value in service.params.items()}
    response = service.post(files=files, data=params | {"other": ["a", "b"]})
    once = service.post_example().json()
    expected = {"outputs": 2 * once["outputs"]} if batch else once
    assert (response.status_code, response.json()) == (200, expected)


@every(["image-params"])
@pytest.mark.parametrize("value", ["-1", "1e999", "nan", "9" * 5000, "\0", "\ud800", "[]"])
def test_hostile_field(service: Service, value: str) -> None:
    """A form field that is no valid value is 422 with its name, in the form and in the query."""
    encoded = value.encode(errors="surrogatepass")
    form = part("top_k", encoded) + part("file", service.example, FILE) + b"--x--"
    query = "".join(f"%{byte:02x}" for byte in encoded)
    for response in (
        service.send(form, FORM),
        service.client.post(f"{service.route}?top_k={query}", content=service.example),
    ):
        assert response.status_code == 422, response.text
        assert response.json()["detail"][0]["loc"] == ["body", "top_k"]


@every(["multimodal"])
@pytest.mark.parametrize(
    "value", ["", "\0", "\ud800", "\u202e", "red\udfff", "a" * 1001, "a" * 60_000]
)
def test_hostile_text(service: Service, value: str) -> None:
    """A text that is too long, or no text at all, is a 4xx in the form and in the query."""
    encoded = value.encode(errors="surrogatepass")
    form = part("text", encoded) + part("file", service.example, FILE) + b"--x--"
    query = "".join(f"%{byte:02x}" for byte in encoded[:20_000])
    for response in (
        service.client.post(service.route, content=form, headers={"Content-Type": FORM}),
        service.client.post(f"{service.route}?text={query}", content=service.example),
    ):
        assert response.status_code in REFUSALS, response.text


@every(KINDS)
def test_hostile_query(service: Service) -> None:
    """Parameters that nobody asked for change nothing, however many or odd they are."""
    content, content_type = service.raw_example
    once = service.post_example().json()
    for query in (
        "&".join(f"a{number}" for number in range(5_000)),
        "a=" + 20_000 * "b",
        "%00=%ff&%ed%a0%80=%ed%a0%80&=&&&a[b]=1&__proto__=1&file=a&files=b",
    ):
        response = service.client.post(
            f"{service.route}?{query}&text=a+red+picture",
            content=content,
            headers={"Content-Type": content_type},
        )
        assert (response.status_code, response.json()) == (200, once)


@every(KINDS)
@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_no_content_encoding(service: Service, coding: str) -> None:
    """A body that says it is plain is taken; a packed one cannot be read."""
    content, content_type = service.raw_example
    plain = service.send(content, content_type, **{"Content-Encoding": coding})
    assert (plain.status_code, plain.json()) == (200, service.post_example().json())
    packed = service.send(zlib.compress(content), content_type, **{"Content-Encoding": coding})
    assert packed.status_code == 400, packed.text


@every(KINDS)
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x", "gzip, gzip"])
def test_content_encoding(service: Service, coding: str) -> None:
    """Nothing is unpacked, and the answer says so, whatever the body really is."""
    content, content_type = service.raw_example
    for body in (content, zlib.compress(content, wbits=31)):
        response = service.send(body, content_type, **{"Content-Encoding": coding})
        expected = f"Content-Encoding {coding} is not taken: send the body unpacked."
        assert (response.status_code, response.json()["detail"]) == (415, expected)


# Documents for the stock model of JSON, which wants {"values": [four numbers or more]}.
DOCUMENTS = {
    "not-a-number": b'{"values": [1, 2, 3, NaN]}',
    "infinity": b'{"values": [1, 2, 3, -Infinity]}',
    "too-large-for-a-float": b'{"values": [1, 2, 3, 1e999]}',
    "integer-of-10000-digits": b'{"values": [1, 2, 3, ' + 10_000 * b"9" + b"]}",
    "null": b"null",
    "scalar": b"1",
    "nested-lists": 100_000 * b"[",
    "nested-values": b'{"values": ' + 100_000 * b"[" + 100_000 * b"]" + b"}",
    "nested-objects": 100_000 * b'{"values":' + b"1" + 100_000 * b"}",
    "lone-surrogate": b'{"values": ["\\ud800"]}',
    "lone-surrogate-as-name": b'{"\\ud800": 1}',
    "not-utf8": b'{"values": "\xff"}',
    "utf16": '{"values": [1, 2, 3, 4]}'.encode("utf-16"),
    "byte-order-mark": '{"values": [1, 2, 3, 4]}'.encode("utf-8-sig"),
    "key-given-twice": b'{"values": [1, 2, 3, 4], "values": []}',
    "nested-in-an-unknown-key": b'{"values": [1, 2, 3, 4], "a": ' + 100_000 * b"[" + b"}",
    "lone-surrogate-in-an-unknown-key": b'{"values": [1, 2, 3, 4], "a": "\\udfff"}',
    "cut-off": b'{"values": [1, 2, 3',
    "more-than-one": b'{"values": [1, 2, 3, 4]}{}',
    "too-many-values": json.dumps({"values": [0] * 100_000}).encode(),
    "100000-mistakes": json.dumps({"values": ["a"] * 100_000}).encode(),
    "spaces": 2 * 1024 * 1024 * b" ",
    "over-the-limit": b'{"values": [1, 2, 3, 4]}' + 2 * 1024 * 1024 * b" ",
}


@cases(lambda _: DOCUMENTS, ["json"])
def test_hostile_document(service: Service, name: str) -> None:
    """What is no JSON, or no valid document, is a short 4xx; NaN is neither."""
    response = service.send(DOCUMENTS[name], "application/json")
    assert response.status_code == (413 if name == "over-the-limit" else response.status_code)
    assert response.status_code in REFUSALS, response.text
    assert response.json()["detail"]
    assert len(response.content) < 64 * 1024


@every(["json"])
def test_huge_numbers(service: Service) -> None:
    """Whatever numbers are taken, the answer is what the OpenAPI document promises: a number."""
    response = service.post(json={"values": [1e308, -1e308, 1e308, 1e308]})
    assert response.status_code in REFUSALS or isinstance(response.json()["next"], float)


# Requests whose length is not what they say, and which then close their side.
LENGTHS = {
    "shorter": b"Content-Length: 3",
    "longer": b"Content-Length: 1000",
    "none": b"X: y",
    "negative": b"Content-Length: -1",
    "no-number": b"Content-Length: many",
    "beyond-64-bits": b"Content-Length: 99999999999999999999999",
    "two-lengths": b"Content-Length: 3\r\nContent-Length: 4",
    "length-and-chunks": b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    "no-chunks": b"Transfer-Encoding: chunked",
}


@cases(lambda _: LENGTHS)
def test_wrong_length(service: Service, name: str) -> None:
    """A body of another length than declared is a 4xx, or not answered; nothing is logged of it."""
    request = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Type: %b\r\n%b\r\n\r\n%b"
    content_type = b"application/json" if service.media == "json" else FORM.encode()
    url = service.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
        body = part(service.form_field, b"not much", FILE)
        connection.sendall(request % (service.route.encode(), content_type, LENGTHS[name], body))
        connection.shutdown(socket.SHUT_WR)
        answer = receive_all(connection)
    assert all(400 <= int(status) < 500 for status in re.findall(rb"HTTP/1.1 (\d+)", answer))


@every(KINDS)
def test_memory_after_200_bombs(service: Service, clips: Path) -> None:
    """200 bombs later the service has the memory that it had."""
    bombs = {
        "image": [png(50_000, 50_000), picture("PNG", 3000), picture("JPEG", 3000)],
        "audio": [flac(16_000, 10_000), wav(500_000)],
        "video": [(clips / name).read_bytes() for name in ("many-frames.mp4", "large-frames.mp4")],
        "json": [DOCUMENTS[name] for name in ("nested-values", "too-many-values", "spaces")],
    }[service.media]
    before = service.megabytes("VmRSS")
    for number in range(200):
        bomb = bombs[number % len(bombs)]
        sent = service.send(bomb, "application/json") if service.media == "json" else None
        assert (sent or service.upload(bomb)).status_code in REFUSALS
    assert service.megabytes("VmRSS") - before < TOLERATED_MB


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recording or a clip of each container."""
    return files_of(MAKE_MEDIA, tmp_path_factory.mktemp("media"))


def bases(service: Service, media: Path) -> dict[str, bytes]:
    """Return the sound files that damaged ones are made of, by name."""
    if service.media == "image":
        return pictures()
    files = media.glob("sound.*" if service.media == "audio" else "clip.*")
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("isolation", [(), ("isolation",)], ids=["thread", "process"])
@every(KINDS)
def test_corpus(service: Service, media: Path) -> None:
    """More than 500 broken files and bombs are refused or answered, and leave no memory behind.

    They come over four connections; /health answers all the time.
    """
    valid = b'{"values": [1, 2, 3, 4]}' if service.media == "json" else service.example
    sound = bases(service, media)
    files = corpus(service.media, service.form_field, service.params, sound, valid)
    assert len(files) > 500
    assert len({file.content for file in files}) > 500
    # Whether what is broken is refused would show nothing if what is sound were refused too.
    for content in sound.values() if service.media != "json" else ():
        assert service.upload(content).status_code == 200
    before = service.megabytes("VmRSS")

    def send(share: list[Malformed]) -> list[str]:
        unexpected = []
        with httpx.Client(base_url=service.client.base_url, timeout=60) as client:
            for number, file in enumerate(share):
                response = client.post(
                    service.route,
                    content=file.content,
                    params=service.params,
                    headers={"Content-Type": file.content_type},
                )
                answered = response.status_code == 200 or "detail" in response.json()
                if response.status_code not in REFUSALS | {200} or not answered:
                    unexpected.append(f"{file.name}: {response.status_code} {response.text[:200]}")
                if number % 20 == 0 and client.get("/health").elapsed.total_seconds() > 5:
                    unexpected.append(f"/health was slow after {file.name}")
        return unexpected

    with ThreadPoolExecutor(4) as pool:
        unexpected = [
            text for texts in pool.map(send, [files[n::4] for n in range(4)]) for text in texts
        ]
    assert not unexpected
    service.post_example()
    assert service.megabytes("VmRSS") - before < TOLERATED_MB
