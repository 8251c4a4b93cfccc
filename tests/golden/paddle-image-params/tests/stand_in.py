"""The service with a stand-in for its model, which does what a test says.

Most of a service's start is the import of FastAPI; so stand-ins are forked, where that can be, from
a process that has it.
"""

import os
import sys
import time
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

context = get_context("spawn") if sys.platform == "win32" else get_context("forkserver")
context.set_forkserver_preload(["fastapi", "uvicorn", "numpy", "PIL.Image"])


def start(answer: str, folder: Path, env: dict[str, str]) -> BaseProcess:
    """Start one, whose folder has its log and the Python code that it runs.

    That is start.py before anything else, load.py when it is loaded, and predict.py in each call;
    then it answers with this JSON.
    """
    process = context.Process(target=_serve, args=(answer, folder, env))
    process.start()
    return process


def _serve(answer: str, folder: Path, env: dict[str, str]) -> None:
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    names: dict[str, Any] = {"folder": folder, "time": time}

    def run(name: str, **more: object) -> None:
        exec((folder / name).read_text(), names | more)  # noqa: S102 -- the tests' own

    run("start.py")
    sys.path.insert(0, str(ROOT))
    main: Any = import_module("main")
    names["main"] = main

    class StandIn:
        def __init__(self, device: str) -> None:
            with (folder / "devices").open("a") as devices:
                print(device, file=devices)
            run("load.py")

        def predict(self, inputs: list[object]) -> list[object]:
            run("predict.py", self=self)
            return [main.Output.model_validate_json(answer)] * len(inputs)

        def close(self) -> None:
            (folder / "closed").touch()

    main.Model = StandIn
    main.serve()
