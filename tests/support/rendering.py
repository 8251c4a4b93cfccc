"""Renders the template as it stands in the working tree."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from copier import run_copy
from copier._main import Worker
from jinja2 import Environment

from tests.support.variants import ROOT

RENDERS = ROOT / ".cache" / "renders"


@cache
def template_folder() -> Path:
    """Return a copy of what the template consists of, without git: uncommitted changes count."""
    content = hashlib.sha256()
    for file in sorted(
        [ROOT / "copier.yml", *ROOT.glob("template/**/*"), *ROOT.glob("parts/**/*")]
    ):
        if file.is_file():
            content.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    folder = RENDERS / content.hexdigest()[:16] / "template"

    def copy(partial: Path) -> None:
        partial.mkdir(parents=True)
        shutil.copy(ROOT / "copier.yml", partial)
        for name in ("template", "parts"):
            shutil.copytree(ROOT / name, partial / name)

    return make_once(folder, copy)


def render(folder: Path, answers: Mapping[str, Any]) -> Path:
    """Render a service with these answers, and the defaults for the others.

    Copier takes a second for it, so what it has rendered is kept for the next one who asks.
    """
    template = template_folder()
    given = json.dumps(answers, sort_keys=True)
    rendered = template.with_name(hashlib.sha256(given.encode()).hexdigest()[:16])

    def run(partial: Path) -> None:
        run_copy(str(template), partial, data=dict(answers), defaults=True, quiet=True)

    if folder.exists() and any(folder.iterdir()):  # Copier looks at what is there
        run(folder)
        return folder
    make_once(rendered, run)
    return Path(shutil.copytree(rendered, folder, dirs_exist_ok=True))


def quicken_copier() -> None:
    """Take out of Copier what costs most of its time, and changes nothing of what it writes.

    Jinja compiles a text once for all renders of this process: Copier has a new environment for
    each, all with the same options, and another clone. YAML is read by libyaml. And git is not
    asked for each file whether it minds modes, which it does.
    """
    codes: dict[Any, Any] = {}
    compile_anew = Environment.compile

    def compile_once(
        environment: Environment,
        source: Any,
        name: str | None = None,
        filename: str | None = None,
        **options: Any,
    ) -> Any:
        used = (environment.trim_blocks, environment.lstrip_blocks, environment.undefined)
        key = (used, source, name, *options.items())
        if not isinstance(source, str):
            return compile_anew(environment, source, name, filename, **options)
        if key not in codes:
            codes[key] = compile_anew(environment, source, name, filename, **options)
        return codes[key]

    Environment.compile = compile_once  # type: ignore[assignment, method-assign]
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc, assignment]
    Worker._sync_git_index_executable_bit = lambda *_: None  # type: ignore[method-assign]  # noqa: SLF001


quicken_copier()


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder, made unless it is there; no other process sees half of it."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}-{os.getpid()}")
        make(partial)
        with suppress(OSError):  # another process was faster
            partial.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
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
