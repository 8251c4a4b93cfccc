"""What `copier update` should leave: no conflicts, valid answers, and a lock that fits."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from conformance.plugin import ROOT

# What the template's questions take today.
CHOICES = {
    "preset": [
        "none",
        "rapidocr",
        "silero-vad",
        "minilm",
        "rapid-layout",
        "smollm2",
        "iris",
        "rnnoise",
    ],
    "model_type": [
        "pytorch",
        "transformers",
        "onnxruntime",
        "paddle",
        "ggml",
        "custom",
    ],
    "input_kind": [
        "image",
        "image-params",
        "image-batch",
        "audio",
        "video",
        "json",
        "multimodal",
        "file",
    ],
    "accelerator": [
        "auto",
        "cuda",
        "cpu",
    ],
    "features": [
        "observability",
        "gpu",
        "batching",
        "streaming",
        "isolation",
        "replicas",
        "openapi-export",
        "batch-jobs",
    ],
    "contracts": [
        "oip",
        "oip-grpc",
        "sagemaker",
        "model-engine",
        "openai",
    ],
    "predictions": [
        "none",
        "local",
        "celery",
    ],
    "deploy": [
        "kubernetes",
        "autoscaling",
        "kserve",
        "kserve-knative",
    ],
    "auth": [
        "none",
        "api-key",
        "jwt",
    ],
    "python_version": [
        "3.12",
        "3.11",
        "3.13",
    ],
}
# Routes that the template keeps for itself.
RESERVED = [
    "health",
    "ready",
    "gpu",
    "metrics",
    "docs",
    "redoc",
    "openapi.json",
    "ping",
    "invocations",
    "adapters",
    "v1",
    "v2",
    "readyz",
    "predict",
    "stream",
    "tasks",
    "try",
    "static",
]
ANSWERS = ".copier-answers.yml"
SKIPPED = {".git", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", "__pycache__"}
LARGEST_BYTES = 1_000_000  # no file of the template's is larger; your weights may be


def answers_to(question: str) -> list[str]:
    """Return the answer, and the one that was committed last: an update may have replaced it.

    A question that takes several answers gives all of them.
    """
    command = ["git", "show", f"HEAD:./{ANSWERS}"]
    committed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    text = (ROOT / ANSWERS).read_text() + committed.stdout
    answers = re.findall(rf"^{question}:(.*(?:\n *- .+)*)", text, re.MULTILINE)
    return [value for answer in answers for value in re.findall(r"\w[\w.-]*", answer)]


@pytest.mark.parametrize("question", CHOICES)
def test_answers_are_valid(question: str) -> None:
    """Every answer is one of today's choices; one that is not gets replaced without a word."""
    for answer in answers_to(question):
        assert answer in CHOICES[question], (
            f"{question}={answer} is no longer a choice of the template. Choose one of "
            f"{', '.join(CHOICES[question])}: copier update -d {question}=..."
        )


def test_endpoint_is_free() -> None:
    """The endpoint's name is none that a newer template needs; it would be replaced likewise."""
    for answer in answers_to("endpoint"):
        assert answer not in RESERVED, (
            f"/{answer} is reserved for the service itself by now. Choose another name: "
            "copier update -d endpoint=..."
        )


def test_no_conflicts() -> None:
    """No file has the marks of an update's conflict, and no rejected part lies about."""
    conflicts = []
    for path in ROOT.rglob("*"):
        if not path.is_file() or SKIPPED & set(path.relative_to(ROOT).parts):
            continue
        if path.stat().st_size > LARGEST_BYTES:
            continue
        if path.suffix == ".rej" or re.search(rb"^(<{7}|>{7}) ", path.read_bytes(), re.MULTILINE):
            conflicts.append(str(path.relative_to(ROOT)))
    assert not conflicts, (
        f"Solve the conflicts of the update in {', '.join(conflicts)}: keep what is right of both "
        "sides, and delete the marks, or the .rej file"
    )


def has_lock() -> bool:
    """Tell whether there is a uv.lock: the service's own, or that of a workspace around it."""
    workspaces = [
        folder
        for folder in ROOT.parents
        if (folder / "pyproject.toml").is_file()
        and "[tool.uv.workspace]" in (folder / "pyproject.toml").read_text(encoding="utf-8")
    ]
    return any((folder / "uv.lock").exists() for folder in (ROOT, *workspaces))


def test_lock_fits() -> None:
    """The image is built from uv.lock as it is: it has to hold what pyproject.toml asks for."""
    if not has_lock():
        return  # nobody has run `uv lock` yet
    uv = os.getenv("UV") or shutil.which("uv")
    if not uv:
        pytest.skip("uv, which can tell whether uv.lock fits pyproject.toml, is not installed")
    # A lock that fits needs no network to be found so.
    command = [uv, "lock", "--check", "--offline", "--python", sys.executable]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (
        f"uv.lock does not fit pyproject.toml. Run `uv lock`, and commit uv.lock\n{result.stderr}"
    )
