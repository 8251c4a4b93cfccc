"""Bodies and answers that are bare lists, by Pydantic's RootModel."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.code_blocks import blocks
from tests.support.live import live
from tests.support.rendering import render
from tests.support.updating import change, own_tests, put_model, python
from tests.support.variants import ROOT

PAGE = ROOT / "docs" / "how-to" / "endpoints.md"
ANSWERS = {"model_type": "custom", "input_kind": "json", "endpoint": "scale"}


def documented(file: str) -> str:
    """Return the file of this name that the page shows."""
    [text] = [
        block.text
        for block in blocks(PAGE.read_text(encoding="utf-8"))
        if block.mark == f"test: file scale/{file}"
    ]
    return text


def scale(folder: Path, **answers: Any) -> Path:
    """Render the service that the page makes."""
    project = render(folder, ANSWERS | answers)
    put_model(project, documented("inference.py"))
    (project / "tests" / "test_model.py").write_text(documented("tests/test_model.py"), "utf-8")
    return project


def test_conformance(tmp_path: Path) -> None:
    """The service of the page passes all tests of its own, with the contracts that take lists."""
    contracts = ["sagemaker", "model-engine"]
    project = scale(tmp_path / "service", contracts=contracts, features=["batching", "streaming"])
    result = own_tests(project)
    assert result.returncode == 0, result.stdout


def test_open_inference_protocol_needs_fields(tmp_path: Path) -> None:
    """The start ends with one line that says so, be it the body or the answer."""
    project = scale(tmp_path / "service", contracts=["oip"])
    line = documented_line()
    assert line in start(project, tmp_path)
    model = project / "inference.py"
    change(model, "class Params(RootModel[list[float]]):", "class Params(BaseModel):")
    change(model, "import Field, RootModel", "import BaseModel, Field, RootModel")
    assert line.replace("Params", "Output") in start(project, tmp_path)


def documented_line() -> str:
    """Return the line that the page quotes."""
    [line] = [part for part in PAGE.read_text("utf-8").split("`") if "must have named" in part]
    return line


def start(project: Path, folder: Path) -> list[str]:
    """Return the lines of a start that fails."""
    with live(project, python(), folder / "log") as service:
        assert service.process.wait(timeout=60) == 1
        return service.log.splitlines()


@pytest.mark.parametrize("kind", ["image", "image-batch"])
def test_list_as_the_answer_for_a_file(kind: str, tmp_path: Path) -> None:
    """With files an answer may be a list, alone or in a batch."""
    answers = {"model_type": "custom", "input_kind": kind, "features": ["streaming"]}
    project = render(tmp_path / "service", answers)
    model = project / "inference.py"
    text = model.read_text(encoding="utf-8")
    begin, end = text.index("class Output"), text.index("EXAMPLE = ")
    output = 'class Output(RootModel[list[str]]):\n    """Names of colours."""\n\n\n'
    put_model(project, text[:begin] + output + text[end:])
    change(model, "import BaseModel, Field", "import BaseModel, RootModel")
    text = model.read_text(encoding="utf-8")
    begin, end = text.index("return Output("), text.index("def _shares")
    put_model(project, f"{text[:begin]}return Output([list(COLORS)[top]])\n\n    {text[end:]}")
    result = own_tests(project, "tests/conformance", "-k", "ms_22 or ms_23 or ms_24 or ms_47")
    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout
