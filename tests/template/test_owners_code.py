"""What an owner may write as usual passes the checks that a service's CI makes."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.support.code_blocks import blocks
from tests.support.environments import CACHE, run
from tests.support.rendering import render
from tests.support.updating import python
from tests.support.variants import ROOT

# A library for the CPU has no use for the device.
LOADS_NOTHING = '''    def __init__(self, device: str) -> None:
        """Load nothing."""

'''
TESTS = '''"""Known answers."""


def ask(service, **body):
    return service.client.post("/infer", json=body)


def test_trend(service):
    assert ask(service, values=[1, 2, 3, 4]).json() == {"next": 5}
'''
CHECKS = (["ruff", "format", "--check"], ["ruff", "check"], ["mypy"])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service whose owner writes tests without annotations, and ignores the device."""
    folder = tmp_path_factory.mktemp("owner") / "service"
    project = render(folder, {"model_type": "custom", "input_kind": "json"})
    inference = project / "inference.py"
    text = inference.read_text(encoding="utf-8")
    loads = text[text.index("    def __init__(") : text.index("    def _logits(")]
    text = text.replace(loads, LOADS_NOTHING)
    text = text.replace("self.weights", "WEIGHTS").replace("self.bias", "BIAS")
    inference.write_text(text, encoding="utf-8")
    (project / "tests" / "test_model.py").write_text(TESTS, encoding="utf-8")
    return project


@pytest.mark.parametrize("check", CHECKS, ids=" ".join)
def test_checks(project: Path, check: list[str]) -> None:
    """Each command of the CI workflow passes."""
    caches = {"MYPY_CACHE_DIR": str(CACHE / "mypy" / "owners-code"), "RUFF_NO_CACHE": "true"}
    run([python(), "-m", *check], cwd=project, env=os.environ | caches)


def test_library_that_takes_a_path() -> None:
    """The file that the documents show holds all of the picture when the library opens it."""
    [block] = [
        block.text
        for block in blocks((ROOT / "docs" / "how-to" / "wrap-a-model.md").read_text("utf-8"))
        if block.mark.endswith("::test_library_that_takes_a_path")
    ]
    picture = Image.effect_noise((300, 200), 50)

    def predict(path: str) -> bytes:
        with Image.open(path) as opened:
            return opened.tobytes()

    names = {
        "NamedTemporaryFile": NamedTemporaryFile,
        "item": SimpleNamespace(image=picture),
        "self": SimpleNamespace(library=SimpleNamespace(predict=predict)),
    }
    exec(block, names)  # noqa: S102 -- the page's own code
    assert names["found"] == picture.tobytes()


def test_code_that_is_no_test_is_annotated(project: Path) -> None:
    """Modules of one's own have annotations, as the template's have."""
    module = project / "features.py"
    module.write_text('"""Features."""\n\n\ndef double(number):\n    return 2 * number\n')
    try:
        with pytest.raises(AssertionError, match="ANN201"):
            run([python(), "-m", "ruff", "check", "--no-cache", module.name], cwd=project)
    finally:
        module.unlink()
