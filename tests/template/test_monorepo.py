"""What docs/how-to/monorepo.md says of services in a larger repository, done with uv itself."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier import run_copy, run_update

from tests.support.code_blocks import blocks, patch
from tests.support.environments import run, uv
from tests.support.live import live
from tests.support.rendering import commit_all, files_in, git, render, template_folder
from tests.support.updating import (
    add_version,
    answers_of,
    append,
    change,
    conflicts,
    own_tests,
    python,
)
from tests.support.variants import ROOT

PAGE = ROOT / "docs" / "how-to" / "monorepo.md"
CHECK = "tests/conformance/test_template.py::test_lock_fits"
LIBRARY = """\
[project]
name = "pictures"
version = "0.1.0"
requires-python = ">=3.11"

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
"""


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have uv take the interpreter of the tests, whatever .python-version says."""
    monkeypatch.setenv("UV_PYTHON", python())
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)


def shown(test: str, language: str) -> list[str]:
    """Return the page's blocks that a test of this name is to check."""
    found = [
        block.text
        for block in blocks(PAGE.read_text(encoding="utf-8"))
        if block.mark.endswith(f"::{test}") and block.language == language
    ]
    assert found
    return found


def monorepo(root: Path, workspace: str, **answers: Any) -> Path:
    """Make a repository with the page's two services, some shared code, and this workspace."""
    for name, kind in {"colors": "image", "notes": "audio"}.items():
        given = {"model_type": "custom", "project_name": name, "input_kind": kind, "endpoint": name}
        render(root / "services" / name, given | {"accelerator": "cpu"} | answers)
    module = root / "libs" / "pictures" / "src" / "pictures"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("SHARED = True\n", encoding="utf-8")
    (root / "libs" / "pictures" / "pyproject.toml").write_text(LIBRARY, encoding="utf-8")
    (root / "pyproject.toml").write_text(workspace, encoding="utf-8")
    return root


def locked(root: Path, package: str) -> set[str]:
    """Return the versions of a package that a lock has."""
    document = tomllib.loads((root / "uv.lock").read_text(encoding="utf-8"))
    return {one["version"] for one in document["package"] if one["name"] == package}


def build(service: Path, app: Path, *, root: Path | None = None) -> Path:
    """Do what the Dockerfile does with the code, in a folder in the place of /app."""
    _, first, second = re.split(r"^FROM ", (service / "Dockerfile").read_text(), flags=re.MULTILINE)
    app.mkdir()
    for step in re.findall(r"^COPY (.+)$|^ +(uv sync .+)$", first, re.MULTILINE):
        if step[1]:
            command = [uv(), *re.sub(r"\$\{.*\}", "", step[1]).split()[1:]]
            run(command, cwd=app)
            continue
        *sources, target = step[0].split()
        folder = service
        if sources[0] == "--from=workspace":
            assert root
            folder = root
            del sources[0]
        for source in sources:
            if (folder / source).is_dir():
                shutil.copytree(folder / source, app / target)
            else:
                (app / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / source, app / target)
    assert "COPY --from=builder /app/.venv .venv\nCOPY . .\n" in second
    image = app.with_name(f"{app.name}-image")
    hidden = shutil.ignore_patterns(".*", "tests", "*.md", "__pycache__")  # as .dockerignore
    shutil.copytree(service, image, ignore=hidden)
    shutil.copytree(app / ".venv", image / ".venv", symlinks=True)
    return image


def assert_serves(image: Path, log: Path) -> None:
    """Hold that the service starts, from what the image has."""
    with live(image, str(image / ".venv" / "bin" / "python"), log) as running:
        assert running.ready().get("/health").status_code == 200


def test_member(tmp_path: Path) -> None:
    """Members have one lock, are checked against it, run from it, and are built from it."""
    workspace, dependency = shown("test_member", "toml")
    root = monorepo(tmp_path / "mono", workspace)
    colors, notes = root / "services" / "colors", root / "services" / "notes"
    assert own_tests(colors, CHECK).returncode == 0  # there is no lock yet
    run([uv(), "lock", "--quiet"], cwd=notes)
    assert (root / "uv.lock").exists()
    assert not any(root.glob("services/*/uv.lock"))
    for service in (colors, notes):
        assert own_tests(service, CHECK).returncode == 0

    (notes / "uv.lock").write_text("Of an earlier time.\n", encoding="utf-8")  # nothing reads it
    run([uv(), "lock", "--check"], cwd=notes)
    (notes / "uv.lock").unlink()

    pictures, sources = dependency.split("\n\n")
    line = pictures.splitlines()[1]
    change(colors / "pyproject.toml", "dependencies = [\n", f"dependencies = [\n{line}\n")
    append(colors / "pyproject.toml", f"\n{sources}")
    for service in (colors, notes):  # a lock that does not fit one member fits none
        result = own_tests(service, CHECK)
        assert result.returncode == 1
        assert "uv.lock does not fit pyproject.toml" in result.stdout
    run([uv(), "lock", "--quiet"], cwd=root)
    assert own_tests(notes, CHECK).returncode == 0

    command = [uv(), "run", "--directory", "services/colors", "pytest", "-q", CHECK]
    assert "1 passed" in run(command, cwd=root)
    script = "run --package notes services/notes/main.py"
    with live(root, uv(), tmp_path / "log", script=script) as running:
        assert running.ready().get("/health").status_code == 200
        # uv passes a signal on; killed, it would leave the service behind.
        running.process.terminate()
        assert running.process.wait(timeout=60) == 0

    for difference in shown("test_member", "diff"):
        patch(colors / "Dockerfile", difference)
    image = build(colors, tmp_path / "app", root=root)
    found = run([str(image / ".venv/bin/python"), "-c", "import pictures; print(pictures)"])
    assert "site-packages" in found
    shutil.rmtree(tmp_path / "app")  # what the first stage had
    assert_serves(image, tmp_path / "log-of-image")


def test_settings_of_members(tmp_path: Path) -> None:
    """Overrides are read at the root alone; two sources of one package cannot be locked."""
    [workspace, _] = shown("test_member", "toml")
    root = monorepo(tmp_path / "mono", workspace)
    override = 'override-dependencies = ["httpx==0.27.2"]\n'
    change(
        root / "services/notes/pyproject.toml", "package = false\n", f"package = false\n{override}"
    )
    run([uv(), "lock", "--quiet"], cwd=root)
    assert locked(root, "httpx") & {"0.27.2"} == set()
    append(root / "pyproject.toml", f"\n[tool.uv]\n{override}")
    run([uv(), "lock", "--quiet"], cwd=root)
    assert locked(root, "httpx") == {"0.27.2"}

    for name, accelerator in {"colors": "cpu", "notes": "cuda"}.items():
        answers = {"project_name": name, "accelerator": accelerator}
        shutil.rmtree(root / "services" / name)
        render(root / "services" / name, answers)
    result = subprocess.run([uv(), "lock"], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "conflicting indexes for package `torch`" in result.stderr
    assert "conflicting indexes for package `torch`" in PAGE.read_text(encoding="utf-8")


def test_excluded(tmp_path: Path) -> None:
    """A service that the workspace excludes has its own lock, and is built as it was rendered."""
    [workspace] = shown("test_excluded", "toml")
    root = monorepo(tmp_path / "mono", workspace)
    colors = root / "services" / "colors"
    run([uv(), "lock", "--quiet"], cwd=root)
    run([uv(), "lock", "--quiet"], cwd=colors)
    assert locked(colors, "fastapi")
    assert not locked(root, "fastapi")
    assert own_tests(colors, CHECK).returncode == 0
    change(colors / "pyproject.toml", "dependencies = [\n", 'dependencies = [\n    "httpx",\n')
    assert own_tests(colors, CHECK).returncode == 1
    run([uv(), "lock", "--quiet"], cwd=colors)
    assert_serves(build(colors, tmp_path / "app"), tmp_path / "log")


def test_update_in_a_subfolder(tmp_path: Path) -> None:
    """An update stays in the service's folder, keeps the page's edits, and brings no workflow."""
    template = tmp_path / "template"
    shutil.copytree(template_folder(), template)
    add_version(template, 1, lambda _: None)
    add_version(template, 2, second_version)
    root = tmp_path / "mono"
    answers = {"model_type": "custom", "project_name": "colors", "accelerator": "cpu"}
    colors = root / "services" / "colors"
    run_copy(str(template), colors, answers, vcs_ref="v1.0.0", defaults=True, quiet=True)
    (root / "README.md").write_text("Of the repository.\n", encoding="utf-8")
    for difference in shown("test_member", "diff"):
        patch(colors / "Dockerfile", difference)
    shutil.rmtree(colors / ".github")
    commit_all(root, "Everything")
    outside = files_in(root)
    run_update(colors, defaults=True, overwrite=True, quiet=True)
    assert answers_of(colors)["_commit"] == "v2.0.0"
    assert conflicts(colors) == []
    dockerfile = (colors / "Dockerfile").read_text(encoding="utf-8")
    assert "COPY --from=workspace pyproject.toml uv.lock ./\n" in dockerfile
    assert "ENV VERSION=2\n" in dockerfile
    assert "# Of version 2" in (colors / "serving/worker.py").read_text(encoding="utf-8")
    changed = git(root, "status", "--porcelain").split()[1::2]
    assert all(name.startswith("services/colors/") for name in changed)
    assert files_in(root) == outside


def second_version(template: Path) -> None:
    """Change a module, the Dockerfile and the workflow."""
    append(template / "template" / "serving" / "worker.py", "# Of version 2\n")
    append(template / "template" / ".github" / "workflows" / "ci.yml", "# Of version 2\n")
    change(template / "parts" / "dockerfile" / "slim.jinja", "\nUSER ", "\nENV VERSION=2\nUSER ")


def test_workflow(tmp_path: Path) -> None:
    """The page's workflow runs what a service's own does, in the folder of each service."""
    [text] = shown("test_workflow", "yaml")
    ours = yaml.safe_load(text)["jobs"]["test"]
    project = render(tmp_path / "service", {"model_type": "custom"})
    file = project / ".github" / "workflows" / "ci.yml"
    theirs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]["test"]
    assert ours["defaults"]["run"]["working-directory"] == "services/${{ matrix.service }}"
    assert ours["env"] == theirs["env"]
    assert ours["permissions"] == theirs["permissions"]
    *steps, upload = ours["steps"]
    *expected, _ = theirs["steps"]
    assert steps == expected
    assert upload["with"]["path"] == "services/${{ matrix.service }}/.conformance/"
    pins = re.findall(r"uses: (.+)", file.read_text(encoding="utf-8"))
    assert re.findall(r"uses: (.+)", text) == pins
