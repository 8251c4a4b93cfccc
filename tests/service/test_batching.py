"""Requests that wait go into one call, and do each other no harm."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.scripted_model import calls, make, post, queue_behind, running
from tests.support.updating import change

KEY = """\
    def batch_key(self, item: Input[Params]) -> int:
        \"\"\"Keep hundreds apart.\"\"\"
        return item.params.number // 100

"""
FAIL = "raise ValueError(item.params.number)"


@pytest.fixture(scope="module", params=[(), ("isolation",)], ids=["thread", "process"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the rendered service, with the model in either place."""
    folder = tmp_path_factory.mktemp("batching") / "service"
    project = make(folder, features=["batching", *request.param])
    change(
        project / "inference.py",
        "    def predict(self",
        KEY + "    def predict(self",
    )
    return project


def test_what_waited_is_answered_together(project: Path, tmp_path: Path) -> None:
    """A lone request has its own call; those that queued meanwhile share one, by their key."""
    with running(project, tmp_path / "log") as service, ThreadPoolExecutor() as pool:
        numbers = [1, 102, 3, 104, 5]
        sent = queue_behind(pool, service, project, [(number, "") for number in numbers])
        (project / "hang").unlink()
        answers = [response.result().json() for response in sent]
        assert calls(project) == [[0], [1, 3, 5], [102, 104]]
    assert [answer["number"] for answer in answers] == [0, *numbers]
    assert [answer["together"] for answer in answers] == [1, 3, 2, 3, 2, 3]


def test_only_the_bad_one_fails(project: Path, tmp_path: Path) -> None:
    """A batch that fails is tried again one by one."""
    with running(project, tmp_path / "log") as service, ThreadPoolExecutor() as pool:
        requests = [(1, ""), (2, FAIL), (3, "")]
        sent = queue_behind(pool, service, project, requests)
        (project / "hang").unlink()
        statuses = [response.result().status_code for response in sent]
        assert statuses == [200, 200, 500, 200]
        assert calls(project) == [[0], [1, 2, 3], [1], [2], [3]]
        assert sent[2].result().json()["error_id"] in service.log


def test_max_batch_size(project: Path, tmp_path: Path) -> None:
    """No more than MAX_BATCH_SIZE inputs share a call."""
    env = {"MAX_BATCH_SIZE": "2"}
    with running(project, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:
        requests = [(number, "") for number in (1, 2, 3)]
        sent = queue_behind(pool, service, project, requests)
        (project / "hang").unlink()
        assert [response.result().status_code for response in sent] == [200] * 4
        assert calls(project) == [[0], [1, 2], [3]]


def test_max_batch_delay(project: Path, tmp_path: Path) -> None:
    """With MAX_BATCH_DELAY_MS a call waits for others, and no longer once the batch is full."""
    env = {"MAX_BATCH_DELAY_MS": "20000", "MAX_BATCH_SIZE": "3", "INFER_TIMEOUT_SECONDS": "15"}
    with running(project, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:
        sent = [pool.submit(post, service, number) for number in (1, 2, 3)]
        assert [response.result().json()["together"] for response in sent] == [3, 3, 3]


def test_nobody_waits_any_more(project: Path, tmp_path: Path) -> None:
    """A request whose deadline passes in the queue is never run."""
    env = {"INFER_TIMEOUT_SECONDS": "4"}
    with running(project, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:
        sent = queue_behind(pool, service, project, [(1, "")])
        assert [response.result().status_code for response in sent] == [504, 504]
        (project / "hang").unlink()
        service.ready()
        assert post(service, 2).status_code == 200
        assert calls(project) == [[0], [2]]
