"""Runs services' own tests."""

import json
import os
import subprocess
from atexit import register
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal

from tests.support.environments import uv

Forks = Literal["none", "fake", "all"]
SERVER = Path(__file__).with_name("fork_server.py")
processor_seconds: list[float] = []  # of each run, none of which is a process of this one


@cache
def fork_server(python: str) -> subprocess.Popen[str]:
    """Start the process that this interpreter's runs are forked from, once."""
    # By -c: a file would be run again in each process that multiprocessing starts in a run. -P:
    # what lies in this folder is not what the services import.
    command = [python, "-P", "-c", SERVER.read_text(encoding="utf-8")]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    register(server.kill)
    return server


def run_suite(
    python: str, project: Path, *arguments: str, forks: Forks = "none", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a service's own tests, or some of them, and return what they print.

    It is what `python -m pytest` does in the project, in a process that has pytest already. `forks`
    says which services are started from it, too, with the frameworks that it has imported.
    """
    options = ["-q", "-p", "no:cacheprovider", *arguments]
    server = fork_server(python)
    assert server.stdin
    assert server.stdout
    with NamedTemporaryFile(prefix="suite-") as output:
        task = {
            "folder": str(project),
            "arguments": options,
            "env": os.environ | {"UV": uv()} | env,  # as `uv run` has it
            "output": output.name,
            "forks": forks,
        }
        try:
            print(json.dumps(task), file=server.stdin, flush=True)
            status, spent = server.stdout.readline().split()
        except BaseException:  # its answer would be taken for the next one's
            server.kill()
            fork_server.cache_clear()
            raise
        printed = Path(output.name).read_text(encoding="utf-8", errors="replace")
    processor_seconds.append(float(spent))
    return subprocess.CompletedProcess(options, int(status), printed, "")
