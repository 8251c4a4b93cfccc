"""The table: which servers do which work, how they are started, and what they are asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peers import HOME, python_of, weights
from processes import Request
from rendering import render

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
WORK = HERE / "work"
PICTURE = (WORK / "line.jpg").read_bytes()
BOUNDARY = "line-of-text"


@dataclass(frozen=True)
class Subject:
    """A server, and one way of asking it; or, without a request, work with no server around it."""

    name: str
    peer: str
    command: Sequence[str]
    request: Request | None
    folder: Path = SERVERS
    env: Mapping[str, str] = field(default_factory=dict)

    def command_line(self) -> list[str]:
        """Return the command, with its environment's own interpreter or script in front."""
        python = Path(python_of(self.peer))
        first, *rest = self.command
        return [str(python if first == "python" else python.with_name(first)), *rest]


def service(name: str, **answers: str) -> Path:
    """Render a service around the model in services/NAME.py."""
    folder = HOME / "services" / name
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    render(folder, {"model_type": "custom", "model_module": "inference", **answers})
    shutil.copy(HERE / "services" / f"{name}.py", folder / "inference.py")
    return folder


def form(file: bytes) -> tuple[bytes, str]:
    """Return a multipart body with one file, and its content type."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="line.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    tail = f"\r\n--{BOUNDARY}--\r\n"
    return head.encode() + file + tail.encode(), f"multipart/form-data; boundary={BOUNDARY}"


def common() -> dict[str, str]:
    """Return the environment that every server gets: one thread, and where the models are."""
    (classifier,) = weights().glob("rapidocr/models/*_cls_mobile.onnx")
    return {
        "PYTHONPATH": str(WORK),
        "PYTHONDONTWRITEBYTECODE": "",
        "OMP_NUM_THREADS": "1",
        "CLASSIFIER": str(classifier),
        "EXAMPLE": str(WORK / "line.jpg"),
        "LOG_LEVEL": "WARNING",
    }


def b1() -> list[Subject]:
    """No-op model, small JSON: what is measured is the service itself."""
    numbers = {"values": [1.0, 2.0, 3.0, 4.0]}
    body = b'{"values": [1.0, 2.0, 3.0, 4.0]}'
    post = Request("/infer", body, "application/json", numbers)
    return [
        Subject(
            "this template",
            "ours",
            ["python", "main.py"],
            post,
            service("noop", input_kind="json"),
        ),
        Subject("bare FastAPI route", "ours", ["python", "bare_noop.py"], post),
    ]


def b2() -> list[Subject]:
    """JPEG upload, a small CNN, about 1 ms of work."""
    answer = {"label": "0", "score": 0.9949}
    multipart, content_type = form(PICTURE)
    ours = service("classifier", input_kind="image", endpoint="infer")
    upload = Request("/infer", multipart, content_type, answer)
    raw = Request("/infer", PICTURE, "image/jpeg", answer)
    return [
        Subject("limit", "ours", ["python", "limit_classifier.py"], None),
        Subject("this template, multipart", "ours", ["python", "main.py"], upload, ours),
        Subject("this template, raw body", "ours", ["python", "main.py"], raw, ours),
        Subject("the document's code", "ours", ["python", "letter_classifier.py"], upload),
    ]


BENCHMARKS = {"b1": b1, "b2": b2}
