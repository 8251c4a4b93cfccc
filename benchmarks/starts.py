"""What a start costs: rendering, the time to each kind of answer, memory, and packages."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from benchmarks.peers import HOME, sizes
from benchmarks.processes import START_SECONDS, Sample, Server, serving
from benchmarks.subjects import Subject, b1, common
from tests.support.rendering import template_folder

PAUSE = 0.005
REQUESTS = 50


def starts(repeats: int) -> list[Sample]:
    """Start each of B1's frameworks in turn; the first start of each is not counted."""
    subjects = [x for x in b1() if not x.name.startswith("bare") and not x.env]
    process = Subject("the model alone", "ours", ["python", "process.py"])
    packages = sizes()
    samples = []
    for repeat in range(-1, repeats):
        for subject in (*subjects, process):
            sample = start(subject)
            if subject.name in packages:
                sample["packages"] = packages[subject.name]
            if subject.name == "this template":
                sample["render"] = render_seconds()
            if repeat >= 0:
                samples.append({"subject": subject.name, "repeat": repeat, **sample})
        print(".", end="", flush=True)
    print()
    return samples


def start(subject: Subject) -> Sample:
    """Start one, and take the time of its first answers and its memory after some requests."""
    log = HOME / "logs" / "start.log"
    begin = time.perf_counter()
    with serving(subject.command_line(), subject.folder, common(), log) as server:
        if subject.request is None:
            while not log.read_bytes():
                time.sleep(PAUSE)
            return {"memory": memory(server)}
        sample: Sample = {}
        for name, path in (("health", subject.health), ("ready", subject.ready)):
            wait_for_200(server.url + path, server)
            sample[name] = time.perf_counter() - begin
        server.wait_until(subject.request)
        sample["answer"] = time.perf_counter() - begin
        for _ in range(REQUESTS):
            server.wait_until(subject.request)
        return {**sample, "memory": memory(server)}


def wait_for_200(url: str, server: Server) -> None:
    """Ask again and again until the answer is 200."""
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(timeout=5) as client:
        while time.monotonic() < deadline and server.process.poll() is None:
            with suppress(httpx.TransportError):
                if client.get(url).status_code == 200:
                    return
            time.sleep(PAUSE)
    raise RuntimeError(f"No 200 from {url}:\n{server.log.read_text(errors='replace')}")


def memory(server: Server) -> float:
    """Return the MiB that a server's processes take up; pages that they share count once."""
    lines = [
        line
        for pid in server.members()
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    ]
    return sum(int(line.split()[1]) for line in lines) / 1024


def render_seconds() -> float:
    """Return how long `copier copy` takes, Python's start included."""
    copier = str(Path(sys.executable).with_name("copier"))
    template = str(template_folder())
    with TemporaryDirectory() as folder:
        begin = time.perf_counter()
        command = [copier, "copy", "--quiet", "--defaults", template, folder]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin
