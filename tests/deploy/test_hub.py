"""What a service that downloads its model does where no hub can be reached."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.environments import python_of
from tests.support.live import held_port
from tests.support.rendering import render
from tests.support.variants import Variant, variants

# One for each way to download: a checkpoint's folder, a preset's, and the two kinds of ggml file.
NAMES = ["transformers-json-cpu", "minilm-cpu", "ggml-json-cpu", "ggml-audio-cpu"]


@pytest.mark.parametrize(
    "variant", [variant for variant in variants() if variant.name in NAMES], ids=lambda v: v.name
)
def test_no_hub(variant: Variant, tmp_path: Path) -> None:
    """The service ends by itself, and one line of its log says why: no traceback, no retries."""
    project = render(tmp_path / "service", variant.answers | {"auth": "none"})
    with socket.socket() as closed, held_port() as port, held_port() as grpc_port:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens: a connection is refused
        env = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}",
            "HF_HOME": str(tmp_path / "cache"),
            "PORT": port,
            "GRPC_PORT": grpc_port,
        }
        env.pop("MODEL_NAME", None)
        result = subprocess.run(
            [python_of(variant), "main.py"],
            cwd=project,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    log = result.stdout + result.stderr
    assert result.returncode == 1, log
    assert "Traceback" not in log
    [reason] = [line for line in log.splitlines() if " CRITICAL " in line]
    assert "The model cannot be loaded: MODEL_NAME=" in reason
    assert "no hub gives" in reason
