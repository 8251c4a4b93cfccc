"""The conformance tests are tested: each mutant fails in the requirement that it breaks."""

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mutants import MUTANTS, Mutant
from tests.support.rendering import render
from tests.support.updating import own_tests
from tests.support.variants import ROOT

# What a mutant waits for in vain costs so much time.
PATIENCE_SECONDS = "8"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mutant], Path]:
    """Return a function that renders what a mutant is made from, once for all with its answers."""
    rendered: dict[str, Path] = {}

    def project(mutant: Mutant) -> Path:
        key = repr(mutant.answers)
        if key not in rendered:
            rendered[key] = render(tmp_path_factory.mktemp("healthy") / "service", mutant.answers)
        return rendered[key]

    return project


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_killed(
    mutant: Mutant, healthy: Callable[[Mutant], Path], tmp_path: Path
) -> None:
    """The requirement that is broken fails, and the run with it."""
    project = shutil.copytree(healthy(mutant), tmp_path / "service")
    mutant.apply(project)
    for file in project.rglob("*.py"):
        ast.parse(file.read_text(encoding="utf-8"))
    result = own_tests(
        project,
        *("tests/conformance", "--assert=plain", "-x", "-k", f"test_ms_{mutant.number:02}_"),
        stack=str(mutant.answers["model_type"]),
        forks="all",
        PATIENCE_SECONDS=PATIENCE_SECONDS,
    )
    assert result.returncode == 1, result.stdout
    report = json.loads((project / ".conformance" / "report.json").read_text("utf-8"))
    outcomes = {row["id"]: row["outcome"] for row in report["requirements"]}
    assert outcomes[f"MS-{mutant.number}"] == "fail", result.stdout


def test_every_requirement_has_a_mutant() -> None:
    """Each requirement that the conformance tests ask about is broken at least once."""
    files = (ROOT / "template" / "tests" / "conformance").glob("*test_*")
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    tested = {int(number) for number in re.findall(r"^def test_ms_(\d+)_", source, re.MULTILINE)}
    assert {mutant.number for mutant in MUTANTS} == tested


def test_mutants_differ() -> None:
    """No two mutants are the same change under two names."""
    changes = [(mutant.edits, mutant.moved, str(mutant.answers)) for mutant in MUTANTS]
    assert len(changes) == len(set(changes))
    assert len(MUTANTS) >= 40
