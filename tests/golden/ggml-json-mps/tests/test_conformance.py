"""The ML Microservice Spec, asked of a live process; each test is named after its requirement."""

import http.client
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from conftest import Launcher, Service
from main import EXAMPLE

ROUTE = "/infer"
VALID: dict[str, Any] = {"json": EXAMPLE}
EMPTY: dict[str, Any] = {"content": b"", "headers": {"Content-Type": "application/json"}}
CORRUPT: dict[str, Any] = {"content": b'{"', "headers": {"Content-Type": "application/json"}}
WRONG_TYPE: dict[str, Any] = {"content": b"{}", "headers": {"Content-Type": "text/plain"}}
MISSING: dict[str, Any] = {"json": {}}


def ask(service: Service, request: dict[str, Any]) -> httpx.Response:
    """Send one inference request."""
    return service.client.post(ROUTE, **request)


def detail(response: httpx.Response) -> object:
    """Return what an error says, which is JSON always."""
    return response.json()["detail"]


@pytest.fixture(scope="module")
def answer(service: Service) -> str:
    """Return one output of the real model for EXAMPLE, as JSON."""
    body = ask(service, VALID).raise_for_status().json()
    return json.dumps(body)


@pytest.fixture(scope="module")
def stand_in(launcher: Launcher, answer: str) -> Service:
    """Return a service whose model a test can make slow or have fail; it waits 2 s for answers."""
    running = launcher.start_stand_in(
        answer, INFER_TIMEOUT_SECONDS="2", MAX_QUEUE_SIZE="2", MAX_UPLOAD_MB="1"
    )
    running.wait_until("/ready", 200)
    return running


@pytest.fixture
def model(stand_in: Service) -> Iterator[Service]:
    """Return the stand-in service, and leave it ready and answering at once."""
    yield stand_in
    stand_in.predict_works()
    stand_in.wait_until("/ready", 200)


def test_ms_07_11_load_is_logged(service: Service) -> None:
    """The device that was chosen, and the start and the end of the load, are in the log."""
    assert re.search(r"Using (cuda|mps|cpu)", service.log)
    assert "Loading" in service.log
    assert "Model loaded" in service.log


def test_ms_10_load_precedes_requests(launcher: Launcher, answer: str) -> None:
    """The model loads with no request sent, and no request makes it load again."""
    running = launcher.start_stand_in(answer)
    running.wait_for_log("Model loaded")
    running.wait_until("/health", 200)
    ask(running, VALID).raise_for_status()
    assert running.log.count("Model loaded") == 1


def test_ms_18_log_level(launcher: Launcher, answer: str) -> None:
    """LOG_LEVEL=WARNING leaves out what INFO shows, the server's own lines included."""
    running = launcher.start_stand_in(answer, LOG_LEVEL="WARNING")
    running.wait_until("/ready", 200)
    assert "INFO" not in running.log


def test_ms_13_wrong_setting_is_named(launcher: Launcher, answer: str) -> None:
    """A variable with a value that cannot be ends the start with its name and a right one."""
    running = launcher.start_stand_in(answer, MAX_UPLOAD_MB="much")
    assert running.wait_for_exit() != 0
    assert "MAX_UPLOAD_MB must be a whole number" in running.log


def test_ms_19_cors(stand_in: Service) -> None:
    """A preflight succeeds for any origin, method and header; errors carry the headers too."""
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "X-Anything",
    }
    preflight = stand_in.client.options(ROUTE, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert preflight.headers["access-control-allow-headers"] == "X-Anything"
    refused = stand_in.client.post(ROUTE, headers={"Origin": "https://example.org"})
    assert refused.is_client_error
    assert refused.headers["access-control-allow-origin"] == "*"


def test_ms_19_cors_can_be_tightened(launcher: Launcher, answer: str) -> None:
    """With CORS_ORIGINS set, other origins get no permission."""
    running = launcher.start_stand_in(answer, CORS_ORIGINS="https://a.example,https://b.example")
    running.wait_until("/health", 200)
    for origin, allowed in {"https://b.example": True, "https://c.example": False}.items():
        response = running.client.get("/health", headers={"Origin": origin})
        assert ("access-control-allow-origin" in response.headers) == allowed


def test_ms_20_21_27_while_loading(launcher: Launcher, answer: str) -> None:
    """During the load /health is 200, /ready and the endpoint are 503; afterwards all are 200."""
    wait = "while not (folder / 'go').exists(): time.sleep(0.1)"
    running = launcher.start_stand_in(answer, load=wait)
    assert running.wait_until("/health", 200).json() == {"status": "ok"}
    for response in (running.client.get("/ready"), ask(running, VALID)):
        assert response.status_code == 503
        assert detail(response) == "Model not loaded yet."
    # What is wrong with a request is said before that, if it is known without decoding the input.
    assert ask(running, WRONG_TYPE).status_code == 415
    assert ask(running, EMPTY).status_code == 400
    assert ask(running, MISSING).status_code == 422
    assert ask(running, CORRUPT).status_code == 400
    (running.folder / "go").touch()
    assert running.wait_until("/ready", 200).json() == {"status": "ready"}
    assert ask(running, VALID).status_code == 200


def test_ms_21_failed_load_ends_the_process(launcher: Launcher, answer: str) -> None:
    """A load that fails is logged with its reason, and the process exits with an error."""
    running = launcher.start_stand_in(answer, load="raise ValueError('no such weights')")
    assert running.wait_for_exit() == 1
    assert "no such weights" in running.log


def test_ms_22_24_answer_fits_the_schema(service: Service) -> None:
    """The endpoint's answer is JSON with the fields that the OpenAPI document promises."""
    response = ask(service, VALID)
    assert response.status_code == 200
    document = service.client.get("/openapi.json").json()
    schema = document["paths"][ROUTE]["post"]["responses"]["200"]["content"]["application/json"]
    name = schema["schema"]["$ref"].rpartition("/")[2]
    assert response.json().keys() == document["components"]["schemas"][name]["properties"].keys()


def test_ms_25_empty(stand_in: Service) -> None:
    """An empty upload is 400."""
    response = ask(stand_in, EMPTY)
    assert (response.status_code, detail(response)) == (400, "Empty upload.")


def test_ms_26_declared_size_is_refused_unread(stand_in: Service) -> None:
    """A body whose declared length is over MAX_UPLOAD_MB is 413 before a byte of it is sent."""
    assert declared_too_large(stand_in) == (413, {"detail": "File too large."})


def declared_too_large(service: Service) -> tuple[int, object]:
    """Announce a body of 2 MiB, send none of it, and return the answer."""
    url = service.client.base_url
    connection = http.client.HTTPConnection(url.host, url.port, timeout=30)
    connection.putrequest("POST", ROUTE)
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(2 * 1024 * 1024))
    connection.endheaders()
    response = connection.getresponse()
    answer = response.status, json.load(response)
    connection.close()
    return answer


def test_ms_26_undeclared_size_is_counted(stand_in: Service) -> None:
    """A body in chunks is 413 as soon as more than MAX_UPLOAD_MB has come."""
    url = stand_in.client.base_url
    connection = http.client.HTTPConnection(url.host, url.port, timeout=30)
    connection.putrequest("POST", ROUTE)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    block = b" " * 65536
    for _ in range(18):  # 1.1 MB, and no end of the body: the answer comes before that
        connection.send(b"%x\r\n%b\r\n" % (len(block), block))
    response = connection.getresponse()
    assert response.status == 413
    assert json.load(response) == {"detail": "File too large."}
    connection.close()


def test_client_that_leaves_is_no_error(stand_in: Service) -> None:
    """A client that closes the connection in the middle of its body leaves one quiet line."""
    url = stand_in.client.base_url
    connection = http.client.HTTPConnection(url.host, url.port, timeout=30)
    connection.putrequest("POST", ROUTE)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"half of it")
    connection.close()
    stand_in.wait_for_log("The client left")
    assert ask(stand_in, VALID).status_code == 200


def test_ms_26_exact_limit(stand_in: Service) -> None:
    """One byte over MAX_UPLOAD_MB is 413, however the request is wrapped."""
    body = json.dumps(EXAMPLE).encode().ljust(1024 * 1024 + 1)
    headers = {"Content-Type": "application/json"}
    response = ask(stand_in, {"content": body, "headers": headers})
    assert (response.status_code, detail(response)) == (413, "File too large.")


def test_ms_28_29_health_answers_during_a_call_that_times_out(model: Service) -> None:
    """/health answers while a call runs; past INFER_TIMEOUT_SECONDS the call is 504."""
    model.predict_hangs()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(ask, model, VALID)
        asked = 0
        while not call.done():
            assert model.client.get("/health").status_code == 200
            asked += 1
            time.sleep(0.05)
        response = call.result()
    assert asked > 2
    assert (response.status_code, detail(response)) == (504, "Inference timed out.")


def test_ms_29_recovers_from_hung_calls(model: Service) -> None:
    """Calls that hang cost no more than their time: 504, 503 beyond the queue, then 200."""
    model.predict_hangs()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ask, model, VALID) for _ in range(8)]
        responses = [call.result() for call in calls]
    assert {response.status_code for response in responses} == {503, 504}
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["Retry-After"]) > 0
    hung = model.client.get("/ready")
    assert (hung.status_code, "hangs" in str(detail(hung))) == (503, True)
    model.predict_works()
    model.wait_until("/ready", 200)
    assert ask(model, VALID).status_code == 200


def test_busy_is_said_before_the_body_is_read(launcher: Launcher, answer: str) -> None:
    """With a full queue /ready and every request are 503, but for a body that is too large."""
    running = launcher.start_stand_in(answer, MAX_QUEUE_SIZE="1", MAX_UPLOAD_MB="1")
    running.wait_until("/ready", 200)
    running.predict_hangs()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, running, VALID)]
        running.wait_for_call()
        calls.append(pool.submit(ask, running, VALID))
        busy = running.wait_until("/ready", 503)
        assert detail(busy) == "Too many requests are waiting."
        assert ask(running, WRONG_TYPE).status_code == 503
        assert declared_too_large(running)[0] == 413
        running.predict_works()
        assert [call.result().status_code for call in calls] == [200, 200]


def test_ms_29_hung_for_good_ends_the_process(launcher: Launcher, answer: str) -> None:
    """A call that outlives INFER_HANG_SECONDS ends the process, with the reason in the log."""
    seconds = {"INFER_TIMEOUT_SECONDS": "1", "INFER_HANG_SECONDS": "2"}
    running = launcher.start_stand_in(answer, predict="time.sleep(600)", WARMUP="0", **seconds)
    running.wait_until("/ready", 200)
    assert ask(running, VALID).status_code == 504
    assert running.wait_for_exit() == 1
    assert "hung" in running.log


def test_ms_31_corrupt(service: Service) -> None:
    """What cannot be decoded is 400."""
    assert ask(service, CORRUPT).status_code == 400


def test_ms_32_wrong_type(stand_in: Service) -> None:
    """A content type that is not taken is 415."""
    assert ask(stand_in, WRONG_TYPE).status_code == 415


def test_ms_33_missing_field(stand_in: Service) -> None:
    """A request without its required field is 422, and says which."""
    response = ask(stand_in, MISSING)
    assert response.status_code == 422
    [error] = response.json()["detail"][:1]
    assert error["type"] == "missing"


@pytest.mark.parametrize(
    "error", ["RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')", "MemoryError()"]
)
def test_ms_34_out_of_memory(model: Service, error: str) -> None:
    """Running out of memory is 503 with a time to retry, and the next request is served."""
    model.predict_does(f"raise {error}")
    response = ask(model, VALID)
    assert (response.status_code, detail(response)) == (503, "GPU out of memory.")
    assert int(response.headers["Retry-After"]) > 0
    model.predict_does("")
    assert ask(model, VALID).status_code == 200


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
def test_ms_35_unforeseen_failure(model: Service, error: str) -> None:
    """Any other failure is a JSON 500 with CORS headers and an id that the log has beside it."""
    model.predict_does(f"raise {error}")
    response = model.client.post(ROUTE, **VALID | {"headers": {"Origin": "https://example.org"}})
    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == "*"
    model.wait_for_log(f"Error {response.json()['error_id']}")
    assert error.partition("(")[0] in model.log
    model.predict_works()
    assert ask(model, VALID).status_code == 200


def test_sigterm_ends_with_0(launcher: Launcher) -> None:
    """SIGTERM stops the real service cleanly, with the exit status 0."""
    running = launcher.start()
    running.wait_until("/ready", 200)
    assert running.stop() == 0
