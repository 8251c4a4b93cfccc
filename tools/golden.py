"""Write the golden renders anew: `make golden`. They show what a change does to users' files.

The default service is stored whole, and of each other only what differs from it: a change that is
the same in all of them is one difference.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.rendering import render
from tests.support.updating import contents
from tests.support.variants import FEATURES, ROOT

GOLDEN = ROOT / "tests" / "golden"
BASE = "default"
ABSENT = "absent.txt"  # the files of the base that another render does not have

Files = Mapping[str, bytes]

# One of each model type, input kind, accelerator and preset, one with nothing that can be left out,
# and one with all that can be chosen besides.
RENDERS: dict[str, dict[str, Any]] = {
    "default": {},
    "rapidocr-cpu": {"preset": "rapidocr", "accelerator": "cpu"},
    "silero-vad-cuda": {"preset": "silero-vad", "accelerator": "cuda"},
    "minilm": {"preset": "minilm"},
    "rapid-layout": {"preset": "rapid-layout"},
    "smollm2-streaming": {"preset": "smollm2", "features": ["observability", "streaming"]},
    "rnnoise": {"preset": "rnnoise"},
    "iris-oip": {"preset": "iris", "accelerator": "cpu", "contracts": ["oip"]},
    "transformers-audio-cuda": {
        "model_type": "transformers",
        "input_kind": "audio",
        "accelerator": "cuda",
        "startup_minutes": 45,
    },
    "onnxruntime-video": {"model_type": "onnxruntime", "input_kind": "video"},
    "paddle-image-params": {
        "model_type": "paddle",
        "input_kind": "image-params",
        "endpoint": "colors",
        "system_packages": "libgl1 ffmpeg",
    },
    "onnxruntime-file": {
        "model_type": "onnxruntime",
        "input_kind": "file",
        "contracts": ["sagemaker"],
    },
    "ggml-json-mps": {"model_type": "ggml", "input_kind": "json", "accelerator": "mps"},
    "custom-multimodal": {
        "model_type": "custom",
        "input_kind": "multimodal",
        "python_version": "3.13",
    },
    "custom-json-everything": {
        "model_type": "custom",
        "input_kind": "json",
        "features": list(FEATURES),
        "contracts": ["oip-grpc", "sagemaker", "model-engine", "openai"],
        "auth": "jwt",
    },
    "custom-audio-tasks": {
        "model_type": "custom",
        "input_kind": "audio",
        "features": ["observability", "isolation"],
        "predictions": "local",
    },
    "custom-json-celery": {
        "model_type": "custom",
        "input_kind": "json",
        "predictions": "celery",
        "auth": "api-key",
        "deploy": ["kubernetes", "autoscaling", "kserve"],
    },
    "pytorch-batch-plain": {
        "model_type": "pytorch",
        "input_kind": "image-batch",
        "features": [],
        "deploy": [],
    },
}


def rendered(folder: Path) -> dict[str, Files]:
    """Render all of them, without what differs from machine to machine, and without binaries."""
    renders: dict[str, Files] = {}
    for name, answers in RENDERS.items():
        project = render(folder / name, answers)
        path = project / ".copier-answers.yml"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith("_")), "utf-8")
        files = contents(project)
        renders[name] = {file: data for file, data in files.items() if b"\0" not in data}
    return renders


def reduced(renders: Mapping[str, Files]) -> dict[str, bytes]:
    """Return the files to store: the base, what differs from it, and the list of absent files."""
    stored: dict[str, bytes] = {}
    absent: list[str] = []
    for name, files in renders.items():
        base = {} if name == BASE else renders[BASE]
        stored |= {f"{name}/{file}": data for file, data in files.items() if base.get(file) != data}
        absent += sorted(f"{name}/{file}" for file in base.keys() - files.keys())
    return stored | {ABSENT: "".join(f"{path}\n" for path in absent).encode()}


def whole(name: str) -> dict[str, bytes]:
    """Return all the files of one render, from what is stored."""
    absent = (GOLDEN / ABSENT).read_text(encoding="utf-8").splitlines()
    base = contents(GOLDEN / BASE)
    files = {file: data for file, data in base.items() if f"{name}/{file}" not in absent}
    return files | contents(GOLDEN / name)


def main() -> None:
    """Store what the template renders now."""
    with TemporaryDirectory() as folder:
        stored = reduced(rendered(Path(folder)))
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for path, data in stored.items():
        (GOLDEN / path).parent.mkdir(parents=True, exist_ok=True)
        (GOLDEN / path).write_bytes(data)


if __name__ == "__main__":
    main()
