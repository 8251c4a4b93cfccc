"""What the documents say of the template is so: questions, choices, tests, links, code."""

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.support.code_blocks import Block, assert_is_test, blocks, page
from tests.support.environments import environment
from tests.support.rendering import files_in, render
from tests.support.updating import yours
from tests.support.variants import CONTRACTS, ROOT, choices, questions
from tools import docs_prompts, docs_reference

SKIPPED = {".venv", ".cache", ".demo", ".git", ".pytest_cache", "golden"}
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if not SKIPPED & set(path.relative_to(ROOT).parts)
)
every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
)


def without_code(text: str) -> str:
    """Return Markdown without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the names by which a document's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def rendered_tests(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the tests of services that have every conformance test between them."""
    folder = tmp_path_factory.mktemp("services")
    texts: list[str] = []
    others = {"contracts": list(CONTRACTS), "predictions": "local", "features": ["batch-jobs"]}
    for answers in (
        {},
        {"model_type": "custom", "input_kind": "json", "auth": "api-key"} | others,
        {"model_type": "custom", "input_kind": "json", "auth": "jwt"},
    ):
        project = render(folder / str(len(texts)), answers)
        paths = project.glob("tests/conformance/*.py")
        texts.append("".join(path.read_text("utf-8") for path in paths))
    return "".join(texts)


def test_agents_names_what_was_not_chosen(tmp_path: Path) -> None:
    """A service's AGENTS.md names the requirements that it need not keep, and no others."""
    everything = {"model_type": "custom", "auth": "jwt", "contracts": list(CONTRACTS)}
    everything |= {"predictions": "local", "features": ["batch-jobs"]}
    for answers, left_out in (({}, [*range(62, 67), 72, 73, 74]), (everything, [])):
        project = render(tmp_path / str(len(answers)), answers)
        text = (project / "AGENTS.md").read_text(encoding="utf-8")
        holds = text.partition("## Requirements that hold")[2]
        assert [int(number) for number in re.findall(r"MS-(\d+)", holds)] == left_out


def test_prompts_are_written_anew() -> None:
    """reference/prompts.md is what copier.yml gives; it names every question and choice."""
    text = docs_prompts.PAGE.read_text(encoding="utf-8")
    assert text == docs_prompts.page(), "run `make docs`"
    assert re.findall(r"^### `(\w+)`$", text, re.MULTILINE) == list(questions())


@pytest.mark.parametrize("name", docs_reference.PAGES)
def test_tables_are_written_anew(name: str) -> None:
    """The tables of settings and errors are what the rendered code gives."""
    text = (docs_reference.FOLDER / name).read_text(encoding="utf-8")
    fresh = docs_reference.with_tables(text, docs_reference.PAGES[name]())
    assert text == fresh, "run .venv/bin/python tools/docs_reference.py"


def test_settings_have_every_variable(tmp_path: Path) -> None:
    """Each environment variable that a service's code names is on the page of settings."""
    page = (docs_reference.FOLDER / "settings.md").read_text(encoding="utf-8")
    answers = {"model_type": "custom", "auth": "jwt"} | docs_reference.EVERYTHING
    project = render(tmp_path / "service", answers)
    sources = [project / "tests/conformance/plugin.py", *project.glob("*.py")]
    sources += project.glob("serving/**/*.py")
    named: set[str] = set()
    for path in sources:
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:getenv\(|environ\[|environ\.get\()\"([A-Z_]+)\"", text))
        named |= set(re.findall(r"\"(CUSTOM_[A-Z_]+|SAGEMAKER_[A-Z_]+)\"", text))
    assert {"MODEL_NAME", "SAGEMAKER_MODEL_PATH", "CUSTOM_PRE_PROCESS"} <= named
    assert named <= set(re.findall(r"`([A-Z_]+)`", page))


def test_architecture(tmp_path: Path) -> None:
    """The page names every module of a service, and its states say what the code says."""
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    answers = {"model_type": "custom", "input_kind": "json", "auth": "jwt"}
    modules: set[str] = set()
    # Some modules come with audio alone, and some without a process of the model's own.
    alone = {"input_kind": "audio", "features": ["observability"], "predictions": "celery"}
    for other in ({}, alone):
        given = answers | docs_reference.EVERYTHING | other
        folder = render(tmp_path / str(len(other)), given) / "serving"
        modules |= {path.relative_to(folder).as_posix() for path in folder.glob("**/*.py")}
    rows = re.findall(r"^\| (`[\w/]+\.py`.*?) \|", page, re.MULTILINE)
    named = set(re.findall(r"`([\w/]+\.py)`", " ".join(rows)))
    assert named == {name for name in modules if not name.endswith("__init__.py")}
    errors = (docs_reference.FOLDER / "errors.md").read_text(encoding="utf-8")
    said = re.findall(r"503 \"(.+?)\"", page)
    assert len(set(said)) >= 6
    for sentence in said:
        assert f"| {sentence} |" in errors.replace("Starting: ….", "Starting: gRPC."), sentence


def test_metrics(tmp_path: Path) -> None:
    """The page of metrics names every series of a service with everything."""
    page = (docs_reference.FOLDER / "metrics.md").read_text(encoding="utf-8")
    source = (
        render(tmp_path / "service", docs_reference.EVERYTHING) / "serving/metrics.py"
    ).read_text()
    found = re.findall(r"\b(Counter|Histogram|Gauge|_show|GaugeMetricFamily)\(\s*\"(\w+)\"", source)
    assert len(found) >= 10
    for kind, name in found:
        assert f"`{name}_total`" in page if kind == "Counter" else f"`{name}`" in page, name


def test_readme_lists_the_questions() -> None:
    """The table in README.md has every question, with its values, the default first."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## The questions\n")[2].partition("\n##")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section, re.MULTILINE))
    assert list(rows) == list(questions())
    for name, question in questions().items():
        values = re.findall(r"`([^`]*)`", rows[name])
        default = docs_prompts.defaults()[name]
        if "choices" in question:
            assert sorted(values) == sorted(choices(name))
            several = default if question.get("multiselect") else [default]
            assert values[: len(several)] == several
        elif question["type"] == "bool":
            assert values == [str(default).lower(), str(not default).lower()]
        else:
            assert values == ([str(default)] if default != "" else [])


@pytest.mark.parametrize("document", ["README.md", "docs/how-to/update.md"])
def test_files_that_are_yours(document: str) -> None:
    """Where documents list the user's files, these are the ones that copier.yml declares."""
    text = (ROOT / document).read_text(encoding="utf-8")
    [listed] = re.findall(r"Files that are yours(.*?), and ", text, re.DOTALL)
    assert sorted(re.findall(r"`([^`]+)`", listed)) == sorted(yours())


@every_document
def test_links(document: Path) -> None:
    """Every relative link leads to a file that is there, and to a heading in it."""
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path) if path else document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


@every_document
def test_paths(document: Path) -> None:
    """Every file and folder that a document names is there, here or in the template."""
    text = document.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:template|parts|tests|benchmarks|docs)/[a-z_\d./-]+)`", text):
        places = [ROOT / path, ROOT / "template" / path, ROOT / "template" / f"{path}.jinja"]
        made = {
            "tests/checkpoint.py",
            "tests/recorded.json",
            "tests/tiny.pt",
        }  # by a service's owner
        assert path in made or any(place.exists() for place in places), path


def test_decisions() -> None:
    """Each decision has the same parts, its number, and a row in the index."""
    folder = ROOT / "docs" / "explanation" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    files = sorted(folder.glob("[0-9]*.md"))
    for number, file in enumerate(files, start=1):
        text = file.read_text(encoding="utf-8")
        found = re.fullmatch(
            r"# (\d+)\. (.+)\n\nDate: (2026-\d\d-\d\d)\n\n"
            r"## Context\n\n.+\n## Decision\n\n.+\n## Consequences\n\n.+\n",
            text,
            re.DOTALL,
        )
        assert found, file.name
        title = found[2].partition("\n")[0]
        assert file.name.startswith(f"{number:04}-")
        assert int(found[1]) == number
        assert f"| {number} | [{title}]({file.name}) | {found[3]} |" in index
    assert len(re.findall(r"^\| \d+ \|", index, re.MULTILINE)) == len(files)


def test_spec_names_every_conformance_test(rendered_tests: str) -> None:
    """Each conformance test is named under each requirement whose number it carries."""
    text = (ROOT / "docs" / "reference" / "spec.md").read_text(encoding="utf-8")
    sections = re.split(r"^### MS-(\d+) .+$", text, flags=re.MULTILINE)
    requirements = dict(zip(map(int, sections[1::2]), sections[2::2], strict=True))
    assert list(requirements) == list(range(1, len(requirements) + 1))
    for body in requirements.values():
        assert re.findall(r"^\* (\w+):", body, re.MULTILINE) == ["Demand", "Why", "Checked", "Ours"]
    tests = re.findall(r"^def (test_ms_(\d+)_\w+)", rendered_tests, re.MULTILINE)
    assert tests
    for test, number in tests:
        assert f"`{test}`" in requirements[int(number)], (number, test)


def test_services_know_every_requirement(tmp_path: Path) -> None:
    """The table that a run ends with has spec.md's titles; each is tested, or is said why not."""
    text = (ROOT / "docs" / "reference" / "spec.md").read_text(encoding="utf-8")
    titles = {int(n): title for n, title in re.findall(r"^### MS-(\d+) (.+)$", text, re.MULTILINE)}
    tests = render(tmp_path / "service", {}) / "tests" / "conformance"
    known = runpy.run_path(str(tests / "spec.py"))
    assert known["REQUIREMENTS"] == titles
    assert re.search(r"^Version (.+)\.$", text, re.MULTILINE)[1] == known["SPEC_VERSION"]  # type: ignore[index]
    source = (tests / "test_conformance.py").read_text(encoding="utf-8")
    tested = {int(number) for number in re.findall(r"^def test_ms_(\d+)_", source, re.MULTILINE)}
    assert tested | known["ELSEWHERE"].keys() == titles.keys()
    assert not tested & known["ELSEWHERE"].keys()


@every_document
def test_tests_that_are_named_exist(document: Path, rendered_tests: str) -> None:
    """Every test and tool that a document names is there, here or in the rendered services."""
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"\btest_\w+\.py::\w+", text):
        assert_is_test(name)
    made_there = set(re.findall(r"<!-- test: file (?:\w+/)?(tests/\w+\.py) -->", text))
    for path in set(re.findall(r"\b(?:tests|tools)/[a-z\d_/]+\.py\b", text)) - made_there:
        places = (ROOT / path, ROOT / "template" / path, ROOT / "template" / f"{path}.jinja")
        assert any(place.exists() for place in places), path
    for test in re.findall(r"\btest_ms_\d\w+", text):
        assert f"\ndef {test}(" in rendered_tests, test


def test_readme_draws_the_tree(tmp_path: Path) -> None:
    """The tree in README.md is what all defaults render."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.partition("\nmy-model-server/\n")[2].partition("\n```\n")[0]
    folder, drawn = "", set()
    for bars, rest in re.findall(r"^([│ ]*)[├└]── (.+)$", tree, re.MULTILINE):
        for name in re.findall(r"^\S+|(?<=\S  )\.\S+", rest):
            if name.endswith("/"):
                folder = name
            else:
                drawn.add((folder if bars else "") + name)
    assert drawn == files_in(render(tmp_path / "service", {}))


# A page whose services need more than those of a model that is plain Python.
STACKS = {"first-service.md": "pytorch", "serve-openai.md": "ggml"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(
    "document", PAGES, ids=[path.relative_to(ROOT).with_suffix("").as_posix() for path in PAGES]
)
def test_code_blocks(document: Path, tmp_path: Path) -> None:
    """What a page's fenced blocks say is so, one by one; or a mark says why it is not tried."""
    found = blocks(document.read_text(encoding="utf-8"))
    if any(block.mark.startswith("test: ") for block in found):
        do_all(found, tmp_path, STACKS.get(document.name, "custom"))
    for block in found:
        assert re.match(r"test: |not run: \w", block.mark), f"{document.name}:{block.line}"


# Blocks of a service's own README that are not run, by what is in them.
NOT_RUN = {
    "docker build": "test_containers.py::test_image",
    "copier update": "test_update.py::test_by_the_command_line",
}


@pytest.mark.parametrize(
    "answers",
    [
        {"model_type": "custom"},
        {"model_type": "custom", "input_kind": "json", "auth": "api-key"},
        {"model_type": "custom", "input_kind": "multimodal", "auth": "jwt"},
    ],
    ids=["image", "json", "multimodal"],
)
def test_readme_of_a_service(answers: dict[str, str], tmp_path: Path) -> None:
    """The commands in a service's README and AGENTS.md work as they stand there."""
    project = render(tmp_path / "once", answers)
    text = "".join((project / name).read_text("utf-8") for name in ("README.md", "AGENTS.md"))
    found = blocks(text)
    assert {block.language for block in found} == {"sh"}
    marked = [Block(f"test: render service {json.dumps(answers)}", "", "", 0)]
    for block in found:
        tests = [test for part, test in NOT_RUN.items() if part in block.text]
        mark = f"test: by {tests[0]}" if tests else "test: run in service"
        marked.append(Block(mark, block.language, block.text, block.line))
    assert all(part in text for part in NOT_RUN)
    do_all(marked, tmp_path, "custom")


def do_all(found: list[Block], folder: Path, stack: str) -> None:
    """Do what blocks say, in a folder, with the environment of a stack."""
    python = environment(stack) / "bin" / "python"
    with page(folder, python) as begun:
        for block in found:
            if block.mark.startswith("not run: "):
                continue
            try:
                begun.do(block)
            except Exception as error:
                raise AssertionError(f"line {block.line}, {block.mark}: {error}") from error
