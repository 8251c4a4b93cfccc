"""Tasks on a cluster: several services, workers, and what stands between them may go away."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.service.test_tasks import ROUTE, SECRET, accepted, ended, files_of, receiver, submit
from tests.support.cluster import Redis, running_redis, worker
from tests.support.environments import tool
from tests.support.live import Live, free_port, live, wait_for
from tests.support.scripted_model import HANG, WAIT_SECONDS, calls, make, post, running
from tests.support.updating import python

PROMPT_SECONDS = 2  # "within a second", on a machine that does other things as well
BUCKET = """
import boto3
boto3.client("s3").create_bucket(Bucket="tasks")
"""
COUNT = """
import boto3
print(boto3.client("s3").list_objects_v2(Bucket="tasks")["KeyCount"])
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the rendered service."""
    return make(tmp_path_factory.mktemp("cluster") / "service", predictions="celery")


@contextmanager
def two_services(project: Path, redis: Redis, folder: Path, **env: str) -> Iterator[list[Live]]:
    """Run two services; the second one's worker takes all tasks."""
    env = redis.env | env
    with ExitStack() as held:
        first = held.enter_context(running(project, folder / "first", **env))
        log = folder / "second"
        second = held.enter_context(live(project, python(), log, WARMUP="0", **env))
        second.ready()
        held.enter_context(worker(second, project, folder / "worker", **env))
        yield [first, second]


def test_redis_is_away(project: Path, tmp_path: Path) -> None:
    """Tasks are 503 at once, and nothing is kept by halves; other requests do not notice."""
    with (
        running_redis(tmp_path) as redis,
        running(project, tmp_path / "log", **redis.env) as service,
        worker(service, project, tmp_path / "worker", **redis.env),
    ):
        before = accepted(service, 1)
        assert ended(service, before)["status"] == "succeeded"
        with redis.hanging():
            asks: list[Callable[[], httpx.Response]] = [
                lambda: submit(service, 2, Idempotency_Key="away"),
                lambda: service.client.get(f"{ROUTE}/{before}"),
                lambda: service.client.get(f"{ROUTE}/{before}", params={"wait": 30}),
            ]
            for ask in asks:
                began = time.monotonic()
                response = ask()
                assert (response.status_code, response.headers["retry-after"]) == (
                    503,
                    "10",
                )
                assert time.monotonic() - began < PROMPT_SECONDS
            assert service.client.get("/ready").status_code == 200
            assert post(service, 3).status_code == 200
        redis.kill()
        assert submit(service, 2, Idempotency_Key="away").status_code == 503
        redis.start()
        assert ended(service, accepted(service, 2, Idempotency_Key="away"))["attempts"] == 1
        assert ended(service, before)["status"] == "succeeded"
        assert calls(project) == [[1], [3], [2]]


def test_start_without_redis(project: Path, tmp_path: Path) -> None:
    """A service starts, and answers requests, before there is a Redis."""
    redis = Redis(tmp_path, free_port())
    with running(project, tmp_path / "log", **redis.env) as service:
        assert post(service).status_code == 200
        assert submit(service).status_code == 503
        redis.start()
        try:
            with worker(service, project, tmp_path / "worker", **redis.env):
                assert ended(service, accepted(service, 1))["status"] == "succeeded"
        finally:
            redis.kill()


def test_canceled_elsewhere(tmp_path: Path) -> None:
    """A task is canceled by whichever service is asked, also where another one runs it."""
    project = make(tmp_path / "service", predictions="celery", features=["isolation"])
    with (
        running_redis(tmp_path) as redis,
        two_services(project, redis, tmp_path) as (first, second),
    ):
        task_id = accepted(first, 1, "import time; time.sleep(600)")
        wait_for(lambda: [1] in calls(project), seconds=WAIT_SECONDS)
        assert first.client.delete(f"{ROUTE}/{task_id}").json()["status"] == "canceled"
        wait_for(lambda: "was killed" in second.log, seconds=WAIT_SECONDS)
        assert ended(first, accepted(first, 2))["status"] == "succeeded"


def test_lost_message(project: Path, tmp_path: Path) -> None:
    """A task whose process died is begun again, though nobody has its message any more."""
    with running_redis(tmp_path) as redis:
        with (
            running(project, tmp_path / "log", **redis.env) as service,
            worker(service, project, tmp_path / "worker", **redis.env),
        ):
            (project / "hang").touch()
            task_id = accepted(service, 1, HANG)
            wait_for(lambda: [1] in calls(project), seconds=WAIT_SECONDS)
        redis.ask("del", "my-model-server:unacked", "my-model-server:unacked_index")
        with (
            running(project, tmp_path / "log", **redis.env) as service,
            worker(service, project, tmp_path / "worker", **redis.env),
        ):
            task = ended(service, task_id)
            assert (task["status"], task["attempts"]) == ("succeeded", 2)


@pytest.mark.parametrize("comes_again", [True, False])
def test_message_that_was_never_sent(project: Path, tmp_path: Path, *, comes_again: bool) -> None:
    """A service that ends between row and message loses nothing, whether the client asks again."""
    with (
        running_redis(tmp_path) as redis,
        running(project, tmp_path / "log", **redis.env) as service,
    ):
        task_id = accepted(service, 1, Idempotency_Key="mine")
        assert redis.ask("del", "my-model-server:my-model-server") == "1"
        with worker(service, project, tmp_path / "worker", **redis.env):
            if comes_again:
                assert accepted(service, 1, Idempotency_Key="mine") == task_id
            assert ended(service, task_id)["attempts"] == 1
            assert calls(project) == [[1]]


def test_told_once(project: Path, tmp_path: Path) -> None:
    """Of several services one delivers a webhook."""
    with receiver() as there, running_redis(tmp_path) as redis:
        env = {"WEBHOOK_URL": there.url, "WEBHOOK_SECRET": SECRET}
        with two_services(project, redis, tmp_path, **env) as (first, _):
            ids = {accepted(first, number) for number in range(10)}
            wait_for(lambda: len(there.messages) >= len(ids), seconds=WAIT_SECONDS)
            time.sleep(1.5)  # in which each service looks again
            assert sorted(ids) == sorted(told["headers"]["webhook-id"] for told in there.messages)


def test_ticket(project: Path, tmp_path: Path) -> None:
    """What workers ask needs what stands in their message, which no client is told."""
    with (
        running_redis(tmp_path) as redis,
        running(project, tmp_path / "log", **redis.env) as service,
    ):
        task_id = accepted(service, 1)
        assert "ticket" not in service.client.get(f"{ROUTE}/{task_id}").json()
        for headers in ({}, {"X-Task-Ticket": "x"}):
            asked = service.client.post(f"/tasks/{task_id}", headers=headers)
            assert asked.status_code == 404
        assert "/tasks/{task_id}" not in service.client.get("/openapi.json").json()["paths"]
        assert calls(project) == []


def test_what_keda_asks(project: Path, tmp_path: Path) -> None:
    """The two keys of keda-tasks.yaml tell of tasks that wait, and of tasks that run."""
    scaled = yaml.safe_load((project / "keda-tasks.yaml").read_text(encoding="utf-8"))
    waiting, taken = (each["metadata"]["listName"] for each in scaled["spec"]["triggers"])
    with (
        running_redis(tmp_path) as redis,
        running(project, tmp_path / "log", **redis.env) as service,
    ):
        (project / "hang").touch()
        ids = [accepted(service, number, HANG) for number in range(3)]
        assert (redis.ask("llen", waiting), redis.ask("hlen", taken)) == ("3", "0")
        env = redis.env | {"TASK_CONCURRENCY": "2"}
        with worker(service, project, tmp_path / "worker", **env):
            wait_for(lambda: redis.ask("hlen", taken) == "2", seconds=WAIT_SECONDS)
            assert redis.ask("llen", waiting) == "1"
            (project / "hang").unlink()
            assert {ended(service, task_id)["status"] for task_id in ids} == {"succeeded"}
            wait_for(lambda: redis.ask("hlen", taken) == "0", seconds=WAIT_SECONDS)


def test_bucket(project: Path, tmp_path: Path) -> None:
    """Requests and answers lie in a bucket where TASKS_DIR names one, and go with their tasks."""
    moto = tool("moto", "moto[server]>=5", "boto3")
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    aws = keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}

    def ask(script: str) -> str:
        command = [moto, "-c", script]
        return subprocess.check_output(command, env=os.environ | aws, text=True).strip()

    def answers() -> bool:
        try:
            return bool(httpx.get(aws["AWS_ENDPOINT_URL"]).status_code)
        except httpx.TransportError:
            return False

    log = (tmp_path / "moto").open("wb")
    command = [moto, "-m", "moto.server", "-p", str(port)]
    store = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(answers, seconds=WAIT_SECONDS)
        ask(BUCKET)
        with running_redis(tmp_path) as redis:
            env = redis.env | aws | {"TASKS_DIR": "s3://tasks/mine"}
            env |= {"RESULT_TTL_HOURS": "0.0015"}
            with (
                running(project, tmp_path / "log", **env) as service,
                worker(service, project, tmp_path / "worker", **env),
            ):
                large = f"#{'x' * 19_000_000}"
                task_id = accepted(service, 7, large)
                assert ended(service, task_id)["result"]["number"] == 7
                assert ask(COUNT) == "2"
                assert not files_of(tmp_path)
                wait_for(lambda: ask(COUNT) == "0", seconds=WAIT_SECONDS)
                assert service.client.get(f"{ROUTE}/{task_id}").status_code == 404
                store.kill()
                refused = submit(service, 8)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
                assert post(service, 9).status_code == 200
    finally:
        store.kill()
        store.wait()
        log.close()
