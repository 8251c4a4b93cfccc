"""What docs/how-to/packages.md says of old pins and private indexes, done with uv itself."""

import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.code_blocks import blocks
from tests.support.environments import run, uv
from tests.support.rendering import render, template_folder
from tests.support.updating import add_version, change, conflicts, python, update
from tests.support.updating import render as render_version
from tests.support.variants import ROOT

PAGE = ROOT / "docs" / "how-to" / "packages.md"
# PyTorch's own index is not needed for this one.
ANSWERS: dict[str, Any] = {"model_type": "pytorch", "input_kind": "image", "accelerator": "auto"}
OLD = "facenet-pytorch==2.6.0"
SETTINGS = "package = false\n"


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have uv take the interpreter of the tests, whatever .python-version says."""
    monkeypatch.setenv("UV_PYTHON", python())


def shown(test: str, language: str) -> list[str]:
    """Return the page's blocks that a test of this name is to check."""
    return [
        block.text
        for block in blocks(PAGE.read_text(encoding="utf-8"))
        if block.mark.endswith(f"::{test}") and block.language == language
    ]


def document(file: Path) -> dict[str, Any]:
    """Return what a TOML file says."""
    return tomllib.loads(file.read_text(encoding="utf-8"))


def locked(project: Path) -> dict[str, str]:
    """Return the newest version of each package in the lock."""
    packages = document(project / "uv.lock")["package"]
    return {one["name"]: one.get("version", "") for one in packages}


@pytest.mark.parametrize("way", [0, 1], ids=["metadata", "override"])
def test_old_pins(way: int, tmp_path: Path) -> None:
    """The package cannot be added as it is; with what either block says it can."""
    project = render(tmp_path / "service", ANSWERS)
    add = [uv(), "add", "--no-sync", OLD]
    assert f'uv add "{OLD}"\n' in "".join(shown("test_old_pins", "sh"))
    failed = subprocess.run(add, cwd=project, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "No solution found when resolving dependencies" in failed.stderr
    lines = shown("test_old_pins", "toml")[way]
    gap = "\n" if lines.startswith("#") else ""  # a table of its own
    change(project / "pyproject.toml", SETTINGS, f"{SETTINGS}{gap}{lines}")
    run(add, cwd=project)
    versions = locked(project)
    assert versions["facenet-pytorch"] == "2.6.0"
    assert [int(part) for part in versions["numpy"].split(".")[:2]] >= [2, 3]
    assert [int(part) for part in versions["torch"].split(".")[:2]] >= [2, 9]


def test_override_holds_what_the_template_asks_for(tmp_path: Path) -> None:
    """The bounds of the page are those of the template, where the template has some."""
    project = render(tmp_path / "service", ANSWERS)
    declared = document(project / "pyproject.toml")["project"]["dependencies"]
    overrides = tomllib.loads(shown("test_old_pins", "toml")[1])["override-dependencies"]
    assert {"numpy", "pillow", "torch"} <= {line.partition(">")[0] for line in overrides}
    for line in overrides:
        assert line in declared or line.startswith("torchvision"), line


@pytest.mark.parametrize("place", ["beginning", "end"])
def test_update(place: str, tmp_path: Path) -> None:
    """An update keeps the owner's lines; only two lines at the end of one list are a conflict."""
    template = tmp_path / "template"
    shutil.copytree(template_folder(), template)
    add_version(template, 1, lambda _: None)
    add_version(template, 2, second_version)
    project = render_version(template, tmp_path / "service", **ANSWERS)
    file = project / "pyproject.toml"
    metadata, overrides, *_ = shown("test_old_pins", "toml")
    change(file, SETTINGS, f"{SETTINGS}{overrides}\n{metadata}")
    last = '    "torch>=2.9,<3",\n'
    old, new = ("dependencies = [\n", f'dependencies = [\n    "{OLD}",\n')
    if place == "end":
        old, new = last, f'{last}    "{OLD}",\n'
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    update(project)
    assert conflicts(project) == (["pyproject.toml"] if place == "end" else [])
    text = file.read_text(encoding="utf-8")
    assert f'"{OLD}"' in text
    assert '"of-version-2"' in text
    if place == "beginning":
        settings = tomllib.loads(text)["tool"]["uv"]
        assert settings["override-dependencies"]
        assert [one["name"] for one in settings["dependency-metadata"]] == ["facenet-pytorch"]


def second_version(template: Path) -> None:
    """Add a package, and raise the bounds of another."""
    file = template / "template" / "pyproject.toml.jinja"
    change(file, '"uvicorn[standard]>=0.34,<1"', '"uvicorn[standard]>=0.35,<1"')
    change(
        template / "parts" / "model_type" / "pytorch" / "requirements.jinja",
        '    "torch>=2.9,<3",\n',
        '    "torch>=2.9,<3",\n    "of-version-2",\n',
    )


def test_private_index(tmp_path: Path) -> None:
    """A package that is on the own index alone is found there, and locked from there."""
    index, sources = shown("test_private_index", "toml")
    folder = tmp_path / "simple" / "our-model"
    folder.mkdir(parents=True)
    wheel = folder / "our_model-1.0-py3-none-any.whl"
    info = "our_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: our-model\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>', "utf-8")
    project = render(tmp_path / "service", {"model_type": "custom", "accelerator": "cpu"})
    address = folder.parent.as_uri()
    index = index.replace("https://packages.example/simple", address)
    change(project / "pyproject.toml", "\n[tool.ruff]\n", f"\n{sources}\n{index}\n[tool.ruff]\n")
    change(project / "pyproject.toml", "dependencies = [\n", 'dependencies = [\n    "our-model",\n')
    run([uv(), "lock"], cwd=project)
    found = {one["name"]: one["source"] for one in document(project / "uv.lock")["package"]}
    assert "our-model" in found
    assert found["our-model"] != found["fastapi"]
