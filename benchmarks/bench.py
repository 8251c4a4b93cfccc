"""Runs the benchmarks: the subjects of one take turns, three times, each while the others stand.

A whole run writes docs/benchmarks.md; a part of it only prints its figures.
"""

import argparse
import json
import re
import signal
from contextlib import ExitStack

from overload import floods
from peers import HOME
from processes import Sample, Server, load, offline, serving
from report import core_share, machine, medians, write
from starts import starts
from subjects import BENCHMARKS, Benchmark, Subject, common
from variants import ROOT

QUIET = 0.95


def measure(
    benchmark: Benchmark, subjects: list[Subject], seconds: int, repeats: int
) -> list[Sample]:
    """Start every server, and give each its turn in every repeat."""
    samples: list[Sample] = []
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for number, subject in enumerate(subjects):
            if subject.request:
                log = HOME / "logs" / f"{benchmark.name}-{number}.log"
                started = serving(subject.command_line(), subject.folder, common(), log)
                server = servers[subject.name] = stack.enter_context(started)
                server.wait_until(subject.request)
                server.signal(signal.SIGSTOP)
        for repeat in range(repeats):
            for subject in subjects:
                samples += [
                    {"subject": subject.name, "repeat": repeat, **sample}
                    for sample in take(subject, servers.get(subject.name), benchmark, seconds)
                ]
            print(".", end="", flush=True)
    print()
    return samples


def take(
    subject: Subject, server: Server | None, benchmark: Benchmark, seconds: int
) -> list[Sample]:
    """Measure one subject: once, or warmed up and at each number of connections."""
    if server is None or subject.request is None:
        env = common() | {"SECONDS": str(seconds)}
        return [offline(subject.command_line(), subject.folder, env)]
    server.signal(signal.SIGCONT)
    try:
        load(server, subject.request, max(benchmark.connections), 1)
        return [
            load(server, subject.request, number, seconds * benchmark.stretch)
            for number in benchmark.connections
        ]
    finally:
        server.signal(signal.SIGSTOP)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="b1 to b5; several with commas")
    parser.add_argument("--subjects", default="", help="a pattern of the names of those to run")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    every = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    names = [name for name in arguments.only.lower().split(",") if name] or list(every)
    (HOME / "logs").mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Sample]] = {}
    for name in names:
        print(every[name].title, end=" ", flush=True)
        if every[name].connections:
            subjects = [
                subject
                for subject in every[name].subjects()
                if re.search(arguments.subjects, subject.name)
            ]
            turns = every[name].turns * arguments.repeats
            samples = measure(every[name], subjects, arguments.seconds, turns)
        elif name == "b5":
            samples = floods(every[name].subjects(), 2 * arguments.seconds, arguments.repeats)
        else:
            samples = starts(arguments.repeats)
        results[name] = samples
        file = HOME / f"{name}.json"
        file.write_text(json.dumps(samples, indent=1), encoding="utf-8")
        for (subject, connections), figures in medians(samples).items():
            values = "  ".join(f"{key} {value:9.2f}" for key, value in figures.items())
            print(f"  {subject:28} {connections or '':>3}  {values}")
    if core_share(results) < QUIET:
        print(f"Something else ran: the work alone had {core_share(results):.0%} of its core.")
    if len(results) == len(every) and not arguments.subjects:
        about = machine(arguments.seconds, arguments.repeats)
        titles = {name: every[name].title for name in names}
        write(results, about, titles, ROOT / "docs")


if __name__ == "__main__":
    main()
