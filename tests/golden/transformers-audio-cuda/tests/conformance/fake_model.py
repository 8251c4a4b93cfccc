"""The service with a fake model, which does what a test says.

Most of a service's start is the import of FastAPI; so these services are forked, where that can
be, from a process that has it.
"""

import os
import runpy
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# A script, because the model's own process, where there is one, begins with it again.
SCRIPT = """
import sys
from pathlib import Path

sys.path[:0] = {paths!r}

from conformance import fake_model

main = fake_model.take_place(Path(__file__).parent, {answer!r})
if __name__ == "__main__":
    main.serve()
"""

context = get_context("spawn") if sys.platform == "win32" else get_context("forkserver")
context.set_forkserver_preload(["fastapi", "uvicorn", "numpy", "PIL.Image"])


def start(answer: str, folder: Path, env: dict[str, str]) -> BaseProcess:
    """Start one, whose folder has its log and the Python code that it runs.

    That is start.py before anything else, load.py when it is loaded, and predict.py in each call;
    then it answers with this JSON. A stream has three such parts, with predict.py before each.
    """
    text = SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests")], answer=answer)
    (folder / "service.py").write_text(text)
    process = context.Process(target=_serve, args=(folder, env))
    process.start()
    return process


def _serve(folder: Path, env: dict[str, str]) -> None:
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    runpy.run_path(str(folder / "service.py"), run_name="__main__")


def take_place(folder: Path, answer: str) -> Any:
    """Import the service, and put the fake model in place of the real one."""
    names: dict[str, Any] = {"folder": folder, "time": time}

    def run(name: str, **more: object) -> None:
        exec((folder / name).read_text(), names | more)  # noqa: S102 -- the tests' own

    run("start.py")
    names["main"] = main = import_module("main")

    class FakeModel:
        def __init__(self, device: str) -> None:
            with (folder / "devices").open("a") as devices:
                print(device, file=devices)
            run("load.py")

        def predict(self, inputs: list[object]) -> list[object]:
            run("predict.py", self=self)
            return [main.Output.model_validate_json(answer)] * len(inputs)

        def stream(self, _item: object) -> Iterator[object]:
            for part in range(3):
                run("predict.py", self=self, part=part)
                yield main.Output.model_validate_json(answer)

        def close(self) -> None:
            (folder / "closed").touch()

    main.__dict__["Model"] = FakeModel
    return main
