"""Render a service that reads text, run it, and have it read a scanned page: `make demo`.

It needs Python 3.11 or newer and a package index; everything that it makes lies in .demo/.
"""

import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

OLDEST_PYTHON = (3, 11)
if sys.version_info < OLDEST_PYTHON:
    sys.exit("demo: this Python is too old; it takes 3.11 or newer: python3.11 tools/demo.py")

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".demo"
TOOLS = DEMO / "tools"
TEMPLATE = DEMO / "template"
SERVICE = DEMO / "reads-text"
PAGE = DEMO / "page.png"
ANSWER = DEMO / "answer.json"
BOXES = DEMO / "page-with-boxes.png"
LOG = DEMO / "service.log"

TOOLS_PYTHON = TOOLS / "bin/python"
SERVICE_PYTHON = SERVICE / ".venv/bin/python"
ANSWERS = ("project_name=reads-text", "preset=rapidocr", "accelerator=cpu")
STEPS = 7
READY_SECONDS = 120
STOP_SECONDS = 30
LOG_LINES = 15
ALL_OF_IT = "The end of its log is above, all of it in .demo/service.log."
COLOURS = sys.stdout.isatty() and not os.getenv("NO_COLOR") and os.getenv("TERM") != "dumb"
NO_INDEX = "Is a package index reachable? It is set by pip.conf, PIP_INDEX_URL or UV_DEFAULT_INDEX."


class Line(NamedTuple):
    """One line of text, as the service answers it."""

    text: str
    box: list[list[float]]
    confidence: float


class Failure(Exception):  # noqa: N818 -- the program is not in error
    """Why the demo cannot go on and what to try, with the output that tells more."""

    def __init__(self, message: str, output: str = "") -> None:
        """Keep the end of the output only."""
        super().__init__(message)
        self.output = "\n".join(output.rstrip().splitlines()[-LOG_LINES:])


def main() -> None:
    """Do it all, step by step, and print what the service read."""
    start = time.perf_counter()
    DEMO.mkdir(exist_ok=True)
    with step(1, "Setting up uv and copier"):
        set_up_tools()
    with step(2, "Rendering a service that reads text"):
        render()
    with step(3, "Installing the service's packages"):
        install()
    with step(4, "Fetching a scanned page"):
        fetch_page()
    port = free_port()
    with service_on(port) as service:
        with step(5, "Starting the service"):
            wait_until_ready(service, port)
        with step(6, "Having it read the page"):
            lines = read_page(port)
        with step(7, "Stopping the service"):
            status = stop(service)
            if status != 0:
                raise Failure(f"The service exited with {status}, not 0. {ALL_OF_IT}", log())
    print(f"{'':<46}{time.perf_counter() - start:>6.1f} s in all")
    report(lines)


def set_up_tools() -> None:
    """Make a virtual environment for uv and copier, unless a complete one is there."""
    complete = TOOLS / "complete"
    if complete.exists() and TOOLS_PYTHON.exists():
        return
    run(
        [sys.executable, "-m", "venv", "--clear", TOOLS],
        "Python cannot make virtual environments; on Debian: apt install python3-venv.",
    )
    pip("install", "uv", "copier>=9.19")
    complete.touch()


def render() -> None:
    """Render the template as it stands; of an earlier demo, only the packages are kept."""
    shutil.rmtree(TEMPLATE, ignore_errors=True)
    caches = shutil.ignore_patterns("__pycache__", ".*_cache")
    for part in ("template", "parts"):
        shutil.copytree(ROOT / part, TEMPLATE / part, ignore=caches)
    shutil.copy(ROOT / "copier.yml", TEMPLATE)
    SERVICE.mkdir(exist_ok=True)
    for old in SERVICE.iterdir():
        if old.is_file() and old.name != "uv.lock":
            old.unlink()
        elif old.is_dir() and old.name != ".venv":
            shutil.rmtree(old)
    answers = [argument for answer in ANSWERS for argument in ("-d", answer)]
    run(
        [TOOLS_PYTHON, "-m", "copier", "copy", "--defaults", *answers, TEMPLATE, SERVICE],
        "The template does not render: see above. If copier is too old, remove .demo/tools.",
    )


def install() -> None:
    """Install the service's packages for the Python that runs this."""
    environ = {**os.environ, "UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"}
    environ.pop("VIRTUAL_ENV", None)
    environ.pop("UV_PROJECT_ENVIRONMENT", None)
    index = pip_index()
    if index and "UV_INDEX_URL" not in environ:
        environ.setdefault("UV_DEFAULT_INDEX", index)
    run(
        [TOOLS_PYTHON, "-m", "uv", "sync", "--no-dev", "--quiet"],
        f"uv cannot install the service's packages. {NO_INDEX}",
        cwd=SERVICE,
        environ=environ,
    )


def pip_index() -> str:
    """Tell which index pip was told to use, for uv does not read pip's settings."""
    command = [str(TOOLS_PYTHON), "-m", "pip", "config", "get", "global.index-url"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return os.getenv("PIP_INDEX_URL") or asked.stdout.strip()


def fetch_page() -> None:
    """Take the scanned page out of scikit-image's wheel."""
    if PAGE.exists():
        return
    wheels = DEMO / "wheels"
    # Its wheels for one version of Python do for all: it is not installed.
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", f"--dest={wheels}"]
    pip("download", *options, "scikit-image==0.26.0")
    with zipfile.ZipFile(next(wheels.glob("scikit_image-*.whl"))) as wheel:
        PAGE.write_bytes(wheel.read("skimage/data/page.png"))
    shutil.rmtree(wheels)


def free_port() -> int:
    """Find a port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def service_on(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the service, and leave none behind; a Ctrl-C is for the demo alone."""
    with LOG.open("wb") as log:
        service = subprocess.Popen(
            [SERVICE_PYTHON, "main.py"],
            cwd=SERVICE,
            env={**os.environ, "PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield service
    finally:
        stop(service)


def stop(service: subprocess.Popen[bytes]) -> int:
    """Have the service stop, and return its exit status."""
    service.terminate()
    try:
        return service.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        service.kill()
        return service.wait()


def wait_until_ready(service: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the model is loaded."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        status = service.poll()
        if status is not None and "address already in use" in log():
            raise Failure(f"Something took port {port} just now. Run it again.", log())
        if status is not None:
            raise Failure(f"The service exited with {status} while it started. {ALL_OF_IT}", log())
        with suppress(OSError, HTTPException):
            if request(port, "GET", "/ready")[0] == HTTPStatus.OK:
                return
        time.sleep(0.1)
    raise Failure(f"The service was not ready within {READY_SECONDS} s. {ALL_OF_IT}", log())


def log() -> str:
    """Return what the service has logged, except that it was asked whether it is ready."""
    lines = LOG.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if "GET /ready" not in line)


def read_page(port: int) -> list[Line]:
    """Post the page, keep the answer, and draw its boxes on the page."""
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="page.png"\r\n'
    body = b"%b\r\n%b\r\n--%b--\r\n" % (head.encode(), PAGE.read_bytes(), boundary.encode())
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    try:
        status, answer = request(port, "POST", "/ocr", body, headers)
    except (OSError, HTTPException) as error:
        raise Failure(f"The service did not answer ({error!r}). {ALL_OF_IT}", log()) from error
    if status != HTTPStatus.OK:
        raise Failure(f"The service answered {status}, not 200: {answer.decode()}", log())
    ANSWER.write_bytes(answer)
    lines = [Line(**line) for line in json.loads(answer)["lines"]]
    if not lines:
        raise Failure(f"The service found no text in {shown(PAGE)}. {ALL_OF_IT}", log())
    run(
        [SERVICE_PYTHON, Path(__file__).with_name("demo_boxes.py"), PAGE, ANSWER, BOXES],
        "The boxes cannot be drawn: see above.",
    )
    return lines


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Ask the service, past any proxy."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()


def report(lines: list[Line]) -> None:
    """Print what was read, and how to do it again by hand."""
    print(f"\n{bold('confidence  text')}")
    for line in lines:
        print(f"{line.confidence:>9.1%}   {line.text}")
    print(f"""
The page with a box around each line is {bold(shown(BOXES))}.

Start the service again, and ask it from another terminal:

    cd {shown(SERVICE)} && .venv/bin/python main.py
    curl localhost:8000/ocr -F file=@{shown(PAGE)}
""")


@contextmanager
def step(number: int, title: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    print(f"{dim(f'[{number}/{STEPS}]')} {title + ' …':<40}", end="", flush=True)
    start = time.perf_counter()
    try:
        yield
    except BaseException:
        print("not done")
        raise
    print(f"{time.perf_counter() - start:>6.1f} s")


def pip(*arguments: str) -> None:
    """Run pip, which keeps to the settings that this machine has for it."""
    run(
        [TOOLS_PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        f"pip {arguments[0]} did not succeed: see above. {NO_INDEX}",
    )


def run(
    command: Sequence[str | Path],
    otherwise: str,
    *,
    cwd: Path = ROOT,
    environ: dict[str, str] | None = None,
) -> None:
    """Run a command in silence; where it fails, show its output and say `otherwise`."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise Failure(otherwise, done.stdout)


def shown(path: Path) -> str:
    """Write a path as seen from the checkout."""
    return str(path.relative_to(ROOT))


def bold(text: str) -> str:
    """Make text stand out on a terminal."""
    return f"\033[1m{text}\033[0m" if COLOURS else text


def dim(text: str) -> str:
    """Make text stand back on a terminal."""
    return f"\033[2m{text}\033[0m" if COLOURS else text


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have started it with one ignored
        signal.signal(number, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("demo: stopped, and the service with it.", file=sys.stderr)
        sys.exit(130)
    except Failure as failure:
        print(failure.output, file=sys.stderr)
        sys.exit(f"demo: {failure}")
    except OSError as error:
        sys.exit(f"demo: {error}")
