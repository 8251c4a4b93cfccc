"""The service with a fake model, which does what a test says.

Most of a service's start is the import of FastAPI; so these services are forked, where that can
be, from a process that has it.
"""

import importlib
import json
import os
import runpy
import sys
import time
from collections.abc import Iterator
from functools import cache
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydantic import BaseModel, RootModel, create_model

ROOT = Path(__file__).parents[2]
FOLDER = "FAKE_MODEL_FOLDER"  # the variable that says where the model finds what to do
# Where this variable is set, Params and Output have one field more, and an answer has the number of
# its request: so a test sees whose answer it got.
NUMBERED, NUMBER = "FAKE_MODEL_NUMBERED", "request_number"
# Where this variable is set, it has the module that is run instead of main.py, and its arguments.
COMMAND = "FAKE_MODEL_COMMAND"

context = get_context("spawn") if sys.platform == "win32" else get_context("forkserver")
context.set_forkserver_preload(
    [
        *("fastapi", "fastapi_offline", "httptools", "numpy", "PIL.ImageOps", "prometheus_client"),
        *("pydantic.v1", "pydantic_settings", "pythonjsonlogger.json", "threadpoolctl"),
        *("uvicorn", "uvloop"),
        *(["celery.app.base", "redis.asyncio"] * (ROOT / "serving/tasks/worker.py").exists()),
    ]
)


class FakeModel:
    """Runs the Python code that lies in its folder, then answers with the JSON that lies there."""

    def __init__(self, device: str) -> None:
        """Run load.py."""
        with (folder() / "devices").open("a") as devices:
            print(device, file=devices)
        run("load.py")

    def predict(self, inputs: list[object]) -> list[object]:
        """Run predict.py, and answer."""
        run("predict.py", inputs=inputs)
        return [answer(item) for item in inputs]

    def stream(self, item: object) -> Iterator[object]:
        """Answer in three parts, with predict.py before each."""
        for part in range(3):
            run("predict.py", part=part, inputs=[item])
            yield answer(item)

    def chat(self, messages: list[object]) -> Iterator[str]:
        """Say three words, with predict.py before each; only OpenAI's API asks for it."""
        for part in range(3):
            run("predict.py", part=part, inputs=messages)
            yield f"word{part} "

    def speak(self, text: str) -> object:
        """Return a file; only OpenAI's API asks for it, and for the next."""
        run("predict.py", inputs=[text])
        return make_file(b"sound", "audio/wav")

    def draw(self, prompt: str) -> object:
        """Return another."""
        run("predict.py", inputs=[prompt])
        return make_file(b"picture", "image/png")

    def close(self) -> None:
        """Leave a trace."""
        (folder() / "closed").touch()


def folder() -> Path:
    """Return the folder of the service, with its log and the code."""
    return Path(os.environ[FOLDER])


def run(name: str, **names: object) -> None:
    """Run a file of the folder."""
    known = {"folder": folder(), "time": time} | names
    exec((folder() / name).read_text(), known)  # noqa: S102 -- the tests' own


def make_file(data: bytes, content_type: str) -> Any:
    """Return an answer that is a file."""
    return importlib.import_module("serving").File(data=data, content_type=content_type)


def answer(item: Any) -> Any:
    """Return the output that the test has given as JSON, with the number of the input's request."""
    output = importlib.import_module("inference").Output
    text = (folder() / "answer.json").read_text()
    if number := getattr(getattr(item, "params", None), NUMBER, None):
        output, text = numbered(output), json.dumps(json.loads(text) | {NUMBER: number})
    return output.model_validate_json(text)


@cache
def numbered(model: type[BaseModel]) -> type[BaseModel]:
    """Return the model with a number; a bare list has no place for one."""
    if issubclass(model, RootModel):
        return model
    number: Any = {NUMBER: (int, 0)}
    return create_model(model.__name__, __base__=model, __module__=model.__module__, **number)


def start(answer: str, folder: Path, env: dict[str, str]) -> BaseProcess:
    """Start a service with this answer, whose folder has start.py, load.py and predict.py."""
    (folder / "answer.json").write_text(answer)
    process = context.Process(target=_serve, args=(folder, env | {FOLDER: str(folder)}))
    process.start()
    return process


def _serve(folder: Path, env: dict[str, str]) -> None:
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    run("start.py")
    inference = vars(importlib.import_module("inference"))
    inference["Model"] = FakeModel
    if NUMBERED in env:
        inference.update({name: numbered(inference[name]) for name in ("Params", "Output")})
    if command := env.get(COMMAND):
        module, *sys.argv[1:] = command.splitlines()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
