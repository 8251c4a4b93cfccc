"""Services that live: what their users do to them, and one to three versions of the template later.

Version 4 is the working tree. The versions before it do without real lines of it (`BROUGHT`). Each
update has to leave in each file of the template's what was there, plus the lines that the template
brought, less those that it dropped; the user's files as they were; no trace of a conflict; and a
service whose own tests pass. The whole suite takes half a minute of a core, so it runs where a
scenario has to do with what only the whole of it asks; elsewhere a part does, as each row says.
"""

import difflib
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from copier import run_update

from edits import (
    BRIGHTNESS,
    BRIGHTNESS_TEST,
    IMPORTS,
    add_a_module_and_weights,
    add_a_parameter_and_an_output_field,
    add_an_endpoint,
    add_debian_packages,
    add_dependencies,
    change_settings,
    change_the_manifest,
    change_the_route,
    choose_a_python,
    delete_files_of_the_template,
    delete_files_of_theirs,
    edit_the_machinery,
    move_to_inference,
    move_to_main,
    replace_the_example,
    rewrite_the_readme,
    rewrite_the_seam,
    seam_and_endpoint,
    write_fixtures,
    write_rules,
)
from rendering import commit_all, git, template_folder
from updating import (
    ANSWERS,
    answers_of,
    change,
    conflicts,
    contents,
    declared_owners,
    own_tests,
    put_seam,
    render,
    update,
)

# How deep a scenario goes: as deep as what it does to the service can break.
CHECK = ("tests/test_template.py",)  # for what no process runs: a manifest, a document
ASKED = "ms_23 or ms_24 or ms_25 or ms_31 or ms_32 or ms_33 or ms_52 or ms_53"
LIVE = ("tests", "-k", f"not test_conformance or {ASKED}")  # one service, asked what users ask
ALL = ("tests",)  # some fifteen services, half a minute of a core
NOW = 4
# What a version brought: a file of the template, the lines, and what stood there before.
SUMMARY = '    summary="Follows the ML Microservice Spec {{ spec_version }}.",\n'
BROUGHT: dict[int, list[tuple[str, str, str]]] = {
    2: [
        ("template/worker.py", '        logger.exception("Out of memory")\n', ""),
        ("template/k8s.yaml.jinja", "      automountServiceAccountToken: false\n", ""),
        ("template/README.md.jinja", "| `WARMUP` | true |", "| `WARMUP` | yes |"),
    ],
    3: [
        ("template/pyproject.toml.jinja", "uvicorn[standard]>=0.34,<1", "uvicorn>=0.30,<1"),
        ("template/.gitignore", ".ruff_cache/\n", ""),
        ("template/tests/fixtures.py.jinja", "such as a small MODEL_NAME", "or nothing"),
        ("parts/dockerfile/slim.jinja", "    PYTHONUNBUFFERED=1 \\\n", ""),
        ("parts/dockerfile/cuda.jinja", "    PYTHONUNBUFFERED=1 \\\n", ""),
    ],
    4: [
        ("template/main.py.jinja", SUMMARY, ""),
        ("template/limits.py.jinja", "        value = minimum - 1\n", "        value = -1\n"),
        ("template/CLAUDE.md.jinja", "- Own no thread, no executor", "- Own no thread"),
    ],
}
# A whole file that version 2 brought.
NEW_IN_2 = ".dockerignore"


def before_version(number: int, folder: Path) -> None:
    """Take out of the template what this version brought."""
    for name, now, before in BROUGHT[number]:
        change(folder / name, now, before)
    if number == 2:
        (folder / "template" / NEW_IN_2).unlink()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a git repository with four versions of the template, the last as it is now."""
    folder = tmp_path_factory.mktemp("repository") / "template"
    for version in range(1, NOW + 1):
        for name in ("template", "parts"):
            shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(template_folder(), folder, dirs_exist_ok=True)
        for later in range(NOW, version, -1):
            before_version(later, folder)
        commit_all(folder, f"Version {version}", tag=f"v{version}.0.0")
    return folder


def lines(content: bytes) -> Counter[str]:
    """Count the lines of a file."""
    return Counter(content.decode(errors="replace").splitlines())


def difference(before: bytes, after: bytes) -> tuple[Counter[str], Counter[str]]:
    """Return the lines that were added, and those that were taken out."""
    rows = list(
        difflib.ndiff(
            before.decode(errors="replace").splitlines(),
            after.decode(errors="replace").splitlines(),
        )
    )
    added, removed = (Counter(row[2:] for row in rows if row[:2] == sign) for sign in ("+ ", "- "))
    return added, removed


Fresh = Callable[[int, dict[str, Any]], dict[str, bytes]]


@pytest.fixture(scope="module")
def fresh(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Return a function that gives what a version renders for some answers."""

    @cache
    def rendered(version: int, *answers: tuple[str, Any]) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("fresh")
        return contents(render(repository, folder, version, **dict(answers)))

    return lambda version, answers: rendered(version, *sorted(answers.items()))


@dataclass
class Living:
    """A service of a version of the template, and what its user has made of it."""

    project: Path
    root: Path  # of the git repository
    version: int
    answers: dict[str, Any]
    fresh: Fresh

    def update(self, version: int = NOW, **answers: Any) -> None:
        """Update it, and compare every file with what there was and what the template brought."""
        commit_all(self.root, "Work")
        before = contents(self.project)
        old = self.fresh(self.version, self.answers)
        run_update(
            self.project,
            answers,
            vcs_ref=f"v{version}.0.0",
            defaults=True,
            overwrite=True,
            quiet=True,
        )
        self.version = version
        self.answers |= answers
        new = self.fresh(version, self.answers)
        after = contents(self.project)
        assert answers_of(self.project)["_commit"] == f"v{version}.0.0"
        assert conflicts(self.project) == []
        assert not [name for name in after if name.endswith(".rej")]
        owners = declared_owners({*before, *old, *new, *after})
        for name in sorted(owners):
            if name == ANSWERS:
                continue
            if owners[name] == "you" or (name not in old and name not in new):
                if name in before:
                    assert after[name] == before[name], f"{name} is the user's"
            elif name in old and (name not in before or name not in new):
                assert name not in after, f"{name} was deleted"
            else:
                added, removed = difference(old.get(name, b""), new[name])
                expected = lines(before.get(name, b"")) + added
                expected.subtract(removed)
                assert lines(after[name]) == +expected, name

    def check(self, *tests: str) -> None:
        """Run some of the service's own tests."""
        result = own_tests(self.project, *tests)
        assert result.returncode == 0, result.stdout + result.stderr


Start = Callable[..., Living]


@pytest.fixture
def start(repository: Path, tmp_path: Path, fresh: Fresh) -> Start:
    """Return a function that renders a service: for pictures and custom code, the lightest."""

    def living(version: int = 1, name: str = "service", **answers: Any) -> Living:
        answers = {"model_type": "custom", "accelerator": "cpu"} | answers
        project = render(repository, tmp_path / name, version, **answers)
        return Living(project, project, version, answers, fresh)

    return living


# The tests that an edit can break.
EDITS: dict[Callable[[Path], None], tuple[str, ...]] = {
    rewrite_the_seam: ALL,
    add_a_parameter_and_an_output_field: ALL,
    add_an_endpoint: LIVE,
    replace_the_example: LIVE,
    add_a_module_and_weights: LIVE,
    change_settings: ALL,
    edit_the_machinery: ALL,
    write_fixtures: LIVE,
    delete_files_of_theirs: CHECK,
    add_dependencies: CHECK,
    add_debian_packages: CHECK,
    change_the_manifest: CHECK,
    delete_files_of_the_template: CHECK,
    rewrite_the_readme: CHECK,
    write_rules: CHECK,
    choose_a_python: CHECK,
}


def everything(project: Path) -> None:
    """Do all of it that goes together."""
    for edit in EDITS:
        if edit not in {
            replace_the_example,
            add_a_parameter_and_an_output_field,
            delete_files_of_theirs,
            delete_files_of_the_template,
            choose_a_python,
            change_the_manifest,
        }:
            edit(project)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_unedited(start: Start, version: int) -> None:
    """A service as it came becomes a fresh render, in all that is the template's."""
    living = start(version)
    living.update()
    fresh = living.fresh(NOW, living.answers)
    after = contents(living.project)
    assert after.keys() == fresh.keys()
    owners = declared_owners(fresh)
    assert [name for name in fresh if fresh[name] != after[name] and owners[name] != "you"] == []
    # Byte for byte what test_variants.py runs the whole suite of.
    living.check(*LIVE)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_edit(start: Start, edit: Callable[[Path], None]) -> None:
    """What a user has done is there after an update over three versions, and works."""
    living = start()
    edit(living.project)
    living.update()
    living.check(*EDITS[edit])


@pytest.mark.parametrize("version", [2, 3])
def test_all_edits(start: Start, version: int) -> None:
    """So is all of it at once, whatever version it is done to."""
    living = start(version)
    everything(living.project)
    living.update()
    living.check(*LIVE)


def test_version_after_version(start: Start) -> None:
    """So is all of it over three updates, which end where one over all three versions ends."""
    slow, fast = start(name="slow"), start(name="fast")
    for living in (slow, fast):
        everything(living.project)
    for version in (2, 3):
        slow.update(version)
    for living in (slow, fast):
        living.update()
    assert contents(slow.project) == contents(fast.project)
    slow.check(*ALL)


def test_model_in_a_file_of_its_own(start: Start) -> None:
    """An inference.py that was rewritten is not looked at."""
    living = start(model_module="inference")
    (living.project / "inference.py").write_text(IMPORTS + BRIGHTNESS, encoding="utf-8")
    (living.project / "tests" / "test_model.py").write_text(BRIGHTNESS_TEST, encoding="utf-8")
    living.update()
    living.check(*ALL)


@dataclass
class Change:
    """Other answers, what the user had done before, and the tests that the two can break."""

    before: dict[str, Any]
    after: dict[str, Any]
    edit: Callable[[Path], None]
    tests: tuple[str, ...] = ALL


CPU, CUDA, AUTO = ({"accelerator": name} for name in ("cpu", "cuda", "auto"))
PAGE, NO_PAGE = (AUTO | {"gpu_monitoring": shown} for shown in (True, False))
CHANGES = {
    "cpu-to-cuda": Change(CPU, CUDA, seam_and_endpoint),
    "cuda-to-cpu": Change(CUDA, CPU, seam_and_endpoint, LIVE),
    "cpu-to-auto": Change(CPU, AUTO, seam_and_endpoint, LIVE),
    "cpu-to-cuda-and-seam-apart": Change(
        CPU, CUDA | {"model_module": "inference"}, add_an_endpoint, LIVE
    ),
    "gpu-page-on": Change(NO_PAGE, PAGE, seam_and_endpoint, LIVE),
    "gpu-page-off": Change(PAGE, NO_PAGE, seam_and_endpoint, LIVE),
    "main-to-inference": Change({}, {"model_module": "inference"}, add_an_endpoint, LIVE),
    "route": Change({}, {"endpoint": "look"}, change_the_route, LIVE),
    "name": Change({}, {"project_name": "look"}, rewrite_the_seam, LIVE),
    "packages": Change({}, {"system_packages": "libgl1"}, change_the_manifest, CHECK),
    "python": Change({}, {"python_version": "3.11"}, add_dependencies, CHECK),
    "minutes": Change({}, {"startup_minutes": 45}, change_the_manifest, CHECK),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_answer(start: Start, name: str) -> None:
    """What a user has done is there after another answer and three versions, and works."""
    row = CHANGES[name]
    living = start(**row.before)
    row.edit(living.project)
    living.update(**row.after)
    assert row.after.items() <= answers_of(living.project).items()
    living.check(*row.tests)


def test_there_and_back(start: Start) -> None:
    """An answer that is taken back leaves nothing behind."""
    living = start(NOW, accelerator="auto")
    seam_and_endpoint(living.project)
    before = contents(living.project)
    for answers in ({"gpu_monitoring": False}, {"accelerator": "cuda"}, {"accelerator": "auto"}):
        living.update(**answers)
    living.update(gpu_monitoring=True)
    assert contents(living.project) == before


def test_other_input(start: Start) -> None:
    """An untouched seam follows from image to image-params, with the user's work around it."""
    living = start()
    add_an_endpoint(living.project)
    change_settings(living.project)
    living.update(input_kind="image-params")
    # Known answers are the user's, so these are replaced by hand.
    known = living.fresh(NOW, living.answers)["tests/test_model.py"]
    (living.project / "tests" / "test_model.py").write_bytes(known)
    living.check(*LIVE)


def test_other_input_for_a_model_of_ones_own(start: Start) -> None:
    """Another stock model conflicts with the user's; with that put back, all else has followed."""
    living = start()
    seam_and_endpoint(living.project)
    update(living.project, input_kind="image-params")
    assert conflicts(living.project) == ["main.py"]
    told = own_tests(living.project, *CHECK).stdout
    assert "Solve the conflicts of the update in main.py" in told
    # What docs/update.md says to do then.
    put_seam(living.project, BRIGHTNESS)
    assert conflicts(living.project) == []
    expected = start(NOW, name="expected", input_kind="image-params").project
    seam_and_endpoint(expected)
    assert contents(living.project)["main.py"] == contents(expected)["main.py"]
    living.check(*LIVE)


def run_copier(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run copier in a service, as users do."""
    command = [sys.executable, "-m", "copier", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("before", "after", "move"),
    [("main", "inference", move_to_inference), ("inference", "main", move_to_main)],
)
def test_model_moves(start: Start, before: str, after: str, move: Callable[[Path], None]) -> None:
    """A model of one's own moves between the two files in the steps of docs/update.md."""
    living = start(model_module=before)
    project = living.project
    add_an_endpoint(project)
    if before == "main":
        rewrite_the_seam(project)
    else:
        (project / "inference.py").write_text(IMPORTS + BRIGHTNESS, encoding="utf-8")
        (project / "tests" / "test_model.py").write_text(BRIGHTNESS_TEST, encoding="utf-8")
    move(project)
    commit_all(project, "Move the model")
    moved = contents(project)
    # The answer alone, without a step to another version.
    result = run_copier(
        project, "update", "--defaults", "--vcs-ref=:current:", "-d", f"model_module={after}"
    )
    assert result.returncode == 0, result.stderr
    git(project, "checkout", "HEAD", "--", "main.py")
    assert answers_of(project)["_commit"] == "v1.0.0"
    assert answers_of(project)["model_module"] == after
    changed = {name for name, content in contents(project).items() if content != moved.get(name)}
    assert changed == {ANSWERS, "CLAUDE.md", "tests/spec.py"}  # what tells of it, no code
    # From here on it is as if it had been there always.
    living.answers |= {"model_module": after}
    living.update()
    living.check(*LIVE)


def test_main_would_serve_the_stock_model(start: Start) -> None:
    """From inference to main is refused in words that help, and changes nothing."""
    living = start(name="service [1]", model_module="inference")
    (living.project / "inference.py").write_text(IMPORTS + BRIGHTNESS, encoding="utf-8")
    commit_all(living.project, "Work")
    before = contents(living.project)
    for command in (["update"], ["recopy", "--overwrite"]):
        arguments = ["--defaults", "-d", "model_module=main"]
        name = living.project.name  # which looks like a pattern for files
        result = run_copier(living.project.parent, *command, *arguments, name)
        assert result.returncode != 0
        reason = result.stderr.rpartition("ValueError: ")[2]
        assert "main.py would serve the stock model,\nnot the one in inference.py." in reason
        assert "copier update --defaults --vcs-ref=:current: -d model_module=main" in reason
        assert contents(living.project) == before
        assert git(living.project, "status", "--porcelain") == ""
    # What it was answered to be before is none of this.
    living.update(model_module="inference")


def test_untouched_model_moves_back(start: Start) -> None:
    """An inference.py that is the stock model still is deleted first; then main.py has it."""
    living = start(model_module="inference")
    git(living.project, "rm", "--quiet", "inference.py")
    living.update(model_module="main")
    assert contents(living.project)["main.py"] == living.fresh(NOW, living.answers)["main.py"]


def test_file_named_inference_of_ones_own(start: Start) -> None:
    """A module that happens to be called so is nobody's business where the model is in main.py."""
    living = start()
    (living.project / "inference.py").write_text('"""Mine."""\n', encoding="utf-8")
    living.update()
    living.update(startup_minutes=45)


def test_model_as_a_package(start: Start) -> None:
    """An inference.py that has become a package is not brought back as a file."""
    living = start(model_module="inference")
    (living.project / "inference").mkdir()
    file = living.project / "inference.py"
    file.rename(living.project / "inference" / "__init__.py")
    living.update()
    assert not file.exists()
    living.check(*LIVE)


def test_file_of_the_same_name(start: Start) -> None:
    """Where the template brings a file that the user has already, both are kept, as a conflict."""
    living = start()
    (living.project / NEW_IN_2).write_text("secrets\n", encoding="utf-8")
    update(living.project)
    assert conflicts(living.project) == [NEW_IN_2]
    text = (living.project / NEW_IN_2).read_text(encoding="utf-8")
    assert text.index("secrets\n") < text.index("=======\n") < text.index("k8s.yaml\n")
    assert f"Solve the conflicts of the update in {NEW_IN_2}: " in (
        own_tests(living.project, *CHECK).stdout
    )


def test_folder_of_a_larger_repository(start: Start, tmp_path: Path) -> None:
    """A service that is one folder of a repository is updated like any other."""
    living = start()
    shutil.rmtree(living.project / ".git")
    rewrite_the_seam(living.project)
    (tmp_path / "README.md").write_text("All services.\n", encoding="utf-8")
    living.root = tmp_path
    living.update()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "README.md", "service"]
    living.check(*CHECK)
