"""Services of the versions that this repository has really tagged, updated to the working tree."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.rendering import commit_all, template_folder
from tests.support.updating import (
    GREETER,
    GREETER_TEST,
    append,
    change,
    conflicts,
    own_tests,
    owned,
    put_model,
    render,
    tags,
    unpacked,
    update,
)
from tests.support.variants import ROOT

CHANGELOG = ROOT / "CHANGELOG.md"
LAST = 3  # versions that a service may be behind
JSON: dict[str, Any] = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"}


def two_versions(old: Path, folder: Path) -> Path:
    """Return a repository with two versions of the template: an old one, and the working tree."""
    shutil.copytree(old, folder)
    commit_all(folder, "Then", tag="v1.0.0")
    for name in ("template", "parts"):
        shutil.rmtree(folder / name)
    shutil.copytree(template_folder(), folder, dirs_exist_ok=True)
    commit_all(folder, "Now", tag="v2.0.0")
    return folder


def check_update(old: Path, folder: Path) -> None:
    """Update a service as it came, and one with a model of its user's own, from the old version."""
    repository = two_versions(old, folder / "repository")
    fresh = render(repository, folder / "fresh", version=2, **JSON)

    untouched = render(repository, folder / "untouched", **JSON)
    update(untouched)
    assert owned(untouched, "template") == owned(fresh, "template")

    living = render(repository, folder / "living", **JSON)
    put_model(living, GREETER)
    (living / "tests" / "test_model.py").write_text(GREETER_TEST.lstrip(), encoding="utf-8")
    (living / "helper.py").write_text("MINE = 1\n", encoding="utf-8")
    update(living)
    assert conflicts(living) == []
    assert (living / "inference.py").read_text(encoding="utf-8") == GREETER
    assert owned(living, "template") == owned(fresh, "template")
    assert (living / "helper.py").read_text(encoding="utf-8") == "MINE = 1\n"
    result = own_tests(living)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("behind", range(1, LAST + 1))
def test_tagged_version(behind: int, tmp_path: Path) -> None:
    """Each of the last three tags leads to the working tree."""
    released = re.findall(r"^## (\d+\.\d+\.\d+)", CHANGELOG.read_text("utf-8"), re.MULTILINE)
    if len(released) >= behind:
        tag = f"v{released[behind - 1]}"
        assert tag in tags(ROOT), f"fetch the tag {tag}"
        check_update(unpacked(ROOT, tag, tmp_path / "old"), tmp_path)


def test_version_that_differs(tmp_path: Path) -> None:
    """What the tests of the tags do is done to a version that differs all over."""
    old = Path(shutil.copytree(template_folder(), tmp_path / "old"))
    change(old / "parts" / "linear" / "json.py.jinja", "What comes next.", "What may come.")
    change(old / "template" / "main.py.jinja", "async def ready()", "async def is_ready()")
    change(old / "template" / "serving" / "worker.py", "max_queue_size", "max_waiting")
    change(old / "template" / "serving" / "settings.py.jinja", "max_queue_size", "max_waiting")
    change(old / "template" / "serving" / "limits.py.jinja", "logger.info(", "logger.debug(")
    (old / "template" / "extra.py").write_text("GONE = 1\n", encoding="utf-8")
    check_update(old, tmp_path)


def test_version_that_forgets(tmp_path: Path) -> None:
    """A version that does not remember an answer is found out."""
    old = Path(shutil.copytree(template_folder(), tmp_path / "old"))
    file = old / "template" / ".copier-answers.yml.jinja"
    append(file, "accelerator: auto\n")
    with pytest.raises(AssertionError, match=r"\.copier-answers\.yml"):
        check_update(old, tmp_path)
