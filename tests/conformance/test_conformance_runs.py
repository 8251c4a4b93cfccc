"""Conformance runs over services that the template did not make, and of deployments at a URL."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.support.live import live
from tests.support.rendering import render
from tests.support.updating import change, own_tests, python
from tests.support.variants import CONTRACTS, FEATURES, ROOT

# Put into the model's load.
COUNT = """
        with open("loads", "a") as loads:
            print("loaded", file=loads)
"""
SUBJECTS = ROOT / "tests" / "support" / "subjects"
# What a request shows without a fake model and without the log.
VISIBLE = {19, 20, 21, 22, 23, 24, 25, 26, 31, 32, 33, 52, 53, 67, 68, 70}


@contextmanager
def running(folder: Path, log: Path, script: str = "main.py", **env: str) -> Iterator[str]:
    """Run a service on a free port until it is ready, and yield its address."""
    with live(folder, python(), log, script=script, **env) as service:
        service.ready()
        yield service.url


def conformance(
    project: Path,
    *arguments: str,
    tests: str = "tests/conformance/test_conformance.py",
    patience: str = "8",
) -> subprocess.CompletedProcess[str]:
    """Run the conformance tests of a rendered project."""
    return own_tests(project, tests, *arguments, forks="all", PATIENCE_SECONDS=patience)


def outcomes(project: Path, folder: str = ".conformance") -> dict[str, set[int]]:
    """Return the requirements' numbers by outcome, as report.json has them."""
    report = json.loads((project / folder / "report.json").read_text("utf-8"))
    found: dict[str, set[int]] = {}
    for row in report["requirements"]:
        found.setdefault(row["outcome"], set()).add(int(row["id"].removeprefix("MS-")))
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a rendered service, the lightest."""
    return render(tmp_path / "service", {"model_type": "custom"})


def test_url_of_a_rendered_service(project: Path) -> None:
    """A rendered service that runs somewhere keeps all that can be seen from there."""
    with running(project, project / "log") as url:
        result = conformance(project, "--url", url)
    assert result.returncode == 0, result.stdout
    assert f"ML Microservice Spec 1.0.0: {url}" in result.stdout
    found = outcomes(project)
    assert found["pass"] == VISIBLE | {58, 59}
    assert found.keys() == {"pass", "not applicable"}


def test_url_of_a_service_that_asks_for_a_key(tmp_path: Path) -> None:
    """So does one that asks who asks, where the tests are given a key."""
    key = "a-key-of-the-deployment"
    project = render(tmp_path / "service", {"model_type": "custom", "auth": "api-key"})
    with running(project, project / "log", API_KEYS=key) as url:
        options = ["tests/conformance/test_auth.py", "--url", url]
        result = conformance(project, *options, "--header", f"Authorization: Bearer {key}")
        assert result.returncode == 0, result.stdout
        assert outcomes(project)["pass"] == VISIBLE | {58, 59, 62}
        assert conformance(project, *options, "-k", "test_ms_22").returncode == 1


def test_url_of_a_service_written_by_hand(project: Path) -> None:
    """So does a service with nothing of the template in it, other route and field included."""
    (project / "request.json").write_text('{"picture": "example.png", "scale": 2}', "utf-8")
    (project / "main.py").write_text("raise RuntimeError", "utf-8")  # which is not imported
    options = ["--endpoint", "measure", "--example", "request.json", "--report", "out"]
    with running(SUBJECTS, project / "log", "by_hand.py") as url:
        result = conformance(project, "--url", url, *options)
        refused = conformance(project, "--url", url, "--example", "request.json")
    assert result.returncode == 0, result.stdout
    found = outcomes(project, "out")
    assert found["pass"] == VISIBLE
    assert found.keys() == {"pass", "not applicable"}
    assert refused.returncode == 1
    assert "Choose the route to ask with --endpoint: /account, /measure" in refused.stdout


def test_url_of_a_service_that_does_not_keep_the_spec(project: Path) -> None:
    """What a deployment breaks fails, and only that; both files say so."""
    main = project / "main.py"
    text = main.read_text("utf-8")
    main.write_text(text.replace('{"status": "ok"}', '{"status": "up"}'), "utf-8")
    with running(project, project / "log") as url:
        result = conformance(project, "--url", url)
    assert result.returncode == 1
    assert outcomes(project)["fail"] == {20}
    assert re.search(r"^MS-20 +fail +`GET /health` \(.+\)$", result.stdout, re.MULTILINE)
    suite = ET.parse(project / ".conformance" / "junit.xml").getroot()[0]  # noqa: S314 -- our own
    failures = [case.get("name", "") for case in suite if case.find("failure") is not None]
    assert [name.partition(" ")[0] for name in failures] == ["MS-20"]
    assert (suite.get("tests"), suite.get("failures")) == (str(len(suite)), "1")


def test_url_where_nothing_answers(project: Path) -> None:
    """An address where nothing listens is said at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        result = conformance(project, "--url", url)
    assert result.returncode == 1
    assert f"Nothing answers at {url}" in result.stdout


def test_the_source_documents_own_code(project: Path) -> None:
    """explanation/source.md lists what the source document's own code fails, and nothing else."""
    shutil.rmtree(project / "serving")
    for name in ("main.py", "inference.py", "device.py"):
        shutil.copy(SUBJECTS / "seed_code" / name, project)
    conformance(project, patience="20")
    rows: list[Any] = re.findall(
        r"^\| MS-(\d+) \| (.+?) \|",
        (ROOT / "docs" / "explanation" / "source.md").read_text("utf-8"),
        re.MULTILINE,
    )
    found = outcomes(project)
    assert {int(number) for number, _ in rows} == found["fail"]


def test_real_model_is_loaded_once(tmp_path: Path) -> None:
    """However many services the tests start, only one has the real model, which may be large."""
    answers = {
        "model_type": "custom",
        "input_kind": "json",
        "auth": "api-key",
        "contracts": list(CONTRACTS),
        "features": [name for name in FEATURES if name != "isolation"],  # which takes long
    }
    project = render(tmp_path / "service", answers)
    head = "    def __init__(self, device: str) -> None:\n"
    change(project / "inference.py", head, head + COUNT)
    result = conformance(project, "-k", "test_ms", tests="tests", patience="60")
    assert result.returncode == 0, result.stdout
    assert (project / "loads").read_text("utf-8").split() == ["loaded"]


def test_a_log_line_is_not_waited_for_as_long_as_a_load(project: Path) -> None:
    """What a service that runs does not do is told soon, by name."""
    change(project / "serving" / "limits.py", 'logger.info("The client', 'logger.debug("The client')
    result = conformance(project, "-k", "test_ms_51", patience="300")
    assert result.returncode == 1
    assert "'The client left' did not come into the log in 10 s" in result.stdout
