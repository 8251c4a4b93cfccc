"""Renders the template as it stands in the working tree."""

import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from copier import run_copy

from tests.support.variants import ROOT


@cache
def template_folder() -> Path:
    """Return a copy of what the template consists of, without git: uncommitted changes count."""
    folder = Path(mkdtemp(prefix="template-"))
    shutil.copy(ROOT / "copier.yml", folder)
    for name in ("template", "parts"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def render(folder: Path, answers: Mapping[str, Any]) -> Path:
    """Render a service with these answers, and the defaults for the others."""
    run_copy(str(template_folder()), folder, data=dict(answers), defaults=True, quiet=True)
    return folder


def commit_all(folder: Path, message: str, tag: str | None = None) -> None:
    """Commit everything in the folder, which becomes a repository if it is none."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    if tag:
        git(folder, "tag", tag)


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as nobody in particular, and return what it prints."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    result = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return result.stdout


def files_in(folder: Path) -> set[str]:
    """Return the relative paths of all files below a folder, git's own left out."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }
