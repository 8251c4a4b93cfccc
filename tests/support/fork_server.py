"""Forks one process for each run of a service's own tests; `suites.py` starts it.

It runs on the service's interpreter, and has imported what all such runs import. Each line that it
reads is a run: folder, arguments, environment and where its output goes. It prints the exit status.
"""

import gc
import json
import os
import sys
from contextlib import suppress
from importlib import import_module

import pytest

for name in ("httpx", "numpy", "PIL.Image", "torch", "transformers.pipelines"):
    with suppress(ImportError):
        import_module(name)


def run(folder: str, arguments: list[str], env: dict[str, str], output: str) -> int:
    """Run pytest as `python -m pytest` in the folder does."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(output, os.O_WRONLY | os.O_APPEND)
    for number, replacement in enumerate((nothing, written, written)):
        os.dup2(replacement, number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.path.insert(0, folder)
    return pytest.main(arguments)


gc.freeze()  # else each run's end looks through all of it, and has it copied
for line in sys.stdin:
    process = os.fork()
    if not process:
        sys.exit(run(**json.loads(line)))
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
