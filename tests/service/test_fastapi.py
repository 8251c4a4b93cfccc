"""What FastAPI's tutorial shows works in main.py as it is written there."""

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.environments import run, tool
from tests.support.live import Live, free_port, live, wait_for
from tests.support.rendering import render
from tests.support.updating import add_to_main, change, own_tests, put_model, python

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("fastapi")

# A model that answers as a whole and in parts.
MODEL = '''"""Doubles numbers."""

from collections.abc import Iterator

from pydantic import BaseModel

from serving import Input

MODEL_NAME = "double"


class Params(BaseModel):
    """The request's body."""

    number: int


class Output(BaseModel):
    """Twice as much."""

    double: int


EXAMPLE = {"number": 1}


class Model:
    """Doubles."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Double each."""
        return [Output(double=2 * item.params.number) for item in inputs]

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Yield the one answer."""
        yield Output(double=2 * item.params.number)
'''
BROKEN_LOAD = (
    '        """Load nothing."""\n',
    '        """Load nothing."""\n        raise RuntimeError("no weights")\n',
)
KEY = {"X-Key": "of-mine"}
CHECK_KEY = '''\
def check_key(x_key: Annotated[str, Header()] = "") -> None:
    """Reject who does not send the key."""
    if x_key != "of-mine":
        raise HTTPException(401, "Send the key.", {"WWW-Authenticate": "Key"})


'''
DOCUMENT = {"number": 21}
TENSOR = {"name": "number", "datatype": "INT64", "shape": [1], "data": [21]}
# Every route that runs the model, and what it is sent.
ROUTES: dict[str, dict[str, Any]] = {
    "/infer": DOCUMENT,
    "/infer/stream": DOCUMENT,
    "/v2/models/my-model-server/infer": {"inputs": [TENSOR]},
    "/v2/models/my-model-server/versions/1/infer": {"inputs": [TENSOR]},
    "/invocations": DOCUMENT,
    "/predict": {"args": DOCUMENT},
    "/stream": DOCUMENT,
}
# In a file of the owner's own.
SHELF = '''"""Books."""

from fastapi import APIRouter

router = APIRouter(prefix="/books", tags=["books"])


@router.get("/{number}")
async def book(number: int, short: bool = False) -> dict[str, str]:
    """Return a book."""
    return {"title": "A" if short else f"The book of number {number}"}
'''
ADDED = '''

class Sign:
    """Middleware of the pure kind."""

    def __init__(self, app: ASGIApp, text: str) -> None:
        self.app = app
        self.text = text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add a header to each answer."""

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-sign", self.text.encode())]
            await send(message)

        await self.app(scope, receive, signed if scope["type"] == "http" else send)


def note(text: str) -> None:
    """Write something down."""
    with open("noted", "a") as file:
        file.write(text)


@app.post("/notes", status_code=202)
async def take_note(text: str, tasks: BackgroundTasks) -> dict[str, str]:
    """Have it written down later."""
    tasks.add_task(note, text)
    return {"taken": text}


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    """Show a page."""
    return "<h1>Hello</h1>"


@app.middleware("http")
async def add_process_time(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Tell how long it took."""
    start = time.perf_counter()
    response = await call_next(request)
    response.headers["X-Process-Time"] = str(time.perf_counter() - start)
    return response


app.include_router(router)
app.add_middleware(Sign, text="signed")

'''
CLIENT = """
import json
from fastapi.testclient import TestClient
from main import app

for _ in range(2):  # as two tests would
    with TestClient(app) as client:
        assert client.get("/health").status_code == 200
        print(json.dumps(client.post("/infer", json={"number": 21}).json()))
"""

CLIENT_OF_NONE = """
from fastapi.testclient import TestClient
from main import app

try:
    with TestClient(app):
        pass
except RuntimeError as error:
    print(f"RuntimeError: {error}")
"""


def make(folder: Path, **answers: Any) -> Path:
    """Render a service that doubles, by every contract of HTTP."""
    features = ["observability", "streaming"]
    chosen = {"model_type": "custom", "input_kind": "json", "features": features} | answers
    project = render(folder, chosen)
    put_model(project, MODEL)
    return project


def needs(project: Path, *imports: str) -> None:
    """Add lines to the imports of main.py."""
    change(project / "main.py", "\nfrom fastapi ", "\n" + "\n".join(imports) + "\nfrom fastapi ")


@contextmanager
def checking_keys(folder: Path, old: str, new: str) -> Iterator[tuple[Live, Path]]:
    """Run a service that has been edited to depend on a key; whoever has the client has it."""
    contracts = ["oip", "sagemaker", "model-engine"]
    project = make(folder / "service", contracts=contracts)
    main = project / "main.py"
    needs(project, "from typing import Annotated", "from fastapi import Depends, Header")
    needs(project, "from fastapi import HTTPException")
    change(main, "model_router = ", CHECK_KEY + "model_router = ")
    change(main, old, new)
    with live(project, python(), folder / "log") as service:
        service.client.headers.update(KEY)
        service.ready()
        yield service, project


def doubled(response: httpx.Response) -> int:
    """Return the number that is in an answer, whatever its form."""
    text = response.raise_for_status().text
    if text.startswith("data: "):
        text = text.splitlines()[0].removeprefix("data: ")
    document = json.loads(text)
    if "outputs" in document:
        [number] = document["outputs"][0]["data"]
        return int(number)
    return int(document["double"])


def test_dependency_of_the_app(tmp_path: Path) -> None:
    """A dependency of FastAPI(…) guards every route that runs the model, of each contract."""
    new = "app = FastAPIOffline(\n    dependencies=[Depends(check_key)],\n"
    with checking_keys(tmp_path, "app = FastAPIOffline(\n", new) as (service, _):
        for path, document in ROUTES.items():
            refused = httpx.post(service.url + path, json=document)
            assert refused.status_code == 401, path
            key = "error" if path.startswith("/v2") else "detail"
            assert refused.json() == {key: "Send the key."}, path
            assert refused.headers["WWW-Authenticate"] == "Key"
            assert refused.headers["X-Request-ID"]
            assert doubled(service.client.post(path, json=document)) == 42, path
        assert httpx.get(f"{service.url}/ping").status_code == 401
        metrics = service.client.get("/metrics").text
        assert 'http_requests_total{method="POST",route="/infer",status="401"} 1.0' in metrics


ROUTE = '@model_router.post(\n    "/infer",\n'
ROUTER = "APIRouter(route_class=ModelRoute"
INCLUDED = "app.include_router(model_router"
NEEDS_KEY = "dependencies=[Depends(check_key)]"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ROUTE, f"{ROUTE}    {NEEDS_KEY},\n"),
        (ROUTER, f"{ROUTER}, {NEEDS_KEY}"),
        (INCLUDED, f"{INCLUDED}, {NEEDS_KEY}"),
        (f"{INCLUDED})\n", f"outer = APIRouter({NEEDS_KEY})\n"),
        (INCLUDED, f"{INCLUDED}, prefix='/open')\n{INCLUDED}, {NEEDS_KEY}"),
    ],
    ids=["route", "router", "included router", "router around it", "one of two"],
)
def test_dependency_of_the_route(old: str, new: str, tmp_path: Path) -> None:
    """A dependency of the route, or of a router it is in, guards it, and is in its document."""
    if new.startswith("outer"):
        new += "outer.include_router(model_router)\napp.include_router(outer)\n"
    with checking_keys(tmp_path, old, new) as found:
        service, _ = found
        refused = httpx.post(f"{service.url}/infer", json=DOCUMENT)
        assert (refused.status_code, refused.json()) == (401, {"detail": "Send the key."})
        assert doubled(service.client.post("/infer", json=DOCUMENT)) == 42
        assert doubled(httpx.post(f"{service.url}/predict", json=DOCUMENT)) == 42
        operation = service.client.get("/openapi.json").json()["paths"]["/infer"]["post"]
        assert [parameter["name"] for parameter in operation["parameters"]] == ["x-key"]


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        ("async def thrice(request: Request) -> dict[str, int]:", "{'tripled': 63}"),
        ("async def thrice(request: Request):", "{'tripled': 63}"),
        ("def thrice(request: Request) -> Response:", "Response('{\"tripled\": 63}')"),
        ("async def thrice(tripled: int = 63) -> dict[str, int]:", "{'tripled': tripled}"),
        ("async def thrice() -> dict[str, int]:", "{'tripled': 63}"),
        ("async def thrice(request: 'Request') -> 'Response':", "Response('{\"tripled\": 63}')"),
        ("async def thrice(*, r: Request) -> JSONResponse:", "JSONResponse({'tripled': 63})"),
    ],
)
def test_other_endpoints(endpoint: str, answer: str, tmp_path: Path) -> None:
    """Whatever an endpoint of the model's router takes and returns is as FastAPI has it."""
    project = make(tmp_path / "service")
    needs(project, "from fastapi.responses import JSONResponse")
    code = f'@model_router.post("/thrice")\n{endpoint}\n    return {answer}\n'
    add_to_main(project, f"\n\n{code}")
    with live(project, python(), tmp_path / "log") as service:
        assert service.ready().post("/thrice").raise_for_status().json() == {"tripled": 63}


def test_parameters_of_the_route(tmp_path: Path) -> None:
    """Headers, the query and what a dependency returns arrive beside the picture."""
    answers = {"model_type": "custom", "input_kind": "image-params", "endpoint": "infer"}
    project = render(tmp_path / "service", answers)
    main = project / "main.py"
    needs(project, "from typing import Annotated", "from fastapi import Depends, Header, Query")
    user = '''\
def get_user(request: Request) -> str:
    """Return who asks."""
    return request.headers.get("x-user", "nobody")


'''
    change(main, "app = FastAPIOffline(\n", user + "app = FastAPIOffline(\n")
    parameters = """(
    request: Request,
    user: Annotated[str, Depends(get_user)],
    x_language: Annotated[str, Header()],
    limit: Annotated[int, Query(le=9)] = 3,
) -> Response:"""
    change(main, "infer(request: Request) -> Response:", "infer" + parameters)
    new = """response = await service.answer(request, parse)
    response.headers["X-Seen"] = f"{user} {x_language} {limit}"
    return response"""
    change(main, "return await service.answer(request, parse)", new)
    picture = (project / "example.png").read_bytes()
    with live(project, python(), tmp_path / "log") as service:
        client = service.ready()
        headers_sent = {"X-Language": "de", "X-User": "ada"}
        form: Any = {"files": {"file": picture}, "headers": headers_sent}
        answer = client.post("/infer?limit=5", **form).raise_for_status()
        assert answer.headers["X-Seen"] == "ada de 5"
        raw: Any = {"content": picture, "headers": headers_sent | {"Content-Type": "image/png"}}
        assert client.post("/infer", **raw).headers["X-Seen"] == "ada de 3"
        assert client.post("/infer?limit=10", **form).status_code == 422
        missing = client.post("/infer", files={"file": picture})
        assert missing.status_code == 422
        assert missing.json()["detail"][0]["loc"] == ["header", "x-language"]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service with endpoints, a router and middleware of its owner's."""
    project = make(tmp_path_factory.mktemp("extended") / "service")
    (project / "shelf.py").write_text(SHELF, encoding="utf-8")
    needs(
        project,
        "import time",
        "from fastapi import BackgroundTasks",
        "from fastapi.responses import HTMLResponse",
        "from shelf import router",
        "from starlette.middleware.base import RequestResponseEndpoint",
        "from starlette.types import ASGIApp, Message, Receive, Scope, Send",
    )
    add_to_main(project, ADDED)
    return project


@pytest.fixture(scope="module")
def service(extended: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Return that service, live."""
    with live(extended, python(), tmp_path_factory.mktemp("log") / "log") as running:
        running.ready()
        yield running


def test_router_of_a_file(service: Live) -> None:
    """A router of the owner's file is served, checked and described."""
    assert service.client.get("/books/7").json() == {"title": "The book of number 7"}
    assert service.client.get("/books/7?short=1").json() == {"title": "A"}
    wrong = service.client.get("/books/seven")
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["path", "number"])
    operation = service.client.get("/openapi.json").json()["paths"]["/books/{number}"]["get"]
    assert operation["tags"] == ["books"]


def test_background_task(service: Live, extended: Path) -> None:
    """A background task runs after the answer."""
    answer = service.client.post("/notes", params={"text": "milk"})
    assert (answer.status_code, answer.json()) == (202, {"taken": "milk"})
    noted = extended / "noted"
    wait_for(lambda: noted.exists() and noted.read_text() == "milk", seconds=30)


def test_page(service: Live) -> None:
    """A page is a page."""
    answer = service.client.get("/")
    assert (answer.text, answer.headers["Content-Type"]) == (
        "<h1>Hello</h1>",
        "text/html; charset=utf-8",
    )


def test_middleware(service: Live) -> None:
    """Middleware of either kind sees every route, and adds to every answer."""
    for path in ("/health", "/", "/books/1", "/metrics", "/no-such"):
        answer = service.client.get(path)
        assert float(answer.headers["X-Process-Time"]) >= 0, path
        assert answer.headers["X-Sign"] == "signed", path
    answer = service.client.post("/infer", json=DOCUMENT)
    assert (doubled(answer), answer.headers["X-Sign"]) == (42, "signed")
    answer = service.client.post("/infer/stream", json=DOCUMENT)
    assert (doubled(answer), answer.headers["X-Sign"]) == (42, "signed")
    assert service.client.post("/infer", json={}).status_code == 422


def test_requirements_behind_middleware(extended: Path) -> None:
    """Slow clients and those that leave are seen through the owner's middleware."""
    result = own_tests(extended, "tests/conformance", "-k", "ms_51_ or ms_54_ or ms_56_")
    assert result.returncode == 0, result.stdout


def test_uvicorn(extended: Path, tmp_path: Path) -> None:
    """`uvicorn main:app` serves, and answers."""
    port = str(free_port())
    command = f"-m uvicorn main:app --host 127.0.0.1 --port {port}"
    with live(extended, python(), tmp_path / "log", script=command, PORT=port) as service:
        assert doubled(service.ready().post("/infer", json=DOCUMENT)) == 42
        service.process.terminate()
        service.process.wait(60)
    assert "Traceback" not in service.log


def test_test_client(extended: Path) -> None:
    """With FastAPI's TestClient the first request is answered, each time: it waits for the load."""
    printed = run([python(), "-W", "ignore", "-c", CLIENT], cwd=extended)
    assert [json.loads(line) for line in printed.splitlines()[-2:]] == [{"double": 42}] * 2


def test_test_client_of_a_failed_load(tmp_path: Path) -> None:
    """A load that fails is an error of the test that wants it, and ends no process."""
    project = make(tmp_path / "service")
    change(project / "inference.py", *BROKEN_LOAD)
    printed = run([python(), "-W", "ignore", "-c", CLIENT_OF_NONE], cwd=project)
    assert printed.splitlines()[-1] == "RuntimeError: no weights"


def test_uvicorn_of_a_failed_load(tmp_path: Path) -> None:
    """Without the service's own `serve`, uvicorn ends with an error, too."""
    project = make(tmp_path / "service")
    change(project / "inference.py", *BROKEN_LOAD)
    port = str(free_port())
    command = f"-m uvicorn main:app --host 127.0.0.1 --port {port}"
    with live(project, python(), tmp_path / "log", script=command, PORT=port) as service:
        assert service.process.wait(60) == 3
    assert "RuntimeError: no weights" in service.log


def test_fastapi_dev(extended: Path, tmp_path: Path) -> None:
    """Where FastAPI's command line is installed, `fastapi dev` serves, and answers."""
    declared = tomllib.loads((extended / "pyproject.toml").read_text(encoding="utf-8"))
    interpreter = tool("fastapi-dev", *declared["project"]["dependencies"], "fastapi[standard]")
    port = str(free_port())
    command = f"-m fastapi dev --host 127.0.0.1 --port {port}"
    with live(extended, interpreter, tmp_path / "log", script=command, PORT=port) as service:
        try:
            assert doubled(service.ready().post("/infer", json=DOCUMENT)) == 42
        finally:
            service.process.terminate()  # it ends the process that it has started
            service.process.wait(60)
    assert "Traceback" not in service.log
