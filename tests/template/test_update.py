"""Updates over versions of the template, of services as they came and of services that live."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from copier import run_recopy, run_update

from tests.support.environments import run, uv
from tests.support.rendering import commit_all, files_in, git
from tests.support.updating import (
    ANSWERS,
    GREETER,
    GREETER_TEST,
    answers_of,
    append,
    change,
    conflicts,
    contents,
    own_tests,
    owned,
    owners,
    put_model,
    python,
    render,
    template_repository,
    update,
    with_version,
    yours,
)
from tests.support.variants import questionnaire, questions, table
from tools.golden import RENDERS

# A question that a later version has.
TEAM = """\
team:
  type: str
  default: nobody"""
SENTINEL = 'VERSION_2 = "A line of the second version."\n'
YOURS = "inference", "tests/test_model", "tests/conftest", "tests/checkpoint"
WORKER = "serving/worker.py"
SETTING = "NEW_SETTING = 7\n"


def second_version(repository: Path) -> None:
    """Add a line to a module, and one to main.py, and change what is the user's."""
    template = repository / "template"
    change(template / "serving" / "worker.py", "logger = ", f"{SENTINEL}logger = ")
    change(template / "main.py.jinja", "model_router = ", f"{SETTING}model_router = ")
    for name in ("README.md.jinja", "tests/conftest.py.jinja", "tests/test_model.py.jinja"):
        append(template / name, SENTINEL)
    append(repository / "parts" / "inference.py.jinja", SENTINEL)
    for pattern in ("example*.*", "*.onnx"):
        for file in template.glob(pattern):
            file.write_bytes(file.read_bytes() + b"Of version 2.")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a git repository with two versions of the template, the first as it is now."""
    return template_repository(tmp_path_factory.mktemp("repository") / "template", second_version)


def test_files_are_declared_once() -> None:
    """What an update leaves alone, what it brings, and what AGENTS.md says read one list."""
    settings = questionnaire()
    assert settings["_exclude"] == settings["_skip_if_exists"] == settings["yours"]["default"]
    assert table("yours_by_answer").keys() <= {*yours()}
    for answers in table("yours_by_answer").values():
        assert {*answers} <= questions().keys()


@pytest.mark.parametrize("name", RENDERS)
def test_untouched(repository: Path, tmp_path: Path, name: str) -> None:
    """A service as it came is a fresh render afterwards; what is the user's is as it was."""
    project = render(repository, tmp_path / "service", **RENDERS[name])
    yours = owned(project, "you")
    update(project)
    fresh = render(repository, tmp_path / "fresh", version=2, **RENDERS[name])
    assert owned(project, "template") == owned(fresh, "template")
    assert owned(project, "you") == yours
    assert owned(fresh, "you").keys() == yours.keys()
    assert SENTINEL in (project / "serving" / "worker.py").read_text(encoding="utf-8")


def test_by_the_command_line(repository: Path, tmp_path: Path) -> None:
    """`copier update --defaults` needs no --trust, and says what to do next."""
    project = render(repository, tmp_path)
    command = [sys.executable, "-m", "copier", "update", "--defaults"]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "my-model-server follows the template again" in result.stderr
    assert "uv lock && uv run pytest" in result.stderr
    assert answers_of(project)["_commit"] == "v2.0.0"
    assert SETTING in (project / "main.py").read_text(encoding="utf-8")


def test_no_news(repository: Path, tmp_path: Path) -> None:
    """An update to the version that a service has already changes nothing."""
    project = render(repository, tmp_path, version=2)
    update(project)
    assert git(project, "status", "--porcelain") == ""


def test_living_service(repository: Path, tmp_path: Path) -> None:
    """Edits in every file of the template stay, the template's news arrive, and it still works."""
    project = render(
        repository, tmp_path, model_type="custom", input_kind="json", accelerator="cpu"
    )
    put_model(project, GREETER)
    (project / "tests" / "test_model.py").write_text(GREETER_TEST.lstrip(), encoding="utf-8")
    change(project / "main.py", "\n\nif __name__", "\n\n# Mine: main\n\nif __name__")
    change(project / "pyproject.toml", "dependencies = [\n", 'dependencies = [\n    "mine",\n')
    change(project / "Dockerfile", "\nCMD", "\nENV MINE=1\nCMD")
    for name in ("worker.py", "limits.py", "inputs.py"):
        append(project / "serving" / name, "\n# Mine\n")
    for name in ("device.py", ".gitignore", ".dockerignore"):
        append(project / name, "\n# Mine\n")
    (project / "helper.py").write_text("MINE = 1\n", encoding="utf-8")
    before = contents(project)
    update(project)
    after = contents(project)
    assert conflicts(project) == []
    assert after["inference.py"] == GREETER.encode()
    assert SETTING in (project / "main.py").read_text(encoding="utf-8")
    assert "# Mine: main" in (project / "main.py").read_text(encoding="utf-8")
    worker = (project / "serving" / "worker.py").read_text(encoding="utf-8")
    assert SENTINEL in worker
    assert worker.endswith("# Mine\n")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"main.py", "serving/worker.py", ANSWERS}
    result = own_tests(project, "tests/test_model.py", "tests/conformance/test_template.py")
    assert result.returncode == 0, result.stdout


def test_edited_files_of_the_user(repository: Path, tmp_path: Path) -> None:
    """What a user has written into files of theirs stays, whatever the template does."""
    project = render(repository, tmp_path, model_type="onnxruntime", accelerator="cpu")
    yours = [name for name, owner in owners(project).items() if owner == "you"]
    assert {"README.md", "inference.py", "nearest-color.onnx", "example.png", "uv.lock"} < {*yours}
    for name in yours:
        (project / name).write_text("My own.\n", encoding="utf-8")
    update(project)
    for name in yours:
        assert (project / name).read_text(encoding="utf-8") == "My own.\n", name
    assert conflicts(project) == []
    assert SENTINEL in (project / "serving" / "worker.py").read_text(encoding="utf-8")


def test_deleted_files_of_the_user(repository: Path, tmp_path: Path) -> None:
    """Files that the user does not want stay away."""
    project = render(repository, tmp_path, preset="minilm")
    unwanted = owned(project, "you").keys()
    assert unwanted == {"README.md", ".gitattributes", *(f"{name}.py" for name in YOURS)}
    for name in unwanted:
        (project / name).unlink()
    update(project)
    assert not unwanted & files_in(project)
    # Another model type does not bring them either, but for the one that such a change is about.
    update(project, preset="none", model_type="ggml", endpoint="complete")
    assert unwanted & files_in(project) == {"tests/checkpoint.py"}
    assert SENTINEL in (project / "serving" / "worker.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        (
            {"model_type": "onnxruntime"},
            {"model_type": "pytorch", "input_kind": "json", "endpoint": "infer"},
            ["example.png", "nearest-color.onnx"],
        ),
        (
            {"model_type": "ggml", "input_kind": "json"},
            {"model_type": "pytorch"},
            ["tests/checkpoint.py"],
        ),
    ],
)
def test_files_of_the_user_without_use(
    repository: Path,
    tmp_path: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    names: list[str],
) -> None:
    """What other answers have no use for is not deleted: there may be weights in it."""
    project = render(repository, tmp_path, **before)
    for name in names:
        (project / name).write_text("My own.\n", encoding="utf-8")
    update(project, **after)
    assert answers_of(project)["model_type"] == "pytorch"
    for name in names:
        assert (project / name).read_text(encoding="utf-8") == "My own.\n", name
    assert conflicts(project) == []


def test_deleted_file_of_the_template(repository: Path, tmp_path: Path) -> None:
    """So does one of the template's, even where the template has changed it."""
    project = render(repository, tmp_path)
    unwanted = {"k8s.yaml", "serving/worker.py"}
    for name in unwanted:
        (project / name).unlink()
    update(project)
    assert not unwanted & files_in(project)


@pytest.mark.parametrize("to", ["cuda", "auto"])
def test_other_accelerator(repository: Path, tmp_path: Path, to: str) -> None:
    """From cpu to another accelerator the model stays, and everything around it follows."""
    answers: dict[str, Any] = {"model_type": "pytorch", "input_kind": "json"}
    answers["features"] = ["observability"]  # an answer that was given stays
    project = render(repository, tmp_path / "service", accelerator="cpu", **answers)
    put_model(project, GREETER)
    update(project, accelerator=to)
    fresh = render(repository, tmp_path / "fresh", version=2, accelerator=to, **answers)
    put_model(fresh, GREETER)
    assert owned(project, "template") == owned(fresh, "template")
    assert conflicts(project) == []


@pytest.mark.parametrize(
    ("before", "after", "follows"),
    [
        (
            {"model_type": "pytorch"},
            {"preset": "rapidocr"},
            {"model_type": "onnxruntime", "input_kind": "image", "endpoint": "ocr"},
        ),
        (
            {"preset": "rapidocr"},
            {"preset": "silero-vad"},
            {"model_type": "pytorch", "input_kind": "audio", "endpoint": "detect-speech"},
        ),
        (
            {"preset": "rapidocr"},
            {"preset": "none"},
            {"model_type": "onnxruntime", "input_kind": "image", "endpoint": "ocr"},
        ),
        ({"model_type": "pytorch"}, {"model_type": "transformers"}, {}),
        ({"input_kind": "image"}, {"input_kind": "audio", "endpoint": "hear"}, {}),
        ({"features": ["gpu"]}, {"features": ["batching", "isolation"]}, {}),
        ({"contracts": ["oip-grpc"], "auth": "jwt"}, {"contracts": ["oip"], "auth": "none"}, {}),
        ({"deploy": ["kubernetes"]}, {"deploy": []}, {}),
        ({"project_name": "a"}, {"project_name": "b", "python_version": "3.13"}, {}),
    ],
    ids=lambda answers: "-".join(map(str, answers.values())),
)
def test_other_answer(
    repository: Path,
    tmp_path: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    follows: dict[str, Any],
) -> None:
    """With other answers the template's files follow; the stock inference.py stays."""
    project = render(repository, tmp_path / "service", **before)
    model = (project / "inference.py").read_bytes()
    update(project, **after)
    assert (project / "inference.py").read_bytes() == model
    known = {name: value for name, value in answers_of(project).items() if name[0] != "_"}
    assert (after | follows).items() <= known.items()
    fresh = render(repository, tmp_path / "fresh", version=2, **known)
    assert owned(project, "template") == owned(fresh, "template")
    assert files_in(fresh) <= files_in(project)


def test_feature_that_is_dropped(repository: Path, tmp_path: Path) -> None:
    """Its file goes, edits of the owner's included: they are in git, and nothing needs them."""
    features = ["observability", "batching"]
    project = render(repository, tmp_path / "service", model_type="custom", features=features)
    put_model(project, GREETER)
    append(project / "serving" / "batching.py", "\n# Mine\n")
    update(project, features=["observability"])
    assert conflicts(project) == []
    assert not [name for name in files_in(project) if "batching" in name or name.endswith(".rej")]
    assert (project / "inference.py").read_text(encoding="utf-8") == GREETER
    assert git(project, "show", "HEAD:serving/batching.py").endswith("# Mine\n")
    # Taken back, the file is the template's again.
    update(project, features=features)
    fresh = render(
        repository, tmp_path / "fresh", version=2, model_type="custom", features=features
    )
    assert owned(project, "template") == owned(fresh, "template")


@pytest.mark.parametrize("mode", ["inline", "rej"])
def test_conflict_is_told(repository: Path, tmp_path: Path, mode: Literal["inline", "rej"]) -> None:
    """The service's own tests name the file whose conflict is not solved, in either form."""
    project = render(repository, tmp_path, model_type="custom", accelerator="cpu")
    change(
        project / "serving" / "worker.py",
        "logger = ",
        'MINE = "Where the second version has a line."\nlogger = ',
    )
    commit_all(project, "Work")
    run_update(project, defaults=True, overwrite=True, quiet=True, conflict=mode)
    result = own_tests(project, "tests/conformance/test_template.py")
    assert result.returncode == 1
    file = {"inline": "serving/worker.py", "rej": "serving/worker.py.rej"}[mode]
    assert f"Solve the conflicts of the update in {file}: " in result.stdout
    (project / file).write_text("", encoding="utf-8")
    if mode == "rej":
        (project / file).unlink()
    assert own_tests(project, "tests/conformance/test_template.py").returncode == 0


def test_update_with_a_conflict_is_taken_back(repository: Path, tmp_path: Path) -> None:
    """What docs/how-to/update.md says of either side holds, and of taking all of it back."""
    project = render(repository, tmp_path / "service")
    change(project / WORKER, "logger = ", 'MINE = "Here."\nlogger = ')
    mine = contents(project)
    update(project)
    new = render(repository, tmp_path / "fresh", version=2)
    assert conflicts(project) == [WORKER]
    assert git(project, "diff", "--name-only", "--diff-filter=U") == f"{WORKER}\n"
    for side, expected in (("--ours", mine[WORKER]), ("--theirs", contents(new)[WORKER])):
        git(project, "checkout", side, WORKER)
        assert (project / WORKER).read_bytes() == expected
    (project / f"{WORKER}.rej").write_text("lies about\n", encoding="utf-8")
    git(project, "reset", "--hard", "--quiet")
    git(project, "clean", "-d", "--force", "--quiet")
    assert contents(project) == mine
    assert git(project, "status", "--porcelain") == ""


def test_recopy(repository: Path, tmp_path: Path) -> None:
    """`copier recopy` gives up edits of the template's files, but not what is the user's."""
    project = render(repository, tmp_path)
    names = owned(project, "you").keys()
    for name in (*names, WORKER):
        (project / name).write_text("My own.\n", encoding="utf-8")
    run_recopy(project, defaults=True, overwrite=True, quiet=True)
    for name in names:
        assert (project / name).read_text(encoding="utf-8") == "My own.\n", name
    assert SENTINEL in (project / "serving" / "worker.py").read_text(encoding="utf-8")


def updated_to(
    make: Callable[[Path], None], repository: Path, folder: Path, **answers: Any
) -> Path:
    """Render a service, and update it to a version that is made then."""
    later = with_version(repository, folder / "template", 3, make)
    project = render(later, folder / "service", **answers)
    update(project)
    return project


def test_choice_that_is_gone(repository: Path, tmp_path: Path) -> None:
    """An answer that is no longer a choice is replaced in silence; the service's tests tell."""

    def third_version(template: Path) -> None:
        change(template / "copier.yml", '    "custom: any Python callable": custom\n', "")
        text = (template / "copier.yml").read_text(encoding="utf-8")
        text = re.sub(r"^    custom:\n(      .*\n)+", "", text, flags=re.MULTILINE)
        (template / "copier.yml").write_text(text, encoding="utf-8")

    project = updated_to(
        third_version, repository, tmp_path, model_type="custom", accelerator="cpu"
    )
    assert answers_of(project)["model_type"] == "pytorch"
    result = own_tests(project, "tests/conformance/test_template.py")
    assert result.returncode == 1
    assert "model_type=custom is no longer a choice of the template" in result.stdout
    assert "Choose one of pytorch, transformers, onnxruntime, paddle, ggml" in result.stdout


def test_endpoint_that_is_taken(repository: Path, tmp_path: Path) -> None:
    """So it is with a route whose name a later version needs for itself."""

    def third_version(template: Path) -> None:
        change(template / "copier.yml", '"[health, ready,', '"[health, look, ready,')

    project = updated_to(third_version, repository, tmp_path, model_type="custom", endpoint="look")
    assert answers_of(project)["endpoint"] == "classify"
    result = own_tests(project, "tests/conformance/test_template.py")
    assert result.returncode == 1
    assert "/look is reserved for the service itself by now" in result.stdout


def test_answer_that_does_not_go_with_another(repository: Path, tmp_path: Path) -> None:
    """So it is where a new answer takes away what another one was."""
    project = render(repository, tmp_path, model_type="custom", accelerator="mps")
    update(project, model_type="paddle")
    assert answers_of(project)["accelerator"] == "auto"
    result = own_tests(project, "tests/conformance/test_template.py")
    assert result.returncode == 1
    assert "accelerator=mps is no longer a choice" in result.stdout


def test_questions_come_and_go(repository: Path, tmp_path: Path) -> None:
    """A later version may have a new question, and no longer an old one."""

    def third_version(template: Path) -> None:
        text = (template / "copier.yml").read_text(encoding="utf-8")
        before, _, rest = text.partition("startup_minutes:\n  type: int\n")
        after = rest.partition("\n\n# ----")[2]
        text = f"{before}team:\n  type: str\n  default: nobody\n\n# ----{after}"
        names = "startup_minutes]"
        assert names in text
        text = text.replace(names, "startup_minutes, team]")
        (template / "copier.yml").write_text(text, encoding="utf-8")
        for folder in ("template", "parts"):
            for file in filter(Path.is_file, (template / folder).rglob("*")):
                content = file.read_bytes()
                file.write_bytes(content.replace(b"startup_minutes", b"10"))
        append(template / "template" / WORKER, "# Of version 3\n")

    later = with_version(repository, tmp_path / "template", 3, third_version)
    project = render(later, tmp_path / "service", version=2, startup_minutes=45)
    update(project)
    assert answers_of(project)["team"] == "nobody"
    assert "startup_minutes" not in answers_of(project)
    update(project, team="a-team")
    assert answers_of(project)["team"] == "a-team"
    assert (
        (project / "serving" / "worker.py").read_text(encoding="utf-8").endswith("# Of version 3\n")
    )
    assert conflicts(project) == []


def test_feature_that_is_new(repository: Path, tmp_path: Path) -> None:
    """A version may bring files that a question, or a feature, of its own decides about."""

    def third_version(template: Path) -> None:
        file = template / "copier.yml"
        change(file, "startup_minutes]", "startup_minutes, team]")
        change(
            file, "startup_minutes:\n  type: int\n", f"{TEAM}\n\nstartup_minutes:\n  type: int\n"
        )
        change(
            file, ": openapi-export\n", ': openapi-export\n    "playground: a page": playground\n'
        )
        row = "    serving/auth.py: "
        change(
            file,
            row,
            '    serving/playground.py: {{ "playground" in features }}\n'
            '    serving/team.py: {{ team != "nobody" }}\n'
            f"{row}",
        )
        for name in ("playground", "team"):
            (template / "template" / "serving" / f"{name}.py").write_text("NEW = 3\n", "utf-8")
        append(template / "template" / WORKER, "# Of version 3\n")

    later = with_version(repository, tmp_path / "template", 3, third_version)
    new = {"serving/playground.py", "serving/team.py"}
    for name, answers, expected in (
        ("defaults", {}, set()),
        ("feature", {"features": ["playground"]}, {"serving/playground.py"}),
        ("question", {"team": "a-team"}, {"serving/team.py"}),
    ):
        project = render(later, tmp_path / name, model_type="custom", accelerator="cpu")
        put_model(project, GREETER)
        update(project, **answers)
        assert conflicts(project) == []
        assert new & files_in(project) == expected
        assert (project / WORKER).read_text(encoding="utf-8").endswith("# Of version 3\n")
        assert (project / "inference.py").read_text(encoding="utf-8") == GREETER
        # What came with the version goes with its answer.
        update(project, features=[], team="nobody")
        assert not new & files_in(project)


def test_version_by_version(repository: Path, tmp_path: Path) -> None:
    """Two updates in a row end where one over both versions ends."""

    def third_version(template: Path) -> None:
        append(template / "template" / "serving" / "limits.py.jinja", "# Three\n")

    later = with_version(repository, tmp_path / "template", 3, third_version)
    projects = [render(later, tmp_path / name, input_kind="json") for name in ("slow", "fast")]
    for project in projects:
        put_model(project, GREETER)
        commit_all(project, "Work")
    run_update(projects[0], vcs_ref="v2.0.0", defaults=True, overwrite=True, quiet=True)
    for project in projects:
        update(project)
        assert conflicts(project) == []
        assert (project / "serving" / "limits.py").read_text(encoding="utf-8").endswith("# Three\n")
    assert contents(projects[0]) == contents(projects[1])


def test_file_that_becomes_the_users(repository: Path, tmp_path: Path) -> None:
    """A file that a later version hands over stays, with the user's edits in it."""

    def third_version(template: Path) -> None:
        change(template / "copier.yml", '  - "*.onnx"\n', '  - "*.onnx"\n  - k8s.yaml\n')
        append(template / "template" / "k8s.yaml.jinja", "# Of version 3\n")

    later = with_version(repository, tmp_path / "template", 3, third_version)
    project = render(later, tmp_path / "service", version=2)
    append(project / "k8s.yaml", "# Mine\n")
    before = (project / "k8s.yaml").read_bytes()
    update(project)
    assert answers_of(project)["_commit"] == "v3.0.0"
    assert (project / "k8s.yaml").read_bytes() == before


def test_lock_that_does_not_fit(repository: Path, tmp_path: Path) -> None:
    """The service's own tests tell of a uv.lock that another answer has made old."""
    project = render(repository, tmp_path, model_type="custom", accelerator="cpu")
    check = "tests/conformance/test_template.py::test_lock_fits"
    assert own_tests(project, check).returncode == 0  # there is none yet
    lock = [uv(), "lock", "--quiet", "--python", python()]
    run(lock, cwd=project)
    assert own_tests(project, check).returncode == 0
    update(project, accelerator="auto", input_kind="audio")
    result = own_tests(project, check)
    assert result.returncode == 1
    assert "uv.lock does not fit pyproject.toml. Run `uv lock`, and commit uv.lock" in result.stdout
    run(lock, cwd=project)
    assert own_tests(project, check).returncode == 0
