"""Batch jobs, run as processes of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from conformance import fake_model, spec
from conformance.fake_model import NUMBER
from conformance.plugin import Launcher, Service
from conformance.samples import Samples

INPUTS = 6
SOME_BAD = 3
HANGS_AT_3 = f"""
number = getattr(inputs[0].params, "{NUMBER}", 0)  # which the warm-up has not
while number == 3 and (folder / "hang").exists():
    time.sleep(0.02)
"""


@pytest.fixture
def lines(samples: Samples, tmp_path: Path) -> Path:
    """Return an input of numbered requests, and of a last line that is none."""
    documents = [document(samples, number, tmp_path) for number in range(1, INPUTS + 1)]
    file = tmp_path / "input.jsonl"
    file.write_text("\n".join([*map(json.dumps, documents), "no JSON"]), encoding="utf-8")
    return file


def document(samples: Samples, number: int, folder: Path) -> Any:
    """Return the valid request with a number, as it stands in a line; its files are written."""
    if samples.field is None:
        return samples.numbered(number)["json"]
    paths = [f"file-{place}" for place, _ in enumerate(samples.valid["files"])]
    for path, (_, (_, content, _)) in zip(paths, samples.valid["files"], strict=True):
        (folder / path).write_bytes(content)
    files = {samples.field: paths if samples.several else paths[0]}
    return spec.example() | files | {NUMBER: number}


def start(launcher: Launcher, answer: str, lines: Path, predict: str = "") -> Service:
    """Start a job with a fake model."""
    command = {fake_model.COMMAND: f"serving.batch\n{lines}\n{lines.with_name('output.jsonl')}"}
    options = command | {fake_model.NUMBERED: "1", "MAX_BATCH_SIZE": "1"}
    touch = "(folder / 'hang').touch()"
    return launcher.start_fake(answer, start=touch, predict=predict, **options)


def numbers(row: dict[str, Any], samples: Samples) -> set[int]:
    """Return the numbers of the requests whose answers a line has."""
    output = row["output"]
    return {each[NUMBER] for each in (output["outputs"] if samples.several else [output])}


def test_ms_73_killed(launcher: Launcher, answer: str, samples: Samples, lines: Path) -> None:
    """Each input has one line, and its own answer or error, where a run was killed as well."""
    output = lines.with_name("output.jsonl")
    first = start(launcher, answer, lines, HANGS_AT_3)
    first.wait_for(lambda: output.exists() and output.read_bytes().count(b"\n") == 2, "No line")
    first.kill()
    second = start(launcher, answer, lines)
    assert second.wait_for_exit() == SOME_BAD, second.log
    *rows, bad = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert [row["input"] for row in rows] == [*range(1, INPUTS + 1)]
    assert [numbers(row, samples) for row in rows] == [{row["input"]} for row in rows]
    assert (bad["input"], bad["status"]) == (INPUTS + 1, 400)
