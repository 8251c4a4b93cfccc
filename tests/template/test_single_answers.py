"""Each single answer can be changed by `copier update -d …` while the model is the owner's own.

The questions and their values are those of copier.yml. Whatever changes, no file has a conflict,
inference.py stays byte for byte, and main.py is what a fresh render of the new answers has.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from copier import run_copy, run_update

from tests.support.edits import add_a_router, rewrite_the_model
from tests.support.rendering import commit_all, git, template_folder
from tests.support.updating import ANSWERS, answers_of, conflicts, render, template_repository
from tests.support.variants import choices, questions, table

# What can be answered to a question without choices.
SAMPLES: dict[str, list[Any]] = {
    "project_name": ["look", "a-2"],
    "project_description": ["Says what is bright", "It's {{ bright }}."],
    "endpoint": ["look", "how-bright"],
    "system_packages": ["ffmpeg", "libgl1 ffmpeg"],
    "startup_minutes": [1, 45],
}
SEVERAL = [name for name, question in questions().items() if question.get("multiselect")]
NOTHING: dict[str, Any] = {name: [] for name in SEVERAL}
EVERYTHING: dict[str, Any] = {name: choices(name) for name in SEVERAL}
EVERYTHING["deploy"].remove("kserve-knative")  # another form of the same file

Edit = Callable[[Path], None]
# The services that the answers are changed of: the answers, and what the owner did to main.py.
SERVICES: dict[str, tuple[dict[str, Any], Edit | None]] = {
    "bare": ({"model_type": "paddle"} | NOTHING, None),
    "full": ({"model_type": "custom"} | EVERYTHING, add_a_router),
    "preset": ({"preset": "rapidocr"}, None),
}
# Each question once, and again where another service has other answers to change.
QUESTIONS = [
    *(("bare", question) for question in questions()),
    *(("full", question) for question in [*SEVERAL, "auth"]),
    *(
        ("preset", question)
        for question in ["preset", *next(iter(table("presets").values()))]
        if question in questions()
    ),
]


def other_values(question: str, answer: Any) -> list[Any]:
    """Return what else can be answered: of several values, each put in or taken out alone."""
    if question in SEVERAL:
        return [
            [value for value in choices(question) if (value in answer) != (value == one)]
            for one in choices(question)
        ]
    if questions()[question]["type"] == "bool":
        return [not answer]
    if "choices" in questions()[question]:
        return [value for value in choices(question) if value != answer]
    return SAMPLES[question]


def rejection(answers: dict[str, Any], question: str, value: Any) -> str | None:
    """Return the words with which a value is rejected, as the tables say; None if it is not."""
    model_type = answers["model_type"]
    row = table("model_types")[model_type]
    if answers["preset"] != "none" and question != "preset":
        preset = table("presets")[answers["preset"]]
        if question in preset and preset[question] != value:
            return f"preset={answers['preset']} "
    if question == "input_kind" and value not in row["input_kinds"]:
        return f"model_type={model_type} does not take {value}: choose "
    if question == "accelerator" and value not in row["accelerators"]:
        return f"{model_type} does not run on {value}: choose "
    if question == "python_version" and value not in row["pythons"]:
        return f"{model_type} has no packages for Python {value}: choose "
    return rejection_of_manifests(value) if question == "deploy" else None


def rejection_of_manifests(names: list[str]) -> str | None:
    """Return the words with which manifests are rejected that do not go together."""
    if "autoscaling" in names and "kubernetes" not in names:
        return "autoscaling scales the Deployment of k8s.yaml: "
    if {"kserve", "kserve-knative"} <= {*names}:
        return "kserve and kserve-knative are two forms of one file: "
    return None


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that renders a service, once, with a model and edits of its owner's."""
    repository = template_repository(tmp_path_factory.mktemp("repository") / "template")
    made: dict[str, Path] = {}

    def service(name: str) -> Path:
        if name not in made:
            answers, edit = SERVICES[name]
            project = render(repository, tmp_path_factory.mktemp(name) / "service", **answers)
            rewrite_the_model(project)
            if edit:
                edit(project)
            commit_all(project, "Work")
            made[name] = project
        return made[name]

    return service


def fresh_main(folder: Path, answers: dict[str, Any], edit: Edit | None) -> str:
    """Return the main.py that is rendered for these answers, edited alike."""
    run_copy(
        str(template_folder()),
        folder,
        answers,
        defaults=True,
        quiet=True,
        exclude=["*", "!main.py"],
    )
    if edit:
        (folder / "tests").mkdir()  # where the edit puts a test of its own
        edit(folder)
    return (folder / "main.py").read_text(encoding="utf-8")


def test_samples() -> None:
    """Every question has other values: its choices, yes or no, or the samples above."""
    free = {
        name
        for name, question in questions().items()
        if "choices" not in question and question["type"] != "bool"
    }
    assert free == SAMPLES.keys()


@pytest.mark.parametrize(("name", "question"), QUESTIONS)
def test_single_answer(
    make: Callable[[str], Path], tmp_path: Path, name: str, question: str
) -> None:
    """With another answer all that is the template's follows, and the model stays the owner's."""
    project = make(name)
    edit = SERVICES[name][1]
    before = answers_of(project)
    model = (project / "inference.py").read_bytes()
    for number, value in enumerate(other_values(question, before[question])):
        why = f"{question}={json.dumps(value)}"
        words = rejection(before, question, value)
        if words:
            with pytest.raises(ValueError, match=words):
                run_update(project, {question: value}, defaults=True, overwrite=True, quiet=True)
            assert git(project, "status", "--porcelain") == "", why
            continue
        run_update(project, {question: value}, defaults=True, overwrite=True, quiet=True)
        after = answers_of(project)
        assert after[question] == value, why
        assert conflicts(project) == [], why
        assert (project / "inference.py").read_bytes() == model, why
        known = {key: answer for key, answer in after.items() if key[0] != "_"}
        main = fresh_main(tmp_path / str(number), known, edit)
        assert (project / "main.py").read_text(encoding="utf-8") == main, why
        assert ANSWERS in git(project, "status", "--porcelain"), why
        git(project, "reset", "--hard", "--quiet")
        git(project, "clean", "-d", "--force", "--quiet")
