"""Batch jobs, as a user runs them: what is answered, and what a run leaves that was ended."""

import json
import os
import pty
import random
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import copy
from time import sleep
from typing import Any

import pytest

from tests.support.live import wait_for
from tests.support.rendering import render
from tests.support.scripted_model import HANG, WAIT_SECONDS, calls, make
from tests.support.updating import change, put_model, python

ANSWERED, UNFINISHED, USAGE, SOME_BAD = 0, 1, 2, 3
# Answers with what is sent: a picture for a picture, and the parameters.
MIRROR = '''"""Answers with the picture that is sent."""

from pydantic import BaseModel

from serving import Decoder, Input, Picture

MODEL_NAME = "mirror"
DECODER = Decoder()


class Params(BaseModel):
    turns: int = 0


class Output(Picture):
    turns: int


EXAMPLE = {"FIELD": EXAMPLES}


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [Output.of(item.image, turns=item.params.turns) for item in inputs]
'''


# Runs the command for each pair of paths in one process, and tells how each ended.
EACH = """
import contextlib, io, json, sys
from serving.batch import main

ends = []
for paths in json.load(sys.stdin):
    sys.argv = ["batch", *paths]
    with contextlib.redirect_stderr(io.StringIO()) as text:
        try:
            main()
        except SystemExit as end:
            ends.append([end.code, text.getvalue()])
print(json.dumps(ends))
"""

# Answers with a text as a file.
LISTENER = '''"""Hears recordings."""

from pydantic import BaseModel

from serving import Decoder, File, Input

MODEL_NAME = "listener"
DECODER = Decoder()


class Params(BaseModel):
    pass


Output = File
EXAMPLE = {"file": "example.wav"}


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [File(content_type="text/plain; charset=utf-8", data=b"Heard.") for _ in inputs]
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service whose model runs what a request says, and does so in batches."""
    folder = tmp_path_factory.mktemp("scripted") / "service"
    return make(folder, features=["observability", "batching", "batch-jobs"])


@pytest.fixture
def lines(project: Path, tmp_path: Path) -> Path:
    """Return where the input is to be; no call is made yet."""
    for name in ("calls", "hang", "broken"):
        (project / name).unlink(missing_ok=True)
    return tmp_path / "input.jsonl"


def command(*paths: Path) -> list[str]:
    """Return the command for an input and an output."""
    return [python(), "-m", "serving.batch", *map(str, paths)]


def run(project: Path, *paths: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a job to its end; the warm-up makes no call."""
    env = os.environ | {"WARMUP": "0"} | env
    return subprocess.run(
        command(*paths), cwd=project, env=env, capture_output=True, text=True, check=False
    )


@contextmanager
def started(project: Path, *paths: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Start a job, and leave nothing running."""
    env = os.environ | {"WARMUP": "0"} | env
    with subprocess.Popen(
        command(*paths), cwd=project, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def write(file: Path, orders: list[str]) -> None:
    """Write an input whose lines have these orders, and their numbers."""
    documents = [{"number": number, "orders": text} for number, text in enumerate(orders, 1)]
    file.write_text("".join(f"{json.dumps(document)}\n" for document in documents), "utf-8")


def read(output: Path) -> list[dict[str, Any]]:
    """Return the lines of an output, each of which has to be whole."""
    text = output.read_text(encoding="utf-8") if output.exists() else ""
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def size_of(output: Path) -> int:
    """Return how much is written."""
    return output.stat().st_size if output.exists() else 0


def grows(output: Path, size: int) -> bool:
    """Tell whether more than this is written."""
    return size_of(output) > size


def numbers(project: Path) -> list[int]:
    """Return the numbers of all inputs that the model got."""
    return [number for call in calls(project) for number in call]


def test_lines(project: Path, lines: Path, tmp_path: Path) -> None:
    """Each line has its answer, or the error of a request like it; empty ones have none."""
    output = tmp_path / "answers" / "output.jsonl"
    lines.write_bytes(
        b'{"number": 1}\n\n  {"number": 2}\r\n{"number": "no"}\nno JSON\n{"orders": "\xff"}\n'
        b'{"number": 3, "orders": "from serving import BadInput; raise BadInput(\'Not this.\')"}\n'
        b'{"number": 4}'
    )
    done = run(project, lines, output)
    assert done.returncode == SOME_BAD, done.stderr
    rows = read(output)
    assert [row["input"] for row in rows] == [1, 3, 4, 5, 6, 7, 8]
    assert [row.get("status") for row in rows] == [None, None, 422, 400, 400, 400, None]
    assert [rows[place]["output"]["number"] for place in (0, 1, 6)] == [1, 2, 4]
    assert rows[2]["detail"][0]["loc"] == ["body", "number"]
    assert rows[5] == {"input": 7, "status": 400, "detail": "Not this."}
    assert "Input 7: 400, Not this." in done.stderr
    assert "Of 7 inputs 3 are answered, 4 bad, 0 failed, 0 left" in done.stderr

    before, asked = output.read_bytes(), numbers(project)
    again = run(project, lines, output)
    assert again.returncode == SOME_BAD
    assert (output.read_bytes(), numbers(project)) == (before, asked)


def test_batches(project: Path, lines: Path, tmp_path: Path) -> None:
    """As many lines as MAX_BATCH_SIZE allows go into one call, and the output is in their order."""
    write(lines, ["time.sleep(0.01)"] * 41)
    done = run(project, lines, tmp_path / "output.jsonl", MAX_BATCH_SIZE="8")
    assert done.returncode == ANSWERED, done.stderr
    assert max(map(len, calls(project))) == 8
    assert len(calls(project)) <= 8
    assert numbers(project) == [*range(1, 42)]
    assert [row["output"]["number"] for row in read(tmp_path / "output.jsonl")] == [*range(1, 42)]


def test_killed(project: Path, lines: Path, tmp_path: Path) -> None:
    """However often it is killed: in the end each line is there once, and little is done twice."""
    write(lines, ["time.sleep(0.01)"] * 200)
    output, kills = tmp_path / "output.jsonl", 3
    chance = random.Random(5)  # noqa: S311
    for _ in range(kills):
        size = size_of(output)
        with started(project, lines, output, MAX_BATCH_SIZE="4") as process:
            wait_for(partial(grows, output, size), seconds=WAIT_SECONDS)
            sleep(chance.random() / 4)
            process.kill()
    with output.open("r+b") as file:  # as when the machine has stopped, too
        file.truncate(output.stat().st_size - 7)
    assert 0 < len(output.read_bytes().splitlines()) < 200
    done = run(project, lines, output, MAX_BATCH_SIZE="4")
    assert done.returncode == ANSWERED, done.stderr
    rows = read(output)
    assert [row["input"] for row in rows] == [*range(1, 201)]
    assert [row["output"]["number"] for row in rows] == [*range(1, 201)]
    assert len(numbers(project)) <= 200 + kills * 2 * 4 + 1


def test_signal_and_second_run(project: Path, lines: Path, tmp_path: Path) -> None:
    """One run at a time writes an output; SIGTERM ends it when what has begun is written."""
    write(lines, ["", HANG, *[""] * 30])
    output = tmp_path / "output.jsonl"
    (project / "hang").touch()
    with started(project, lines, output, MAX_BATCH_SIZE="1") as process:
        wait_for(lambda: 2 in numbers(project), seconds=WAIT_SECONDS)
        second = run(project, lines, output)
        assert second.returncode == UNFINISHED
        assert second.stderr == f"Another run writes {output}.\n"
        process.send_signal(signal.SIGTERM)
        sleep(0.2)
        assert process.poll() is None
        (project / "hang").unlink()
        assert process.wait(WAIT_SECONDS) == 128 + signal.SIGTERM
    begun = [row["input"] for row in read(output)]
    assert begun == [*range(1, len(begun) + 1)]
    assert 2 <= len(begun) < 32
    assert numbers(project) == begun
    assert run(project, lines, output).returncode == ANSWERED
    assert [row["input"] for row in read(output)] == numbers(project) == [*range(1, 33)]


def test_failures_are_tried_again(project: Path, lines: Path, tmp_path: Path) -> None:
    """A failure that is no fault of the input's is written; the next run tries it again."""
    write(lines, ["", "open('broken').close()", ""])
    output = tmp_path / "output.jsonl"
    done = run(project, lines, output, MAX_BATCH_SIZE="1")
    assert done.returncode == UNFINISHED
    assert [row.get("status") for row in read(output)] == [None, 500, None]
    assert f"Error {read(output)[1]['error_id']} in input 2" in done.stderr
    (project / "broken").touch()
    assert run(project, lines, output).returncode == ANSWERED
    assert [row["input"] for row in read(output)] == [1, 3, 2]
    assert numbers(project) == [1, 2, 3, 2]


def test_hung(project: Path, lines: Path, tmp_path: Path) -> None:
    """A model that hangs ends the run; what had not begun is left, and not timed out."""
    write(lines, ["", HANG, *[""] * 20])
    output = tmp_path / "output.jsonl"
    (project / "hang").touch()
    limits = {"INFER_TIMEOUT_SECONDS": "1", "INFER_HANG_SECONDS": "3", "MAX_BATCH_SIZE": "1"}
    assert run(project, lines, output, **limits).returncode == UNFINISHED
    assert [row.get("status") for row in read(output)] in ([None, 504], [None, 504, 504])
    (project / "hang").unlink()
    assert run(project, lines, output, **limits).returncode == ANSWERED
    assert sorted(row["input"] for row in read(output)) == [*range(1, 23)]


def test_rejected(project: Path, lines: Path, tmp_path: Path) -> None:
    """What cannot be right is said in one sentence, and nothing is written."""
    write(lines, [""])
    output, other = tmp_path / "output.jsonl", tmp_path / "other.jsonl"
    assert run(project, lines, output).returncode == ANSWERED
    before = output.read_bytes()
    done = run(project, lines, output, MODEL_NAME="another")
    assert done.returncode == USAGE
    assert "another job's: model changed" in done.stderr
    write(lines, ["", ""])
    own, marked, missing = (tmp_path / f"{name}.jsonl" for name in ("own", "marked", "missing"))
    own.write_text("Mine.")
    marked.write_bytes(b'\xef\xbb\xbf{"number": 1}')
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong = {
        (lines, output): "another job's: input changed",
        (lines, tmp_path / "folder"): "has to end with .jsonl",
        (lines, own): "no job has written it",
        (lines, lines): "would be an input itself",
        (tmp_path, other): "would be an input itself",
        (empty, other): "holds nothing to answer",
        (marked, other): "begins with a byte order mark",
        (missing, other): "is no folder, and no file of JSON lines",
    }
    asked = json.dumps([[str(path) for path in paths] for paths in wrong])
    told = subprocess.run(
        [python(), "-c", EACH], cwd=project, input=asked, capture_output=True, text=True, check=True
    )
    for (status, text), sentence in zip(json.loads(told.stdout), wrong.values(), strict=True):
        assert status == USAGE
        assert sentence in text
    assert output.read_bytes() == before
    assert own.read_text() == "Mine."
    assert not other.exists()
    assert numbers(project) == [1]


def test_progress(project: Path, lines: Path, tmp_path: Path) -> None:
    """On a terminal there is a bar, which counts what an earlier run has done, too."""
    write(lines, [""] * 3)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    with os.fdopen(theirs, "wb", buffering=0) as terminal:
        subprocess.run(
            command(lines, tmp_path / "output.jsonl"), cwd=project, stderr=terminal, check=True
        )
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "3/3" in shown


def test_pictures(tmp_path: Path) -> None:
    """A folder of pictures, or lines that name them, become a folder of pictures."""
    answers = {"model_type": "custom", "input_kind": "image-batch", "features": ["batch-jobs"]}
    project = render(tmp_path / "service", answers)
    names = '["example.png"]'
    put_model(project, MIRROR.replace("FIELD", "files").replace("EXAMPLES", names))
    example = (project / "example.png").read_bytes()
    pictures = tmp_path / "pictures"
    for name in ("b.png", "a/ä b.jpeg", ".hidden.png", ".folder/c.png"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(example)
    (pictures / "broken.png").write_bytes(example[:40])
    (pictures / "notes.txt").write_text("No picture.")
    answers_folder = tmp_path / "answers"
    done = run(project, pictures, answers_folder)
    assert done.returncode == SOME_BAD, done.stderr
    rows = {row["input"]: row for row in read(answers_folder / "answers.jsonl")}
    assert [*rows] == ["a/ä b.jpeg", "b.png", "broken.png", "notes.txt"]
    assert [row.get("status") for row in rows.values()] == [None, None, 400, 415]
    [told] = rows["a/ä b.jpeg"]["output"]["outputs"]
    assert told == {"content_type": "image/png", "name": "", "data": "a/ä b.jpeg-1.png", "turns": 0}
    files = {file.relative_to(answers_folder).as_posix() for file in answers_folder.rglob("*.png")}
    assert files == {"a/ä b.jpeg-1.png", "b.png-1.png"}
    for name in files:
        assert (answers_folder / name).read_bytes().startswith(b"\x89PNG")

    lines = tmp_path / "input.jsonl"
    documents: list[Any] = [
        {"files": ["pictures/b.png", "pictures/a/ä b.jpeg"], "turns": 2},
        {"files": ["pictures/none.png"]},
        {"files": [str(pictures / "b.png")]},
        {"files": ["pictures/../pictures/b.png"]},
        {"files": "pictures/b.png"},
        {"files": ["iVBORw0KGgo" * 1000]},
        {"files": [1]},
        {"files": [], "turns": "no"},
    ]
    lines.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    done = run(project, lines, tmp_path / "numbered")
    assert done.returncode == SOME_BAD, done.stderr
    rows = {row["input"]: row for row in read(tmp_path / "numbered" / "answers.jsonl")}
    statuses = [row.get("status") for row in rows.values()]
    assert statuses == [None, 400, 400, 400, 400, 400, 400, 422]
    both = rows[1]["output"]["outputs"]
    assert [(each["data"], each["turns"]) for each in both] == [("1-1.png", 2), ("1-2.png", 2)]
    assert (tmp_path / "numbered" / "1-2.png").read_bytes().startswith(b"\x89PNG")


def test_recordings(tmp_path: Path) -> None:
    """The limits of uploads hold, and a line tells that not all of its file could be decoded."""
    answers = {"model_type": "custom", "input_kind": "audio", "features": ["batch-jobs"]}
    project = render(tmp_path / "service", answers)
    put_model(project, LISTENER)
    example = (project / "example.wav").read_bytes()
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    (recordings / "cut.wav").write_bytes(example[: len(example) // 2])
    (recordings / "large.wav").write_bytes(example.ljust(1024 * 1024 + 1, b"\0"))
    (recordings / "whole.wav").write_bytes(example)
    output = tmp_path / "output"
    done = run(project, recordings, output, MAX_UPLOAD_MB="1", MAX_BODIES_MB="1")
    assert done.returncode == SOME_BAD, done.stderr
    cut, large, whole = read(output / "answers.jsonl")
    assert "cut off" in cut["warning"]
    assert large == {"input": "large.wav", "status": 413, "detail": "File too large."}
    assert whole == {
        "input": "whole.wav",
        "output": {
            "content_type": "text/plain; charset=utf-8",
            "name": "",
            "data": "whole.wav.txt",
        },
    }
    assert (output / "whole.wav.txt").read_bytes() == b"Heard."


def test_changed_folder(tmp_path: Path) -> None:
    """A file more, or of another size, is another job; so is one more in a sub-folder."""
    answers = {"model_type": "custom", "input_kind": "multimodal", "features": ["batch-jobs"]}
    project = render(tmp_path / "service", answers)
    change(project / "inference.py", "text: str = Field(", 'text: str = Field("red", ')
    pictures, output = tmp_path / "pictures", tmp_path / "output.jsonl"
    pictures.mkdir()
    copy(project / "example.png", pictures / "a.png")
    assert run(project, pictures, output).returncode == ANSWERED
    [row] = read(output)
    assert (row["input"], [*row["output"]]) == ("a.png", ["score"])
    copy(project / "example.png", pictures / "b.png")
    done = run(project, pictures, output)
    assert done.returncode == USAGE
    assert "input changed" in done.stderr


def test_isolated(tmp_path: Path) -> None:
    """A line that kills or blocks the model's process fails alone; the run goes on."""
    project = make(tmp_path / "service", features=["batch-jobs", "isolation"])
    (project / "hang").touch()
    write(tmp_path / "input.jsonl", ["", "os._exit(1)", "", HANG, "", ""])
    output = tmp_path / "output.jsonl"
    done = run(project, tmp_path / "input.jsonl", output, INFER_TIMEOUT_SECONDS="5")
    assert done.returncode == UNFINISHED, done.stderr
    rows = read(output)
    assert [row["input"] for row in rows] == [1, 2, 3, 4, 5, 6]
    statuses = [row.get("status") for row in rows]
    assert statuses[:4] == [None, 500, None, 504]
    assert statuses[5] is None
    (project / "hang").unlink()


def test_unloadable(project: Path, lines: Path, tmp_path: Path) -> None:
    """Without a model nothing is written, and another run may help."""
    write(lines, [""])
    (project / "unloadable").touch()
    done = run(project, lines, tmp_path / "output.jsonl")
    (project / "unloadable").unlink()
    assert done.returncode == UNFINISHED
    assert "no such weights" in done.stderr
    assert read(tmp_path / "output.jsonl") == []
