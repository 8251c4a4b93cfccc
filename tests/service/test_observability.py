"""What a live service tells of itself: metrics, request ids, log lines and traces."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.support.environments import environment, run
from tests.support.live import START_SECONDS, Live, live, wait_for
from tests.support.rendering import render
from tests.support.updating import put_model

# A model that does as a request says.
MODEL = '''"""Does as it is told."""

import logging
import os
import time

from pydantic import BaseModel

from serving import Input

MODEL_NAME = os.getenv("MODEL_NAME", "scripted")
logger = logging.getLogger(__name__)


class Params(BaseModel):
    """What to do."""

    say: str = ""
    hang: bool = False


class Output(BaseModel):
    """What was said."""

    said: str


EXAMPLE: dict[str, str] = {}


class Model:
    """Says something into the log, and hangs until there is a file called go."""

    def __init__(self, device: str) -> None:
        """Load nothing."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Do as each says."""
        for item in inputs:
            if item.params.say:
                logger.info("Said: %s", item.params.say)
            if item.params.hang:
                logger.info("Hanging")
            while item.params.hang and not os.path.exists("go"):
                time.sleep(0.02)
        return [Output(said=item.params.say) for item in inputs]
'''
PARSE = """
import json, sys
from prometheus_client.parser import text_string_to_metric_families

for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        print(json.dumps([sample.name, sample.labels, sample.value]))
"""
# A driver of two GPUs, of which the second uses 2 of its 3 MiB; the first uses none.
TWO_GPUS = """
import sys
from types import ModuleType, SimpleNamespace

nvml = ModuleType("pynvml")
nvml.NVMLError = OSError
nvml.NVML_TEMPERATURE_GPU = 0
nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
nvml.nvmlDeviceGetCount = lambda: 2
nvml.nvmlDeviceGetHandleByIndex = lambda index: index
nvml.nvmlDeviceGetName = lambda index: "GPU"
nvml.nvmlDeviceGetMemoryInfo = lambda index: SimpleNamespace(used=index * 2**21, total=3 * 2**20)
nvml.nvmlDeviceGetUtilizationRates = lambda index: SimpleNamespace(gpu=0)
nvml.nvmlDeviceGetTemperature = lambda index, sensor: 40
sys.modules["pynvml"] = nvml
"""
NO_DRIVER = "import sys\nsys.modules['pynvml'] = None\n"
SERVE = "import main\nmain.service.serve(main.app)\n"

MIB = 2**20
FEATURES = ("observability", "gpu")

Start = Callable[..., Live]


@cache
def python(*extras: str) -> str:
    """Return an interpreter for the services, with these extras installed."""
    return str(environment("custom", *extras) / "bin" / "python")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the service with that model, and waits until ready."""
    with ExitStack() as stack:

        def started(
            *extras: str, before: str = "", features: tuple[str, ...] = FEATURES, **env: str
        ) -> Live:
            answers = {"model_type": "custom", "input_kind": "json", "features": list(features)}
            project = render(tmp_path / f"service-{len(list(tmp_path.iterdir()))}", answers)
            put_model(project, MODEL)
            (project / "start.py").write_text(before + SERVE, encoding="utf-8")
            service = live(project, python(*extras), project / "log", script="start.py", **env)
            running = stack.enter_context(service)
            running.ready()
            return running

        yield started


def say(service: Live, text: str = "", **more: object) -> httpx.Response:
    """Have the model say something; the text is the request's id as well."""
    headers = {"X-Request-ID": text} if text else {}
    return service.client.post("/infer", json={"say": text, **more}, headers=headers)


def let_go(service: Live) -> None:
    """End the calls that hang."""
    (service.file.parent / "go").touch()


def wait_until(condition: Callable[[], object], complaint: str) -> None:
    """Wait until something is so."""
    wait_for(condition, seconds=START_SECONDS, complaint=lambda: complaint)


class Scrape:
    """What /metrics says, as Prometheus' own library reads it."""

    def __init__(self, service: Live) -> None:
        text = service.client.get("/metrics").raise_for_status().text
        output = run([python(), "-c", PARSE], input=text)
        self.samples = [json.loads(line) for line in output.splitlines()]

    def __getitem__(self, name: str) -> float:
        """Return the only value of this name."""
        [value] = self.all(name).values()
        return value

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the values of this name by their labels' values."""
        return {tuple(labels.values()): value for key, labels, value in self.samples if key == name}


def test_counts(start: Start) -> None:
    """Requests are counted by method, route and status, whatever became of them."""
    service = start(INFER_TIMEOUT_SECONDS="1", MAX_UPLOAD_MB="1")
    for _ in range(3):
        say(service).raise_for_status()
    # Refused before it comes to a route.
    service.client.post("/infer", json={"say": 2 * MIB * "a"})
    service.client.post("/infer", json={"say": 1})
    service.client.get("/infer")
    service.client.get("/not-here")
    service.client.get("/not/there")
    assert say(service, hang=True).status_code == 504
    leave(service)
    let_go(service)

    def has_left() -> bool:
        return ("POST", "/infer", "499") in Scrape(service).all("http_requests_total")

    wait_until(has_left, "The client that left is not counted")
    scrape = Scrape(service)
    requests = scrape.all("http_requests_total")
    assert {key: value for key, value in requests.items() if key[1] in ("/infer", "other")} == {
        ("POST", "/infer", "200"): 3,
        ("POST", "/infer", "413"): 1,
        ("POST", "/infer", "422"): 1,
        ("POST", "/infer", "499"): 1,
        ("POST", "/infer", "504"): 1,
        ("GET", "/infer", "405"): 1,
        ("GET", "other", "404"): 2,
    }
    assert requests["GET", "/ready", "200"] >= 1
    durations = scrape.all("http_request_duration_seconds_count")
    assert durations["POST", "/infer", "200"] == 3
    assert scrape.all("http_request_duration_seconds_sum")["POST", "/infer", "504"] >= 1
    assert scrape["model_timeouts_total"] == 1
    assert scrape["model_worker_restarts_total"] == 0
    assert scrape["model_load_seconds"] > 0


def leave(service: Live) -> None:
    """Close the connection in the middle of a body."""
    url = service.client.base_url
    connection = HTTPConnection(url.host, url.port or 80, timeout=30)
    connection.putrequest("POST", "/infer")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"{")
    connection.close()


def test_gauges(start: Start) -> None:
    """What waits and what runs is seen while it does; each call is counted when it has ended."""
    service = start(MAX_QUEUE_SIZE="1")
    before = Scrape(service)
    assert before["model_queue_depth"] == before["model_running"] == 0
    assert before["http_requests_in_flight"] == 1  # the scrape
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(say, service, hang=True)]
        wait_until(lambda: "Hanging" in service.log, "No call came")
        calls.append(pool.submit(say, service, hang=True))
        wait_until(lambda: service.client.get("/ready").status_code == 503, "No call waits")
        assert say(service).status_code == 503
        during = Scrape(service)
        let_go(service)
        assert [call.result().status_code for call in calls] == [200, 200]
    assert during["model_queue_depth"] == during["model_running"] == 1
    waits = Scrape(service)
    assert waits["model_queue_duration_seconds_count"] == 2
    assert waits["model_queue_duration_seconds_sum"] > 0
    assert during["http_requests_in_flight"] == 3
    assert during.all("http_requests_total")["POST", "/infer", "503"] == 1
    assert during["model_batch_size_count"] == 0
    after = Scrape(service)
    assert after["model_batch_size_sum"] == 2
    assert after["model_call_duration_seconds_count"] == after["model_batch_size_count"]
    assert after["model_call_duration_seconds_sum"] > 0


@pytest.mark.parametrize(
    ("driver", "used"),
    [(TWO_GPUS, {("0",): 0, ("1",): 2 * MIB}), (NO_DRIVER, {})],
    ids=["two", "none"],
)
def test_gpu_memory(start: Start, driver: str, used: dict[tuple[str, ...], float]) -> None:
    """The memory of each GPU is told; nothing where there is none."""
    scrape = Scrape(start(before=driver, DEVICE="cpu"))
    assert scrape.all("gpu_memory_used_bytes") == used
    assert scrape.all("gpu_memory_total_bytes") == dict.fromkeys(used, 3 * MIB)


def test_ids_do_not_mix(start: Start) -> None:
    """What the model logs for one of many requests has the id of that request; so has its end."""
    service = start(LOG_FORMAT="json")
    names = [f"request-{number}" for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        for name, response in zip(
            names, pool.map(lambda name: say(service, name), names), strict=True
        ):
            assert response.headers["X-Request-ID"] == name
    wait_until(lambda: service.log.count("POST /infer 200") == 100, "Not all requests are logged")
    lines = [json.loads(line) for line in service.log.splitlines()]
    said = {line["message"]: line["request_id"] for line in lines if "Said" in line["message"]}
    assert said == {f"Said: {name}": name for name in names}
    ended = [line["request_id"] for line in lines if line.get("route") == "/infer"]
    assert sorted(ended) == sorted(names)


def test_late_answer_has_its_id(start: Start) -> None:
    """What is logged of a call after its request was answered has the request's id."""
    service = start(INFER_TIMEOUT_SECONDS="1")
    assert say(service, "late", hang=True).status_code == 504
    let_go(service)
    wait_until(lambda: "nobody waits" in service.log, "The late answer is not logged")
    assert re.search(r"worker \[late\]: A call ended .+ nobody waits", service.log)


def test_one_line_per_request(start: Start) -> None:
    """A request is logged once, without its query; a probe only when it fails."""
    service = start()
    service.client.post("/infer?private=1", json={})
    service.client.get("/gone?private=1")
    wait_until(lambda: "GET other 404" in service.log, "The last request is not logged")
    assert service.log.count("POST /infer 200") == 1
    assert "uvicorn.access" not in service.log
    assert "private" not in service.log
    assert "/ready 200" not in service.log


def test_without_observability(start: Start) -> None:
    """Without it there is no /metrics, no id, and the server's own line for each request."""
    service = start(features=(), LOG_FORMAT="json")
    response = say(service, "mine")
    assert "X-Request-ID" not in response.headers
    assert service.client.get("/metrics").status_code == 404
    assert "uvicorn.access" in service.log
    assert "{" not in service.log


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Run a collector of traces; yield its address, and what it gets."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def test_traces(start: Start) -> None:
    """With OpenTelemetry's variables and packages, requests go to the collector as spans."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with collector() as (url, got):
        service = start(
            "otel", OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_SERVICE_NAME="name-of-the-service"
        )
        headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "X-Request-ID": "of-mine"}
        service.client.post("/infer?private=1", json={"say": "hidden"}, headers=headers)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=START_SECONDS) == 0
    spans = b"".join(got)
    words = (b"POST /infer", b"fastapi.endpoint", b"name-of-the-service", b"of-mine")
    for text in (*words, bytes.fromhex(trace_id)):
        assert text in spans
    for text in (b"private", b"hidden", b"/ready"):
        assert text not in spans


def test_traces_without_packages(start: Start) -> None:
    """With the variables and without the packages the service says so in one line, and serves."""
    service = start(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    say(service).raise_for_status()
    [line] = [line for line in service.log.splitlines() if "OpenTelemetry" in line]
    assert "WARNING" in line
    assert "Traceback" not in service.log
