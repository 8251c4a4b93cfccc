"""Runs the benchmarks side by side: every subject once per repeat, in turn, three times."""

import argparse
import json
import signal
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from peers import HOME
from processes import Server, load, offline, serving
from subjects import BENCHMARKS, Subject, common

CONNECTIONS = (1, 16, 64)
Sample = dict[str, Any]


def measure(subjects: list[Subject], seconds: float, repeats: int) -> list[Sample]:
    """Take turns: each subject gets its share of each repeat, while the others are stopped."""
    samples: list[Sample] = []
    logs = HOME / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for number, subject in enumerate(subjects):
            if subject.request:
                log = logs / f"{number}.log"
                server = stack.enter_context(
                    serving(
                        subject.command_line(), subject.folder, common() | dict(subject.env), log
                    )
                )
                server.wait_until(subject.request)
                server.signal(signal.SIGSTOP)
                servers[subject.name] = server
        for repeat in range(repeats):
            for subject in subjects:
                for sample in take(subject, servers.get(subject.name), seconds):
                    samples.append({"subject": subject.name, "repeat": repeat, **sample})
                    print(json.dumps(samples[-1]), flush=True)
    return samples


def take(subject: Subject, server: Server | None, seconds: float) -> list[Sample]:
    """Measure one subject at each number of connections, warmed up."""
    if server is None or subject.request is None:
        env = common() | dict(subject.env) | {"SECONDS": str(seconds)}
        return [offline(subject.command_line(), subject.folder, env)]
    server.signal(signal.SIGCONT)
    try:
        server.wait_until(subject.request)
        load(server, subject.request, 16, 1)
        return [load(server, subject.request, number, seconds) for number in CONNECTIONS]
    finally:
        server.signal(signal.SIGSTOP)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of benchmarks, separated by commas")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    names = [name for name in arguments.only.lower().split(",") if name] or list(BENCHMARKS)
    for name in names:
        subjects = BENCHMARKS[name]()
        samples = measure(subjects, arguments.seconds, arguments.repeats)
        Path(HOME / f"{name}.json").write_text(json.dumps(samples, indent=1), encoding="utf-8")
        for subject in subjects:
            for connections in (None, *CONNECTIONS):
                of = [
                    s
                    for s in samples
                    if s["subject"] == subject.name and s.get("connections") == connections
                ]
                if of:
                    print(
                        name,
                        subject.name,
                        connections or "",
                        *(
                            f"{key} {median(s[key] for s in of):.2f}"
                            for key in ("rate", "cpu", "p50", "p99")
                            if key in of[0]
                        ),
                    )


if __name__ == "__main__":
    main()
