"""SageMaker's contract in detail: what AWS's two guides show, limits around scripts, adapters."""

import json
import os
import re
import subprocess
import tomllib
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.environments import run, tool
from tests.support.live import Live, free_port, live, wait_for
from tests.support.rendering import render
from tests.support.slow_service import ask, calls, document, slow_service, started
from tests.support.updating import put_model, python
from tests.support.variants import example_of, table

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("sagemaker")

# The guides' examples, with today's names for what has another one.
DECORATED = """
import json

from fastapi import Request, Response
from model_hosting_container_standards import sagemaker as sagemaker_standards
from model_hosting_container_standards.logging_config import logger

logger.info("Script loaded")

@sagemaker_standards.custom_ping_handler
async def my_health_check(request: Request) -> Response:
    return Response(json.dumps({"from": "decorator"}), media_type="application/json")

@sagemaker_standards.custom_invocation_handler
async def my_inference(request: Request) -> Response:
    logger.info("Asked")
    body = await request.json()
    return Response(json.dumps({"from": "decorator", "got": body}), media_type="application/json")
"""
# Without a type for the request, as the guide has it.
DISCOVERED = """
async def custom_sagemaker_ping_handler(request):
    return {"from": "discovery", "path": request.url.path}

async def custom_sagemaker_invocation_handler(request):
    return {"from": "discovery", "got": await request.json()}
"""
NAMED = """
async def health(request):
    return {"from": "environment"}

async def inference(request):
    return {"from": "environment", "got": await request.json()}

class Handlers:
    @staticmethod
    async def inference(request):
        return {"from": "class", "got": await request.json()}
"""
# What the guide does with vLLM's engine: to put a prompt together, and then ask the model.
WITH_MODEL = """
from fastapi import HTTPException, Request
from fastapi.responses import Response
from model_hosting_container_standards import sagemaker
from serving.requests import ParsedRequest
import json

@sagemaker.custom_invocation_handler
async def with_context(raw_request: Request) -> dict:
    try:
        body = await raw_request.json()
    except json.JSONDecodeError as error:
        raise HTTPException(400, f"JSON decode error: {error}") from error

    service = raw_request.app.state.service

    async def with_zero(request: Request) -> ParsedRequest:
        return service.parse.check(json.dumps({"values": [0.0, *body["values"]]}).encode())

    answer = await service.answer(raw_request, with_zero)
    return {"predictions": [json.loads(answer.body)]}
"""
IMPORTING = """
import main
from fastapi import Request

async def custom_sagemaker_ping_handler(request: Request):
    return {"from": "script"} | await main.health()
"""
EXTENDING = """
from fastapi import Request, Response
from main import app, parse, service
from model_hosting_container_standards import sagemaker

@app.get("/extra")
async def extra():
    return {"waiting": len(service.worker.waiting), "name": service.runner.name}

@sagemaker.custom_invocation_handler
async def invocations(request: Request) -> Response:
    return await service.answer(request, parse)
"""
MIDDLEWARE = """
from fastapi import Response
from model_hosting_container_standards.common.fastapi.middleware import (
    custom_middleware, input_formatter, output_formatter,
)

@custom_middleware("throttle")
async def rate_limit_middleware(request, call_next):
    if request.headers.get("x-too-often"):
        return Response("Too often", 429)
    response = await call_next(request)
    response.headers["x-order"] = response.headers.get("x-order", "") + ",throttle"
    return response

@input_formatter
async def preprocess_request(request):
    if request.url.path == "/invocations":
        await request.body()
    return request

@output_formatter
async def postprocess_response(response):
    response.headers["x-order"] = "decorated"
    return response
"""
PROCESSORS = """
import json
from fastapi import HTTPException

def pre(request):
    if request.url.path == "/invocations" and request.headers.get("x-series"):
        request._body = json.dumps({"values": json.loads(request.headers["x-series"])}).encode()

def post(response):
    response.headers["x-order"] = "environment"

async def around(request, call_next):
    if request.headers.get("x-refuse"):
        raise HTTPException(418, "No tea")
    if request.headers.get("x-fail"):
        raise KeyError("secret")
    response = await call_next(request)
    response.headers["x-order"] = "around"
    return response

class RateLimiter:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def marked(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-limiter", b"class"))
            await send(message)
        await self.app(scope, receive, marked)
"""
MODEL = '''"""Speaks by adapters."""

import logging
import os
from collections.abc import Iterator
from threading import current_thread

from pydantic import BaseModel, ConfigDict

from serving import BadInput, Input

MODEL_NAME = "adapting"
logger = logging.getLogger(__name__)


class Params(BaseModel):
    """The request's body."""

    model_config = ConfigDict(extra="forbid")

    text: str
    adapter: str | None = None
    session: str | None = None


class Output(BaseModel):
    """What was said."""

    said: str
    turn: int = 0
    thread: str = ""


EXAMPLE = {"text": "hello"}


class Model:
    """Says by which adapter it speaks, and counts a session's turns."""

    def __init__(self, device: str) -> None:
        """Load nothing."""
        self.adapters: dict[str, str] = {}
        self.turns: dict[str, int] = {}

    def load_adapter(self, name: str, source: str) -> None:
        """Take an adapter."""
        if source == "nowhere":
            raise BadInput(f"There is no adapter in {source}.")
        self.adapters[name] = f"{source} by {self._thread()}"

    def unload_adapter(self, name: str) -> None:
        """Drop an adapter."""
        if self.adapters.pop(name, None) is None:
            raise BadInput(f"There is no adapter {name}.")

    def close_session(self, session: str) -> None:
        """Forget a session."""
        logger.info("Closed after %d turns", self.turns.pop(session, 0))

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Answer each."""
        return [self._answer(item.params) for item in inputs]

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Answer in as many parts as the text has letters."""
        for letter in item.params.text:
            yield Output(said=letter)

    def _answer(self, params: Params) -> Output:
        if params.adapter and params.adapter not in self.adapters:
            raise BadInput(f"There is no adapter {params.adapter}.")
        if params.session:
            self.turns[params.session] = self.turns.get(params.session, 0) + 1
        said = f"{self.adapters.get(params.adapter or '', 'base')}: {params.text}"
        turn = self.turns.get(params.session or "", 0)
        return Output(said=said, turn=turn, thread=self._thread())

    def _thread(self) -> str:
        return f"{os.getpid()}-{current_thread().name}"
'''
DISPATCHING = """
from starlette.middleware.base import BaseHTTPMiddleware

class Throttle(BaseHTTPMiddleware):
"""
SERIES = {"values": [1.0, 2.0, 3.0, 4.0]}
ADAPTER, SESSION = "X-Amzn-SageMaker-Adapter-Identifier", "X-Amzn-SageMaker-Session-Id"
NEW_SESSION, CLOSED = "X-Amzn-SageMaker-New-Session-Id", "X-Amzn-SageMaker-Closed-Session-Id"
ROUTES = {f"/{row['endpoint']}" for row in table("input_kinds").values()}
CASES = Path(__file__).parents[1] / "support" / "cases"
WARNING = "X-Input-Warning"
# The oldest that a service takes.
OLDEST_FASTAPI = "fastapi==0.143.0"


def contract(folder: Path, **answers: Any) -> Path:
    """Render a service for JSON with SageMaker's contract."""
    kind = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"}
    return render(folder, kind | {"contracts": ["sagemaker"]} | answers)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render one for tests that leave it as it is."""
    features = ["observability", "replicas"]
    return contract(tmp_path_factory.mktemp("sagemaker") / "service", features=features)


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Return the folder where SageMaker would put the model, with each script."""
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "package").mkdir()
    for name, text in {
        "decorated.py": DECORATED + DISCOVERED,
        "discovered.py": DISCOVERED,
        "named.py": NAMED,
        "with_model.py": WITH_MODEL,
        "importing.py": IMPORTING,
        "extending.py": EXTENDING,
        "middleware.py": MIDDLEWARE,
        "processors.py": PROCESSORS,
        "package/handlers.py": NAMED,
    }.items():
        (folder / name).write_text(text)
    return folder


def sources(client: httpx.Client) -> tuple[str, str]:
    """Return who answers /ping and /invocations."""
    ping = client.get("/ping").raise_for_status().json()
    answer = client.post("/invocations", json=SERIES).raise_for_status().json()
    assert answer.get("got", SERIES) == SERIES
    return ping.get("from", "default"), answer.get("from", "default")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"CUSTOM_SCRIPT_FILENAME": "decorated.py"}, ("decorator", "decorator")),
        ({"CUSTOM_SCRIPT_FILENAME": "discovered.py"}, ("discovery", "discovery")),
        (
            {
                "CUSTOM_SCRIPT_FILENAME": "named.py",
                "CUSTOM_FASTAPI_PING_HANDLER": "model:health",
                "CUSTOM_FASTAPI_INVOCATION_HANDLER": "model:Handlers.inference",
            },
            ("environment", "class"),
        ),
        (
            {
                "CUSTOM_SCRIPT_FILENAME": "decorated.py",
                "CUSTOM_FASTAPI_PING_HANDLER": "named.py:health",
                "CUSTOM_FASTAPI_INVOCATION_HANDLER": "{folder}/named.py:inference",
            },
            ("environment", "environment"),
        ),
        (
            {"CUSTOM_FASTAPI_INVOCATION_HANDLER": "package.handlers:inference"},
            ("default", "environment"),
        ),
    ],
    ids=["decorators", "names", "alias", "files", "module"],
)
def test_handlers(
    env: dict[str, str], expected: tuple[str, str], project: Path, scripts: Path, tmp_path: Path
) -> None:
    """Handlers come from the environment, else from decorators, names, and the service itself."""
    env = {name: value.format(folder=scripts) for name, value in env.items()}
    env |= {"SAGEMAKER_MODEL_PATH": str(scripts), "PYTHONPATH": str(scripts)}
    with live(
        project, python(), tmp_path / "log", SAGEMAKER_CONTAINER_LOG_LEVEL="INFO", **env
    ) as service:
        assert sources(service.ready()) == expected
        # Its own lines are as the service's are.
        assert ("INFO model_hosting_container_standards: Script loaded" in service.log) == (
            expected[0] == "decorator" or "decorated" in env.get("CUSTOM_SCRIPT_FILENAME", "")
        )
        assert "Model loaded in" in service.log


def test_model_from_a_handler(project: Path, scripts: Path, tmp_path: Path) -> None:
    """A handler can ask the service's model, with all that guards it."""
    env = {"SAGEMAKER_MODEL_PATH": str(scripts), "CUSTOM_SCRIPT_FILENAME": "with_model.py"}
    with live(project, python(), tmp_path / "log", **env) as service:
        client = service.ready()
        answer = client.post("/invocations", json=SERIES)
        assert answer.json() == {"predictions": [{"next": 5.0}]}
        refused = client.post("/invocations", json={"values": ["a"]})
        assert (refused.status_code, "detail" in refused.json()) == (422, True)
        assert client.post("/invocations", content=b"{").json()["detail"].startswith("JSON decode")
        failed = client.post("/invocations", json={})
        assert (failed.status_code, "error_id" in failed.json()) == (500, True)


@pytest.mark.parametrize(
    ("env", "ping"),
    [
        ({"CUSTOM_SCRIPT_FILENAME": "importing.py"}, {"from": "script", "status": "ok"}),
        ({"CUSTOM_SCRIPT_FILENAME": "extending.py"}, {"status": "ready"}),
        ({"CUSTOM_FASTAPI_PING_HANDLER": "main:health"}, {"status": "ok"}),
        ({"CUSTOM_FASTAPI_INVOCATION_HANDLER": "main:infer"}, {"status": "ready"}),
    ],
    ids=["import", "from", "ping", "invocations"],
)
def test_main_in_a_script(
    env: dict[str, str], ping: dict[str, str], project: Path, scripts: Path, tmp_path: Path
) -> None:
    """`main` is the service that runs, wherever a script names it."""
    env |= {"SAGEMAKER_MODEL_PATH": str(scripts)}
    with live(project, python(), tmp_path / "log", **env) as service:
        client = service.ready()
        assert client.get("/ping").raise_for_status().json() == ping
        answer = client.post("/invocations", json=SERIES)
        assert (answer.status_code, answer.json()) == (200, {"next": 5.0})
        if "extending.py" in env.values():
            extra = client.get("/extra").json()
            assert extra == {"waiting": 0, "name": "linear-trend"}
        assert service.log.count("Model loaded in") == 1


@pytest.mark.parametrize("features", [["replicas"], ["replicas", "isolation"]])
def test_main_in_a_script_of_each_process(
    features: list[str], scripts: Path, tmp_path: Path
) -> None:
    """It is so in each of several processes, and where the model has a process of its own."""
    project = contract(tmp_path / "service", features=features)
    env = {"SAGEMAKER_MODEL_PATH": str(scripts), "CUSTOM_SCRIPT_FILENAME": "extending.py"}
    env |= {"CUSTOM_FASTAPI_PING_HANDLER": "main:health", "WORKERS": "2"}
    with live(project, python(), tmp_path / "log", **env) as service:
        service.ready()
        wait_for(lambda: service.log.count("Model loaded in") == 2, seconds=60)
        for _ in range(8):
            with httpx.Client(base_url=service.url, timeout=30) as client:
                assert client.get("/ping").raise_for_status().json() == {"status": "ok"}
                answer = client.post("/invocations", json=SERIES)
                assert (answer.status_code, answer.json()) == (200, {"next": 5.0})


@pytest.mark.parametrize(
    "env",
    [{"CUSTOM_FASTAPI_PING_HANDLER": "main.py:health"}, {"CUSTOM_SCRIPT_FILENAME": "main.py"}],
)
def test_main_as_a_file(env: dict[str, str], project: Path, tmp_path: Path) -> None:
    """As a file it would be run a second time: one line says how to name it instead."""
    env |= {"SAGEMAKER_MODEL_PATH": str(project)}
    with live(project, python(), tmp_path / "log", **env) as service:
        assert service.process.wait(60) == 1
        [line] = service.log.splitlines()
        assert [
            word for word in ("CRITICAL", *env.values(), "main:function") if word not in line
        ] == []


def test_middleware_by_decorators(project: Path, scripts: Path, tmp_path: Path) -> None:
    """A throttle comes first, then what changes requests and answers, then the handler."""
    env = {"SAGEMAKER_MODEL_PATH": str(scripts), "CUSTOM_SCRIPT_FILENAME": "middleware.py"}
    with live(project, python(), tmp_path / "log", MAX_UPLOAD_MB="1", **env) as service:
        client = service.ready()
        answer = client.post("/invocations", json=SERIES)
        assert (answer.json(), answer.headers["x-order"]) == ({"next": 5.0}, "decorated,throttle")
        throttled = client.post("/invocations", json=SERIES, headers={"x-too-often": "1"})
        assert (throttled.status_code, "x-request-id" in throttled.headers) == (429, True)
        # Counted while a script reads it, and while the handler does.
        for path in ("/invocations", "/infer"):
            large = client.post(path, content=iter([b" " * 2**20, b" " * 2**20]))
            assert (large.status_code, large.json()) == (413, {"detail": "File too large."})
        declared = client.post("/invocations", content=b" " * 2**21)
        assert (declared.status_code, "x-order" in declared.headers) == (413, False)
        metrics = client.get("/metrics").text
        for status, count in {200: 1, 413: 2, 429: 1}.items():
            counted = rf'total{{method="POST",route="/invocations",status="{status}"}} {count}'
            assert re.search(counted, metrics)


def test_middleware_by_environment(project: Path, scripts: Path, tmp_path: Path) -> None:
    """The environment goes before decorators; classes are taken, and functions without async."""
    env = {
        "SAGEMAKER_MODEL_PATH": str(scripts),
        "PYTHONPATH": str(scripts),
        "CUSTOM_SCRIPT_FILENAME": "middleware.py",
        "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE": "processors:RateLimiter",
        "CUSTOM_PRE_PROCESS": "processors:pre",
        "CUSTOM_POST_PROCESS": "processors.py:post",
    }
    with live(project, python(), tmp_path / "log", **env) as service:
        client = service.ready()
        answer = client.post("/invocations", json=SERIES, headers={"x-series": "[5, 6, 7, 8]"})
        assert answer.json() == {"next": 9.0}
        assert (answer.headers["x-order"], answer.headers["x-limiter"]) == ("environment", "class")


def test_middleware_that_fails(project: Path, scripts: Path, tmp_path: Path) -> None:
    """What middleware raises has the service's own form, and is in the log by its id."""
    env = {
        "SAGEMAKER_MODEL_PATH": str(scripts),
        "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS": "processors.py:around",
    }
    with live(project, python(), tmp_path / "log", **env) as service:
        client = service.ready()
        assert client.post("/invocations", json=SERIES).headers["x-order"] == "around"
        refused = client.post("/invocations", json=SERIES, headers={"x-refuse": "1"})
        assert (refused.status_code, refused.json()) == (418, {"detail": "No tea"})
        failed = client.post("/invocations", json=SERIES, headers={"x-fail": "1"})
        assert (failed.status_code, failed.json()["detail"]) == (500, "Internal server error.")
        assert failed.json()["error_id"] in service.log
        assert "secret" not in failed.text


@pytest.mark.parametrize(
    ("script", "env", "words"),
    [
        ("def f(:\n", {}, ["model.py", "SyntaxError", "line 1"]),
        (
            "x = 1\nimport no_such_module\n",
            {},
            ["No module named 'no_such_module'", "model.py, line 2"],
        ),
        ("", {"CUSTOM_FASTAPI_PING_HANDLER": "model:f"}, ["CUSTOM_FASTAPI_PING_HANDLER=model:f"]),
        ("", {"CUSTOM_FASTAPI_PING_HANDLER": "/health"}, ["CUSTOM_FASTAPI_PING_HANDLER=/health"]),
        ("", {"CUSTOM_PRE_PROCESS": "other.py:f"}, ["CUSTOM_PRE_PROCESS=other.py:f", "other.py"]),
        ("", {"CUSTOM_SCRIPT_FILENAME": "other.py"}, ["other.py", "no such file"]),
        (
            "async def custom_sagemaker_invocation_handler(data, context): ...\n",
            {},
            ["custom_sagemaker_invocation_handler", "data, context"],
        ),
        (
            "def throttle(request, call_next):\n    return call_next(request)\n",
            {"CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE": "model:throttle"},
            ["throttle", "write async def throttle(request, call_next)"],
        ),
        (
            f"{DISPATCHING}    def dispatch(self, request, call_next):\n        return None\n",
            {"CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE": "model:Throttle"},
            ["Throttle", "write async def dispatch(self, request, call_next)"],
        ),
        (
            "class Around:\n    def __init__(self, app, calls): ...\n",
            {"CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS": "model:Around"},
            ["Around", "__init__"],
        ),
        (
            "async def pre(request, context): ...\n",
            {"CUSTOM_PRE_PROCESS": "model:pre"},
            ["The function pre", "one parameter, the request"],
        ),
    ],
    ids=[
        *("syntax", "import", "function", "route", "file", "script", "signature"),
        *("function without async", "dispatch without async", "class", "formatter"),
    ],
)
def test_broken_script(
    script: str, env: dict[str, str], words: list[str], project: Path, tmp_path: Path
) -> None:
    """One line says what is wrong, and the process ends with 1."""
    (tmp_path / "model.py").write_text(script)
    env |= {"SAGEMAKER_MODEL_PATH": str(tmp_path)}
    with live(project, python(), tmp_path / "log", **env) as service:
        assert service.process.wait(60) == 1
        [line] = service.log.splitlines()
        assert [word for word in ("CRITICAL", *words) if word not in line] == []


def test_under_load(tmp_path: Path) -> None:
    """/ping answers while the model is busy, the queue full; deadline and clients hold as ever."""
    project = slow_service(tmp_path / "service", contracts=["sagemaker"], features=["isolation"])
    with (tmp_path / "model.py").open("w") as script:
        script.write(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n{MIDDLEWARE}")
    env = {"SAGEMAKER_MODEL_PATH": str(tmp_path), "MAX_QUEUE_SIZE": "2", "WARMUP": "0"}
    env |= {"INFER_TIMEOUT_SECONDS": "6"}
    with started(project, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:

        def invoke(seconds: float, timeout: float = 60) -> httpx.Response:
            url = f"{service.url}/invocations"
            return httpx.post(url, json=document(seconds), timeout=timeout)

        running = pool.submit(invoke, 4)
        wait_for(lambda: calls(project), seconds=30)
        with pytest.raises(httpx.ReadTimeout):
            invoke(0.125, 0.5)
        wait_for(lambda: "The client left" in service.log, seconds=30)
        waiting = [pool.submit(invoke, 0), pool.submit(invoke, 0)]
        wait_for(lambda: service.client.get("/ready").status_code == 503, seconds=30)
        assert service.client.get("/ping", timeout=2).status_code == 200
        full = invoke(0)
        assert (full.status_code, full.json()["detail"]) == (503, "Too many requests are waiting.")
        assert [answer.result().status_code for answer in (running, *waiting)] == [200] * 3
        assert calls(project) == [-4, 0, 0]
        assert invoke(20).status_code == 504
        assert (tmp_path / "runs").read_text() == "x"  # not in the model's process


def test_served(project: Path, tmp_path: Path) -> None:
    """`serve` chooses SageMaker's port, and has the process end before SageMaker kills it."""
    service = slow_service(tmp_path / "service", contracts=["sagemaker"])
    port = str(free_port())
    env = {"SAGEMAKER_BIND_TO_PORT": port, "WARMUP": "0"}
    imported = "from serving.settings import settings"
    code = f"import sys; sys.argv = sys.argv[1:]; {imported}; print(settings.port)"
    for arguments, variables, expected in [
        (["main.py"], {}, "8000"),
        (["main.py", "serve"], {}, "8080"),
        (["main.py", "serve"], env, port),
        (["main.py", "serve"], env | {"PORT": "8123"}, "8123"),
    ]:
        command = [python(), "-c", code, *arguments]
        assert run(command, cwd=project, env=without_port() | variables).strip() == expected
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [python(), "main.py", "serve"],
            cwd=service,
            env=without_port() | env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_ready(url), seconds=120)
        check = health_check(service)
        assert (
            subprocess.run(["sh", "-c", check], env=without_port() | env, check=False).returncode
            == 0
        )
        with ThreadPoolExecutor() as pool:
            request = pool.submit(ask, url, 45)
            wait_for(lambda: calls(service), seconds=30)
            process.terminate()
            assert process.wait(30) == 0
            assert (
                isinstance(request.exception(), httpx.TransportError)
                or not request.result().is_success
            )
        assert (
            subprocess.run(["sh", "-c", check], env=without_port() | env, check=False).returncode
            == 1
        )
    finally:
        process.kill()
        process.wait()


def without_port() -> dict[str, str]:
    """Return the environment, but for PORT."""
    return {name: value for name, value in os.environ.items() if name != "PORT"}


def is_ready(url: str) -> bool:
    """Tell whether a service answers there, and is ready."""
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def health_check(project: Path) -> str:
    """Return the command of the image's health check."""
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r'CMD \["sh", "-c", "(curl .+)"\]', dockerfile)
    assert found
    return found[1]


def test_image_takes_serve(project: Path) -> None:
    """The argument `serve` goes to main.py, and the image leaves PORT to it."""
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    assert 'ENTRYPOINT ["python", "main.py"]' in dockerfile
    assert not re.search(r"^(CMD|.*\bPORT=)", dockerfile, re.MULTILINE)


def test_workers(project: Path, scripts: Path, tmp_path: Path) -> None:
    """Each of several processes has the script's handlers."""
    env = {"SAGEMAKER_MODEL_PATH": str(scripts), "CUSTOM_SCRIPT_FILENAME": "decorated.py"}
    with live(project, python(), tmp_path / "log", WORKERS="2", **env) as service:
        service.ready()
        for _ in range(8):
            with httpx.Client(base_url=service.url, timeout=30) as client:
                assert sources(client) == ("decorator", "decorator")


@pytest.fixture(scope="module", params=[(), ("isolation",)], ids=["thread", "process"])
def adapting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """Start a service whose model takes adapters, and has sessions."""
    folder = tmp_path_factory.mktemp("adapting")
    project = contract(folder / "service", features=["batching", "streaming", *request.param])
    put_model(project, MODEL)
    env = {
        "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "true",
        "SAGEMAKER_SESSIONS_PATH": str(folder / "sessions"),
    }
    with live(project, python(), folder / "log", **env) as service:
        service.ready()
        yield service


def test_adapters(adapting: Live) -> None:
    """The model loads an adapter where it answers, uses it when it is named, and drops it."""
    client = adapting.client
    loaded = client.post("/adapters", json={"name": "fr", "src": "/opt/fr"})
    assert (loaded.status_code, loaded.text) == (200, "Adapter fr registered")
    plain = client.post("/invocations", json={"text": "a"}).json()
    assert plain["said"] == "base: a"
    with_it = client.post("/invocations", json={"text": "a"}, headers={ADAPTER: "fr"}).json()
    assert with_it["said"] == f"/opt/fr by {plain['thread']}: a"
    assert client.post("/infer", json={"text": "a", "adapter": "fr"}).json() == with_it
    dropped = client.delete("/adapters/fr")
    assert (dropped.status_code, dropped.text) == (200, "Adapter fr unregistered")
    unknown = client.post("/invocations", json={"text": "a"}, headers={ADAPTER: "fr"})
    assert (unknown.status_code, unknown.json()["detail"]) == (400, "There is no adapter fr.")


def test_adapters_that_are_refused(adapting: Live) -> None:
    """What a client does wrong is told as ever."""
    client = adapting.client
    for content in (b"[1]", b"{", b"\xff", b'"a"', b"1", b"{}", b'{"name": "", "src": "a"}'):
        response = client.post("/adapters", content=content)
        assert (response.status_code, [*response.json()]) == (400, ["detail"]), content
    nowhere = client.post("/adapters", json={"name": "a", "src": "nowhere"})
    assert (nowhere.status_code, nowhere.json()["detail"]) == (
        400,
        "There is no adapter in nowhere.",
    )
    assert client.delete("/adapters/none").status_code == 400
    for headers in ({ADAPTER: "a"}, {SESSION: "a"}, {}):
        for content, status in (
            (b"[1]", 400 if headers else 422),
            (b"{", 400),
            (b"\xff", 400),
            (b"{}", 422),
            (b"", 400),
        ):
            options: Any = {"headers": headers | {"Content-Type": "application/json"}}
            response = client.post("/invocations", content=content, **options)
            # A session that there is not comes first.
            assert response.status_code in ({status, 400} if SESSION in headers else {status})
            assert [*response.json()] == ["detail"]


def test_sessions(adapting: Live) -> None:
    """A session is opened, has a memory of its own in the model, and is closed there as well."""
    client = adapting.client
    opened = client.post("/invocations", json={"requestType": "NEW_SESSION"})
    session, _, expires = opened.headers[NEW_SESSION].partition(";")
    assert expires.startswith(" Expires=")
    turns = [
        client.post("/invocations", json={"text": "a"}, headers=headers).json()["turn"]
        for headers in ({SESSION: session}, {}, {SESSION: session})
    ]
    assert turns == [1, 0, 2]
    unknown = client.post("/invocations", json={"text": "a"}, headers={SESSION: "other"})
    assert (unknown.status_code, "other" in unknown.json()["detail"]) == (400, True)
    headers = {SESSION: session}
    closed = client.post("/invocations", json={"requestType": "CLOSE"}, headers=headers)
    assert (closed.status_code, closed.headers[CLOSED]) == (200, session)
    assert "Closed after 2 turns" in adapting.log
    assert client.post("/invocations", json={"text": "a"}, headers=headers).status_code == 400
    wrong = client.post("/invocations", json={"requestType": "OTHER"})
    assert (wrong.status_code, [*wrong.json()]) == (400, ["detail"])


def test_parts(adapting: Live) -> None:
    """`"stream": true` has the answer in parts; the model does not see that field."""
    client = adapting.client
    for content_type in ("application/json", "text/json", "application/json; charset=utf-8", ""):
        headers = {"Content-Type": content_type} if content_type else {}
        content = b'{"text": "ab", "stream": true}'
        response = client.post("/invocations", content=content, headers=headers)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        assert [json.loads(event).get("said") for event in events] == ["a", "b", None]
    whole = client.post("/invocations", json={"text": "ab", "stream": False})
    assert whole.json()["said"] == "base: ab"
    for wish in ("yes", 1, None, [True]):
        wrong = client.post("/invocations", json={"text": "ab", "stream": wish})
        assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "stream"])
    for content, status in (b'{"stream": true}', 422), (b'["stream"]', 422), (b'{"stream"', 400):
        assert client.post("/invocations", content=content).status_code == status


@pytest.mark.parametrize(
    "content_type",
    ["application/jsonlines", "application/x-ndjson", "application/jsonl; charset=utf-8"],
)
def test_lines(content_type: str, adapting: Live) -> None:
    """Each line is a request, whose answer is the same line of the response."""
    client, headers = adapting.client, {"Content-Type": content_type}
    texts = ["a", "b\u2028", "c"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    for body in ("\n".join(lines), "\r\n".join(lines) + "\r\n", "\n\n" + "\n \n".join(lines)):
        response = client.post("/invocations", content=body.encode(), headers=headers)
        assert response.headers["content-type"] == content_type
        said = [json.loads(line)["said"] for line in response.text.split("\n")]
        assert said == [f"base: {text}" for text in texts]
    many = client.post("/invocations", content=b'{"text": "a"}\n' * 1001, headers=headers)
    assert (many.status_code, "1000 lines" in many.json()["detail"]) == (413, True)
    for content, status, place in [
        (b"", 400, "Empty upload"),
        (b"\n\n", 400, "Empty upload"),
        (b'{"text": "a"}\n{', 400, "Line 2: The body is not JSON"),
        (b'{"text": "a"}\n\n{}', 422, "line 3"),
        (b'{"text": "a"}\n{"text": "a", "adapter": "none"}', 400, "no adapter none"),
    ]:
        wrong = client.post("/invocations", content=content, headers=headers)
        assert (wrong.status_code, place in wrong.text) == (status, True), wrong.text
    # They are written into one document, so the library cannot be asked to.
    for header in ADAPTER, SESSION:
        refused = client.post("/invocations", content=lines[0], headers=headers | {header: "a"})
        assert (refused.status_code, "application/json" in refused.text) == (400, True)


def test_described(adapting: Live) -> None:
    """The document has all of each route: bodies, headers, errors, and both forms of answers."""
    paths = adapting.client.get("/openapi.json").json()["paths"]
    ping, invocations = paths["/ping"]["get"], paths["/invocations"]["post"]
    assert set(ping["responses"]) == {"200", "503"}
    assert set(invocations["responses"]) >= {"200", "400", "413", "415", "422", "500", "503", "504"}
    answers = invocations["responses"]["200"]["content"]
    assert answers["application/json"] == {"schema": {"$ref": "#/components/schemas/Output"}}
    assert answers["text/event-stream"] == {"schema": {"type": "string"}}
    body = invocations["requestBody"]
    assert body["required"] is True
    document, session = body["content"]["application/json"]["schema"]["anyOf"]
    assert set(document["properties"]) == {"text", "adapter", "session", "stream"}
    assert session["properties"]["requestType"]["enum"] == ["NEW_SESSION", "CLOSE"]
    assert [each["name"] for each in invocations["parameters"]] == [ADAPTER, SESSION]
    load, drop = paths["/adapters"]["post"], paths["/adapters/{adapter_name}"]["delete"]
    assert load["requestBody"]["content"]["application/json"]["schema"]["required"] == [
        "name",
        "src",
    ]
    assert [each["name"] for each in drop["parameters"]] == ["adapter_name"]
    assert all("text/plain" in each["responses"]["200"]["content"] for each in (load, drop))


@pytest.fixture(scope="module", params=["image-params", "image-batch", "audio"])
def media(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Live, str, bytes]]:
    """Start a service that takes files; return it, its field, and a file for that."""
    folder = tmp_path_factory.mktemp("media")
    project = contract(folder / "service", input_kind=request.param, features=[])
    field = table("input_kinds")[request.param]["field"]
    with live(project, python(), folder / "log") as service:
        service.ready()
        yield service, field, (project / example_of(request.param)).read_bytes()


def test_forms_of_base64(media: tuple[Live, str, bytes]) -> None:
    """Base64 may have line breaks, be url-safe, lack its padding, or be in a data URI."""
    service, field, file = media
    client, route = service.client, own_route(service)
    expected = client.post(route, files={field: file}).raise_for_status().json()
    plain, safe = b64encode(file).decode(), urlsafe_b64encode(file).decode()
    texts = [plain, safe, safe.rstrip("="), plain.rstrip("="), f"\n{plain}\n"]
    texts += [encodebytes(file).decode(), encodebytes(file).decode().replace("\n", "\r\n")]
    media_type = "image/png" if file.startswith(b"\x89PNG") else "audio/wav"
    texts += [f"data:{media_type};base64,{plain}", f"DATA:;charset=a;BASE64,{safe}"]
    texts += [f"data:;base64,{quote(plain, safe='')}"]
    for text in texts:
        document = {field: [text] if field == "files" else text}
        for content_type in ("application/json", "text/json"):
            headers = {"Content-Type": content_type}
            answer = client.post("/invocations", content=json.dumps(document), headers=headers)
            assert answer.json() == expected, text[:40]
    text = f"data:text/plain;base64,{plain}"
    other = client.post("/invocations", json={field: [text] if field == "files" else text})
    assert other.status_code == 415  # as in a form
    for text in (
        "AAAAA",
        "no base64",
        plain.replace("+", " ", 1) + " A",
        "AA=A",
        "data:,AAAA",
        "é",
    ):
        document = {field: [text] if field == "files" else text}
        wrong = client.post("/invocations", json=document)
        assert wrong.status_code == 422, text[:40]
        [error] = wrong.json()["detail"]
        assert (error["loc"], "base64" in error["msg"]) == (["body", field], True)


def test_files_in_lines(media: tuple[Live, str, bytes]) -> None:
    """A line may have files: each has the answer that it has alone."""
    service, field, file = media
    client, headers = service.client, {"Content-Type": "application/jsonlines"}
    text = b64encode(file).decode()
    counts = [2, 1] if field == "files" else [1, 1]
    documents = [{field: [text] * count if field == "files" else text} for count in counts]
    expected = [client.post("/invocations", json=x).raise_for_status().json() for x in documents]
    body = "\n".join(map(json.dumps, documents))
    lines = client.post("/invocations", content=body, headers=headers).text.split("\n")
    assert [json.loads(line) for line in lines] == expected
    bad = b64encode(b"no such file").decode()
    body += "\n" + json.dumps({field: [bad] if field == "files" else bad})
    refused = client.post("/invocations", content=body, headers=headers)
    assert (refused.status_code, refused.json()["detail"][:7]) == (400, "Line 3:")
    if field == "file" and not file.startswith(b"\x89PNG"):  # what is lost of a recording is told
        cut = (CASES / "audio" / "cut_80.flac").read_bytes()
        alone = client.post(own_route(service), files={field: cut})
        body = "\n".join(json.dumps({field: b64encode(x).decode()}) for x in (file, cut))
        answers = client.post("/invocations", content=body, headers=headers)
        assert json.loads(answers.text.split("\n")[1]) == alone.json()
        assert answers.headers[WARNING] == f"line 2: {alone.headers[WARNING]}"


def test_files_alone(media: tuple[Live, str, bytes]) -> None:
    """A file as the whole body may be of the type that SageMaker's own algorithms ask for."""
    service, field, file = media
    expected = service.client.post(own_route(service), files={field: file}).json()
    is_picture = file.startswith(b"\x89PNG")
    for content_type in ("application/octet-stream", *(["application/x-image"] * is_picture)):
        headers = {"Content-Type": content_type}
        answer = service.client.post("/invocations", content=file, headers=headers)
        assert answer.json() == expected
    headers = {"Content-Type": "application/x-recordio-protobuf"}
    assert service.client.post("/invocations", content=file, headers=headers).status_code == 415


def own_route(service: Live) -> str:
    """Return the service's own route for inference."""
    [route] = ROUTES & set(service.client.get("/openapi.json").json()["paths"])
    return route


def test_state_and_workers(tmp_path: Path) -> None:
    """Adapters and several processes do not go together, which the start says."""
    project = contract(tmp_path / "service", features=["replicas"])
    put_model(project, MODEL)
    with live(project, python(), tmp_path / "log", WORKERS="2") as service:
        assert service.process.wait(60) == 1
        [line] = service.log.splitlines()
        assert line.startswith("WORKERS must be 1")


@pytest.mark.parametrize("fastapi", [OLDEST_FASTAPI, "fastapi"], ids=["oldest", "newest"])
def test_fastapi_versions(fastapi: str, project: Path) -> None:
    """The scripts' handlers win with the oldest FastAPI that a service takes, and the newest."""
    declared = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    needs = [*declared["project"]["dependencies"], *declared["dependency-groups"]["dev"], fastapi]
    interpreter = tool("sagemaker", *needs, version="3.12")
    command = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/conformance/test_sagemaker.py"]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "MS-65  pass" in result.stdout
