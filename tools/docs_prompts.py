"""Write docs/reference/prompts.md from copier.yml: `make docs`."""

from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from jinja2 import Environment

from tests.support.variants import ROOT, choices, questionnaire, questions, table

PAGE = ROOT / "docs" / "reference" / "prompts.md"

HEAD = """\
# Prompts

Every question, in the order in which they are asked; below them, what goes with what. This page is
written by `tools/docs_prompts.py` from `copier.yml`.

`copier copy` asks. `--defaults` takes the defaults, `-d name=value` gives one answer and may be
repeated; it also answers a question that is not asked. `copier update -d name=value` changes an
answer later. A value that does not go with the others, and a name that is no question, end with the
reason and a right answer.
"""


def page() -> str:
    """Return the page as it should be."""
    parts = [HEAD, "## The questions\n"]
    parts += [_question(name, question) for name, question in questions().items()]
    parts += ["## What goes with what\n", *_tables()]
    return "\n".join(parts)


def defaults() -> dict[str, Any]:
    """Return the answer to each question when Enter is pressed at all of them."""
    context: dict[str, Any] = {
        name: table(name)
        for name, value in questionnaire().items()
        if not name.startswith("_")
        and value["type"] == "yaml"
        and isinstance(value["default"], str)
        and "{{" not in value["default"]  # those follow from the answers
    }
    answers: dict[str, Any] = {}
    for name, question in questions().items():
        default = question["default"]
        if isinstance(default, str):
            default = Environment(autoescape=False).from_string(default).render(context | answers)  # noqa: S701 -- no HTML
        if question["type"] == "bool":
            default = str(default).lower() == "true"
        if question.get("multiselect"):
            default = yaml.safe_load(str(default))
        answers[name] = default
    return answers


def _question(name: str, question: dict[str, Any]) -> str:
    default = defaults()[name]
    shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
    if default in ("", []):
        shown = "none"
    elif isinstance(default, list):
        shown = _list(default)
    follows = ", which follows from the answers above" if "{{" in str(question["default"]) else ""
    lines = [f"### `{name}`\n", f"{question['help']}\n", f"Default: {shown}{follows}."]
    if condition := str(question.get("ask", "")).strip("{} "):
        lines.append(f"Asked only where `{condition}`.")
    lines.append("")
    if "choices" in question:
        # "pytorch: a torch.nn.Module", or the value alone
        meanings = [text.partition(": ")[2].replace("<", "\\<") for text in question["choices"]]
        values = [f"`{value}`" for value in choices(name)]
        if any(meanings):
            lines.append(_table(("value", ""), list(zip(values, meanings, strict=True))))
        else:
            lines += [f"Values: {', '.join(values)}.", ""]
    if question.get("multiselect"):
        several = ", ".join(choices(name)[::2])
        lines += [f"Several may be chosen; on the command line: `-d '{name}=[{several}]'`.", ""]
    return "\n".join(lines)


def _tables() -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        (f"`{name}`", _list(row["input_kinds"]), _list(row["accelerators"]), _list(row["pythons"]))
        for name, row in table("model_types").items()
    ]
    yield _table(("model type", "input kinds", "accelerators", "Python"), rows)
    rows = [
        (f"`{name}`", f"`{row['model_type']}`", f"`{row['input_kind']}`", f"`{row['endpoint']}`")
        for name, row in table("presets").items()
    ]
    yield _table(("preset", "model type", "input kind", "endpoint"), rows)
    rows = [
        (f"`{name}`", row["media"], f"`{row['field']}`", f"`{row['endpoint']}`")
        for name, row in table("input_kinds").items()
    ]
    header = ("input kind", "decoded as", "form field, or JSON", "default of `endpoint`")
    yield _table(header, rows)
    bases = {"slim": "`python:…-slim`", "cuda": "`nvidia/cuda:…-runtime-…`"}
    rows = [
        (f"`{name}`", _list([*row["prefers"], "cpu"], ", then "), bases[row["image"]])
        for name, row in table("accelerators").items()
    ]
    yield _table(("accelerator", "devices, in order", "base image"), rows)
    reserved = _list(table("reserved_endpoints"))
    yield f"Reserved, so no `endpoint`:\n{_wrapped(reserved)}\n"
    rows = [(f"`{name}`", _list(values)) for name, values in table("reserved_names").items()]
    yield "Kept for later versions:\n"
    yield _table(("", "names"), rows)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return "\n".join([head.replace("  ", " "), "|" + "---|" * len(header), *body, ""])


def _list(values: Iterable[str], separator: str = ", ") -> str:
    return separator.join(f"`{value}`" for value in values)


def _wrapped(text: str) -> str:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) > 98:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines) + "."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
