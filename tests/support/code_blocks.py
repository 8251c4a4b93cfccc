"""Runs the fenced blocks of a document, in their order, in a folder of the page's own.

A block says what it is in an HTML comment on the line before it, which no reader sees:

    test: run                       a shell's commands
    test: run in focus              the same, in a folder of the page's
    test: file focus/network.py     all of a file
    test: add to focus/main.py      imports go to the imports, the rest to the marked place
    test: replace in focus/x.py     what has the same name, in the file or in one of its classes
    test: patch focus/main.py       lines that come and go, beside some that stay
    test: client triton in focus    a script for one of tests/support/clients
    test: output                    lines that the command before has printed; … leaves some out
    test: parts of copier.yml       each line stands in that file
    test: diff of rapidocr          lines of what makes the preset, in their order
    test: parse                     a JSON document
    test: by test_x.py::test_y      that test does it
    not run: …                      why not

Comments without a block are for what a page takes for granted: a service in
`test: render focus {"model_type": "custom"}`, a command in `test: shell in focus: uv run main.py`.
In shell blocks a line `# {…` is what the command before it prints. `uv run main.py` starts
the service, and goes on when it is ready; `uv run pytest` runs the model's tests and a few others,
as test_variants.py runs them all.
"""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from signal import SIGKILL

from tests.support.clients import REQUIREMENTS
from tests.support.environments import CACHE, tool
from tests.support.live import held_port
from tests.support.rendering import render, template_folder
from tests.support.variants import ROOT, table

BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]+) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n"
    r"(?P<text>.*?)^(?P=indent)```$"
    r"|^<!-- test: (?P<unseen>(?:render|shell) [^\n]+) -->$",
    re.DOTALL | re.MULTILINE,
)
OWN_PLACE = "# Your own endpoints, routers and middleware go here."

# The commands of a user's machine; nothing is installed, the environment has all that is declared.
UV = """\
#!/bin/bash
set -euo pipefail
if [[ $(basename "$0") == uvx ]]; then
    [[ $* == *--defaults* ]] || set -- "$@" --defaults  # nobody is there to be asked
    exec "$TESTS_PYTHON" -m "$@"
fi
[[ $1 == run ]] || exit 0
shift
case $1 in
main.py)
    [[ ! -f $PAGE/pid ]] || kill -9 "$(cat "$PAGE/pid")"
    "$PYTHON" main.py > "$PAGE/log" 2>&1 &
    echo $! > "$PAGE/pid"
    until curl --output /dev/null "localhost:$PORT/ready" 2> /dev/null; do  # .curlrc: 503 fails
        kill -0 $! 2> /dev/null || { cat "$PAGE/log"; exit 1; }
        sleep 0.1
    done ;;
python) shift; exec "$PYTHON" "$@" ;;
pytest)
    [[ $# -gt 1 ]] || set -- pytest tests -k "test_model or test_template or ms_24 or ms_47"
    exec "$PYTHON" -m "$@" ;;
*) exec "$PYTHON" -m "$@" ;;
esac
"""


@dataclass(frozen=True)
class Block:
    """One fenced block, or a comment that renders a service."""

    mark: str
    language: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """Return the blocks of a Markdown document, in their order."""
    found = []
    for match in BLOCK.finditer(text):
        mark = f"test: {match['unseen']}" if match["unseen"] else match["mark"] or ""
        line = text.count("\n", 0, match.start()) + 1
        found.append(
            Block(mark, match["language"] or "", textwrap.dedent(match["text"] or ""), line)
        )
    return found


class Page:
    """What a reader has made of a page's blocks so far."""

    def __init__(self, folder: Path, python: Path, ports: Iterator[str]) -> None:
        """Begin in an empty folder, with the services' interpreter and free ports."""
        self.folder = folder / "page"
        self.printed = ""
        self._free = ports
        self._ports: dict[str, str] = {}
        commands = folder / "commands"
        commands.mkdir()
        self.folder.mkdir()
        self.commands = commands
        for name in ("uv", "uvx"):
            (commands / name).write_text(UV)
            (commands / name).chmod(0o755)
        (commands / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
        git = {"NAME": "Test", "EMAIL": "test@example.org"}
        self._env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST")},
            **{f"GIT_{who}_{key}": git[key] for who in ("AUTHOR", "COMMITTER") for key in git},
            "PATH": f"{commands}:{python.parent}:{os.environ['PATH']}",
            "CURL_HOME": str(commands),
            "MYPY_CACHE_DIR": str(CACHE / "mypy" / f"page-{python.parents[1].name}"),
            "PAGE": str(commands),
            "PYTHON": str(python),
            "TESTS_PYTHON": sys.executable,
            "PORT": self._port("8000"),
            "GRPC_PORT": self._port("8081"),
        }

    def _port(self, number: str) -> str:
        """Return the free port that stands for one of the page's."""
        if number not in self._ports:
            self._ports[number] = next(self._free)
        return self._ports[number]

    def with_ports(self, text: str) -> str:
        """Put free ports in the place of those that the page names."""
        return re.sub(
            r"(localhost:|PORT=)(\d{4})", lambda found: found[1] + self._port(found[2]), text
        )

    def do(self, block: Block) -> None:
        """Do what the block's mark says."""
        kind, _, what = block.mark.removeprefix("test: ").partition(" ")
        file = self.folder / what.partition(" ")[2]  # after "in" or "to"
        match kind:
            case "run":
                self.run(block.text, file)
            case "render":
                folder, _, answers = what.partition(" ")
                render(self.folder / folder, json.loads(answers))
            case "shell":
                folder, _, command = what.removeprefix("in ").partition(": ")
                self.run(command, self.folder / folder)
            case "client":
                name, _, folder = what.partition(" in ")
                script = self.commands / "client.py"
                script.write_text(self.with_ports(block.text), encoding="utf-8")
                self.run(f"{tool(name, *REQUIREMENTS[name])} {script}", self.folder / folder)
            case "file":
                (self.folder / what).parent.mkdir(exist_ok=True)
                (self.folder / what).write_text(block.text, encoding="utf-8")
            case "add":
                add(file, block.text)
            case "replace":
                replace(file, block.text)
            case "patch":
                patch(self.folder / what, block.text)
            case _:
                self.check(kind, what.removeprefix("of "), block.text)

    def check(self, kind: str, what: str, text: str) -> None:
        """Hold a block that shows something against what it shows."""
        match kind:
            case "output":
                assert_lines(text, self.printed)
            case "parts":
                whole = (ROOT / what).read_text(encoding="utf-8")
                for line in text.splitlines():
                    assert line.strip(" »") in whole, line
            case "diff":
                assert_lines(text, difference(what, self.folder))
            case "parse":
                json.loads(text)
            case "by":
                assert_is_test(what)
            case _:
                raise AssertionError(f"Say in a comment above the fence what it is: {__doc__}")

    def run(self, script: str, folder: Path) -> None:
        """Run a shell's commands; what a comment says that they print has to come."""
        commands = script.replace("<this repository>", str(template_folder()))
        commands = self.with_ports(commands)
        # What is exported stays so for the page's next block.
        exported = self.commands / "exported"
        exported.touch()
        commands = f'. "{exported}"\n{commands}\nexport -p > "{exported}"\n'
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        self.printed = re.sub(r"\x1b\[\d*m", "", result.stdout)
        assert result.returncode == 0, f"{commands}\n{self.printed}"
        told = re.findall(r"^# ([{\[].*)$", script, re.MULTILINE)
        assert_lines("\n".join(told), self.printed.replace("}{", "}\n{"))

    def end(self) -> None:
        """Leave no service running."""
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.commands / "pid").read_text()), SIGKILL)


@contextmanager
def page(folder: Path, python: Path) -> Iterator[Page]:
    """Yield a page that nothing has been done of; its services end with it."""

    def ports() -> Iterator[str]:
        while True:
            yield held.enter_context(held_port())

    with ExitStack() as held:
        begun = Page(folder, python, ports())
        held.callback(begun.end)
        yield begun


def add(file: Path, text: str) -> None:
    """Add code to main.py as the marked place in it says."""
    body = ast.parse(text).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    end = max((node.end_lineno or 0 for node in imports), default=0)
    lines = text.splitlines(keepends=True)
    main = file.read_text(encoding="utf-8")
    assert OWN_PLACE in main
    place = main.index("\n", main.index(OWN_PLACE)) + 1
    last_import = main.index("\nconfigure_logging()")
    head, between, tail = main[:last_import], main[last_import:place], main[place:]
    file.write_text(
        f"{head}{''.join(lines[:end])}{between}\n{''.join(lines[end:]).strip()}\n{tail}", "utf-8"
    )


def replace(file: Path, text: str) -> None:
    """Write what the text defines in the place of what has the same name."""
    for node in ast.parse(text).body:
        source = file.read_text(encoding="utf-8")
        statements = ast.parse(source).body
        if isinstance(node, ast.FunctionDef):  # it may be a method
            classes = [child for child in statements if isinstance(child, ast.ClassDef)]
            statements += [child for one in classes for child in one.body]
        [old] = [child for child in statements if defined(child) == defined(node) is not None]
        lines = source.splitlines(keepends=True)
        new = textwrap.indent(lines_of(text, node), " " * old.col_offset)
        lines[first_line(old) - 1 : old.end_lineno] = [new]
        file.write_text("".join(lines), encoding="utf-8")


def patch(file: Path, text: str) -> None:
    """Change the lines that a difference shows; those before the change are in the file once."""
    lines = text.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    source = file.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} is not in {file.name} once"
    file.write_text(source.replace(old, new), encoding="utf-8")


def defined(node: ast.stmt) -> str | None:
    """Return the name that a statement defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return None


def first_line(node: ast.stmt) -> int:
    """Return where a statement begins, with its decorators."""
    decorators = getattr(node, "decorator_list", [])
    return int(min([node.lineno, *(one.lineno for one in decorators)]))


def lines_of(text: str, node: ast.stmt) -> str:
    """Return a statement's source."""
    return "".join(text.splitlines(keepends=True)[first_line(node) - 1 : node.end_lineno])


def assert_lines(expected: str, text: str) -> None:
    """Hold that these lines are in the text, in this order; … and @@ stand for others."""
    found = [line.strip() for line in text.splitlines()]
    place = -1
    for line in expected.splitlines():
        if line.strip() not in {"", "…", "@@"}:
            assert line.strip() in found[place + 1 :], f"{line!r} is not in:\n{text}"
            place = found.index(line.strip(), place + 1)


def difference(preset: str, folder: Path) -> str:
    """Return what differs between a preset's service and the one with the stock model."""
    row = table("presets")[preset]
    sides = [folder / f"plain-{preset}", folder / f"preset-{preset}"]
    if not sides[0].exists():
        plain = {key: row[key] for key in ("model_type", "input_kind", "endpoint")}
        render(sides[0], plain | {"accelerator": "cpu"})
        render(sides[1], {"preset": preset, "accelerator": "cpu"})
    lines: list[str] = []
    for name in ("inference.py", "pyproject.toml"):
        old, new = ((side / name).read_text("utf-8").splitlines() for side in sides)
        lines += unified_diff(old, new, f"plain/{name}", f"preset/{name}", lineterm="")
    return "\n".join(lines)


def assert_is_test(name: str) -> None:
    """Hold that there is such a test in this repository."""
    file, _, test = name.partition("::")
    # Files of tests have names of their own, so documents need not say in which folder they are.
    [path] = (ROOT / "tests").glob(f"*/{file}")
    assert f"\ndef {test}(" in path.read_text(encoding="utf-8"), name
