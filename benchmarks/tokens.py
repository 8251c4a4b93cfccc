"""How fast tokens come out of a rendered service, and out of the server that llama.cpp has."""

import asyncio
import json
import subprocess
import sys

from benchmarks.chats import answers
from benchmarks.processes import HERE, LOAD_CORE, Sample, Server
from benchmarks.subjects import Benchmark, all_standing

CLIENTS = (1, 4, 16)
COMPARED = 4  # answers
LLAMA = "llama.cpp's server"


def tokens(benchmark: Benchmark, seconds: int, repeats: int) -> list[Sample]:
    """Have clients ask each server in turn, right after the other; who is first changes.

    The share is what a server reaches of llama.cpp's in the same turn.
    """
    samples: list[Sample] = []
    with all_standing(benchmark.name, benchmark.subjects()) as running:
        servers = {name: each for name, each in running.items() if isinstance(each, Server)}
        check_same(servers)
        for repeat in range(repeats):
            names = sorted(servers, reverse=bool(repeat % 2))
            for clients in CLIENTS:
                turn = {name: measure(servers[name], clients, seconds) for name in names}
                samples += [
                    {"subject": name, "repeat": repeat, "connections": clients}
                    | turn[name]
                    | {"share": turn[name]["rate"] / turn[LLAMA]["rate"]}
                    for name in servers
                ]
            print(".", end="", flush=True)
    print()
    return samples


def check_same(servers: dict[str, Server]) -> None:
    """Raise RuntimeError where the servers do not answer with the same texts."""
    texts = {}
    for name, server in servers.items():
        with server.going():
            texts[name] = asyncio.run(answers(server.url, COMPARED))
    if any(found != texts[LLAMA] for found in texts.values()):
        raise RuntimeError(f"The answers differ: {json.dumps(texts, indent=1)}")


def measure(server: Server, clients: int, seconds: int) -> Sample:
    """Return tokens per second, milliseconds to the first, and of the processor for each."""
    command = [
        *("taskset", "--cpu-list", str(LOAD_CORE), sys.executable, str(HERE / "chats.py")),
        *(server.url, "--clients", str(clients), "--seconds", str(seconds)),
    ]
    with server.going():
        used = server.cpu_seconds()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        used = server.cpu_seconds() - used
    if result.returncode:
        log = server.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{result.stderr} from {server.url}:\n{log}")
    figures: Sample = json.loads(result.stdout)
    return {"cpu": used / figures.pop("total") * 1e3, **figures}
