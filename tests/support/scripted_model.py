"""A live service whose model runs the script that comes with a request."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import httpx

from tests.support.live import Live, live, wait_for
from tests.support.rendering import render
from tests.support.updating import put_model, python

# Inputs of one call leave their numbers on one line of the file `calls`.
MODEL = '''"""Runs what a request says."""

import os
import time

from pydantic import BaseModel

from serving import Input

MODEL_NAME = os.getenv("MODEL_NAME", "scripted")


class Params(BaseModel):
    """The request's body."""

    number: int = 0
    orders: str = ""


class Output(BaseModel):
    """Who answered, and how many at once."""

    number: int
    pid: int
    together: int


EXAMPLE: dict[str, object] = {}


class Model:
    """Runs the script of each request."""

    def __init__(self, device: str) -> None:
        """Load, unless the file `unloadable` is there."""
        if os.path.exists("unloadable"):
            raise ValueError("no such weights")

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Run the script of each."""
        with open("calls", "a") as calls:
            print(*(item.params.number for item in inputs), file=calls)
        for item in inputs:
            exec(item.params.orders)
        return [
            Output(number=item.params.number, pid=os.getpid(), together=len(inputs))
            for item in inputs
        ]
'''
# The file is there as long as the call has to take.
HANG = "while os.path.exists('hang'): time.sleep(0.02)"
WAIT_SECONDS = 60


def make(folder: Path, **answers: Any) -> Path:
    """Render the service."""
    project = render(folder, {"model_type": "custom", "input_kind": "json"} | answers)
    put_model(project, MODEL)
    return project


def calls(project: Path) -> list[list[int]]:
    """Return the numbers of the inputs of each call so far."""
    record = project / "calls"
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return [[int(number) for number in line.split()] for line in lines]


@contextmanager
def running(project: Path, log: Path, **env: str) -> Iterator[Live]:
    """Run the service until it is ready, with no call made."""
    for name in ("calls", "hang", "unloadable"):
        (project / name).unlink(missing_ok=True)
    with live(project, python(), log, WARMUP="0", **env) as service:
        service.ready()
        yield service


def post(service: Live, number: int = 0, orders: str = "") -> httpx.Response:
    """Send one request."""
    return service.client.post("/infer", json={"number": number, "orders": orders})


def queue_behind(
    pool: ThreadPoolExecutor, service: Live, project: Path, requests: list[tuple[int, str]]
) -> list[Future[httpx.Response]]:
    """Send a request that hangs until the file `hang` is gone, then these, which have to wait."""
    (project / "hang").touch()
    before = len(calls(project))
    sent = [pool.submit(post, service, 0, HANG)]
    wait_for(
        lambda: len(calls(project)) > before, seconds=WAIT_SECONDS, complaint=lambda: service.log
    )
    for number, orders in requests:
        sent.append(pool.submit(post, service, number, orders))
        sleep(0.1)  # so that they queue in this order
    return sent
