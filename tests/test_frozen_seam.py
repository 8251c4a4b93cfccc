"""The stock seams of a released version stay as they are: every rewritten one would conflict."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier import run_copy

from rendering import commit_all, git, template_folder
from updating import change, seam_of, tags, unpacked
from variants import ROOT

# What the tests of the function render, for time's sake.
FEW = {"custom-image", "custom-json", "minilm"}


def stock_models(template: Path) -> dict[str, dict[str, Any]]:
    """Return the answers that choose a seam: each preset, each model type and input kind."""
    document = yaml.safe_load((template / "copier.yml").read_text(encoding="utf-8"))
    presets, model_types = (
        yaml.safe_load(document[name]["default"]) for name in ("presets", "model_types")
    )
    return {preset: {"preset": preset} for preset in presets} | {
        f"{name}-{kind}": {"model_type": name, "input_kind": kind}
        for name, row in model_types.items()
        for kind in row["input_kinds"]
    }


def seams(template: Path, folder: Path, names: set[str] | None = None) -> dict[str, str]:
    """Return what a version of the template renders between the marks, by stock model."""
    found = {}
    for name, answers in stock_models(template).items():
        if names is None or name in names:
            project = folder / name
            only_main = ["*", "!main.py"]
            run_copy(str(template), project, answers, defaults=True, quiet=True, exclude=only_main)
            found[name] = seam_of(project)
    return found


def thawed(
    repository: Path, template: Path, folder: Path, names: set[str] | None = None
) -> Iterator[str]:
    """Say which seams of the repository's versions the template, a plain folder, does not have."""
    now = seams(template, folder / "now", names)
    for tag in tags(repository):
        old = unpacked(repository, tag, folder / tag / "template")
        for name, seam in seams(old, folder / tag, names).items():
            if now.get(name) != seam:
                yield f"{name}, as {tag} has it"


def test_seams_are_frozen(tmp_path: Path) -> None:
    """What every version of this repository has as stock models is what it has now."""
    if not tags(ROOT):
        pytest.skip("there is no tag v*; a checkout may have to fetch them")
    changed = list(thawed(ROOT, template_folder(), tmp_path))
    assert not changed, (
        f"The seam of {'; '.join(changed)}, is another one now. A seam that was tagged must not "
        "change, not by a letter: the update would conflict with every service whose user has "
        "rewritten it, and that is every service. Change what is around it, or add a choice."
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with two versions, which differ around the seam."""
    folder = tmp_path / "repository"
    shutil.copytree(template_folder(), folder)
    commit_all(folder, "One", tag="v1.0.0")
    change(folder / "template" / "main.py.jinja", 'version="0.1.0"', 'version="0.2.0"')
    change(folder / "parts" / "refusals.jinja", "choose", "take")
    commit_all(folder, "Two", tag="v1.1.0")
    git(folder, "tag", "another")
    return folder


@pytest.fixture
def template(repository: Path, tmp_path: Path) -> Path:
    """Return the working tree of the repository."""
    folder = tmp_path / "template"
    return Path(shutil.copytree(repository, folder, ignore=shutil.ignore_patterns(".git")))


def test_change_around_the_seam(repository: Path, template: Path, tmp_path: Path) -> None:
    """All around the seam may change from version to version, and to now."""
    assert tags(repository) == ["v1.0.0", "v1.1.0"]
    change(template / "template" / "main.py.jinja", 'version="0.2.0"', 'version="0.3.0"')
    assert list(thawed(repository, template, tmp_path, FEW)) == []


CHANGES = {
    "custom-json": ("parts/task/json.py.jinja", "What comes next.", "What may come."),
    "custom-image custom-json": ("parts/model_type/custom/seam.py.jinja", "NumPy", "It"),
    "minilm": ("parts/preset/minilm/seam.py.jinja", "MODEL_NAME = ", "MODEL_NAME  = "),
    "custom-image": ("copier.yml", "input_kinds: [image, ", "input_kinds: ["),
}


@pytest.mark.parametrize("names", CHANGES)
def test_change_of_the_seam(repository: Path, template: Path, tmp_path: Path, names: str) -> None:
    """A changed seam is told by the variants, and by the versions that had it."""
    file, old, new = CHANGES[names]
    change(template / file, old, new)
    told = list(thawed(repository, template, tmp_path, FEW))
    assert sorted(told) == sorted(
        f"{name}, as {tag} has it" for name in names.split() for tag in ("v1.0.0", "v1.1.0")
    )


def test_no_repository(tmp_path: Path) -> None:
    """Where there is no repository, there are no versions."""
    assert tags(tmp_path) == []
