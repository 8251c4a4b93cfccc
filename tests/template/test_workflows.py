"""The workflow of a rendered service that tells of a newer template does what it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier import run_copy

from tests.support.rendering import commit_all, git, template_folder
from tests.support.updating import append, template_repository

# GitHub's command, which notes its arguments and knows the issue that $ISSUE names.
GH = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if sys.argv[1:3] == ["issue", "list"]:
    print(os.environ["ISSUE"])
"""
# The copier that is installed here, whichever one is asked for.
UVX = f"""#!/bin/sh
shift
exec {shlex.quote(sys.executable)} -m copier "$@"
"""


@dataclass
class Run:
    """What came of a run of the workflow."""

    status: int
    log: str
    calls: list[list[str]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a git repository with two versions of the template."""

    def second_version(template: Path) -> None:
        append(template / "template" / "serving" / "worker.py", "# Of version 2.\n")

    return template_repository(tmp_path_factory.mktemp("repository") / "template", second_version)


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that renders a service from a template, and commits it."""

    def service(source: Path, version: str | None = None) -> Path:
        project = tmp_path / "service"
        run_copy(str(source), project, vcs_ref=version, defaults=True, quiet=True)
        commit_all(project, "Render")
        return project

    return service


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment with stand-ins for the two commands that need the network."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("gh", GH), ("uvx", UVX)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "CALLS": str(tmp_path / "calls"), "ISSUE": ""}


@pytest.fixture
def check(tmp_path: Path, environ: dict[str, str]) -> Callable[..., Run]:
    """Return a function that runs the steps of a service's template.yml, as a runner would."""

    def run(project: Path, issue: str = "") -> Run:
        text = (project / ".github" / "workflows" / "template.yml").read_text(encoding="utf-8")
        [job] = yaml.safe_load(text)["jobs"].values()
        calls, output = tmp_path / "calls", tmp_path / "output"
        calls.write_text("", encoding="utf-8")
        context = {"github.token": "a token", "github.repository": "somebody/service"}
        status, log = 0, ""
        for step in job["steps"]:
            if "run" not in step or ("if" in step and step["if"] not in context):
                continue
            output.write_text("", encoding="utf-8")
            values = {name: evaluate(value, context) for name, value in step.get("env", {}).items()}
            result = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=project,
                env=environ | values | {"ISSUE": issue, "GITHUB_OUTPUT": str(output)},
                capture_output=True,
                text=True,
                check=False,
            )
            status, log = result.returncode, log + result.stdout + result.stderr
            if status != 0:
                break
            for line in output.read_text(encoding="utf-8").splitlines():
                name, _, value = line.partition("=")
                context[f"steps.{step['id']}.outputs.{name}"] = value
        lines = calls.read_text(encoding="utf-8").splitlines()
        return Run(status, log, [json.loads(line) for line in lines])

    return run


def evaluate(value: str, context: dict[str, str]) -> str:
    """Fill in GitHub's expressions."""
    return re.sub(r"\$\{\{ (\S+) \}\}", lambda match: context[match[1]], value)


def options(call: list[str]) -> dict[str, str]:
    """Return the options of a call of gh."""
    return {name: value for name, value in pairwise(call) if name.startswith("--")}


def set_source(project: Path, source: str) -> None:
    """Have a service come from somewhere else."""
    file = project / ".copier-answers.yml"
    lines = file.read_text(encoding="utf-8").splitlines()
    others = [line for line in lines if not line.startswith("_src_path: ")]
    file.write_text("\n".join([*others, f"_src_path: {source}", ""]), encoding="utf-8")
    commit_all(project, "Move the template")


def test_newer_version(
    template: Path, render: Callable[..., Path], check: Callable[..., Run]
) -> None:
    """A newer version gets an issue with both versions and the way to update."""
    run = check(render(template, "v1.0.0"))
    assert run.status == 0, run.log
    asked, told = run.calls
    assert asked[:2] == ["issue", "list"]
    assert options(asked)["--state"] == "open"
    assert told[:2] == ["issue", "create"]
    assert options(told)["--title"] == "Update the template to 2.0.0"
    assert "This service is at 1.0.0 of its template, and 2.0.0 is there" in options(told)["--body"]
    assert "\n    uvx copier update --defaults\n" in options(told)["--body"]
    # The next run finds the issue by its title.
    assert options(asked)["--search"] == 'in:title "Update the template to"'


def test_issue_that_is_open(
    template: Path, render: Callable[..., Path], check: Callable[..., Run]
) -> None:
    """An issue that is open already is brought up to date; there is no second one."""
    run = check(render(template, "v1.0.0"), issue="7")
    assert run.status == 0, run.log
    _, told = run.calls
    assert told[:3] == ["issue", "edit", "7"]
    assert options(told)["--title"] == "Update the template to 2.0.0"


def test_current(template: Path, render: Callable[..., Path], check: Callable[..., Run]) -> None:
    """A service at the newest version has nothing to tell, and leaves open issues alone."""
    run = check(render(template), issue="7")
    assert run.status == 0, run.log
    assert run.calls == []


def test_the_command_in_the_issue(
    template: Path,
    render: Callable[..., Path],
    check: Callable[..., Run],
    environ: dict[str, str],
) -> None:
    """Who does what the issue says is at the newest version then."""
    project = render(template, "v1.0.0")
    body = options(check(project).calls[1])["--body"]
    first = re.findall(r"^    (.+)$", body, re.MULTILINE)[0]
    subprocess.run(["bash", "-c", first], cwd=project, env=environ, check=True, capture_output=True)
    assert "# Of version 2." in (project / "serving" / "worker.py").read_text(encoding="utf-8")
    commit_all(project, "Update the template")
    assert check(project).calls == []


def test_template_without_versions(render: Callable[..., Path], check: Callable[..., Run]) -> None:
    """A folder that is no repository has no versions: that is said, and is no failure."""
    run = check(render(template_folder()))
    assert run.status == 0, run.log
    assert "::notice::Rendered from a template without versions" in run.log
    assert run.calls == []


def test_template_without_tags(
    tmp_path: Path, render: Callable[..., Path], check: Callable[..., Run]
) -> None:
    """A repository without tags has no newer version, until it has its first."""
    untagged = tmp_path / "template"
    shutil.copytree(template_folder(), untagged)
    commit_all(untagged, "No version yet")
    project = render(untagged)
    run = check(project)
    assert run.status == 0, run.log
    assert run.calls == []
    git(untagged, "commit", "--quiet", "--allow-empty", "--message", "Version 1")
    git(untagged, "tag", "v1.0.0")
    assert options(check(project).calls[1])["--title"] == "Update the template to 1.0.0"


@pytest.mark.parametrize("source", ["/nowhere/template", "../template", "C:\\template"])
def test_template_on_another_machine(
    template: Path, render: Callable[..., Path], check: Callable[..., Run], source: str
) -> None:
    """A path of the machine that rendered the service leads nowhere on a runner."""
    project = render(template, "v1.0.0")
    set_source(project, source)
    run = check(project)
    assert run.status == 0, run.log
    assert f"::notice::Rendered from {source}, a folder that is not on this machine" in run.log
    assert run.calls == []


def test_template_that_cannot_be_read(
    template: Path, render: Callable[..., Path], check: Callable[..., Run]
) -> None:
    """A repository that does not answer is a failure, with the reason."""
    project = render(template, "v1.0.0")
    set_source(project, "git+file:///nowhere/template.git")
    run = check(project)
    assert run.status == 1, run.log
    assert "/nowhere/template.git" in run.log
    assert "::error::The template could not be asked" in run.log
    assert run.calls == []


def test_only_issues_may_be_written(render: Callable[..., Path]) -> None:
    """The token of each workflow may read the code; that of one may write issues."""
    project = render(template_folder())
    allowed: dict[str, Any] = {}
    for file in (project / ".github" / "workflows").iterdir():
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {}
        allowed[file.name] = [job["permissions"] for job in workflow["jobs"].values()]
    read = {"contents": "read"}
    assert allowed == {"ci.yml": [read], "template.yml": [read | {"issues": "write"}]}
