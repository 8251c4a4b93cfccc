"""Services that are rendered from versions of the template, edited as users do, and updated."""

import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from copier import run_copy, run_update

from tests.support.environments import environment
from tests.support.rendering import commit_all, files_in, template_folder
from tests.support.suites import Forks, run_suite
from tests.support.variants import questionnaire

ANSWERS = ".copier-answers.yml"

# A model of a user's own, for a service that takes JSON.
GREETER = '''"""Greets."""

import os

from pydantic import BaseModel

from serving import Input

MODEL_NAME = os.getenv("MODEL_NAME", "greeter")


class Params(BaseModel):
    """The request's body."""

    name: str


class Output(BaseModel):
    """What to say."""

    greeting: str


EXAMPLE = {"name": "Ada"}


class Model:
    """Greets."""

    def __init__(self, device: str) -> None:
        """Learn to greet."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Greet each."""
        return [Output(greeting=f"Hello {item.params.name}") for item in inputs]
'''
GREETER_TEST = '''
"""What the greeter says."""

from conformance.plugin import Service


def test_greeting(service: Service) -> None:
    """It greets by name."""
    answer = service.client.post("/infer", json={"name": "Bo"}).json()
    assert answer == {"greeting": "Hello Bo"}
'''


def change(file: Path, old: str, new: str) -> None:
    """Replace some text, which has to be there, in a file."""
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {file}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def append(file: Path, text: str) -> None:
    """Add text to the end of a file."""
    with file.open("a", encoding="utf-8") as opened:
        opened.write(text)


def add_version(repository: Path, number: int, make: Callable[[Path], None]) -> None:
    """Change the template, and release it."""
    make(repository)
    commit_all(repository, f"Version {number}", tag=f"v{number}.0.0")


def template_repository(folder: Path, *makes: Callable[[Path], None]) -> Path:
    """Make a git repository of the template: version 1 as it is now, and one for each change."""
    shutil.copytree(template_folder(), folder)
    commit_all(folder, "Version 1", tag="v1.0.0")
    for number, make in enumerate(makes, 2):
        add_version(folder, number, make)
    return folder


def with_version(repository: Path, folder: Path, number: int, make: Callable[[Path], None]) -> Path:
    """Return a copy of such a repository that has one more version."""
    shutil.copytree(repository, folder)
    add_version(folder, number, make)
    return folder


def tags(repository: Path) -> list[str]:
    """Return the versions that the repository has, none where it is no repository."""
    command = ["git", "tag", "--list", "v*", "--sort=version:refname"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    return result.stdout.split()


def unpacked(repository: Path, tag: str, folder: Path) -> Path:
    """Write what a version of the template consists of into the folder."""
    command = ["git", "archive", tag, "copier.yml", "template", "parts"]
    archive = subprocess.run(command, cwd=repository, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def render(repository: Path, project: Path, version: int = 1, **answers: Any) -> Path:
    """Render a service from a version of the template, and commit it."""
    ref = f"v{version}.0.0"
    run_copy(str(repository), project, answers, vcs_ref=ref, defaults=True, quiet=True)
    commit_all(project, "Render")
    return project


def update(project: Path, **answers: Any) -> None:
    """Commit what the user has done, and update the service to the newest version."""
    commit_all(project, "Work")
    run_update(project, answers, defaults=True, overwrite=True, quiet=True)


def contents(project: Path) -> dict[str, bytes]:
    """Return every file of the service."""
    return {name: (project / name).read_bytes() for name in files_in(project)}


def owners(project: Path) -> dict[str, str]:
    """Return who owns each file, "you" or "template", as the service's AGENTS.md says."""
    text = (project / "AGENTS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (you|template)\b.* \|", text, re.MULTILINE)
    pairs = [(name, owner) for names, owner in rows for name in names.split(", ")]
    assert len(pairs) == len(dict(pairs)), "a file stands twice in the table"
    return dict(pairs)


def yours() -> list[str]:
    """Return the patterns of the files that copier.yml declares to be the user's."""
    return [pattern for pattern in questionnaire()["yours"]["default"] if "{%" not in pattern]


def declared_owners(names: Iterable[str]) -> dict[str, str]:
    """Return who owns these files by copier.yml."""
    return {
        name: "you" if any(fnmatch(name, pattern) for pattern in yours()) else "template"
        for name in names
    }


def owned(project: Path, owner: str) -> dict[str, bytes]:
    """Return the files that are the user's, what the table does not have included, or not."""
    names = owners(project)
    files = contents(project)
    return {name: data for name, data in files.items() if names.get(name, "you") == owner}


def conflicts(project: Path) -> list[str]:
    """Return the files that have the marks of a conflict."""
    marks = re.compile(rb"^(<{7}|>{7}) ", re.MULTILINE)
    return [name for name, content in contents(project).items() if marks.search(content)]


def answers_of(project: Path) -> dict[str, Any]:
    """Return the answers that a service remembers."""
    answers: dict[str, Any] = yaml.safe_load((project / ANSWERS).read_text(encoding="utf-8"))
    return answers


def put_model(project: Path, model: str) -> None:
    """Write a user's model into inference.py."""
    (project / "inference.py").write_text(model, encoding="utf-8")


def add_to_main(project: Path, code: str) -> None:
    """Write code of a user's own into main.py, at the place that is marked for it."""
    main = project / "main.py"
    text, count = re.subn(
        "^# Your own endpoints.*\n",
        lambda mark: mark[0] + code,
        main.read_text(),
        flags=re.MULTILINE,
    )
    assert count == 1
    main.write_text(text, encoding="utf-8")


@cache
def python(stack: str = "custom") -> str:
    """Return an interpreter for the services' own tests."""
    return str(environment(stack) / "bin" / "python")


def own_tests(
    project: Path, *tests: str, stack: str = "custom", forks: Forks = "none", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run some of a service's own tests, as `run_suite` does."""
    return run_suite(python(stack), project, *tests, forks=forks, **env)
