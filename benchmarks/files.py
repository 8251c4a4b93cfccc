"""What one large file costs a rendered service: time, and memory at its peak."""

import re
import subprocess
import time
from pathlib import Path

import httpx

from benchmarks.peers import HOME, python_of
from benchmarks.processes import Sample, Server, serving
from benchmarks.starts import wait_for_200
from benchmarks.subjects import WORK, common, service

REQUESTS = 3  # for each start; the first pays for what is loaded late
FILES = {"a picture of 20 MB": "image", "a recording of 30 s": "audio", "a clip of 10 s": "video"}


def files(repeats: int) -> list[Sample]:
    """Send each file to a service that has just started, a few times over."""
    samples: list[Sample] = []
    for name, kind in FILES.items():
        path = HOME / f"large.{kind}"
        command = [python_of("ours"), str(WORK / "large.py"), kind, str(path)]
        subprocess.run(command, check=True)
        folder = service(f"large-{kind}", model_type="custom", input_kind=kind, endpoint="infer")
        for repeat in range(repeats):
            cost = send(folder, path.read_bytes())
            samples.append({"subject": name, "repeat": repeat, **cost})
        print(".", end="", flush=True)
    print()
    return samples


def send(folder: Path, content: bytes) -> Sample:
    """Return the size of a file, the shortest time to its answer, and by how much memory grew."""
    command = [python_of("ours"), "main.py"]
    # A recording is longer than what a clip of its pixels may be, and so on: no limit is meant.
    env = common() | {"MAX_PIXELS": "1000000000"}
    with serving(command, folder, env, HOME / "logs" / "files.log") as server:
        wait_for_200(f"{server.url}/ready", server)
        with httpx.Client(base_url=server.url, timeout=120) as client:
            before = memory(server, "VmRSS")
            seconds = []
            for _ in range(REQUESTS):
                begin = time.perf_counter()
                client.post("/infer", files={"file": content}).raise_for_status()
                seconds.append(time.perf_counter() - begin)
        grown = memory(server, "VmHWM") - before
    return {"mb": len(content) / 1e6, "seconds": min(seconds), "grown": grown}


def memory(server: Server, line: str) -> float:
    """Return the MiB in a line of the status of a server's process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(re.findall(rf"{line}:\s+(\d+) kB", status)[0]) / 1024
