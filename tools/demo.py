"""Render a preset's service, run it, and ask it something: `make demo PRESET=rapidocr`.

With PREDICTIONS=local it is asked to answer later, and killed while it works: the answer comes from
the next start.

It needs Python 3.11 or newer and a package index; everything that it makes lies in .demo/.
"""

import io
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import wave
import zipfile
from array import array
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

OLDEST_PYTHON = (3, 11)
if sys.version_info < OLDEST_PYTHON:
    sys.exit("demo: this Python is too old; it takes 3.11 or newer: python3.11 tools/demo.py")

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".demo"
TOOLS = DEMO / "tools"
TEMPLATE = DEMO / "template"
PAGE = DEMO / "page.png"
NOISY = DEMO / "noisy-speech.wav"
ANSWER = DEMO / "answer.json"
BOXES = DEMO / "page-with-boxes.png"
LOG = DEMO / "service.log"

TOOLS_PYTHON = TOOLS / "bin/python"
PREDICTIONS = ("none", "local")
STEPS = count(1)
READY_SECONDS = 120
STOP_SECONDS = 30
ASK_SECONDS, WAIT_SECONDS = 60, 50  # for a response; for a task, which is one
LOG_LINES = 15
NOISE = 600  # of 32767
ALL_OF_IT = "The end of its log is above, all of it in .demo/service.log."
COLOURS = sys.stdout.isatty() and not os.getenv("NO_COLOR") and os.getenv("TERM") != "dumb"
NO_INDEX = "Is a package index reachable? It is set by pip.conf, PIP_INDEX_URL or UV_DEFAULT_INDEX."


class Demo(NamedTuple):
    """A preset's service, and what is shown of its answer."""

    preset: str
    name: str  # the service's
    route: str
    report: Callable[[Any], list[str]]
    has_boxes: bool = False
    file: Path | None = None  # what it is sent in place of its own example
    answers_file: bool = False

    @property
    def service(self) -> Path:
        """Return the folder of the rendered service."""
        return DEMO / self.name

    @property
    def python(self) -> Path:
        """Return the interpreter of the rendered service."""
        return self.service / ".venv/bin/python"


def lines_of(answer: Any) -> list[str]:
    """Show the lines of text that were read."""
    lines = [f"{line['confidence']:>9.1%}   {line['text']}" for line in answer["lines"]]
    return [bold("confidence  text"), *lines]


def regions_of(answer: Any) -> list[str]:
    """Show the parts of a page."""
    regions = [f"{found['confidence']:>9.1%}   {found['kind']}" for found in answer["regions"]]
    return [bold("confidence  part of the page"), *regions]


def segments_of(answer: Any) -> list[str]:
    """Show when somebody speaks."""
    segments = [f"{found['start']:>7.2f} {found['end']:>7.2f}" for found in answer["segments"]]
    return [bold("  speech  until, in seconds"), *segments]


def vector_of(answer: Any) -> list[str]:
    """Show the beginning of an embedding."""
    numbers = answer["embedding"]
    first = ", ".join(f"{number:.3f}" for number in numbers[:5])
    return [bold(f"{len(numbers)} numbers"), f"{first}, …"]


def text_of(answer: Any) -> list[str]:
    """Show what a language model says."""
    return [bold("answer"), answer["text"]]


def species_of(answer: Any) -> list[str]:
    """Show the class of a row."""
    return [bold("probability  species"), f"{answer['probability']:>10.1%}   {answer['species']}"]


def recording_of(answer: Any) -> list[str]:
    """Show where the cleaned recording is, and how much of it is speech."""
    return [
        bold("speech  recording"),
        f"{answer['speech']:>6.1%}  {shown(NOISY)}, with noise",
        f"{'':>6}  {shown(DEMO / answer['name'])}, without",
    ]


DEMOS = {
    demo.preset: demo
    for demo in (
        Demo("rapidocr", "reads-text", "/ocr", lines_of, has_boxes=True, file=PAGE),
        Demo("rapid-layout", "finds-parts", "/detect-layout", regions_of, has_boxes=True),
        Demo("silero-vad", "finds-speech", "/detect-speech", segments_of),
        Demo("minilm", "embeds-text", "/embed", vector_of),
        Demo("smollm2", "chats", "/chat", text_of),
        Demo("iris", "tells-irises", "/classify", species_of),
        Demo("rnnoise", "removes-noise", "/denoise", recording_of, file=NOISY, answers_file=True),
    )
}


class Failure(Exception):  # noqa: N818 -- the program is not in error
    """Why the demo cannot go on and what to try, with the output that tells more."""

    def __init__(self, message: str, output: str = "") -> None:
        """Keep the end of the output only."""
        super().__init__(message)
        self.output = "\n".join(output.rstrip().splitlines()[-LOG_LINES:])


def main(preset: str, predictions: str = "none") -> None:
    """Do it all, step by step, and print what the service answered."""
    if preset not in DEMOS:
        raise Failure(f"There is no preset '{preset}': use PRESET={', '.join(DEMOS)}.")
    if predictions not in PREDICTIONS:
        raise Failure(f"It is PREDICTIONS={' or '.join(PREDICTIONS)}, not '{predictions}'.")
    demo = DEMOS[preset]
    start = time.perf_counter()
    DEMO.mkdir(exist_ok=True)
    with step("Setting up uv and copier"):
        set_up_tools()
    with step(f"Rendering a service of {preset}"):
        render(demo, predictions)
    with step("Installing the service's packages"):
        install(demo)
        if demo.file == PAGE:
            fetch_page()
        if demo.file == NOISY:
            add_noise(demo.service / "example-speech.wav")
    question = question_of(demo)
    task = submit_and_kill(demo, question) if predictions == "local" else None
    port = free_port()
    with service_on(port, demo) as service:
        with step("Starting the service again" if task else "Starting the service"):
            wait_until_ready(service, port)
        with step("Waiting for the answer" if task else "Asking it"):
            if task:
                body = told(port, "GET", f"{task}/result?wait={WAIT_SECONDS}")
            else:
                body = told(port, "POST", demo.route, question)
            answer = keep(demo, question, body)
        with step("Stopping the service"):
            status = stop(service)
            if status != 0:
                raise Failure(f"The service exited with {status}, not 0. {ALL_OF_IT}", log())
    print(f"{'':<46}{time.perf_counter() - start:>6.1f} s in all")
    report(demo, question, answer)


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


def render(demo: Demo, predictions: str) -> None:
    """Render the template as it stands; of an earlier demo, only the packages are kept."""
    shutil.rmtree(TEMPLATE, ignore_errors=True)
    caches = shutil.ignore_patterns("__pycache__", ".*_cache")
    for part in ("template", "parts"):
        shutil.copytree(ROOT / part, TEMPLATE / part, ignore=caches)
    shutil.copy(ROOT / "copier.yml", TEMPLATE)
    demo.service.mkdir(exist_ok=True)
    for old in demo.service.iterdir():
        if old.is_file() and old.name != "uv.lock":
            old.unlink()
        elif old.is_dir() and old.name != ".venv":
            shutil.rmtree(old)
    answers = [f"project_name={demo.name}", f"preset={demo.preset}", "accelerator=cpu"]
    answers.append(f"predictions={predictions}")
    options = [argument for answer in answers for argument in ("-d", answer)]
    run(
        [TOOLS_PYTHON, "-m", "copier", "copy", "--defaults", *options, TEMPLATE, demo.service],
        "The template does not render: see above. If copier is too old, remove .demo/tools.",
    )


def install(demo: Demo) -> None:
    """Install the service's packages for the Python that runs this.

    Where the model comes from a hub, the packages of its tests are installed too: one has it.
    """
    environ = {**os.environ, "UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"}
    environ.pop("VIRTUAL_ENV", None)
    environ.pop("UV_PROJECT_ENVIRONMENT", None)
    index = pip_index()
    if index and "UV_INDEX_URL" not in environ:
        environ.setdefault("UV_DEFAULT_INDEX", index)
    groups = [] if has_checkpoint(demo) else ["--no-dev"]
    run(
        [TOOLS_PYTHON, "-m", "uv", "sync", *groups, "--quiet"],
        f"uv cannot install the service's packages. {NO_INDEX}",
        cwd=demo.service,
        environ=environ,
    )


def has_checkpoint(demo: Demo) -> bool:
    """Tell whether the service's tests bring a model, for the service would ask a hub for it."""
    return (demo.service / "tests/checkpoint.py").exists()


def checkpoint(demo: Demo) -> str:
    """Return what to set for a service to find the model of its tests, if there is one."""
    code = "from tests.checkpoint import make_checkpoint as make; print(make('.'))"
    return f"MODEL_NAME={run_in(demo, code)} " if has_checkpoint(demo) else ""


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


def add_noise(speech: Path) -> None:
    """Make a recording with noise out of one without; both have samples of 16 bits."""
    with wave.open(str(speech)) as reader, wave.open(str(NOISY), "wb") as writer:
        writer.setparams(reader.getparams())
        samples = array("h", reader.readframes(reader.getnframes()))
        noisy = (round(sample + random.gauss(0, NOISE)) for sample in samples)
        writer.writeframes(array("h", (max(-32768, min(32767, sample)) for sample in noisy)))


def free_port() -> int:
    """Find a port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def service_on(port: int, demo: Demo) -> Iterator[subprocess.Popen[bytes]]:
    """Start the service, and leave none behind; a Ctrl-C is for the demo alone."""
    environ = {**os.environ, "PORT": str(port)}
    if setting := checkpoint(demo):
        environ["MODEL_NAME"] = setting.strip().partition("=")[2]
    with LOG.open("wb") as log:
        service = subprocess.Popen(
            [demo.python, "main.py"],
            cwd=demo.service,
            env=environ,
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


def question_of(demo: Demo) -> Any:
    """Return what the service is asked: its own example, or one with another file."""
    example = json.loads(
        run_in(demo, "import inference, json; print(json.dumps(inference.EXAMPLE))")
    )
    if "file" in example:
        example["file"] = str(demo.file or demo.service / example["file"])
    return example


def submit_and_kill(demo: Demo, question: Any) -> str:
    """Have a service accept the question, to be answered later, kill it, and return the task."""
    port = free_port()
    with service_on(port, demo) as service:
        with step("Starting the service"):
            wait_until_ready(service, port)
        with step("Sending a task, and killing the service"):
            path = f"{demo.route}/tasks"
            accepted = told(port, "POST", path, question, expected=HTTPStatus.ACCEPTED)
            task = f"{path}/{json.loads(accepted)['id']}"
            while json.loads(told(port, "GET", task))["status"] == "queued":
                time.sleep(0.01)
            service.kill()
            service.wait()
    return task


def told(
    port: int, method: str, path: str, question: Any = None, *, expected: int = HTTPStatus.OK
) -> bytes:
    """Return what the service answers with, which has to be with this status."""
    headers, body = {"Accept": "application/json"}, None
    if question and "file" in question:
        headers["Content-Type"], body = form(question)
    elif question:
        headers["Content-Type"], body = "application/json", json.dumps(question).encode()
    try:
        status, answer = request(port, method, path, body, headers)
    except (OSError, HTTPException) as error:
        raise Failure(f"The service did not answer ({error!r}). {ALL_OF_IT}", log()) from error
    if status != expected:
        raise Failure(f"The service answered {status}, not {expected}: {answer.decode()}", log())
    return answer


def keep(demo: Demo, question: Any, answer: bytes) -> Any:
    """Keep the answer, draw its boxes on the picture, and return what it says."""
    ANSWER.write_bytes(answer)
    if demo.has_boxes:
        script = Path(__file__).with_name("demo_boxes.py")
        run(
            [demo.python, script, question["file"], ANSWER, BOXES],
            "The boxes cannot be drawn: see above.",
        )
    document = json.loads(answer)
    if demo.answers_file:
        (DEMO / document["name"]).write_bytes(b64decode(document["data"]))
    return document


def form(fields: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return a form's content type and bytes; the field `file` names one."""
    boundary = secrets.token_hex(16)
    parts = []
    for name, value in fields.items():
        head = f'Content-Disposition: form-data; name="{name}"'
        content = str(value).encode()
        if name == "file":
            head += f'; filename="{Path(value).name}"'
            content = Path(value).read_bytes()
        parts.append(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary.encode(), head.encode(), content))
    body = b"".join(parts) + b"--%b--\r\n" % boundary.encode()
    return f"multipart/form-data; boundary={boundary}", body


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Ask the service, past any proxy."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=ASK_SECONDS)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()


def report(demo: Demo, question: Any, answer: Any) -> None:
    """Print what was answered, and how to do it again by hand."""
    print("", *demo.report(answer), sep="\n")
    if demo.has_boxes:
        print(f"\nThe picture with its boxes is {bold(shown(BOXES))}.")
    arguments = f"--json '{json.dumps(question)}'"
    if "file" in question:
        arguments = f"-F file=@{shown(Path(question['file']))}"
    if demo.answers_file:
        arguments += f" --output {shown(DEMO / answer['name'])}"
    print(f"""
Start the service again, and ask it from another terminal:

    cd {shown(demo.service)} && {checkpoint(demo)}.venv/bin/python main.py
    curl localhost:8000{demo.route} {arguments}
""")


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    print(f"{dim(f'{next(STEPS)}.')} {title + ' …':<43}", end="", flush=True)
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


def run_in(demo: Demo, code: str) -> str:
    """Run a line of Python in the service's folder, and return the last line that it prints."""
    printed = run([demo.python, "-c", code], "The service's code does not run.", cwd=demo.service)
    return printed.splitlines()[-1]


def run(
    command: Sequence[str | Path],
    otherwise: str,
    *,
    cwd: Path = ROOT,
    environ: dict[str, str] | None = None,
) -> str:
    """Run a command and return its output; where it fails, show that and say `otherwise`."""
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
    return done.stdout


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
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        print("demo: stopped, and the service with it.", file=sys.stderr)
        sys.exit(130)
    except Failure as failure:
        if failure.output:
            print(failure.output, file=sys.stderr)
        sys.exit(f"demo: {failure}")
    except OSError as error:
        sys.exit(f"demo: {error}")
