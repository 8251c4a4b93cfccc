"""A service whose model takes as long as a request says."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.live import Live, live, wait_for
from tests.support.rendering import render
from tests.support.updating import change, python

PREDICT = '        """Return the next value of each series."""\n'
SLOW = """        for item in inputs:
            with open("calls", "a") as calls:
                print(item.params.values[0], file=calls)
            time.sleep(max(0.0, -item.params.values[0]))
"""


def slow_service(folder: Path, **answers: Any) -> Path:
    """Render a service whose model sleeps where the first value is negative, so many seconds.

    The file `calls` in its folder has the first value of each call that was run.
    """
    answers = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"} | answers
    render(folder, answers)
    change(folder / "inference.py", "import os\n", "import os\nimport time\n")
    change(folder / "inference.py", PREDICT, PREDICT + SLOW)
    return folder


@contextmanager
def started(folder: Path, log: Path, command: str = "", **env: str) -> Iterator[Live]:
    """Start the service, wait until it is ready, and forget earlier calls."""
    (folder / "calls").unlink(missing_ok=True)
    with live(folder, command or python(), log, **env) as service:
        service.ready()
        yield service


def document(seconds: float = 0.0) -> dict[str, list[float]]:
    """Return a request that the model needs so long for; its first value tells it from others."""
    return {"values": [-seconds, 0.0, 0.0, 0.0]}


def ask(url: str, seconds: float = 0.0, **options: Any) -> httpx.Response:
    """Send one request on a connection of its own."""
    return httpx.post(f"{url}/infer", json=document(seconds), timeout=30, **options)


def calls(folder: Path) -> list[float]:
    """Return the first value of each call that was run; the warm-up is the first."""
    file = folder / "calls"
    return [float(line) for line in file.read_text().split()] if file.exists() else []


def fill(folder: Path, service: Live, pool: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Send one request that the model works on for a while, and one that fills the queue."""
    first = pool.submit(ask, service.url, 2.0)
    wait_for(lambda: -2.0 in calls(folder), seconds=30)
    second = pool.submit(ask, service.url, 0.1)
    wait_for(lambda: service.client.get("/ready").status_code == 503, seconds=30)
    return [first, second]
