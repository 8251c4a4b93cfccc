"""The prompts: what they take, what they refuse and in which words, and that none needs trust."""

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from copier import run_copy
from jinja2 import UndefinedError

from tests.support.rendering import commit_all, files_in, git, render, template_folder
from tests.support.updating import template_repository
from tests.support.variants import (
    CONTRACTS,
    FEATURES,
    ROOT,
    choices,
    questionnaire,
    questions,
    table,
)

COPIER = [sys.executable, "-m", "copier"]
DIALOGUE_SECONDS = 120

# What is refused, and what the message must name: an answer that would be right.
REFUSED: dict[str, tuple[list[str], str]] = {
    "name": (["project_name=My_Server!"], "'my-model-server'"),
    "name-with-line-end": (["project_name=my-server\n"], "'my-model-server'"),
    "name-of-64": (["project_name=" + 64 * "a"], "at most 63"),
    "route-of-the-service": (["endpoint=health"], "'classify'"),
    "route-with-slash": (["endpoint=/ocr"], "without the slash, e.g. 'classify'"),
    "route-with-line-end": (["endpoint=ocr\n"], "'classify'"),
    "accelerator-of-model-type": (
        ["model_type=paddle", "accelerator=mps"],
        "choose auto, cuda, cpu",
    ),
    "input-of-model-type": (["model_type=ggml", "input_kind=video"], "choose json or audio"),
    "python-of-model-type": (
        ["model_type=paddle", "python_version=3.14"],
        "choose 3.12, 3.11, 3.13",
    ),
    "model-type-of-preset": (["preset=rapidocr", "model_type=paddle"], "model_type=onnxruntime"),
    "input-of-preset": (["preset=rapidocr", "input_kind=audio"], "input_kind=image"),
    "route-of-preset": (["preset=rapidocr", "endpoint=read"], "endpoint=ocr"),
    "unknown-choice": (["model_type=tensorflow"], "'pytorch', 'transformers', 'onnxruntime'"),
    "misspelt-question": (["acelerator=cpu"], "accelerator, "),
    "contract-that-is-no-list": (["contracts=oip"], "-d 'contracts=[oip]'"),
    "unknown-contract": (
        ["contracts=[kserve]"],
        "'oip', 'oip-grpc', 'sagemaker', 'model-engine', 'openai'",
    ),
    "unknown-authorisation": (["auth=basic"], "'none', 'api-key', 'jwt'"),
    "no-minutes": (["startup_minutes=0"], "between 1 and 1440, e.g. 10"),
    "too-many-minutes": (["startup_minutes=1441"], "between 1 and 1440, e.g. 10"),
    "packages-with-command": (["system_packages=libgl1;rm"], "'libgl1 ffmpeg'"),
    "packages-with-line-end": (["system_packages=libgl1\n"], "'libgl1 ffmpeg'"),
    "feature-that-is-no-list": (["features=batching"], "-d 'features=[batching]'"),
    "feature-of-later": (["features=[playground]"], "'observability', 'gpu', 'batching'"),
    "two-owners-of-the-tasks": (
        ["predictions=local", "features=[replicas]"],
        "keeps its queue in one process",
    ),
    "unknown-input": (["input_kind=text"], "'image', 'image-params', 'image-batch'"),
    "manifest-that-is-not-there": (["deploy=[helm]"], "'kubernetes', 'autoscaling', 'kserve'"),
    "pods-of-nothing": (["deploy=[autoscaling]"], "use [kubernetes, autoscaling]"),
    "two-modes": (["deploy=[kserve,kserve-knative]"], "choose one of them"),
    "several-pods-with-one-queue": (
        ["predictions=local", "deploy=[kserve]"],
        "keeps its tasks in one pod",
    ),
    "empty-description": (["project_description= "], "'Reads the text in scanned pages'"),
    "description-with-quote": (
        ['project_description=Says "hi"'],
        "'Reads the text in scanned pages'",
    ),
    "description-with-backslash": (["project_description=a\\b"], "without double quotes or back"),
    "description-of-two-lines": (["project_description=One\ntwo"], "Use one line"),
    "description-of-81": (["project_description=" + 81 * "a"], "at most 80 characters"),
    "description-with-delete": (["project_description=a\x7fb"], "Use one line"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the template as a git repository with a version, as users copy from."""
    return template_repository(tmp_path_factory.mktemp("repository") / "template")


def copier(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command `copier`, never with --trust."""
    command = [*COPIER, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


def with_data(answers: list[str]) -> list[str]:
    """Return answers as options of the command."""
    return [argument for answer in answers for argument in ("-d", answer)]


def stored(project: Path) -> dict[str, Any]:
    """Return the answers that a project remembers, without what copier adds."""
    text = (project / ".copier-answers.yml").read_text(encoding="utf-8")
    return {name: value for name, value in yaml.safe_load(text).items() if name[0] != "_"}


def test_copy_by_the_command_line(repository: Path, tmp_path: Path) -> None:
    """`copier copy --defaults -r HEAD` works without --trust, and says what to do next."""
    project = tmp_path / "service"
    result = copier("copy", "--defaults", "-r", "HEAD", repository, project)
    assert result.returncode == 0, result.stderr
    assert files_in(project) == files_in(render(tmp_path / "other", {}))
    steps = re.findall(r"^ *(\d)\.  (.+)$", result.stderr, re.MULTILINE)
    assert [number for number, _ in steps] == ["1", "2", "3", "4"]
    assert steps[0][1] == f"cd {project} && git init && uv lock"
    assert steps[1][1] == "uv run pytest"
    assert steps[2][1] == "uv run main.py"
    assert "inference.py" in steps[3][1]


@pytest.mark.parametrize("name", ["my service", "it's", "a;b", "service [1]"])
def test_next_steps_quote_the_folder(repository: Path, tmp_path: Path, name: str) -> None:
    """The line that changes into the folder works in a shell, whatever the folder is called."""
    project = tmp_path / name
    result = copier("copy", "--defaults", repository, project)
    [line] = re.findall(r"^ *1\.  (cd .+) && git init && uv lock$", result.stderr, re.MULTILINE)
    shell = ["sh", "-c", f"{line} && test -f main.py"]
    assert subprocess.run(shell, cwd=tmp_path, check=False).returncode == 0


def test_no_repository_inside_a_repository(repository: Path, tmp_path: Path) -> None:
    """A service that becomes a folder of a repository needs no `git init`."""
    commit_all(tmp_path, "All services")
    project = tmp_path / "services" / "one"
    result = copier("copy", "--defaults", repository, project)
    assert f"cd {project} && uv lock\n" in result.stderr


def test_relative_path_to_the_template(repository: Path, tmp_path: Path) -> None:
    """A template that was named by a relative path is found again from any folder."""
    shutil.copytree(repository, tmp_path / "template")
    (tmp_path / "elsewhere").mkdir()
    result = copier("copy", "--defaults", "../template", "../service", cwd=tmp_path / "elsewhere")
    assert result.returncode == 0, result.stderr
    project = tmp_path / "service"
    commit_all(project, "Render")
    result = copier("update", "--defaults", "-d", "startup_minutes=45", cwd=project)
    assert result.returncode == 0, result.stderr
    assert stored(project)["startup_minutes"] == 45


def test_folder_with_files(repository: Path, tmp_path: Path) -> None:
    """Where nobody can be asked what to do with a file that is there, nothing is written.

    With --overwrite the file is replaced; one that the template does not have is left alone.
    """
    (tmp_path / "main.py").write_text("print('mine')\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine\n", encoding="utf-8")
    result = copier("copy", "--defaults", repository, tmp_path)
    assert result.returncode != 0
    reason = result.stderr.rpartition("ValueError: ")[2]
    assert f"{tmp_path} has main.py already." in reason
    assert "--overwrite" in reason
    assert files_in(tmp_path) == {"main.py", "notes.txt"}
    result = copier("copy", "--defaults", "--overwrite", repository, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "FastAPI" in (tmp_path / "main.py").read_text(encoding="utf-8")
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine\n"


@pytest.mark.parametrize("input_kind", choices("input_kind"))
def test_next_steps_show_a_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], input_kind: str
) -> None:
    """The steps have one request for the service, by curl, in line with the text around it."""
    answers = {"model_type": "custom", "input_kind": input_kind}
    run_copy(str(template_folder()), tmp_path, data=answers, defaults=True)
    steps = capsys.readouterr().err
    [(indent, route, options)] = re.findall(
        r"^( *)curl localhost:8000/(\S+) (.*)$", steps, re.MULTILINE
    )
    assert f"\n{indent}# then http://localhost:8000/docs" in steps
    assert route == table("input_kinds")[input_kind]["endpoint"]
    for file in re.findall(r"@(\S+)", options):
        assert (tmp_path / file).is_file()


@pytest.mark.parametrize(("answers", "excerpt"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_on_copy(
    repository: Path, tmp_path: Path, answers: list[str], excerpt: str
) -> None:
    """A wrong answer ends in an error whose last lines show a right one, and in no project."""
    project = tmp_path / "service"
    result = copier("copy", "--defaults", *with_data(answers), repository, project)
    assert result.returncode != 0
    assert excerpt in result.stderr.rpartition("ValueError: ")[2], result.stderr
    assert not project.exists() or not files_in(project)


@pytest.mark.parametrize("name", ["misspelt-question", "input-of-model-type", "route-of-preset"])
def test_refused_on_update(repository: Path, tmp_path: Path, name: str) -> None:
    """`copier update` refuses a wrong answer in the same words, and changes nothing."""
    answers, excerpt = REFUSED[name]
    run_copy(str(repository), tmp_path, defaults=True, quiet=True)
    commit_all(tmp_path, "Render")
    result = copier("update", "--defaults", "-r", "HEAD", *with_data(answers), cwd=tmp_path)
    assert result.returncode != 0
    assert excerpt in result.stderr.rpartition("ValueError: ")[2], result.stderr
    assert git(tmp_path, "status", "--porcelain") == ""


@pytest.mark.parametrize("endpoint", table("reserved_endpoints"))
def test_reserved_endpoints(tmp_path: Path, endpoint: str) -> None:
    """No route of the service itself, today's or a later capability's, is taken by the model."""
    with pytest.raises(ValueError, match="is reserved for the service itself"):
        render(tmp_path, {"endpoint": endpoint})


def test_every_own_route_is_reserved(tmp_path: Path) -> None:
    """Whatever route a rendered service has beside the model's is a reserved one."""
    answers = {"endpoint": "the-model", "features": list(FEATURES), "contracts": list(CONTRACTS)}
    project = render(tmp_path, answers)
    code = "".join(
        file.read_text(encoding="utf-8")
        for file in project.rglob("*.py")
        if "tests" not in file.parts
    )
    routes = set(re.findall(r'@(?:app|\w*router)\.\w+\(\s*"/([^"/]*)', code))
    assert {"health", "ready", "gpu", "v2", "predict", "the-model"} <= routes
    assert routes - {"the-model"} <= {*table("reserved_endpoints")}


@pytest.mark.parametrize("model_type", choices("model_type"))
def test_every_combination_is_as_the_table_says(tmp_path: Path, model_type: str) -> None:
    """What the table has is taken as asked, for every combination; all else is refused."""
    row = table("model_types")[model_type]
    # The answers alone: test_variants.py renders what is taken whole.
    options: dict[str, Any] = {"exclude": ["*", "!.copier-answers.yml"]}
    options |= {"defaults": True, "quiet": True}
    for input_kind, accelerator in product(choices("input_kind"), choices("accelerator")):
        answers = {"model_type": model_type, "input_kind": input_kind, "accelerator": accelerator}
        project = tmp_path / f"{input_kind}-{accelerator}"
        if input_kind in row["input_kinds"] and accelerator in row["accelerators"]:
            run_copy(str(template_folder()), project, answers, **options)
            assert answers.items() <= stored(project).items()
        else:
            with pytest.raises(ValueError, match=r"Invalid choice .*: choose .*"):
                run_copy(str(template_folder()), project, answers, **options)


def test_tables_have_the_choices() -> None:
    """The tables and the questions know of the same choices."""
    for question in ("model_type", "input_kind", "accelerator"):
        assert sorted(choices(question)) == sorted(table(f"{question}s"))
    assert choices("preset") == ["none", *table("presets")]


@pytest.mark.parametrize("preset", table("presets"))
def test_preset_answers_are_stored(tmp_path: Path, preset: str) -> None:
    """A preset renders on each accelerator, and the questions it answers are stored with it."""
    row = table("presets")[preset]
    answered = {name: row[name] for name in ("model_type", "input_kind", "endpoint")}
    for accelerator in table("model_types")[row["model_type"]]["accelerators"]:
        asked = {"preset": preset, "accelerator": accelerator}
        answers = stored(render(tmp_path / accelerator, asked))
        assert (asked | answered).items() <= answers.items()


@pytest.mark.parametrize("input_kind", ["image", "json"])
def test_endpoint_follows_the_input(tmp_path: Path, input_kind: str) -> None:
    """Without an answer the route is the input kind's own; an answer becomes the route."""
    default = render(tmp_path / "default", {"input_kind": input_kind})
    assert stored(default)["endpoint"] == table("input_kinds")[input_kind]["endpoint"]
    named = render(tmp_path / "named", {"input_kind": input_kind, "endpoint": "find-cats"})
    assert '"/find-cats"' in (named / "main.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "description",
    [
        80 * "a",
        "It's 100 % {{ plain }} {% text %} # here",
        "Erkennt Wörter: 文字 – 'schnell' & <gut>.",
    ],
)
def test_odd_descriptions(tmp_path: Path, description: str) -> None:
    """A description may have any other characters; it arrives as it was given."""
    project = render(tmp_path, {"project_description": description})
    assert stored(project)["project_description"] == description
    for file in ("main.py", "README.md", "AGENTS.md", "pyproject.toml"):
        assert description.rstrip(".") in (project / file).read_text(encoding="utf-8"), file
    compile((project / "main.py").read_bytes(), "main.py", "exec")


def test_nothing_needs_trust() -> None:
    """No version of copier.yml has what would run something on the user's machine."""
    texts = [(ROOT / "copier.yml").read_text(encoding="utf-8")]
    texts += [git(ROOT, "show", f"{tag}:copier.yml") for tag in git(ROOT, "tag").split()]
    for text in texts:
        unsafe = {"_tasks", "_migrations", "_jinja_extensions", "_external_data"}
        assert not unsafe & yaml.safe_load(text).keys()


@pytest.mark.parametrize("file", ["template/README.md.jinja", "parts/inference.py.jinja"])
def test_typo_in_the_template(tmp_path: Path, file: str) -> None:
    """A name that no question has ends the render; it does not become an empty string."""
    folder = tmp_path / "template"
    shutil.copytree(template_folder(), folder)
    with (folder / file).open("a", encoding="utf-8") as template:
        template.write("{{ projct_name }}\n")
    with pytest.raises(UndefinedError, match="projct_name"):
        run_copy(str(folder), tmp_path / "service", defaults=True, quiet=True)


def test_paths_suit_windows() -> None:
    """Windows can check the repository out: no path has what it refuses, or is too long."""
    paths = git(ROOT, "ls-files", "-z").rstrip("\0").split("\0")
    assert "copier.yml" in paths
    for path in paths:
        assert not re.search(r'[\x00-\x1f"|<>:?*\\]', path), path
        assert len(path) <= 180, path
        for part in PurePosixPath(path).parts:
            assert part[-1] not in ". ", path
            assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", part, re.IGNORECASE), path
    assert len({path.lower() for path in paths}) == len(paths)


def test_files_have_plain_names() -> None:
    """No file has a condition for a name: the table says which answer brings which."""
    files = files_in(ROOT / "template")
    assert not [name for name in files if re.search(r"[{}%]", name)]
    rows = re.findall(r"^(\S+): \{\{", questionnaire()["optional_files"]["default"], re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        found = [name for name in files if name.removesuffix(".jinja") == row]
        assert found or (ROOT / "template" / row).is_dir(), row


def test_modules_at_the_root(tmp_path: Path) -> None:
    """Side by side stand the owner's module, the app and the device; all else is in folders."""
    project = render(tmp_path, {})
    assert {file.name for file in project.glob("*.py")} == {"main.py", "inference.py", "device.py"}


def test_every_question_has_help() -> None:
    """Each question says what it asks, and has an answer ready."""
    for name, question in questions().items():
        assert question["help"].strip(), name
        assert "default" in question, name


def test_known_keys_are_the_questions() -> None:
    """The names that -d takes are those of the questions, in their order."""
    assert list(table("question_names")) == [*questions()]


def test_dialogue_of_enters(repository: Path, tmp_path: Path) -> None:
    """Enter for everything, on a terminal, makes the service of --defaults."""
    with dialogue(repository, tmp_path / "service") as terminal:
        for name in asked():
            terminal.answer(name, "\r")
        assert terminal.finish() == 0, terminal.text
    assert "Next:" in terminal.text
    shown = [name for name in questions() if questionnaire()[name]["help"] in terminal.text]
    assert shown == asked()
    assert len(shown) <= 10
    assert stored(tmp_path / "service") == stored(render(tmp_path / "default", {}))


def test_dialogue_of_more_options(repository: Path, tmp_path: Path) -> None:
    """With more options wanted, all questions are asked; what is chosen is stored."""
    with dialogue(repository, tmp_path / "service") as terminal:
        # A switch is answered by its letter alone: Enter would be the next question's answer.
        keys = {"more_options": "y", "contracts": " \r"}
        for name in questions():
            terminal.answer(name, keys.get(name, "\r"))
        assert terminal.finish() == 0, terminal.text
    answers = stored(tmp_path / "service")
    assert answers["more_options"] is True
    assert answers["contracts"] == ["oip"]


def test_option_without_more_options(tmp_path: Path) -> None:
    """What stands behind the last question can be given by -d all the same, and is stored."""
    project = render(tmp_path, {"contracts": ["model-engine"], "python_version": "3.13"})
    answers = stored(project)
    assert answers["more_options"] is False
    assert answers["contracts"] == ["model-engine"]
    assert (project / ".python-version").read_text(encoding="utf-8") == "3.13\n"


def test_reserved_names_are_free() -> None:
    """What later versions are going to need is not used for anything else."""
    reserved = dict(table("reserved_names"))  # which is everybody's
    assert not {*reserved.pop("questions")} & {*questions()}
    for question, names in reserved.items():
        assert not {*names} & {*choices(question)}


def test_dialogue_of_a_preset(repository: Path, tmp_path: Path) -> None:
    """With a preset chosen, what follows from it is not asked."""
    with dialogue(repository, tmp_path / "service") as terminal:
        for name in asked():
            if "preset" not in questions()[name].get("ask", ""):
                terminal.answer(name, "\x1b[B\r" if name == "preset" else "\r")
        assert terminal.finish() == 0, terminal.text
    for name in ("model_type", "input_kind", "endpoint"):
        assert questionnaire()[name]["help"] not in terminal.text
    expected = render(tmp_path / "default", {"preset": choices("preset")[1]})
    assert stored(tmp_path / "service") == stored(expected)


def test_dialogue_with_a_wrong_answer(repository: Path, tmp_path: Path) -> None:
    """A wrong answer is told at once, beside the question, and can be mended."""
    with dialogue(repository, tmp_path / "service") as terminal:
        terminal.answer("project_name", "-\r")
        terminal.wait_for("is no DNS label")
        terminal.send("\x7fs\r")
        terminal.wait_for(questionnaire()["project_description"]["help"])
    assert not (tmp_path / "service").exists()


def test_dialogue_greys_out(repository: Path, tmp_path: Path) -> None:
    """What the model type cannot do is shown with the reason, and is not chosen."""
    with dialogue(repository, tmp_path / "service") as terminal:
        for name in ("project_name", "project_description", "preset"):
            terminal.answer(name, "\r")
        terminal.answer("model_type", 4 * "\x1b[B" + "\r")
        terminal.wait_for("model_type=ggml does not take video: choose json or audio")
        terminal.answer("input_kind", "\r")
        terminal.wait_for(questionnaire()["accelerator"]["help"])


def asked() -> list[str]:
    """Return the questions of a dialogue in which nobody wants more options."""
    return [name for name, row in questions().items() if "more_options" not in row.get("ask", "")]


class Terminal:
    """A terminal on which `copier copy` asks."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.descriptor = descriptor
        self.text = ""
        self.deadline = time.monotonic() + DIALOGUE_SECONDS

    def answer(self, question: str, keys: str) -> None:
        """Wait for a question, and answer it with these keys."""
        self.wait_for(questionnaire()[question]["help"])
        self.send(keys)

    def send(self, keys: str) -> None:
        """Press keys."""
        os.write(self.descriptor, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read until the screen has had this text."""
        while text not in self.text:
            assert self._read(), f"{text!r} does not come:\n{self.text}"

    def finish(self) -> int:
        """Read to the end, and return the exit status."""
        while self._read():
            pass
        return self.process.wait(timeout=10)

    def _read(self) -> bool:
        left = max(0.0, self.deadline - time.monotonic())
        if not select.select([self.descriptor], [], [], left)[0]:
            return False
        read = b""
        with suppress(OSError):  # what Linux raises once the other side is closed
            read = os.read(self.descriptor, 65536)
        self.text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read.decode(errors="replace"))
        return bool(read)


@contextmanager
def dialogue(repository: Path, project: Path) -> Iterator[Terminal]:
    """Start `copier copy` on a terminal of its own, and leave nothing of it running."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, 400, 0, 0))
    process = subprocess.Popen(
        [*COPIER, "copy", str(repository), str(project)],
        env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
