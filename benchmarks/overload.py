"""What is left of a server's answers when ten times as many requests come as it can answer."""

import json
import subprocess
from statistics import mean

from benchmarks.peers import python_of
from benchmarks.processes import HERE, LOAD_CORE, Request, Sample, Server, load
from benchmarks.starts import memory
from benchmarks.subjects import Benchmark, all_standing

TIMES = 10


def floods(benchmark: Benchmark, seconds: int, repeats: int) -> list[Sample]:
    """Flood each server in turn; how much it can answer is measured just before and after."""
    samples: list[Sample] = []
    subjects = benchmark.subjects()
    with all_standing(benchmark.name, subjects) as running:
        for repeat in range(repeats):
            for subject in subjects:
                server = running[subject.name]
                assert isinstance(server, Server)
                assert subject.request
                with server.going():
                    figures = flood(server, subject.request, seconds)
                samples.append({"subject": subject.name, "repeat": repeat, **figures})
            print(".", end="", flush=True)
    print()
    return samples


def flood(server: Server, request: Request, seconds: int) -> Sample:
    """Return what comes back from a crowd that does not wait."""
    before = load(server, request, 64, seconds)["rate"]
    held = memory(server)
    body = server.log.with_suffix(".body")
    command = [
        *("taskset", "--cpu-list", str(LOAD_CORE), python_of("ours"), str(HERE / "flood.py")),
        *(server.url + request.path, "--body", str(body)),
        *("--content-type", request.content_type),
        *("--rate", str(TIMES * before), "--seconds", str(seconds)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: Sample = json.loads(result.stdout)
    grown = memory(server) - held
    after = load(server, request, 64, seconds)["rate"]
    return {"peak": mean([before, after]), **figures, "grown": grown}
