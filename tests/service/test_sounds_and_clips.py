"""Recordings and clips as people send them: damaged, turned, chained, of odd rates and names."""

import re
import struct
import wave
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from io import BytesIO
from pathlib import Path
from textwrap import indent
from typing import Any

import httpx
import pytest

from tests.support.environments import run
from tests.support.live import Live, live
from tests.support.rendering import render
from tests.support.updating import python
from tests.support.variants import ROOT

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("sounds-and-clips")

CASES = ROOT / "tests" / "support" / "cases"
WARNING = "X-Input-Warning"

# Run in a service's environment: for each format half a second of a soft A5, then of an A4; clips
# that are black but for a white corner at the top left, and white from half on.
MAKE = """
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SOUNDS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "opus": "libopus", "m4a": "aac",
          "aac": "aac", "mkv": "flac", "aiff": "pcm_s16be", "caf": "pcm_s16le", "au": "pcm_s16be",
          "amr": "libopencore_amrnb", "w64": "pcm_s16le", "ogg": "flac", "wma": "wmav2",
          "low.mp3": "libmp3lame", "stereo.opus": "libopus", "stereo.ogg": "flac"}
FORMS = {"opus": "ogg", "m4a": "mp4", "aac": "adts", "mkv": "matroska", "wma": "asf"}
RATES = {"amr": 8000, "low.mp3": 16000, "stereo.ogg": 44100}
folder = Path(sys.argv[1])

def sound(name, codec, rate, layout):
    suffix = name.rpartition(".")[2]
    form = FORMS.get(suffix, suffix)
    with av.open(str(folder / f"sound.{name}"), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 12200 if suffix == "amr" else 64000
        wanted = stream.codec_context.format.name
        time = np.arange(rate) / rate
        tone = np.where(time < 0.5, np.sin(5530 * time) / 50, np.sin(880 * np.pi * time) / 3)
        size = 1024 if suffix == "wma" else rate
        for at in range(0, rate - size + 1, size):
            part = (tone[at : at + size] * 32767).astype(np.int16)
            samples = np.repeat(part, 2)[None] if layout == "stereo" else part[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            if suffix == "wma":
                for ready in av.AudioResampler(format=wanted).resample(frame):
                    container.mux(stream.encode(ready))
            else:
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

def clip(name, codec, turn=None, times=None, options={}):
    with av.open(str(folder / f"clip.{name}"), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if turn:
            stream.set_display_rotation(*turn)
        for number in range(20):
            pixels = np.full((48, 64, 3), 0 if number < 10 else 255, dtype=np.uint8)
            pixels[:24, :32] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

for name, codec in SOUNDS.items():
    layout = "stereo" if "stereo" in name else "mono"
    sound(name, codec, RATES.get(name, 48000), layout)
for turn in [(90,), (180,), (270,), (0, True), (0, False, True), (90, True), (90, False, True)]:
    clip(f"{'-'.join(str(int(part)) for part in turn)}.mov", "libx264", turn)
for suffix, codec in {"mp4": "libx264", "mkv": "libx264", "avi": "libx264", "ts": "libx264",
                      "webm": "libvpx", "mjpeg.avi": "mjpeg"}.items():
    clip(suffix, codec)
clip("fast.mp4", "libx264", options={"movflags": "faststart"})
slow = [*range(0, 5000, 500), *range(7000, 8000, 100)]
clip("rate.mkv", "libx264", times=slow)
clip("rate.mp4", "libx264", times=slow)

# A recording and a clip with covers; FFmpeg knows them by a mark of their stream.
def cover(source, name, first):
    with av.open(str(folder / name), "w") as container, av.open(str(folder / source)) as taken:
        picture = container.add_stream("mjpeg", rate=1) if first else None
        stream = container.add_stream_from_template(taken.streams[0])
        picture = picture or container.add_stream("mjpeg", rate=1)
        picture.width = picture.height = 1400
        picture.pix_fmt = "yuvj420p"
        picture.disposition = 1024
        frame = av.VideoFrame.from_ndarray(np.zeros((1400, 1400, 3), np.uint8), format="rgb24")
        packets = picture.encode(frame.reformat(format="yuvj420p")) + picture.encode(None)
        if first:
            container.mux(packets)
        for packet in taken.demux(taken.streams[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
        if not first:
            container.mux(packets)

cover("sound.mp3", "sound.cover.mp3", False)
cover("sound.m4a", "sound.cover.mp4", False)
cover("clip.mp4", "clip.cover.mp4", True)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recording or a clip of each kind."""
    folder = tmp_path_factory.mktemp("files")
    run([python(), "-c", MAKE, str(folder)])
    return folder


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a function that starts the stock service of an input kind, once."""
    with ExitStack() as stack:

        @cache
        def started(kind: str) -> Live:
            folder = tmp_path_factory.mktemp(kind)
            answers = {"model_type": "custom", "input_kind": kind, "endpoint": "infer"}
            project = render(folder / "service", answers)
            if kind == "video":
                (project / "inference.py").write_text(tells(project), encoding="utf-8")
            # How long a long clip takes is a matter of what else runs here.
            env = {"INFER_TIMEOUT_SECONDS": "600"}
            service = stack.enter_context(live(project, python(), folder / "log", **env))
            service.ready()
            return service

        yield started


def tells(project: Path) -> str:
    """Return the stock model of clips, which says what it got, too."""
    text = (project / "inference.py").read_text(encoding="utf-8")
    text = text.replace(
        '    """How much moves in the clip."""\n',
        '    """How much moves in the clip."""\n\n    shape: list[int] = []\n'
        "    corners: list[int] = []\n    times: list[float] = []\n",
    )
    found = "return [self._motion(item.frames, item.times) for item in inputs]"
    assert found in text
    return text.replace(
        found,
        "return [\n"
        "            self._motion(item.frames, item.times).model_copy(update={\n"
        '                "shape": item.frames.shape,\n'
        '                "corners": item.frames[0, 2::10_000, 2, 0].tolist() + '
        "item.frames[0, [2, -2, -2], [-2, 2, -2], 0].tolist(),\n"
        '                "times": item.times.round(3).tolist(),\n'
        "            })\n"
        "            for item in inputs\n"
        "        ]",
    )


@pytest.fixture
def audio(services: Any) -> Live:
    """Return the stock service of recordings."""
    service: Live = services("audio")
    return service


@pytest.fixture
def video(services: Any) -> Live:
    """Return the stock service of clips."""
    service: Live = services("video")
    return service


def send(service: Live, content: bytes, content_type: str = "") -> httpx.Response:
    """Send a file as the whole body."""
    headers = {"Content-Type": content_type or "application/octet-stream", "X-Request-ID": "me"}
    return service.client.post("/infer", content=content, headers=headers)


def is_a4(response: httpx.Response) -> bool:
    """Tell whether the answer is the note of the recordings."""
    assert response.status_code == 200, response.text
    return bool(response.json()["note"] == "A4")


@pytest.mark.parametrize("name", ["cut_80.flac", "zeros_tail.mp3", "mono_then_stereo.mp3"])
def test_damaged_recording(audio: Live, name: str) -> None:
    """What can be decoded is answered; the header and the log say that something is lost."""
    before = len(audio.log)
    response = send(audio, (CASES / "audio" / name).read_bytes())
    assert is_a4(response)
    assert response.headers[WARNING].startswith("The recording is damaged or cut off: 1 of its")
    assert re.search(rf"WARNING serving.inputs \[me\]: {response.headers[WARNING]}",
                     audio.log[before:])  # fmt: skip


@pytest.mark.parametrize("name", ["wav", "aiff", "au", "caf", "w64", "mp3", "low.mp3", "mkv"])
def test_cut_recording(audio: Live, files: Path, name: str) -> None:
    """So it is where a file is shorter than it says; a pipe's file says nothing."""
    content = (files / f"sound.{name}").read_bytes()
    response = send(audio, content[: len(content) * 8 // 10])
    assert is_a4(response)
    assert response.headers[WARNING] == "The recording is cut off: the file says that it is longer."
    if name == "wav":
        piped = content[:4] + b"\xff" * 4 + content[8:40] + b"\xff" * 4 + content[44:]
        assert WARNING not in send(audio, piped).headers


def test_documented_check(files: Path, tmp_path: Path) -> None:
    """The check of wrap-a-model.md rejects what is not whole."""
    answers = {"model_type": "custom", "input_kind": "audio", "endpoint": "infer"}
    project = render(tmp_path / "service", answers)
    page = (ROOT / "docs" / "how-to" / "wrap-a-model.md").read_text(encoding="utf-8")
    [check] = re.findall(r"```python\n(if item\.warning.*?)```", page, re.DOTALL)
    model = (project / "inference.py").read_text(encoding="utf-8")
    predict = "        return [self._loudest_note(item.samples) for item in inputs]\n"
    checked = indent("for item in inputs:\n" + indent(check, "    "), "        ") + predict
    model = model.replace(predict, checked).replace("import Decoder", "import BadInput, Decoder")
    (project / "inference.py").write_text(model, encoding="utf-8")
    with live(project, python(), tmp_path / "log") as service:
        service.ready()
        assert is_a4(send(service, (files / "sound.flac").read_bytes()))
        damaged = send(service, (CASES / "audio" / "cut_80.flac").read_bytes())
    assert damaged.status_code == 400
    assert damaged.json()["detail"].startswith("The recording is damaged or cut off")


SOUNDS = ["wav", "flac", "mp3", "opus", "m4a", "aac", "mkv", "aiff", "caf", "au", "amr", "w64",
          "ogg", "wma", "low.mp3", "stereo.opus", "stereo.ogg", "cover.mp3"]  # fmt: skip


@pytest.mark.parametrize("name", SOUNDS)
def test_recording(audio: Live, files: Path, name: str) -> None:
    """Every format is decoded whole, with a tag behind it too."""
    content = (files / f"sound.{name}").read_bytes()
    response = send(audio, content)
    assert is_a4(response)
    assert WARNING not in response.headers
    assert is_a4(send(audio, content + b"TAG" + b"Title".ljust(125)))


@pytest.mark.parametrize("name", ["flac", "mp3", "aac", "m4a", "wav", "aiff", "amr", "mkv"])
def test_hit_recording(audio: Live, files: Path, name: str) -> None:
    """Bytes that are wrong cost a part of the recording, and not what comes after them."""
    content = bytearray((files / f"sound.{name}").read_bytes())
    place = len(content) // 4
    content[place : place + 20] = b"\xa5" * 20
    assert is_a4(send(audio, bytes(content)))


@pytest.mark.parametrize(
    ("first", "second"), [("ogg", "stereo.ogg"), ("opus", "stereo.opus"), ("opus", "ogg")]
)
def test_chained_recording(audio: Live, files: Path, first: str, second: str) -> None:
    """A chain goes on with other rates, channels and codecs; a link that is broken is lost."""
    links = [(files / f"sound.{name}").read_bytes() for name in (first, second)]
    for chain in (links, links[::-1]):
        response = send(audio, b"".join(chain))
        assert is_a4(response)
        assert WARNING not in response.headers
        broken = send(audio, b"".join([chain[0], chain[1][:200]]))
        assert is_a4(broken)
        assert WARNING in broken.headers


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000, 96_000])
@pytest.mark.parametrize("samples", [1, 3, 20])
def test_short_recording(audio: Live, rate: int, samples: int) -> None:
    """A few samples are a recording, whatever the rate."""
    file = BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setparams((1, 2, rate, samples, "NONE", ""))
        recording.writeframes(struct.pack("<h", 9_000) * samples)
    assert send(audio, file.getvalue()).status_code == 200


def test_nothing_to_hear(audio: Live, files: Path) -> None:
    """Where nothing can be decoded, a sentence says why."""
    silent = send(audio, (files / "clip.mp4").read_bytes())
    assert (silent.status_code, silent.json()["detail"]) == (400, "The file has no sound.")
    damaged = (files / "sound.mp3").read_bytes()[:100]
    other = send(audio, damaged + bytes(5_000))
    assert other.status_code == 400
    assert "too damaged" in other.json()["detail"]


@pytest.mark.parametrize(
    "name",
    ["audio/x-m4a", "audio/m4a", "audio/vnd.wave", "audio/opus", "application/ogg", "audio/x-aiff",
     "video/mp4", "video/webm", "audio/x-wav", "binary/octet-stream"],
)  # fmt: skip
def test_names_of_recordings(audio: Live, files: Path, name: str) -> None:
    """The content counts, whatever a recording is called; what is none by its name is 415."""
    content = (files / "sound.m4a").read_bytes()
    assert is_a4(send(audio, content, name))
    form = {"file": ("note", content, name)}
    assert is_a4(audio.client.post("/infer", files=form))
    assert send(audio, content, "image/png").status_code == 415


def test_header_is_documented(audio: Live) -> None:
    """The OpenAPI document has the header beside the schema of the answer."""
    paths = audio.client.get("/openapi.json").json()["paths"]
    answer = paths["/infer"]["post"]["responses"]["200"]
    assert list(answer["headers"]) == [WARNING]
    assert "application/json" in answer["content"]


def test_damaged_clip(video: Live) -> None:
    """What can be decoded is answered; the header and the log say that something is lost."""
    before = len(video.log)
    response = send(video, (CASES / "video" / "damaged_fast.mp4").read_bytes())
    assert response.status_code == 200
    assert 36 <= len(response.json()["times"]) < 40
    assert response.headers[WARNING].startswith("The clip is damaged or cut off: ")
    assert "WARNING serving.inputs [me]: The clip is damaged" in video.log[before:]


def test_cut_clip(video: Live, files: Path) -> None:
    """A clip that is cut off is as long as what is there."""
    for name in ("fast.mp4", "ts", "webm", "mjpeg.avi"):
        content = (files / f"clip.{name}").read_bytes()
        response = send(video, content[: len(content) * 9 // 10])
        assert response.status_code == 200, name
        assert 1 < len(response.json()["times"]) < 20, name
        assert (WARNING in response.headers) == (name != "ts"), name


def test_turned_case(video: Live) -> None:
    """A clip of a phone stands upright."""
    for name, shape in (("plain", [20, 96, 128, 3]), ("rot90", [20, 128, 96, 3])):
        answer = send(video, (CASES / "video" / f"{name}.mp4").read_bytes()).json()
        assert answer["shape"] == shape


@pytest.mark.parametrize(
    ("name", "corner"),
    # Where the white corner comes to lie: top left, top right, bottom left, bottom right.
    [("mp4", 0), ("90.mov", 2), ("180.mov", 3), ("270.mov", 1), ("0-1.mov", 1), ("0-0-1.mov", 2),
     ("90-1.mov", 3), ("90-0-1.mov", 0)],
)  # fmt: skip
def test_turned_clip(video: Live, files: Path, name: str, corner: int) -> None:
    """A clip is turned and mirrored as its container says."""
    answer = send(video, (files / f"clip.{name}").read_bytes()).json()
    assert answer["shape"][1:3] == ([64, 48] if name.startswith(("90", "270")) else [48, 64])
    assert [value > 128 for value in answer["corners"]] == [place == corner for place in range(4)]


@pytest.mark.parametrize("name", ["mp4", "mkv", "avi", "ts", "webm", "mjpeg.avi", "fast.mp4"])
def test_times(video: Live, files: Path, name: str) -> None:
    """Each frame has its time, in containers that lack times too."""
    answer = send(video, (files / f"clip.{name}").read_bytes()).json()
    assert answer["times"] == pytest.approx([number / 10 for number in range(20)], abs=0.002)
    assert answer["busiest_second"] == pytest.approx(1.0, abs=0.01)


def test_variable_rate(video: Live, files: Path) -> None:
    """What happens is told at its own time, not at that of an even rate."""
    case = send(video, (CASES / "video" / "vfr.mp4").read_bytes()).json()
    assert case["busiest_second"] == pytest.approx(8.0, abs=0.01)
    for name in ("rate.mkv", "rate.mp4"):
        answer = send(video, (files / f"clip.{name}").read_bytes()).json()
        assert answer["busiest_second"] == pytest.approx(7.0, abs=0.01)
        assert len(answer["times"]) == 20


def test_cover_is_no_clip(video: Live, files: Path) -> None:
    """A recording with a cover is no clip; a clip with one is."""
    response = send(video, (files / "sound.cover.mp4").read_bytes())
    assert (response.status_code, response.json()["detail"]) == (
        400,
        "The file has no moving pictures.",
    )
    answer = send(video, (files / "clip.cover.mp4").read_bytes()).json()
    assert answer["shape"] == [20, 48, 64, 3]


@pytest.mark.parametrize(
    "name",
    ["video/x-m4v", "video/3gpp", "video/avi", "video/matroska", "video/x-matroska", "video/mp4",
     "application/mp4", "binary/octet-stream"],
)  # fmt: skip
def test_names_of_clips(video: Live, files: Path, name: str) -> None:
    """The content counts, whatever a clip is called; what is none by its name is 415."""
    content = (files / "clip.mkv").read_bytes()
    assert send(video, content, name).status_code == 200
    assert send(video, content, "audio/wav").status_code == 415


# A second of 1080p at 30 frames a second, as large as a phone's, and sixty times the same.
MAKE_MINUTE = """
import sys
from fractions import Fraction

import av
import numpy as np

chance = np.random.default_rng(0)
with av.open(sys.argv[1], "w") as container:
    stream = container.add_stream("libx264", rate=30)
    stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
    stream.options = {"preset": "ultrafast", "qp": "35", "x264-params": "keyint=30:bframes=0"}
    pictures = [
        av.VideoFrame.from_ndarray(
            chance.integers(0, 255, (34, 60, 3), dtype=np.uint8), format="rgb24"
        ).reformat(1920, 1080, "yuv420p")
        for _ in range(3)
    ]
    packets = []
    for number in range(30):
        frame = pictures[number % 3]
        frame.pts, frame.time_base = number, Fraction(1, 30)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    second = [(bytes(packet), packet.is_keyframe) for packet in packets]
    for number in range(1800):
        packet = av.Packet(second[number % 30][0])
        packet.stream, packet.time_base = stream, Fraction(1, 30)
        packet.pts = packet.dts = number
        packet.is_keyframe = second[number % 30][1]
        container.mux(packet)
"""


def test_minute_of_a_phone(services: Any, tmp_path: Path) -> None:
    """A minute of 1080p is answered by default, within a gigabyte."""
    file = tmp_path / "minute.mp4"
    run([python(), "-c", MAKE_MINUTE, str(file)])
    service: Live = services("video")
    with file.open("rb") as opened:
        response = service.client.post("/infer", files={"file": opened}, timeout=600)
    assert response.status_code == 200, response.text
    assert len(response.json()["times"]) == 1800
    assert response.json()["times"][-1] == pytest.approx(59.967, abs=0.002)
    assert 0 < service.peak_bytes < 1024 * 1_000_000
