"""A service's .gitattributes: line endings, and an arrival that touches nobody's files."""

import shutil
from pathlib import Path

import pytest

from tests.support.rendering import commit_all, git, render, template_folder
from tests.support.updating import add_version, answers_of, append, conflicts, update
from tests.support.updating import render as render_version

FILE = ".gitattributes"
OWN = "*.csv text\n"


def test_line_endings(tmp_path: Path) -> None:
    """Files are checked out as they are here, even where git is told to write CRLF."""
    project = render(tmp_path / "service", {"model_type": "onnxruntime"})
    commit_all(project, "Render")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "-c", "core.autocrlf=true", str(project), str(clone))
    names = git(project, "ls-files").splitlines()
    assert {"main.py", "Dockerfile", "nearest-color.onnx", "example.png"} <= set(names)
    for name in names:
        assert (clone / name).read_bytes() == (project / name).read_bytes(), name


def test_generated_files(tmp_path: Path) -> None:
    """GitHub folds what tools write, and nothing else."""
    project = render(tmp_path / "service", {})
    commit_all(project, "Render")
    names = [*git(project, "ls-files").splitlines(), "uv.lock"]
    attributes = git(project, "check-attr", "linguist-generated", *names).splitlines()
    assert {line.partition(":")[0] for line in attributes if line.endswith(": set")} == {
        "REFERENCE.md",
        "uv.lock",
    }


@pytest.mark.parametrize("own", [None, OWN], ids=["none", "own"])
def test_update_of_an_older_service(own: str | None, tmp_path: Path) -> None:
    """A service from before there was such a file gets none, and keeps its own."""
    template = tmp_path / "template"
    shutil.copytree(template_folder(), template)
    add_version(template, 1, lambda folder: (folder / "template" / FILE).unlink())
    add_version(template, 2, lambda folder: append(folder / "template" / FILE, "* text=auto\n"))
    project = render_version(template, tmp_path / "service", model_type="custom")
    if own:
        (project / FILE).write_text(own, encoding="utf-8")
    update(project)
    assert answers_of(project)["_commit"] == "v2.0.0"
    assert conflicts(project) == []
    assert (project / FILE).exists() == bool(own)
    if own:
        assert (project / FILE).read_text(encoding="utf-8") == own


def test_existing_repository(tmp_path: Path) -> None:
    """A render into a repository that has such a file leaves it, and asks nothing."""
    project = tmp_path / "service"
    project.mkdir()
    (project / FILE).write_text(OWN, encoding="utf-8")
    render(project, {"model_type": "custom"})
    assert (project / FILE).read_text(encoding="utf-8") == OWN
