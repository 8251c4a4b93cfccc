"""Write the golden renders anew: `make golden`. They show what a change does to users' files."""

import shutil
from pathlib import Path
from typing import Any

from tests.support.rendering import render
from tests.support.variants import FEATURES, ROOT

GOLDEN = ROOT / "tests" / "golden"

# One of each model type, input kind, accelerator and preset, one with nothing that can be left out,
# and one with all that can be chosen besides.
RENDERS: dict[str, dict[str, Any]] = {
    "default": {},
    "rapidocr-cpu": {"preset": "rapidocr", "accelerator": "cpu"},
    "silero-vad-cuda": {"preset": "silero-vad", "accelerator": "cuda"},
    "minilm": {"preset": "minilm"},
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
        "contracts": ["oip-grpc", "sagemaker", "model-engine"],
        "auth": "jwt",
    },
    "pytorch-batch-plain": {
        "model_type": "pytorch",
        "input_kind": "image-batch",
        "features": [],
        "deploy": [],
    },
}


def write(folder: Path) -> None:
    """Render all of them, without what differs from machine to machine, and without binaries."""
    for name, answers in RENDERS.items():
        project = render(folder / name, answers)
        path = project / ".copier-answers.yml"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith("_")), "utf-8")
        for file in project.rglob("*"):
            if file.is_file() and b"\0" in file.read_bytes():
                file.unlink()


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    write(GOLDEN)
