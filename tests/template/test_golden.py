"""The golden renders under tests/golden are what the template renders now."""

from pathlib import Path

import pytest

from tools.golden import GOLDEN, RENDERS, write
from tests.support.rendering import files_in
from tests.support.variants import variants


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same renders, fresh."""
    folder = tmp_path_factory.mktemp("golden")
    write(folder)
    return folder


@pytest.mark.parametrize("name", RENDERS)
def test_golden_render(fresh: Path, name: str) -> None:
    """A change to users' files is seen and committed with the change that makes it."""
    golden = GOLDEN / name
    assert files_in(fresh / name) == files_in(golden), "run `make golden` and look at the diff"
    for file in files_in(golden):
        text = (fresh / name / file).read_text(encoding="utf-8")
        golden_text = (golden / file).read_text(encoding="utf-8")
        assert text == golden_text, f"{name}/{file} differs: run `make golden`, look at the diff"


@pytest.mark.parametrize("axis", ["preset", "model_type", "input_kind", "accelerator"])
def test_each_choice_has_a_golden_render(axis: str) -> None:
    """Every choice of every axis stands in at least one of them."""
    stored = {
        line.partition(": ")[2]
        for name in RENDERS
        for line in (GOLDEN / name / ".copier-answers.yml").read_text("utf-8").splitlines()
        if line.startswith(f"{axis}: ")
    }
    assert stored == {getattr(variant, axis) for variant in variants()}
