"""Services that live: what their users do to them, and one to three versions of the template later.

Version 4 is the working tree. The versions before it do without real lines of it (`BROUGHT`). Each
update has to leave in each file of the template's what was there, plus the lines that the template
brought, less those that it dropped; the user's files as they were; no trace of a conflict; and a
service whose own tests pass. The whole suite takes half a minute of a core, so it runs where a
scenario has to do with what only the whole of it asks; elsewhere a part does, as each row says.
"""

import difflib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from copier import run_update

from tests.support.edits import (
    add_a_module_and_weights,
    add_a_parameter_and_an_output_field,
    add_a_router,
    add_an_endpoint,
    add_debian_packages,
    add_dependencies,
    change_settings,
    change_the_manifest,
    change_the_route,
    choose_a_python,
    delete_files_of_the_template,
    delete_files_of_theirs,
    edit_every_part_of_the_model,
    edit_the_machinery,
    model_and_endpoint,
    replace_the_example,
    rewrite_the_model,
    rewrite_the_readme,
    write_fixtures,
    write_rules,
)
from tests.support.rendering import commit_all, template_folder
from tests.support.updating import (
    ANSWERS,
    answers_of,
    change,
    conflicts,
    contents,
    declared_owners,
    own_tests,
    render,
    update,
)

# How deep a scenario goes: as deep as what it does to the service can break.
CHECK = ("tests/conformance/test_template.py",)  # for what no process runs: a manifest, a document
ASKED = "ms_23 or ms_24 or ms_25 or ms_31 or ms_32 or ms_33 or ms_52 or ms_53"
LIVE = ("tests", "-k", f"not test_conformance or {ASKED}")  # one service, asked what users ask
ALL = ("tests",)  # some fifteen services, half a minute of a core
NOW = 4
# What a version brought: a file of the template, the lines, and what stood there before.
SUMMARY = '    summary="Follows the ML Microservice Spec {{ spec_version }}.",\n'
BROUGHT: dict[int, list[tuple[str, str, str]]] = {
    2: [
        ("template/serving/runner.py", '        logger.exception("Out of memory")\n', ""),
        ("template/k8s.yaml.jinja", "      automountServiceAccountToken: false\n", ""),
        ("template/REFERENCE.md.jinja", "Which weights.", "The weights."),
    ],
    3: [
        ("template/pyproject.toml.jinja", "uvicorn[standard]>=0.34,<1", "uvicorn>=0.30,<1"),
        ("template/.gitignore", ".ruff_cache/\n", ""),
        ("template/tests/conftest.py.jinja", "such as a small MODEL_NAME", "or nothing"),
        ("parts/dockerfile/slim.jinja", "    PYTHONUNBUFFERED=1 \\\n", ""),
        ("parts/dockerfile/cuda.jinja", "    PYTHONUNBUFFERED=1 \\\n", ""),
    ],
    4: [
        ("template/main.py.jinja", SUMMARY, ""),
        ("template/serving/server.py", "KEEP_ALIVE_SECONDS = 75\n", "KEEP_ALIVE_SECONDS = 70\n"),
        ("template/AGENTS.md.jinja", "- Own no thread and no executor", "- Own no thread"),
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


def given_answers(project: Path) -> dict[str, Any]:
    """Return the answers that a service would be rendered from now."""
    return {name: answer for name, answer in answers_of(project).items() if name[0] != "_"}


Fresh = Callable[[int, dict[str, Any]], dict[str, bytes]]


@pytest.fixture(scope="module")
def fresh(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Return a function that gives what a version renders for some answers."""

    @cache
    def rendered(version: int, answers: str) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("fresh")
        return contents(render(repository, folder, version, **json.loads(answers)))

    return lambda version, answers: rendered(version, json.dumps(answers, sort_keys=True))


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
        self.answers = given_answers(self.project)
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
        result = own_tests(self.project, *tests, forks="all")
        assert result.returncode == 0, result.stdout + result.stderr


Start = Callable[..., Living]


@pytest.fixture
def start(repository: Path, tmp_path: Path, fresh: Fresh) -> Start:
    """Return a function that renders a service: for pictures and custom code, the lightest."""

    def living(version: int = 1, name: str = "service", **answers: Any) -> Living:
        answers = {"model_type": "custom", "accelerator": "cpu"} | answers
        project = render(repository, tmp_path / name, version, **answers)
        return Living(project, project, version, given_answers(project), fresh)

    return living


# The tests that an edit can break.
EDITS: dict[Callable[[Path], None], tuple[str, ...]] = {
    rewrite_the_model: ALL,
    edit_every_part_of_the_model: LIVE,
    add_a_parameter_and_an_output_field: ALL,
    add_an_endpoint: LIVE,
    add_a_router: LIVE,
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
            edit_every_part_of_the_model,
            replace_the_example,
            add_a_router,
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


@dataclass
class Change:
    """Other answers, what the user had done before, and the tests that the two can break."""

    before: dict[str, Any]
    after: dict[str, Any]
    edit: Callable[[Path], None]
    tests: tuple[str, ...] = ALL


def with_features(*features: str) -> dict[str, Any]:
    """Return the answers that choose these features, and no others."""
    return {"features": list(features)}


CPU, CUDA, AUTO = ({"accelerator": name} for name in ("cpu", "cuda", "auto"))
NOTHING, SEEN = with_features(), with_features("observability")
CHANGES = {
    "cpu-to-cuda": Change(CPU, CUDA, model_and_endpoint),
    "cuda-to-cpu": Change(CUDA, CPU, model_and_endpoint, LIVE),
    "cpu-to-auto": Change(CPU, AUTO, model_and_endpoint, LIVE),
    "observability-off": Change(SEEN, NOTHING, add_a_router, LIVE),
    "observability-on": Change(NOTHING, SEEN, add_a_router, LIVE),
    "gpu": Change(SEEN, with_features("observability", "gpu"), model_and_endpoint, LIVE),
    "batching": Change(SEEN, with_features("observability", "batching"), add_a_router, LIVE),
    "streaming": Change(SEEN, with_features("observability", "streaming"), change_settings, LIVE),
    "isolation": Change(SEEN, with_features("observability", "isolation"), model_and_endpoint),
    "replicas": Change(SEEN, with_features("observability", "replicas"), edit_the_machinery, LIVE),
    "openapi-export": Change(
        SEEN, with_features("observability", "openapi-export"), add_an_endpoint, CHECK
    ),
    "deploy-off": Change({}, {"deploy": []}, model_and_endpoint, CHECK),
    "deploy-on": Change({"deploy": []}, {"deploy": ["kubernetes"]}, add_an_endpoint, CHECK),
    "contracts-on": Change({}, {"contracts": ["oip", "model-engine"]}, add_a_router, LIVE),
    "contracts-off": Change({"contracts": ["oip"]}, {"contracts": []}, add_a_router, LIVE),
    "auth": Change({}, {"auth": "api-key"}, model_and_endpoint, CHECK),
    "tasks": Change({"predictions": "local"}, {"predictions": "celery"}, add_an_endpoint, CHECK),
    "preset": Change({}, {"preset": "rapidocr"}, rewrite_the_model, CHECK),
    "model-type": Change({}, {"model_type": "pytorch"}, model_and_endpoint, CHECK),
    "input-kind": Change({}, {"input_kind": "image-params"}, model_and_endpoint, LIVE),
    "route": Change({}, {"endpoint": "look"}, change_the_route, LIVE),
    "name": Change({}, {"project_name": "look"}, rewrite_the_model, LIVE),
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
    living = start(NOW, accelerator="auto", **SEEN)
    model_and_endpoint(living.project)
    before = contents(living.project)
    both, one = with_features("observability", "gpu"), with_features("batching")
    for answers in (both, {"accelerator": "cuda"} | one, {"accelerator": "auto"}, SEEN):
        living.update(**answers)
    assert contents(living.project) == before


def test_other_input(start: Start) -> None:
    """With another input kind the stock inference.py stays, as the user's; a fresh one fits."""
    living = start()
    add_an_endpoint(living.project)
    change_settings(living.project)
    living.update(input_kind="image-params")
    fresh = living.fresh(NOW, living.answers)
    for name in ("inference.py", "tests/test_model.py"):
        (living.project / name).write_bytes(fresh[name])
    living.check(*LIVE)


def test_model_as_a_package(start: Start) -> None:
    """An inference.py that has become a package is not brought back as a file."""
    living = start()
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
    assert text.index("secrets\n") < text.index("=======\n") < text.index("k8s*.yaml\n")
    assert f"Solve the conflicts of the update in {NEW_IN_2}: " in (
        own_tests(living.project, *CHECK).stdout
    )


def test_folder_of_a_larger_repository(start: Start, tmp_path: Path) -> None:
    """A service that is one folder of a repository is updated like any other."""
    living = start()
    shutil.rmtree(living.project / ".git")
    rewrite_the_model(living.project)
    (tmp_path / "README.md").write_text("All services.\n", encoding="utf-8")
    living.root = tmp_path
    living.update()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "README.md", "service"]
    living.check(*CHECK)
