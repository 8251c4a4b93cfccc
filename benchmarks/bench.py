"""Runs the benchmarks: the subjects of one take turns, three times, each while the others stand.

Each writes its section of docs/reference/benchmarks.md, where all of its subjects were measured.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from statistics import mean

from benchmarks.files import files
from benchmarks.later import later
from benchmarks.overload import floods
from benchmarks.peers import HOME
from benchmarks.processes import Loop, Sample, Server, load
from benchmarks.report import core_share, machine, medians, write
from benchmarks.starts import starts
from benchmarks.subjects import BENCHMARKS, Benchmark, Subject, all_standing
from benchmarks.tokens import tokens
from tests.support.variants import ROOT

QUIET = 0.95
LIMIT_SECONDS = 1


def measure(
    benchmark: Benchmark, subjects: list[Subject], seconds: int, repeats: int
) -> list[Sample]:
    """Start every server and every loop, and give each its turn in every repeat."""
    samples: list[Sample] = []
    with all_standing(benchmark.name, subjects) as running:
        limit = running.get(benchmark.limit)
        for repeat in range(repeats):
            for subject in subjects:
                turn = take(subject, running[subject.name], benchmark, seconds)
                samples += [
                    {"subject": subject.name, "repeat": repeat, **sample}
                    for sample in beside(limit if isinstance(limit, Loop) else None, turn)
                ]
            print(".", end="", flush=True)
    print()
    return samples


def take(
    subject: Subject, running: Server | Loop, benchmark: Benchmark, seconds: int
) -> Iterator[Sample]:
    """Measure one subject: a loop once, a server warmed up and at each number of connections."""
    if isinstance(running, Loop):
        yield running.run(seconds)
        return
    assert subject.request
    with running.going():
        load(running, subject.request, max(benchmark.connections), 1)
    for number in benchmark.connections:
        with running.going():
            sample = load(running, subject.request, number, seconds * benchmark.stretch)
        yield sample


def beside(limit: Loop | None, turn: Iterable[Sample]) -> Iterator[Sample]:
    """Measure the limit before and after each sample, and add how much of it that reaches."""
    if limit is None:
        yield from turn
        return
    before = limit.run(LIMIT_SECONDS)["rate"]
    for sample in turn:
        after = limit.run(LIMIT_SECONDS)["rate"]
        yield sample | {"share": sample["rate"] / mean([before, after])}
        before = after


def take_turns(benchmark: Benchmark, pattern: str, seconds: int, repeats: int) -> list[Sample]:
    """Measure one benchmark, of whose subjects those count whose names have the pattern."""
    turns = benchmark.turns * repeats
    match benchmark.name:
        case "b4":
            return starts(repeats)
        case "b5":
            return floods(benchmark, 2 * seconds, repeats)
        case "b7":
            return files(repeats)
        case "b8":
            return tokens(benchmark, benchmark.stretch * seconds, turns)
        case "b10":
            return later(repeats)
    subjects = [each for each in benchmark.subjects() if re.search(pattern, each.name)]
    return measure(benchmark, subjects, seconds, turns)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="b1 to b10; several with commas")
    parser.add_argument("--subjects", default="", help="a pattern of the names of those to run")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    every = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    names = [name for name in arguments.only.lower().split(",") if name] or list(every)
    if unknown := set(names) - set(every):
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    (HOME / "logs").mkdir(parents=True, exist_ok=True)
    command = " ".join(
        [
            "make bench",
            *([f"ONLY={arguments.only}"] if arguments.only else []),
            f"SECONDS={arguments.seconds} REPEATS={arguments.repeats}",
        ]
    )
    for name in names:
        print(every[name].title, end=" ", flush=True)
        samples = take_turns(every[name], arguments.subjects, arguments.seconds, arguments.repeats)
        file = HOME / f"{name}.json"
        file.write_text(json.dumps(samples, indent=1), encoding="utf-8")
        for (subject, connections), figures in medians(samples).items():
            values = "  ".join(f"{key} {value:9.2f}" for key, value in figures.items())
            print(f"  {subject:28} {connections or '':>3}  {values}")
        if core_share(samples) < QUIET:
            print(f"Something else ran: the work alone had {core_share(samples):.0%} of its core.")
        if not arguments.subjects:
            titles = {each.name: each.title for each in BENCHMARKS}
            write(name, samples, titles, machine(name, command), ROOT / "docs" / "reference")


if __name__ == "__main__":
    main()
