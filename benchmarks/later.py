"""How many tasks a second are accepted and answered, and what that costs beside a request.

As a program it is the generator: `python -m benchmarks.later URL ours`.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx

from benchmarks.peers import HOME, python_of
from benchmarks.processes import LOAD_CORE, Sample, Server, load, serving
from benchmarks.starts import wait_for_200
from benchmarks.subjects import NUMBERS, SERVERS, bento, common, post, service
from tests.support.variants import ROOT

CLIENTS = 16
TASKS = 480
PAUSE = 0.02  # between two looks at a task that has not ended
SECONDS = 3  # of requests that wait for their answers


class Protocol(NamedTuple):
    """How a server is told of a task, and asked what has become of it."""

    submit: str
    look: str
    running: tuple[str, ...]
    succeeded: str
    key: str


PROTOCOLS = {
    "ours": Protocol("/infer/tasks", "/infer/tasks/{}", ("queued", "running"), "succeeded", "id"),
    "bentoml": Protocol(
        "/infer/submit", "/infer/status?task_id={}", ("in_progress",), "completed", "task_id"
    ),
}


def later(repeats: int) -> list[Sample]:
    """Give each server its turn in every repeat: tasks first, then requests."""
    samples: list[Sample] = []
    for repeat in range(repeats):
        for name in ("this template, local", "this template, celery", "BentoML's tasks"):
            with TemporaryDirectory(dir=HOME) as folder, running(name, Path(folder)) as server:
                protocol = "bentoml" if name.startswith("BentoML") else "ours"
                generate(server, protocol)  # the first ones pay for what is imported late
                used = server.cpu_seconds()
                sample = generate(server, protocol)
                sample["cpu"] = (server.cpu_seconds() - used) / TASKS * 1e3
            samples.append({"subject": name, "repeat": repeat, **sample, "sync": direct(name)})
        print(".", end="", flush=True)
    print()
    return samples


@cache
def project(engine: str) -> Path:
    """Return a rendered service with the model of B1."""
    answers = {"input_kind": "json", "endpoint": "infer", "features": []}
    return service(f"later-{engine}", model="noop", predictions=engine, **answers)


@contextmanager
def running(name: str, folder: Path) -> Iterator[Server]:
    """Run a server with all that its tasks need, on one core."""
    log = HOME / "logs" / "later.log"
    with ExitStack() as held:
        env = dict(common())
        if name.startswith("BentoML"):
            subject = bento(name, "Later", post({"values": NUMBERS}, values=NUMBERS))
            started = serving(subject.command_line(), SERVERS, env, log)
            server = held.enter_context(started)
            wait_for_200(server.url + subject.ready, server)
        else:
            engine = name.rpartition(" ")[2]
            env |= {"TASKS_DIR": str(folder / "tasks"), "TASK_CONCURRENCY": str(CLIENTS)}
            if engine == "celery":
                command = [shutil.which("redis-server") or "redis-server", "--port", "{port}"]
                command += ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always"]
                redis = held.enter_context(serving(command, folder, env, folder / "redis.log"))
                env["REDIS_URL"] = f"redis{redis.url.removeprefix('http')}/0"
            python = python_of("ours")
            own = project(engine)
            server = held.enter_context(serving([python, "main.py"], own, env, log))
            wait_for_200(f"{server.url}/ready", server)
            if engine == "celery":
                env["SERVICE_URL"] = server.url
                command = [python, "-m", "serving.tasks.worker"]
                held.enter_context(serving(command, own, env, folder / "worker.log"))
            # When one has been done, all that it takes is there.
            first = httpx.post(f"{server.url}/infer/tasks", json={"values": NUMBERS})
            location = first.headers["location"]
            httpx.get(f"{server.url}{location}?wait=30", timeout=60).raise_for_status()
        yield server


def direct(name: str) -> float:
    """Return the requests a second that the same service answers while its clients wait."""
    request = post({"values": NUMBERS}, values=NUMBERS)
    log = HOME / "logs" / "later-direct.log"
    with TemporaryDirectory(dir=HOME) as folder:
        if name.startswith("BentoML"):
            subject = bento(name, "Noop", request)
            with serving(subject.command_line(), SERVERS, common(), log) as server:
                wait_for_200(server.url + subject.ready, server)
                return float(load(server, request, CLIENTS, SECONDS)["rate"])
        with running(name, Path(folder)) as server:
            return float(load(server, request, CLIENTS, SECONDS)["rate"])


def generate(server: Server, protocol: str) -> Sample:
    """Send tasks from the other core, and look at each until it has ended."""
    command = ["taskset", "--cpu-list", str(LOAD_CORE), sys.executable, "-m", "benchmarks.later"]
    command += [server.url, protocol]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        log = server.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{result.stderr} from {server.url}:\n{log}")
    figures: Sample = json.loads(result.stdout)
    return figures


async def ask(url: str, protocol: Protocol) -> Mapping[str, float]:
    """Send all tasks, from several clients at once, and wait for their ends."""
    accepted: list[float] = []

    async def be_client(client: httpx.AsyncClient) -> None:
        ids = []
        for _ in range(TASKS // CLIENTS):
            began = time.perf_counter()
            response = await client.post(protocol.submit, json={"values": NUMBERS})
            ids.append(response.raise_for_status().json()[protocol.key])
            accepted.append(time.perf_counter() - began)
        for task_id in ids:
            status = await look(client, task_id)
            while status in protocol.running:
                await asyncio.sleep(PAUSE)
                status = await look(client, task_id)
            if status != protocol.succeeded:
                raise RuntimeError(f"A task is {status}")

    async def look(client: httpx.AsyncClient, task_id: str) -> Any:
        response = await client.get(protocol.look.format(task_id))
        return response.raise_for_status().json()["status"]

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        began = time.perf_counter()
        await asyncio.gather(*(be_client(client) for _ in range(CLIENTS)))
        seconds = time.perf_counter() - began
    accepted.sort()
    return {"rate": TASKS / seconds, "p50": accepted[TASKS // 2] * 1e3, "p99": accepted[-5] * 1e3}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("protocol", choices=PROTOCOLS)
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(ask(arguments.url, PROTOCOLS[arguments.protocol]))))
