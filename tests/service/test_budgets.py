"""How much there is to read: lines of a service, tags of main.py, the way of one request."""

import json
import re
from pathlib import Path

import pytest

from tests.support.environments import environment, run
from tests.support.rendering import render
from tests.support.variants import CONTRACTS, FEATURES, ROOT

# Lines of Python in a service but for its tests and its decoder, the stock model included.
MAX_LINES = {"bare": 1742, "default": 1960}
EVERYTHING = {"features": list(FEATURES), "contracts": list(CONTRACTS), "auth": "jwt"}
MAX_TAGS = 40
MAX_LINES_OF_MAIN = 120
MAX_FUNCTIONS, MAX_FILES = 54, 11
# Sends a request, and the same again while all functions of the project that it calls are noted.
TRACE = """
import json, sys, threading
from pathlib import Path
from fastapi.testclient import TestClient
sys.path.insert(0, ".")
from main import app

found = set()
# The watch of the worker goes on beside any request.
watch = {"Worker._is_overdue", "Worker._tick", "Worker._watch"}

def note(frame, event, argument):
    file = Path(frame.f_code.co_filename)
    name = frame.f_code.co_qualname
    is_ours = file.is_relative_to(Path.cwd()) and file.name != "inference.py"
    if event == "call" and is_ours and name not in watch:
        found.add((file.name, name))

with TestClient(app) as client:
    files = {"file": Path("example.png").read_bytes()}
    client.post("/classify", files=files).raise_for_status()
    threading.setprofile_all_threads(note)
    client.post("/classify", files=files).raise_for_status()
    threading.setprofile_all_threads(None)
print(json.dumps(sorted(found)))
"""


@pytest.mark.parametrize(
    ("name", "answers"), [("bare", {"features": []}), ("default", {})], ids=["bare", "default"]
)
def test_lines(name: str, answers: dict[str, list[str]], tmp_path: Path) -> None:
    """A service is short enough to be read once."""
    project = render(tmp_path / "service", {"model_type": "custom"} | answers)
    files = [*project.glob("*.py"), *project.glob("serving/**/*.py")]
    lines = {
        file.name: len(file.read_text("utf-8").splitlines())
        for file in files
        if file.name != "inputs.py"
    }
    assert sum(lines.values()) <= MAX_LINES[name], lines


def test_main(tmp_path: Path) -> None:
    """main.py is an ordinary FastAPI application, and its source reads as one."""
    source = (ROOT / "template" / "main.py.jinja").read_text("utf-8")
    assert len(re.findall(r"{% (?!set)", source)) <= MAX_TAGS
    for answers in ({}, EVERYTHING):
        project = render(tmp_path / str(len(answers)), {"model_type": "custom"} | answers)
        assert len((project / "main.py").read_text("utf-8").splitlines()) <= MAX_LINES_OF_MAIN


def test_way_of_a_request(tmp_path: Path) -> None:
    """A request passes few functions, in few files; the model's own do not count."""
    project = render(tmp_path / "service", {"model_type": "custom"})
    python = str(environment("custom") / "bin" / "python")
    printed = run([python, "-W", "ignore", "-c", TRACE], cwd=project)
    found = json.loads(printed.splitlines()[-1])
    assert len(found) <= MAX_FUNCTIONS, found
    assert len({file for file, _ in found}) <= MAX_FILES, found


def test_public_api_only(tmp_path: Path) -> None:
    """Nothing of a service reaches into the server, or waits on the event loop."""
    project = render(tmp_path / "service", {"model_type": "custom"} | EVERYTHING)
    inside = re.compile(
        r"cycle|transport|server_state|uvicorn\.protocols|time\.sleep|route\.app ?="
    )
    for file in [*project.glob("*.py"), *project.glob("serving/**/*.py")]:
        assert not inside.findall(file.read_text("utf-8")), file
