"""The ML Microservice Spec, asked of a live process; each test is named after its requirement.

`pytest tests/conformance --url http://host:port` asks a running deployment instead: all
that needs no fake model, and no look into the log.
"""

import ast
import http.client
import json
import math
import os
import re
import select
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from typing import Any, TypeVar
from zipfile import ZipFile

import httpx
import pytest

from conformance.fake_model import NUMBER
from conformance.plugin import REACTION_SECONDS, ROOT, Launcher, Service, expecting
from conformance.samples import Request, Samples
from conformance.spec import ISOLATED, SPEC_VERSION

T = TypeVar("T")

# The load of a fake model that waits until a test says "go".
HELD = "while not (folder / 'go').exists(): time.sleep(0.05)"
NO_FRAMEWORKS = """
import sys
sys.modules.update(dict.fromkeys(["torch", "onnxruntime", "paddle", "pynvml"]))
"""
# A machine of one CPU, and nothing in the environment that says otherwise.
ONE_CPU = """
import os
for name in ("NUM_THREADS", "OMP_NUM_THREADS", "WORKERS"):
    os.environ.pop(name, None)
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
"""
COUNT_THREADS = "import os; (folder / 'threads').write_text(os.getenv('OMP_NUM_THREADS', ''))"
# What can be read at /metrics, whatever the service runs.
METRICS = {
    "http_requests_total": "counter",
    "http_request_duration_seconds": "histogram",
    "http_requests_in_flight": "gauge",
    "model_queue_depth": "gauge",
    "model_running": "gauge",
    "model_batch_size": "histogram",
    "model_call_duration_seconds": "histogram",
    "model_timeouts_total": "counter",
    "model_worker_restarts_total": "counter",
    "model_load_seconds": "gauge",
}
# A driver with three GPUs of 70, 81 and 86 °C.
HOT_GPUS = """
import sys
from types import ModuleType, SimpleNamespace

nvml = ModuleType("pynvml")
nvml.NVMLError = OSError
nvml.NVML_TEMPERATURE_GPU = 0
nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
nvml.nvmlDeviceGetCount = lambda: 3
nvml.nvmlDeviceGetHandleByIndex = lambda index: index
nvml.nvmlDeviceGetName = lambda index: f"GPU of {(70, 81, 86)[index]}"
nvml.nvmlDeviceGetMemoryInfo = lambda index: SimpleNamespace(used=0, total=1)
nvml.nvmlDeviceGetUtilizationRates = lambda index: SimpleNamespace(gpu=0)
nvml.nvmlDeviceGetTemperature = lambda index, sensor: (70, 81, 86)[index]
sys.modules["pynvml"] = nvml
"""


def ask(service: Service, request: Request) -> httpx.Response:
    """Send one inference request."""
    return service.client.post(**request)


def detail(response: httpx.Response) -> object:
    """Return what an error says, which is JSON always."""
    return response.json()["detail"]


def is_alike(one: Any, other: Any) -> bool:
    """Compare two answers: parallel sums may differ in their last digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)
    return bool(one == other)


def post(service: Service, samples: Samples) -> http.client.HTTPConnection:
    """Begin a request by hand, of the content type that the endpoint takes."""
    url = service.client.base_url
    if url.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            url.host, url.port, timeout=REACTION_SECONDS
        )
    else:
        connection = http.client.HTTPConnection(url.host, url.port, timeout=REACTION_SECONDS)
    connection.putrequest("POST", url.path.rstrip("/") + samples.route, skip_accept_encoding=True)
    for name, value in service.client.headers.items():
        connection.putheader(name, value)
    content_type = "application/octet-stream" if samples.field else "application/json"
    connection.putheader("Content-Type", content_type)
    return connection


def declare_a_terabyte(service: Service, samples: Samples) -> tuple[int, object]:
    """Announce a body of 1 TiB, send none of it, and return the answer."""
    connection = post(service, samples)
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()
    with expecting("The answer to a body that is announced"):
        response = connection.getresponse()
    answer = response.status, json.load(response)
    connection.close()
    return answer


@pytest.fixture(scope="module")
def fake_model(launcher: Launcher, answer: str) -> Service:
    """Return a service whose model a test can make slow or have fail; it waits 2 s for answers."""
    running = launcher.start_fake(
        answer, INFER_TIMEOUT_SECONDS="2", MAX_QUEUE_SIZE="2", MAX_UPLOAD_MB="1"
    )
    running.wait_until("/ready", 200)
    return running


@pytest.fixture(scope="module")
def loading(launcher: Launcher, answer: str) -> Service:
    """Return a service whose model never finishes loading."""
    running = launcher.start_fake(answer, load=HELD, MODEL_NAME="of-the-conformance-tests")
    running.wait_until("/health", 200)
    return running


@pytest.fixture(scope="module")
def bare(launcher: Launcher, answer: str) -> Service:
    """Return a service on one CPU, with no framework installed and no GPU in sight."""
    running = launcher.start_fake(
        answer,
        start=NO_FRAMEWORKS + ONE_CPU,
        load=COUNT_THREADS,
        DEVICE="",
        CUDA_VISIBLE_DEVICES="",
    )
    running.wait_until("/ready", 200)
    return running


@pytest.fixture(scope="module")
def tuned(launcher: Launcher, answer: str) -> Service:
    """Return a service with settings of its own, which has loaded and was sent no request."""
    running = launcher.start_fake(
        answer,
        load=COUNT_THREADS,
        start="import os; os.environ.pop('OMP_NUM_THREADS', None)",
        CORS_ORIGINS="https://a.example,https://b.example",
        DEVICE="",
        LOG_LEVEL="WARNING",
        MAX_UPLOAD_MB="2",
        NUM_THREADS="3",
        WARMUP="0",
    )
    running.wait_for_load()
    return running


@pytest.fixture(scope="module")
def ended(launcher: Launcher, answer: str, samples: Samples) -> tuple[Service, list[int]]:
    """Return a service that SIGTERM met with one call running and one waiting, and their statuses.

    Its folder has what the model left behind.
    """
    running = launcher.start_fake(answer)
    running.wait_until("/ready", 200)
    running.predict_hangs()
    calls = [begin(running, samples.valid)]
    running.wait_for_call()
    calls.append(begin(running, samples.valid))
    settle(running)
    running.terminate()
    running.wait_until_closed()
    time.sleep(0.5)  # a service that drops them would have ended by then
    running.predict_works()
    with expecting("An answer after SIGTERM"):
        statuses = [status_of(call) for call in calls]
    running.wait_for_exit()
    return running, statuses


@pytest.fixture
def model(fake_model: Service) -> Iterator[Service]:
    """Return the service with the fake model, and leave it ready and answering at once."""
    yield fake_model
    fake_model.predict_works()
    fake_model.wait_until("/ready", 200)


def test_ms_01_files(url: str | None) -> None:
    """The owner's files stand side by side, the template's machinery in a folder of its own."""
    if url:
        pytest.skip("the deployment's files cannot be seen")
    names = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert {"main.py", "inference.py", "device.py", "Dockerfile", "pyproject.toml"} <= names
    assert {"AGENTS.md", "CLAUDE.md"} <= names
    assert (ROOT / "serving" / "__init__.py").is_file()


def test_ms_02_model_in_a_file_of_its_own(url: str | None) -> None:
    """The model stands in inference.py, and main.py imports it from there."""
    if url:
        pytest.skip("the deployment's files cannot be seen")
    tree = ast.parse((ROOT / "main.py").read_text(encoding="utf-8"))
    imported = {
        name.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "inference"
        for name in node.names
    }
    assert {"EXAMPLE", "MODEL_NAME", "Model", "Output", "Params"} <= imported


def test_ms_03_device_is_a_string(tuned: Service) -> None:
    """Left to itself the service chooses cuda, mps or cpu."""
    assert tuned.devices[0] in {"cuda", "mps", "cpu"}


def test_ms_04_starts_without_gpu_and_framework(bare: Service) -> None:
    """With no framework installed and no GPU in sight the service runs."""
    assert bare.client.get("/ready").status_code == 200
    assert bare.devices[0] in {"cpu", "mps"}  # a Mac's GPU cannot be hidden


def test_ms_06_device_is_handed_over(fake_model: Service) -> None:
    """The model gets the device that was chosen."""
    assert fake_model.devices == ["cpu"]


def test_ms_07_device_is_logged(service: Service) -> None:
    """The log says which device was chosen."""
    assert re.search(r"Using (cuda|mps|cpu)", service.log)


def test_ms_08_loaded_once(fake_model: Service, samples: Samples) -> None:
    """Requests find the model that the start has loaded."""
    for _ in range(3):
        ask(fake_model, samples.valid).raise_for_status()
    assert len(fake_model.devices) == 1


def test_ms_09_not_asked_until_loaded(launcher: Launcher, answer: str, samples: Samples) -> None:
    """During the warm-up, which is a part of the load, no request reaches the model."""
    running = launcher.start_fake(
        answer, predict=f"(folder / 'called').touch()\n{HELD}", WARMUP="1"
    )
    running.wait_until("/health", 200)
    running.wait_for_call()
    assert ask(running, samples.valid).status_code == 503
    assert running.client.get("/ready").status_code == 503
    (running.folder / "go").touch()
    running.wait_until("/ready", 200)
    assert ask(running, samples.valid).status_code == 200


def test_ms_10_never_lazily(tuned: Service) -> None:
    """The model was loaded with no request sent."""
    assert tuned.devices


def test_ms_11_load_is_logged(service: Service) -> None:
    """The start and the end of the load are in the log."""
    assert re.search(r"Loading .+ on (cuda|mps|cpu)(?s:.+)Model loaded in [\d.]+ s", service.log)


def test_ms_12_model_is_released(ended: tuple[Service, list[int]]) -> None:
    """The model's `close` is called when the service stops."""
    assert (ended[0].folder / "closed").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("INFER_TIMEOUT_SECONDS", "0"),
        ("LOG_LEVEL", "LOUD"),
        ("HTTP_PARSER", "fast"),
    ],
)
def test_ms_13_wrong_setting_is_named(
    launcher: Launcher, answer: str, name: str, value: str
) -> None:
    """A variable with a value that cannot be ends the start, with one line that names it."""
    running = launcher.start_fake(answer, **{name: value})
    assert running.wait_for_exit() != 0
    [line] = running.log.splitlines()
    assert line.startswith(f"{name} must be")


def test_ms_14_port(fake_model: Service) -> None:
    """The service listens where PORT says: every client here asks that port."""
    assert fake_model.client.get("/health").status_code == 200


def test_ms_15_model_name(loading: Service) -> None:
    """MODEL_NAME says what to load."""
    loading.wait_for_load()
    assert "Loading of-the-conformance-tests on" in loading.log


def test_ms_16_max_upload_mb(fake_model: Service, tuned: Service, samples: Samples) -> None:
    """What is too large for MAX_UPLOAD_MB=1 is not for MAX_UPLOAD_MB=2."""
    tuned.wait_until("/ready", 200)
    assert ask(fake_model, samples.too_large).status_code == 413
    assert ask(tuned, samples.too_large).status_code != 413


def test_ms_17_infer_timeout_seconds(model: Service, samples: Samples) -> None:
    """With INFER_TIMEOUT_SECONDS=2 nobody waits for a minute, the default."""
    model.predict_hangs()
    start = time.monotonic()
    assert ask(model, samples.valid).status_code == 504
    assert 1.5 < time.monotonic() - start < 55


def test_ms_18_log_level(fake_model: Service, tuned: Service) -> None:
    """LOG_LEVEL=WARNING leaves out what INFO shows, the server's own lines included."""
    tuned.wait_until("/ready", 200)
    assert "INFO" in fake_model.log
    assert "INFO" not in tuned.log


def test_ms_19_cors(service: Service, samples: Samples, url: str | None) -> None:
    """A preflight succeeds for any origin, method and header; errors carry the headers too."""
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "X-Anything",
    }
    preflight = service.client.options(samples.route, headers=asked)
    if url and "access-control-allow-origin" not in preflight.headers:
        pytest.skip("the deployment admits certain origins only")
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert preflight.headers["access-control-allow-headers"] == "X-Anything"
    refused = service.client.post(samples.route, headers={"Origin": "https://example.org"})
    assert refused.is_client_error
    assert refused.headers["access-control-allow-origin"] == "*"


def test_ms_19_cors_can_be_tightened(tuned: Service) -> None:
    """With CORS_ORIGINS set, other origins get no permission."""
    tuned.wait_until("/health", 200)
    for origin, allowed in {"https://b.example": True, "https://c.example": False}.items():
        response = tuned.client.get("/health", headers={"Origin": origin})
        assert ("access-control-allow-origin" in response.headers) == allowed


def test_ms_20_health(service: Service) -> None:
    """/health is 200 with the spec's body."""
    response = service.client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_ms_20_health_while_loading(loading: Service) -> None:
    """/health is 200 before the model is loaded."""
    response = loading.client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_ms_21_ready(service: Service) -> None:
    """/ready is 200 with the spec's body when the model is loaded."""
    assert service.wait_until("/ready", 200).json() == {"status": "ready"}


def test_ms_21_not_ready_while_loading(loading: Service) -> None:
    """/ready is 503 until then."""
    response = loading.client.get("/ready")
    assert (response.status_code, detail(response)) == (503, "Model not loaded yet.")


def test_ms_21_failed_load_ends_the_process(launcher: Launcher, answer: str) -> None:
    """A load that fails is logged with its reason, and the process exits with an error."""
    running = launcher.start_fake(answer, load="raise ValueError('no such weights')")
    assert running.wait_for_exit() == 1
    assert "no such weights" in running.log


def test_ms_22_route(service: Service, samples: Samples) -> None:
    """The endpoint is a POST route with a name of its own."""
    assert samples.route not in {"/predict", "/invocations"}
    assert service.client.get(samples.route).status_code == 405
    assert ask(service, samples.valid).status_code == 200


def test_ms_23_request(service: Service, samples: Samples) -> None:
    """The example is accepted in the form of its kind: multipart for files, else JSON."""
    assert ask(service, samples.valid).status_code == 200


def test_ms_24_answer_fits_the_schema(service: Service, samples: Samples) -> None:
    """The answer is JSON with the fields that the OpenAPI document promises, or a list."""
    response = ask(service, samples.valid)
    assert response.headers["content-type"] == "application/json"
    check_fields(service, samples, response.json())


def test_ms_24_file(
    service: Service, samples: Samples, answer: str, request: pytest.FixtureRequest
) -> None:
    """An answer that can be had as a file is one of a declared type, and has all that JSON has."""
    document = service.client.get("/openapi.json").json()
    declared = document["paths"][samples.route]["post"]["responses"]["200"]["content"]
    types = declared.keys() - {"application/json"}
    if not types:
        pytest.skip("the answer is JSON")
    fake_model: Service = request.getfixturevalue("fake_model")
    response = ask(fake_model, samples.valid | {"headers": {"Accept": ", ".join(types)}})
    assert types & {response.raise_for_status().headers["content-type"], "*/*"}
    output, content = json.loads(answer), response.content
    if samples.several:
        with ZipFile(BytesIO(content)) as archive:
            [content, *_] = map(archive.read, archive.namelist())
            told = json.loads(archive.read("outputs.json"))["outputs"][0]
    else:
        assert response.headers["content-type"] == output["content_type"]
        headers = {name.lower(): text for name, text in response.headers.items()}
        others = output.keys() - {"content_type", "name", "data"}
        told = output | {name: json.loads(headers[f"x-output-{name.lower()}"]) for name in others}
    assert content == b64decode(output["data"])
    assert told | {"data": output["data"]} == output


def check_fields(service: Service, samples: Samples, answer: Any) -> None:
    """Assert that an answer has the fields that the OpenAPI document promises, or is a list."""
    document = service.client.get("/openapi.json").json()
    entry = document["paths"][samples.route]["post"]["responses"]["200"]
    name = entry["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema = document["components"]["schemas"][name]
    if "properties" in schema:
        assert answer.keys() == schema["properties"].keys()
    else:
        assert isinstance(answer, list if schema["type"] == "array" else dict)


def test_ms_25_empty(service: Service, samples: Samples) -> None:
    """An empty upload is 400."""
    response = ask(service, samples.empty)
    assert (response.status_code, detail(response)) == (400, "Empty upload.")


def test_ms_26_declared_size_is_refused_unread(service: Service, samples: Samples) -> None:
    """A body whose declared length is over MAX_UPLOAD_MB is 413 before a byte of it is sent."""
    assert declare_a_terabyte(service, samples) == (413, {"detail": "File too large."})


def test_ms_26_undeclared_size_is_counted(fake_model: Service, samples: Samples) -> None:
    """A body in chunks is 413 as soon as more than MAX_UPLOAD_MB has come."""
    connection = post(fake_model, samples)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    block = b" " * 65536
    with expecting("The answer to a body that is too large and goes on"):
        for _ in range(18):  # 1.1 MB, and no end of the body: the answer comes before that
            connection.send(b"%x\r\n%b\r\n" % (len(block), block))
        response = connection.getresponse()
    assert response.status == 413
    assert json.load(response) == {"detail": "File too large."}
    connection.close()


def test_ms_26_exact_limit(fake_model: Service, samples: Samples) -> None:
    """One byte over MAX_UPLOAD_MB is 413, however the request is wrapped."""
    response = ask(fake_model, samples.too_large)
    assert (response.status_code, detail(response)) == (413, "File too large.")


def test_ms_27_not_loaded(loading: Service, samples: Samples) -> None:
    """A request during the load is 503."""
    response = ask(loading, samples.valid)
    assert (response.status_code, detail(response)) == (503, "Model not loaded yet.")


def test_ms_28_health_answers_during_a_call(model: Service, samples: Samples) -> None:
    """/health answers while the model computes."""
    model.predict_hangs()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(ask, model, samples.valid)
        model.wait_for_call()
        assert model.client.get("/health").status_code == 200
        assert not call.done()
        model.predict_works()
        assert call.result().status_code in {200, 504}


def test_ms_29_timeout(model: Service, samples: Samples) -> None:
    """A call past INFER_TIMEOUT_SECONDS is 504."""
    model.predict_hangs()
    response = ask(model, samples.valid)
    assert (response.status_code, detail(response)) == (504, "Inference timed out.")


def test_ms_29_recovers_from_hung_calls(model: Service, samples: Samples) -> None:
    """Calls that hang cost no more than their time: all get an answer, and then it goes on."""
    model.predict_hangs()
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: ask(model, samples.valid), range(8)))
    assert {response.status_code for response in responses} <= {503, 504}
    if not ISOLATED:  # which cannot be killed
        hung = model.client.get("/ready")
        assert (hung.status_code, "hangs" in str(detail(hung))) == (503, True)
    model.predict_works()
    model.wait_until("/ready", 200)
    assert ask(model, samples.valid).status_code == 200


def test_ms_30_order(loading: Service, samples: Samples) -> None:
    """What is wrong with a request is said before the readiness, if it is seen without decoding."""
    if samples.wrong_type:
        assert ask(loading, samples.wrong_type).status_code == 415
    assert ask(loading, samples.empty).status_code == 400
    assert ask(loading, samples.missing).status_code == 422
    if samples.corrupt:
        assert ask(loading, samples.corrupt).status_code == (503 if samples.field else 400)


def test_ms_31_corrupt(service: Service, samples: Samples) -> None:
    """What cannot be decoded is 400."""
    request = samples.corrupt or pytest.skip("only the model knows which files it can read")
    assert ask(service, request).status_code == 400


def test_ms_32_wrong_type(service: Service, samples: Samples) -> None:
    """A content type that is not taken is 415."""
    request = samples.wrong_type or pytest.skip("files of all types are taken")
    assert ask(service, request).status_code == 415


def test_ms_32_unknown_type_is_looked_at(service: Service, samples: Samples) -> None:
    """A file that is sent as application/octet-stream is decoded by what it holds."""
    if samples.wrong_type is None:
        pytest.skip("files of all types are taken")
    request = samples.untyped or pytest.skip("the endpoint takes no file")
    assert ask(service, request).status_code == 200


def test_ms_33_missing_field(service: Service, samples: Samples) -> None:
    """A request without a required field is 422, and says which."""
    response = ask(service, samples.missing)
    assert response.status_code == 422
    for error in response.json()["detail"]:
        assert {"loc", "msg", "type"} <= error.keys()
    if samples.field:
        assert samples.field in response.json()["detail"][0]["loc"]


@pytest.mark.parametrize(
    ("device", "sentence"), [("cuda", "GPU out of memory."), ("cpu", "Out of memory.")]
)
def test_ms_34_out_of_memory(
    launcher: Launcher, answer: str, samples: Samples, device: str, sentence: str
) -> None:
    """Running out of memory is 503 with a time to retry, and the next request is served."""
    running = launcher.start_fake(answer, DEVICE=device)
    running.wait_until("/ready", 200)
    for error, expected in {
        "RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')": sentence,
        "RuntimeError('Failed to allocate a buffer of 2 GiB')": sentence,
        "RuntimeError('The allocator cannot allocate memory')": sentence,
        "MemoryError()": "Out of memory.",
    }.items():
        running.predict_does(f"raise {error}")
        response = ask(running, samples.valid)
        assert (response.status_code, detail(response)) == (503, expected)
        assert int(response.headers["Retry-After"]) > 0
    running.predict_does("")
    assert ask(running, samples.valid).status_code == 200


@pytest.mark.parametrize(
    "error",
    [
        "KeyError('x')",
        "AssertionError()",
        "TimeoutError('not the deadline')",
        "StopIteration()",
        "SystemExit(1)",
    ],
)
def test_ms_35_unforeseen_failure(model: Service, samples: Samples, error: str) -> None:
    """Any other failure is a JSON 500 with CORS headers and an id that the log has beside it."""
    model.predict_does(f"raise {error}")
    headers = samples.valid.get("headers", {}) | {"Origin": "https://example.org"}
    response = ask(model, samples.valid | {"headers": headers})
    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == "*"
    model.wait_for_log(f"Error {response.json()['error_id']}")
    assert error.partition("(")[0] in model.log
    model.predict_works()
    assert ask(model, samples.valid).status_code == 200


def ask_for_gpus(service: Service) -> dict[str, Any]:
    """Return what /gpu answers, where the service has that route."""
    if "/gpu" not in service.client.get("/openapi.json").json()["paths"]:
        pytest.skip("the service has no /gpu")
    body: dict[str, Any] = service.client.get("/gpu").raise_for_status().json()
    return body


def test_ms_36_gpu(service: Service) -> None:
    """/gpu answers 200 with a list, and with the reason where the list is empty."""
    body = ask_for_gpus(service)
    assert body["gpus"] or body["reason"]


def test_ms_36_without_pynvml(bare: Service) -> None:
    """/gpu says so where the package is missing."""
    body = ask_for_gpus(bare)
    assert not body["gpus"]
    assert "not installed" in body["reason"]


def test_ms_37_heat(launcher: Launcher, answer: str) -> None:
    """A GPU over 85 °C is an error in the log, one over 80 °C a warning, a cooler one nothing."""
    running = launcher.start_fake(answer, start=HOT_GPUS)
    running.wait_until("/ready", 200)
    assert len(ask_for_gpus(running)["gpus"]) == 3
    lines = [line for line in running.log.splitlines() if "GPU of" in line]
    assert len(lines) == 2
    assert re.search("WARNING .*GPU of 81", lines[0])
    assert re.search("ERROR .*GPU of 86", lines[1])


def test_ms_47_verified(launcher: Launcher, answer: str, samples: Samples) -> None:
    """The spec's own list: health at once, ready 503 then 200, structured JSON, 413, 504."""
    running = launcher.start_fake(answer, load=HELD, MAX_UPLOAD_MB="1", INFER_TIMEOUT_SECONDS="1")
    running.wait_until("/health", 200)
    assert running.client.get("/ready").status_code == 503
    (running.folder / "go").touch()
    running.wait_until("/ready", 200)
    assert isinstance(ask(running, samples.valid).raise_for_status().json(), dict | list)
    assert ask(running, samples.too_large).status_code == 413
    running.predict_hangs()
    assert ask(running, samples.valid).status_code == 504


def test_ms_48_busy(launcher: Launcher, answer: str, samples: Samples) -> None:
    """With a full queue /ready and every request are 503 at once, before anything else is said."""
    running = launcher.start_fake(answer, MAX_QUEUE_SIZE="1", MAX_UPLOAD_MB="1")
    running.wait_until("/ready", 200)
    running.predict_hangs()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, running, samples.valid)]
        running.wait_for_call()
        calls.append(pool.submit(ask, running, samples.valid))
        busy = running.wait_until("/ready", 503)
        assert detail(busy) == "Too many requests are waiting."
        refused = ask(running, samples.missing)
        assert (refused.status_code, int(refused.headers["Retry-After"]) > 0) == (503, True)
        assert declare_a_terabyte(running, samples)[0] == 503
        running.predict_works()
        assert [call.result().status_code for call in calls] == [200, 200]


def test_ms_49_hung_for_good(launcher: Launcher, answer: str, samples: Samples) -> None:
    """A call that outlives INFER_HANG_SECONDS ends the process, with the reason in the log.

    Where the model has a process of its own that one is killed, and the model loaded again.
    """
    seconds = {"INFER_TIMEOUT_SECONDS": "1", "INFER_HANG_SECONDS": "2"}
    running = launcher.start_fake(answer, predict="time.sleep(600)", WARMUP="0", **seconds)
    running.wait_until("/ready", 200)
    assert ask(running, samples.valid).status_code == 504
    if not ISOLATED:
        assert running.wait_for_exit() == 1
        assert "hung" in running.log
    else:
        running.wait_for_log("past its deadline")
        running.predict_works()
        running.wait_until("/ready", 200)
        assert ask(running, samples.valid).status_code == 200


def test_ms_50_sigterm(service: Service, url: str | None) -> None:
    """SIGTERM stops the real service cleanly, with the exit status 0. No test comes after this."""
    if url:
        pytest.skip("the deployment is not the tests' to stop")
    assert service.stop() == 0


def test_ms_51_client_that_leaves(fake_model: Service, samples: Samples) -> None:
    """A client that closes the connection in the middle of its body leaves one quiet line."""
    connection = post(fake_model, samples)
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"half of it")
    connection.close()
    fake_model.wait_for_log("The client left")
    assert ask(fake_model, samples.valid).status_code == 200


def test_ms_52_raw_body(service: Service, samples: Samples) -> None:
    """A file as the whole body, parameters in the query, gets the answer of the multipart form."""
    raw = ask(service, samples.raw or pytest.skip("the endpoint takes no file"))
    whole, form = raw.raise_for_status().json(), ask(service, samples.valid).json()
    if samples.several:
        whole, form = whole["outputs"], form["outputs"][:1]
    assert is_alike(whole, form)


def test_ms_53_version(service: Service, url: str | None) -> None:
    """The OpenAPI document says which version of the spec the service follows."""
    told = service.client.get("/openapi.json").json()["info"].get("summary", "")
    version = re.search(r"ML Microservice Spec (\d+\.\d+\.\d+)", told)
    assert version
    assert url or version[1] == SPEC_VERSION


def test_ms_54_left_in_the_queue(numbering: Service, samples: Samples) -> None:
    """A client that gives up while its request waits takes it out of the queue."""
    running = numbering
    running.predict_hangs()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(ask, running, samples.valid)
        running.wait_for_call()
        (running.folder / "called").unlink()
        with pytest.raises(httpx.ReadTimeout):
            running.client.post(**samples.valid, timeout=0.5)
        try:
            running.wait_for_log("The client left")
        finally:
            (running.folder / "hang").unlink()
        assert call.result().status_code == 200
    assert not (running.folder / "called").exists()


def test_ms_55_drain(launcher: Launcher, answer: str, samples: Samples) -> None:
    """After SIGTERM /ready is 503 and requests are answered; a second signal ends it at once."""
    running = launcher.start_fake(answer, DRAIN_SECONDS="600")
    running.wait_until("/ready", 200)
    running.terminate()
    assert detail(running.wait_until("/ready", 503)) == "Shutting down."
    time.sleep(0.5)  # the port would have closed by then
    assert ask(running, samples.valid).status_code == 200
    assert running.client.get("/health").status_code == 200
    assert running.stop() != 0


def test_ms_56_slow_client(launcher: Launcher, answer: str, samples: Samples) -> None:
    """Half of a body is 408 after REQUEST_TIMEOUT_SECONDS, and the connection ends."""
    running = launcher.start_fake(answer, REQUEST_TIMEOUT_SECONDS="1")
    running.wait_until("/ready", 200)
    connection = post(running, samples)
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"half of it")
    with expecting("The 408 for half a body"):
        response = connection.getresponse()
    assert (response.status, response.getheader("Connection")) == (408, "close")
    connection.close()


def test_ms_57_threads(bare: Service, tuned: Service) -> None:
    """Frameworks are told to start a thread for each CPU, or as many as NUM_THREADS says."""
    tuned.wait_until("/ready", 200)
    assert (tuned.folder / "threads").read_text() == "3"
    one = re.search(r"Threads: (\d+), limited by ", bare.log)
    assert one
    assert (bare.folder / "threads").read_text() == one[1]
    if hasattr(os, "sched_setaffinity"):
        assert one[1] == "1"


def is_observed(service: Service) -> None:
    """Skip the test where the service was rendered without observability."""
    if "/metrics" not in service.client.get("/openapi.json").json()["paths"]:
        pytest.skip("the service has no /metrics")


def test_ms_58_metrics(service: Service, samples: Samples) -> None:
    """/metrics has the requests, by route and status, and the model's work, as Prometheus reads."""
    is_observed(service)
    ask(service, samples.valid).raise_for_status()
    response = service.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", response.text, re.MULTILINE))
    assert kinds.items() >= METRICS.items()
    answered = rf'^http_requests_total{{.*route="{samples.route}",status="200"}} [1-9]'
    assert re.search(answered, response.text, re.MULTILINE)


def test_ms_58_paths_are_bounded(fake_model: Service) -> None:
    """Paths that there are not make no series of their own."""
    is_observed(fake_model)
    for number in range(3):
        assert fake_model.client.get(f"/no-such-{number}?no=such").status_code == 404
    text = fake_model.client.get("/metrics").text
    assert "such" not in text
    assert 'route="other",status="404"' in text


def test_ms_59_request_id(service: Service, samples: Samples, url: str | None) -> None:
    """Every answer has an id: the one that was sent, or one of its own."""
    is_observed(service)
    answers = [
        service.client.get("/health"),
        service.client.get("/no-such"),
        ask(service, samples.missing),
        ask(service, samples.valid),
    ]
    ids = {answer.headers["X-Request-ID"] for answer in answers}
    assert len(ids) == len(answers)
    if not url:  # a proxy may put one of its own in its place
        for sent, is_taken in {"of-mine/1": True, 129 * "a": False, "of mine": False}.items():
            answer = service.client.get("/health", headers={"X-Request-ID": sent})
            assert (answer.headers["X-Request-ID"] == sent) == is_taken


def test_ms_59_request_id_is_logged(model: Service, samples: Samples) -> None:
    """What is logged for a request has its id: by the model, of its failure, and of its end."""
    is_observed(model)
    model.predict_does("import logging; logging.error('By the model'); raise KeyError('of it')")
    headers = samples.valid.get("headers", {}) | {"X-Request-ID": "find-me"}
    response = ask(model, samples.valid | {"headers": headers})
    assert (response.status_code, response.headers["X-Request-ID"]) == (500, "find-me")
    model.wait_for_log(f"find-me]: POST {samples.route} 500")
    lines = [line for line in model.log.splitlines() if "[find-me]" in line]
    assert len(lines) == 3
    assert "By the model" in lines[0]
    assert f"Error {response.json()['error_id']}" in lines[1]


def test_ms_60_json_logs(launcher: Launcher, answer: str, samples: Samples) -> None:
    """With LOG_FORMAT=json each line is an object; none has a request's query."""
    running = launcher.start_fake(answer, LOG_FORMAT="json")
    running.wait_until("/ready", 200)
    is_observed(running)
    running.predict_does("import warnings; warnings.warn('Old'); raise KeyError('of the model')")
    request = samples.valid | {"params": {"no-such": "private"}}
    request_id = ask(running, request).headers["X-Request-ID"]
    running.wait_for_log(f"POST {samples.route} 500")
    assert running.stop() == 0
    lines = [json.loads(line) for line in running.log.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
    warning, failure, ended = (line for line in lines if line.get("request_id") == request_id)
    assert "UserWarning: Old" in warning["message"]
    assert "KeyError: 'of the model'" in failure["exception"]
    assert (ended["route"], ended["status"]) == (samples.route, 500)
    assert "private" not in running.log


def test_ms_60_wrong_format_is_named(launcher: Launcher, fake_model: Service, answer: str) -> None:
    """A LOG_FORMAT that there is not ends the start, with one line that names it."""
    is_observed(fake_model)
    running = launcher.start_fake(answer, LOG_FORMAT="xml")
    assert running.wait_for_exit() != 0
    [line] = running.log.splitlines()
    assert line.startswith("LOG_FORMAT must be")


def stream(
    service: Service, samples: Samples, request: Request | None = None
) -> list[tuple[str, Any]]:
    """Return the names and data of the events that a valid request gets."""
    response = ask_for_stream(service, samples, request or samples.valid)
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found


def for_stream(service: Service, samples: Samples, request: Request) -> Request:
    """Return the request as it goes to the streaming route, if the service has one."""
    route = f"{samples.route}/stream"
    if route not in service.client.get("/openapi.json").json()["paths"]:
        pytest.skip("the model answers in one piece")
    return request | {"url": route}


def ask_for_stream(service: Service, samples: Samples, request: Request) -> httpx.Response:
    """Send a request to the streaming route."""
    return service.client.post(**for_stream(service, samples, request))


def test_ms_61_parts(fake_model: Service, samples: Samples, answer: str) -> None:
    """Each part is an event like an answer, and the last event says that it is complete."""
    parts = 3 * (len(samples.valid["files"]) if samples.several else 1)
    assert stream(fake_model, samples) == [("", json.loads(answer))] * parts + [("end", {})]


def test_ms_61_part_fits_the_schema(service: Service, samples: Samples) -> None:
    """Each part of the model's own answer has the fields of a whole one."""
    for name, part in stream(service, samples):
        if not name:
            check_fields(service, samples, part)


def test_ms_61_as_it_comes(model: Service, samples: Samples) -> None:
    """A part is there before the next is made; a client that then leaves stops the model."""
    model.predict_does(
        "if 'part' in globals():\n"
        "    (folder / f'part-{part}').touch()\n"
        "    while part and not (folder / 'resume').exists(): time.sleep(0.02)"
    )
    request = for_stream(model, samples, samples.valid)
    with model.client.stream("POST", **request) as response:
        next(response.iter_lines())
        assert not (model.folder / "part-2").exists()
    time.sleep(1)  # in which the service notices
    (model.folder / "resume").touch()
    model.wait_for(lambda: ask(model, samples.valid).is_success, "The model was not free again")
    assert not (model.folder / "part-2").exists()


def test_ms_61_refused(fake_model: Service, samples: Samples) -> None:
    """What is refused before the first part has the status that it has elsewhere."""
    assert ask_for_stream(fake_model, samples, samples.missing).status_code == 422


def test_ms_61_failure_on_the_way(model: Service, samples: Samples) -> None:
    """A failure after the first part is an event with the status it would have had."""
    model.predict_does("if part: raise KeyError('of the model')")
    [_, (name, failure)] = stream(model, samples)
    assert (name, failure["status"], failure["detail"]) == ("error", 500, "Internal server error.")
    model.wait_for_log(failure["error_id"])


def test_ms_61_deadline(launcher: Launcher, answer: str, samples: Samples) -> None:
    """INFER_TIMEOUT_SECONDS is the time for a part, not for all."""
    running = launcher.start_fake(answer, INFER_TIMEOUT_SECONDS="2", WARMUP="0")
    running.wait_until("/ready", 200)
    running.predict_does("time.sleep(0.9)")
    assert stream(running, samples)[-1] == ("end", {})
    running.predict_does("time.sleep(3 * part)")
    [_, (name, failure)] = stream(running, samples)
    assert (name, failure["status"]) == ("error", 504)


OFFER = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
INNER = b"GET /health HTTP/1.1\r\nHost: inside\r\n\r\n"


def test_ms_67_body_of_an_offered_upgrade(service: Service, samples: Samples) -> None:
    """A request that offers an upgrade is answered like any other, or told what to change."""
    plain = ask(service, samples.valid).raise_for_status()
    offering = ask(service, {**samples.valid, "headers": OFFER})
    if offering.status_code == 200:
        assert is_alike(offering.json(), plain.json())
    else:
        assert offering.status_code == 400
        assert "Upgrade" in str(detail(offering))


@pytest.mark.parametrize("packets", [1, 2])
def test_ms_67_body_is_no_request(service: Service, samples: Samples, packets: int) -> None:
    """Nothing in the body of a request that offers an upgrade is answered as a request."""
    connection = post(service, samples)
    for name, value in OFFER.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(len(INNER)))
    connection.endheaders(INNER if packets == 1 else None)
    is_late = packets == 2
    if is_late and not select.select([connection.sock], [], [], REACTION_SECONDS)[0]:
        connection.send(INNER)  # the service waits for it
        is_late = False
    response = connection.getresponse()
    response.read()
    assert 400 <= response.status < 500
    if is_late and connection.sock:  # the head was answered alone, and the connection is still open
        with suppress(OSError):
            connection.send(INNER)
    path = service.client.base_url.path.rstrip("/") + "/no-such"
    connection.request("GET", path)
    assert connection.getresponse().status == 404
    connection.close()


def begin(service: Service, request: Request) -> http.client.HTTPConnection:
    """Send a whole request to a service of the tests', and leave its answer for later."""
    built = service.client.build_request("POST", **request)
    connection = http.client.HTTPConnection(
        built.url.host, built.url.port, timeout=REACTION_SECONDS
    )
    path = built.url.raw_path.decode()
    connection.request("POST", path, built.read(), dict(built.headers))
    return connection


def status_of(connection: http.client.HTTPConnection) -> int:
    """Return the status of the answer; 0 where the connection has ended without one."""
    with suppress(http.client.HTTPException, ConnectionError):
        return connection.getresponse().status
    return 0


def settle(service: Service) -> None:
    """Return when the service has put into its queue what was sent before."""
    for _ in range(20):
        service.client.get("/health")


def ask_together(
    service: Service, samples: Samples, ask_one: Callable[[int], T], predict: str = ""
) -> list[T]:
    """Return the answers to requests 1 to 8, which wait together behind one whose client leaves.

    With those the model runs the code `predict`.
    """
    if not isinstance(json.loads((service.folder / "answer.json").read_text()), dict):
        pytest.skip("the answer is a bare list")
    service.predict_hangs()
    try:
        first = begin(service, samples.numbered(100))
        service.wait_for_call()
        first.close()
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(ask_one, number) for number in range(1, 9)]
            settle(service)
            service.predict_does(predict)
            (service.folder / "hang").unlink()
            return [call.result() for call in calls]
    finally:
        service.predict_works()


def numbers_in(response: httpx.Response, samples: Samples) -> set[int]:
    """Return the numbers that an answer has: in each of its outputs."""
    body = response.raise_for_status().json()
    return {row[NUMBER] for row in (body["outputs"] if samples.several else [body])}


def test_ms_68_own_answer(numbering: Service, samples: Samples) -> None:
    """Requests that wait together get each its own answer, and its own failure."""
    failing = f"if any(item.params.{NUMBER} == 3 for item in inputs): raise KeyError('of one')"

    def ask_one(number: int) -> httpx.Response:
        return ask(numbering, samples.numbered(number))

    responses = ask_together(numbering, samples, ask_one, failing)
    assert responses.pop(2).status_code == 500
    numbers = [numbers_in(response, samples) for response in responses]
    assert numbers == [{1}, {2}, {4}, {5}, {6}, {7}, {8}]


def test_ms_68_own_parts(numbering: Service, samples: Samples) -> None:
    """So do requests for an answer in parts: each part is its own."""
    for_stream(numbering, samples, samples.valid)

    def ask_one(number: int) -> set[int]:
        events = stream(numbering, samples, samples.numbered(number))
        assert events.pop() == ("end", {})
        return {part[NUMBER] for _, part in events}

    assert ask_together(numbering, samples, ask_one) == [{number} for number in range(1, 9)]


def test_ms_68_at_once(service: Service, samples: Samples, answer: str) -> None:
    """What is asked at once is answered as it is one by one."""
    requests = [samples.valid, samples.changed(), *samples.rejected]
    alone = [ask(service, request) for request in requests]
    body = alone[0].raise_for_status().json()
    is_repeatable = is_alike(json.loads(answer), body["outputs"][0] if samples.several else body)
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: ask(service, request), requests))
    for one, other in zip(alone, together, strict=True):
        if other.status_code != 503:  # a deployment may be busy
            assert other.status_code == one.status_code
            assert is_alike(other.json(), one.json()) or (one.is_success and not is_repeatable)


def test_ms_69_in_order(numbering: Service, samples: Samples) -> None:
    """Requests that wait come to the model in the order in which they were sent."""
    numbering.predict_hangs()
    try:
        calls = [begin(numbering, samples.numbered(100))]
        numbering.wait_for_call()
        for number in range(1, 6):
            calls.append(begin(numbering, samples.numbered(number)))
            settle(numbering)
        order = f"print(*[item.params.{NUMBER} for item in inputs], file=order)"
        numbering.predict_does(f"with (folder / 'order').open('a') as order: {order}")
        (numbering.folder / "hang").unlink()
        assert [status_of(call) for call in calls] == [200] * 6
    finally:
        numbering.predict_works()
    numbers = (numbering.folder / "order").read_text().split()
    assert list(dict.fromkeys(numbers)) == ["1", "2", "3", "4", "5"]


# What a model fails with, and what is in no answer.
FAILURES = (
    "ValueError('secret of /srv/weights')",
    "OSError(2, 'secret', '/srv/weights')",
    "type('OurError', (OSError,), {'__module__': 'm', 'status_code': 418, 'detail': 'secret'})()",
    "SystemExit('secret')",
    "MemoryError('secret of /srv/weights')",
)
INSIDE = rf"secret|/srv|\wError\b|\wExit\b|Errno|Traceback|\.py\b| at 0x|{re.escape(str(ROOT))}"


def failing(service: Service) -> Iterator[str]:
    """Have the model fail in each of these ways, one after the other, and then work again."""
    try:
        for error in FAILURES:
            service.predict_does(f"raise {error}")
            yield error
    finally:
        service.predict_works()


def assert_tells_nothing(answer: str) -> None:
    """See that an answer has nothing of what failed inside."""
    assert not re.search(INSIDE, answer)


def test_ms_70_failures(numbering: Service, samples: Samples) -> None:
    """What the model fails with is in the log, and not in the answer."""
    for _ in failing(numbering):
        response = ask(numbering, samples.valid)
        assert response.is_server_error
        assert_tells_nothing(f"{response.text}{response.headers}")


def test_ms_70_failures_on_the_way(numbering: Service, samples: Samples) -> None:
    """So it is where the answer has begun."""
    for_stream(numbering, samples, samples.valid)
    for error in failing(numbering):
        numbering.predict_does(f"if part: raise {error}")
        [_, (name, failure)] = stream(numbering, samples)
        assert name == "error"
        assert_tells_nothing(json.dumps(failure))


def test_ms_70_unreadable(service: Service, samples: Samples) -> None:
    """What a decoder fails with is not told either."""
    request = samples.corrupt or pytest.skip("only the model knows which files it can read")
    response = ask(service, request)
    assert response.is_client_error
    assert_tells_nothing(response.text)


def test_ms_71_begun(ended: tuple[Service, list[int]]) -> None:
    """What ran and what waited when SIGTERM came was answered."""
    assert ended[1] == [200, 200]
