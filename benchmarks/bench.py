"""Runs the benchmarks: the subjects of one take turns, three times, each while the others stand."""

import argparse
import json
import signal
from contextlib import ExitStack
from statistics import median
from typing import Any

from peers import HOME
from processes import Server, load, offline, serving
from subjects import BENCHMARKS, Subject, common

CONNECTIONS = (1, 16, 64)
Sample = dict[str, Any]


def measure(subjects: list[Subject], seconds: float, repeats: int) -> list[Sample]:
    """Start every server, and give each its turn in every repeat."""
    samples: list[Sample] = []
    logs = HOME / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for number, subject in enumerate(subjects):
            if subject.request:
                log = logs / f"{number}.log"
                server = serving(subject.command_line(), subject.folder, common(), log)
                servers[subject.name] = stack.enter_context(server)
                servers[subject.name].wait_until(subject.request)
                servers[subject.name].signal(signal.SIGSTOP)
        for repeat in range(repeats):
            for subject in subjects:
                for sample in take(subject, servers.get(subject.name), seconds):
                    samples.append({"subject": subject.name, "repeat": repeat, **sample})
                print(".", end="", flush=True)
    print()
    return samples


def take(subject: Subject, server: Server | None, seconds: float) -> list[Sample]:
    """Measure one subject: once, or warmed up and at each number of connections."""
    if server is None or subject.request is None:
        env = common() | {"SECONDS": str(seconds)}
        return [offline(subject.command_line(), subject.folder, env)]
    server.signal(signal.SIGCONT)
    try:
        load(server, subject.request, max(CONNECTIONS), 1)
        return [load(server, subject.request, number, seconds) for number in CONNECTIONS]
    finally:
        server.signal(signal.SIGSTOP)


def show(samples: list[Sample]) -> None:
    """Print the medians."""
    for key in dict.fromkeys((s["subject"], s.get("connections")) for s in samples):
        of = [s for s in samples if (s["subject"], s.get("connections")) == key]
        figures = {
            name: median(s[name] for s in of)
            for name in ("rate", "cpu", "p50", "p99")
            if name in of[0]
        }
        print(
            f"{key[0]:30} {key[1] or '':>3}",
            *(f"{name} {value:9.2f}" for name, value in figures.items()),
        )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of benchmarks, separated by commas")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    names = [name for name in arguments.only.lower().split(",") if name]
    for benchmark in BENCHMARKS:
        if names and benchmark.name not in names:
            continue
        print(benchmark.title)
        samples = measure(benchmark.subjects(), arguments.seconds, arguments.repeats)
        (HOME / f"{benchmark.name}.json").write_text(
            json.dumps(samples, indent=1), encoding="utf-8"
        )
        show(samples)


if __name__ == "__main__":
    main()
