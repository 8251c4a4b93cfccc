"""Forks one process for each run of a service's own tests; `suites.py` starts it.

It runs on the service's interpreter, and has imported what all such runs import. Each line that it
reads is a run: folder, arguments, environment, where its output goes, and which of its services
are forked as well: "none", "fake" ones, or "all". It prints the exit status, and the seconds that
the run and its processes spent on a processor.
"""

import gc
import json
import logging
import os
import runpy
import stat
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

for name in (
    *("fastapi", "fastapi_offline", "httptools", "httpx", "numpy", "PIL.ImageOps"),
    *("prometheus_client", "pydantic.v1", "pydantic_settings", "pythonjsonlogger.json"),
    *("threadpoolctl", "uvicorn", "uvloop", "torch", "transformers.pipelines"),
    *("celery.app.base", "kombu.transport.redis", "redis.asyncio"),
):
    with suppress(ImportError):
        import_module(name)


class Forking:
    """A plugin of pytest: services are forked from the run, so that they have its imports."""

    def __init__(self, forks: str) -> None:
        self.forks = forks

    def pytest_configure(self) -> None:
        """Have services started so, with a fake model, and with the real one."""
        plugin, fake_model = map(import_module, ("conformance.plugin", "conformance.fake_model"))
        vars(fake_model)["start"] = start_fake
        if self.forks == "all":
            plugin.Launcher.start = start


def start(launcher: Any, **env: str) -> Any:
    """Start the service as it is."""
    return launcher._run(partial(fork, "main.py"), launcher.folders("service"), env)  # noqa: SLF001


def start_fake(answer: str, folder: Path, env: dict[str, str]) -> BaseProcess:
    """Start the service with a fake model, which gives this answer."""
    (folder / "answer.json").write_text(answer)
    return fork("fake", folder, env | {"FAKE_MODEL_FOLDER": str(folder)})


def fork(what: str, folder: Path, env: dict[str, str]) -> BaseProcess:
    """Start a service of the working directory; its log is in the folder."""
    process = get_context("fork").Process(target=serve, args=(what, folder, env))
    process.start()
    return process


def serve(what: str, folder: Path, env: dict[str, str]) -> None:
    """Run the service as `python main.py` does, in a process with no trace of the tests."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    drop_sockets()
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    logging.getLogger().handlers.clear()
    own = str(Path.cwd())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(own):
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(env)
    if what == "fake":
        serve_fake(folder, env)
    else:
        sys.argv = [f"{own}/{what}"]
        runpy.run_path(sys.argv[0], run_name="__main__")


def serve_fake(folder: Path, env: dict[str, str]) -> None:
    """Run the service with a fake model; with isolation, that is forked from the service, too.

    So no framework is imported for a model that uses none. How the process starts for a model that
    is one is seen where the service's own tests start it.
    """
    fake_model = import_module("conformance.fake_model")
    run_code = fake_model.run

    def run_code_then_fork(name: str, **names: object) -> None:
        run_code(name, **names)
        if name == "start.py" and Path("serving/isolation.py").exists():
            vars(import_module("serving.isolation"))["context"] = ForksModel()

    vars(fake_model)["run"] = run_code_then_fork
    fake_model._serve(folder, env)  # noqa: SLF001


class ModelFork(ForkProcess):
    """The model's process, which gets no connection of the service but its own."""

    def run(self) -> None:
        """Answer the service."""
        drop_sockets(but=vars(self)["_args"][0].fileno())
        super().run()


class ForksModel(ForkContext):
    """Starts it."""

    Process = ModelFork


def drop_sockets(but: int = -1) -> None:
    """Let go of others' connections, but for one: here they would stay open when these leave.

    Their numbers stay taken, as objects that are here as well may close them some time.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for entry in Path("/dev/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            number = int(entry.name)
            if number != but and stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(nothing, number)


def run(folder: str, arguments: list[str], env: dict[str, str], output: str, forks: str) -> int:
    """Run pytest as `python -m pytest` in the folder does."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(output, os.O_WRONLY | os.O_APPEND)
    for number, replacement in enumerate((nothing, written, written)):
        os.dup2(replacement, number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.path.insert(0, folder)
    return pytest.main(arguments, plugins=[] if forks == "none" else [Forking(forks)])


gc.freeze()  # else each run's end looks through all of it, and has it copied
for line in sys.stdin:
    process = os.fork()
    if not process:
        sys.exit(run(**json.loads(line)))
    _, status, usage = os.wait4(process, 0)
    spent = usage.ru_utime + usage.ru_stime
    print(os.waitstatus_to_exitcode(status), f"{spent:.2f}", flush=True)
