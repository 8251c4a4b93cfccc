"""Build an image and run it as a careful platform would, with Docker or Podman."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.live import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HERE = Path(__file__).parent
# One port for every build: the address lands in the lock, and so decides whether a layer is reused.
WHEELS_PORT = 18765
# What a private index needs, where the environment has it and the Dockerfile declares it.
INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")


class ContainerError(RuntimeError):
    """A command of the engine failed; the message is its output."""


@functools.cache
def engine() -> str:
    """Return the command to use, `docker` or `podman`. Raises ContainerError where none works."""
    # Without systemd Podman's defaults fail; its settings cannot harm where Docker is found.
    if not Path("/run/systemd/system").is_dir():
        os.environ.setdefault("CONTAINERS_CONF", str(HERE / "containers.conf"))
    return _run(str(HERE / "setup.sh"))


@functools.cache
def base_image(python: str) -> str:
    """Return an image with CPython `python`: the official one, else a local stand-in for it."""
    official, stand_in = f"python:{python}-slim", f"localhost/stand-in-python:{python}"
    for image in (official, stand_in):
        if _exists(image):
            return image
    try:
        _run(engine(), "pull", "--quiet", official)
    except ContainerError as error:
        print(f"{official} cannot be pulled, so a stand-in is made: {error}", file=sys.stderr)
    else:
        return official
    _run(str(HERE / "stand_in.sh"), engine(), python, stand_in)
    return stand_in


def lock(project: Path) -> None:
    """Write a throw-away `uv.lock`, with PyTorch from a folder of wheels where there is one.

    The lock of such a project names an address that only `build` serves: never keep it.
    """
    found = shutil.which("uv")
    uv = [found] if found else [sys.executable, "-m", "uv"]
    # A lock holds for every Python: any interpreter will do, whatever .python-version says.
    command = [*uv, "lock", f"--python={sys.executable}"]
    with _wheels() as address:
        if address is None:
            _run(*command, cwd=project)
            return
        environment = {"UV_NO_SOURCES": "1", "UV_FIND_LINKS": address}
        pins = [f"--upgrade-package={name}=={version}" for name, version in _wheel_versions()]
        _run(*command, *pins, cwd=project, env=environment)


def build(
    context: Path,
    tag: str,
    *,
    build_args: Mapping[str, str] | None = None,
    secrets: Mapping[str, Path] | None = None,
) -> None:
    """Build `context` as a user would; its Dockerfile is taken as it is."""
    arguments = {name: os.environ[name] for name in INDEX_VARIABLES if name in os.environ}
    arguments |= build_args or {}
    files = {"ca": Path(os.environ["SSL_CERT_FILE"])} if "SSL_CERT_FILE" in os.environ else {}
    files |= secrets or {}
    command = [engine(), "build", "--network=host", f"--tag={tag}"]
    if engine() == "podman":
        # Podman's own format has no HEALTHCHECK.
        command += ["--format=docker", "--layers", "--pull=never"]
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    command += [f"--secret=id={name},src={path}" for name, path in files.items()]
    with _wheels():
        _run(*command, str(context), env={"DOCKER_BUILDKIT": "1"})


@dataclass(frozen=True)
class Container:
    """A running container, and where it listens."""

    name: str
    base_url: str

    def healthy(self, timeout: float = 60) -> bool:
        """Wait until the image's own HEALTHCHECK passes."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._passes():
                return True
            time.sleep(0.5)
        return False

    def uid(self) -> int:
        """Return the user that the main process runs as."""
        return int(_run(engine(), "exec", self.name, "id", "-u"))

    def execute(self, *command: str, user: str = "10001:10001") -> str:
        """Run a command inside; raise `ContainerError` where it fails."""
        return _run(engine(), "exec", f"--user={user}", self.name, *command)

    def logs(self) -> str:
        """Return all that was printed, errors included."""
        return _run(engine(), "logs", self.name, stderr=subprocess.STDOUT)

    def stop(self, grace: int = 30) -> int:
        """Send SIGTERM, and return the exit code; it is 137 where the process had to be killed."""
        _run(engine(), "stop", f"--time={grace}", self.name)
        return int(_run(engine(), "inspect", "--format={{.State.ExitCode}}", self.name))

    def _passes(self) -> bool:
        if engine() == "docker":
            status = "{{.State.Health.Status}}"
            return _run(engine(), "inspect", f"--format={status}", self.name) == "healthy"
        # Podman leaves the timer to systemd, which a sandbox lacks.
        command = [engine(), "healthcheck", "run", self.name]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def running(
    tag: str,
    *,
    env: Mapping[str, str] | None = None,
    port: int = 8000,
    mounts: Mapping[Path, str] | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[Container]:
    """Run the image with nothing that it does not need: no root to write to, no privileges."""
    name, host_port = f"test-{uuid.uuid4().hex[:12]}", free_port()
    command = [engine(), "run", "--detach", f"--name={name}", "--memory=2g"]
    command += ["--read-only", "--tmpfs=/tmp", "--cap-drop=all"]
    command += ["--security-opt=no-new-privileges", f"--publish=127.0.0.1:{host_port}:{port}"]
    # By itself Podman makes more than /tmp writable, and Docker first checks after half a minute.
    command += ["--read-only-tmpfs=false"] if engine() == "podman" else ["--health-interval=2s"]
    command += [f"--env={key}={value}" for key, value in (env or {}).items()]
    command += [f"--volume={host}:{inside}:ro" for host, inside in (mounts or {}).items()]
    container = Container(name, f"http://127.0.0.1:{host_port}")
    try:
        _run(*command, tag, *arguments)
        try:
            yield container
        except BaseException:
            print(container.logs(), file=sys.stderr)
            raise
    finally:
        remove = [engine(), "rm", "--force", "--volumes", name]
        subprocess.run(remove, capture_output=True, check=False)


def image_config(tag: str) -> dict[str, object]:
    """Return what the image declares: User, Env, Cmd, Healthcheck and so on."""
    images = json.loads(_run(engine(), "image", "inspect", tag))
    config: dict[str, object] = images[0]["Config"]
    # Podman keeps it one level up.
    config.setdefault("Healthcheck", images[0].get("Healthcheck", images[0].get("HealthCheck")))
    return config


@contextmanager
def _wheels() -> Iterator[str | None]:
    """Serve the folder of PIP_FIND_LINKS: a build reaches this address, but no path of the host."""
    folder = os.environ.get("PIP_FIND_LINKS", "")
    if not Path(folder).is_absolute():
        yield None
        return
    handler = partial(_QuietHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", WHEELS_PORT), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{WHEELS_PORT}/"
        finally:
            server.shutdown()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _wheel_versions() -> Iterator[tuple[str, str]]:
    for wheel in Path(os.environ["PIP_FIND_LINKS"]).glob("*.whl"):
        name, version, *_ = wheel.name.split("-")
        yield name, version


def _exists(image: str) -> bool:
    command = [engine(), "image", "inspect", image]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(
    *command: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int = subprocess.PIPE,
) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        # The layers of an image are too large for memory, where the tests may have their folders.
        env=os.environ | {"TMPDIR": "/var/tmp"} | dict(env or {}),  # noqa: S108
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
    )
    if done.returncode:
        output = f"{done.stdout}\n{done.stderr or ''}".strip()
        raise ContainerError(f"{' '.join(command)}: {done.returncode}\n{output[-4000:]}")
    return done.stdout.strip()
