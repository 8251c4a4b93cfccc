"""Answers what lies in files, without a server: `python -m serving.batch INPUT OUTPUT`.

INPUT is a file of JSON lines, each of which is a request, or a folder, each file of which is one.
OUTPUT is a file of JSON lines: the answer to each, or the status and the error that a client would
get. For answers that are files it may be a folder. What stands there is done: whatever has ended a
run, the same command goes on with the rest.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from base64 import b64decode
from collections import deque
from functools import partial
from mimetypes import guess_extension
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json
from tqdm import tqdm

from main import service
from serving.batch_files import (
    OK,
    SERVER_ERROR,
    FolderInput,
    Line,
    LinesInput,
    LinesOutput,
    Locked,
    Name,
    Unusable,
    write_file,
)
from serving.errors import Busy, NotReady, TooLarge, describe
from serving.limits import MAX_UPLOAD_BYTES
from serving.requests import ParsedRequest, essence
from serving.runner import Job, request_id
from serving.service import encode, encode_strictly
from serving.settings import settings

SUFFIXES = (".jsonl", ".ndjson")  # of JSON lines
# A batch that the model works on, and the next one. More would wait for nothing, and be timed out.
AT_ONCE = min(2 * settings.max_batch_size, settings.max_queue_size)
POLL_SECONDS = 0.05
REPORT_SECONDS = 10  # where no terminal shows a bar
MAX_REPORTED = 10  # bad inputs that the log names; OUTPUT has all
# Exit statuses, beside 0 where all is answered, 2 for wrong usage, and 128 + n for a signal.
UNFINISHED, SOME_BAD = 1, 3

logger = logging.getLogger("batch")


class Batch:
    """One run over all inputs."""

    def __init__(
        self, inputs: LinesInput | FolderInput, output: LinesOutput, folder: Path | None
    ) -> None:
        """Take what to read and to write; answers that are files go into the folder, if any."""
        self.inputs = inputs
        self.output = output
        self.folder = folder
        self.signal = 0  # that ends the run
        self.bad: list[str] = []  # the first inputs that are
        self.reported = time.monotonic()

    async def run(self) -> int:
        """Answer what is left, and return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, number)
        service.worker.start()
        try:
            await asyncio.wrap_future(service.worker.loaded)
        except Exception:  # noqa: BLE001 -- it is in the log
            return UNFINISHED
        await self.answer_all()
        service.worker.stop()
        return self.summarize()

    def stop(self, number: int) -> None:
        """End when what has begun is written; at once on a second signal, and before the load."""
        if self.signal or not service.worker.is_loaded:
            os._exit(128 + number)
        self.signal = number

    async def answer_all(self) -> None:
        """Answer what is left, in its order, until that is done, or a signal comes."""
        begun: deque[asyncio.Task[Line | None]] = deque()
        done = len(self.output.done)
        with tqdm(total=self.inputs.total, initial=done, unit=" inputs", disable=None) as bar:
            for name, content in self.inputs:
                if name in self.output.done:
                    continue
                while len(begun) >= AT_ONCE:
                    self.write(await begun.popleft(), bar)
                # While a call hangs, or the model is loaded again, others would be timed out.
                while not (is_ready() or self.signal):  # noqa: ASYNC110 -- nothing tells when
                    await asyncio.sleep(POLL_SECONDS)
                if self.signal:
                    break
                begun.append(asyncio.create_task(self.answer(name, content)))
                await asyncio.sleep(0)  # it reads its input now
            while begun:
                self.write(await begun.popleft(), bar)
        self.output.sync()

    async def answer(self, name: Name, content: bytes | Path) -> Line | None:
        """Return the line for an input; none where the run ends before its turn."""
        request_id.set(str(name))
        try:
            parsed = parse(content)
            return Line(name, OK, await self.ask(name, parsed))
        except NotReady:
            return None
        except Exception as error:  # noqa: BLE001 -- each has its status
            status, body = describe(error, {"method": "input", "path": str(name)})
            if len(self.bad) < MAX_REPORTED:
                self.bad.append(f"Input {name}: {status}, {body['detail']}")
            return Line(name, status, to_json({"input": name, "status": status, **body}))

    async def ask(self, name: Name, parsed: ParsedRequest[Any]) -> bytes:
        """Return what the line says of a request that the model has answered."""
        job = Job(parsed.decode, partial(encode_strictly, encode))
        answer = await service.worker.run(job, never)
        if self.folder:
            answer = store_files(answer, self.folder, name)
        return b'{"input":%b,"output":%b}' % (to_json(name), answer)

    def write(self, line: Line | None, bar: Any) -> None:
        """Write a line, and show how far the run has come."""
        if not line:
            return
        self.output.add(line)
        bar.update()
        if bar.disable and time.monotonic() - self.reported > REPORT_SECONDS:
            self.reported = time.monotonic()
            logger.info("%d of %d inputs are done", len(self.output.done), self.inputs.total)

    def summarize(self) -> int:
        """Tell how the run has ended, and return its exit status."""
        done, total, statuses = len(self.output.done), self.inputs.total, self.output.statuses
        failed = sum(count for status, count in statuses.items() if status >= SERVER_ERROR)
        bad = done - statuses[OK] - failed
        for text in self.bad:
            logger.warning("%s", text)
        counts = total, statuses[OK], bad, failed, total - done
        logger.info("Of %d inputs %d are answered, %d bad, %d failed, %d left", *counts)
        if self.signal and done < total and not service.worker.failed:
            return 128 + self.signal
        if failed or done < total:
            return UNFINISHED
        return SOME_BAD if bad else 0


def parse(content: bytes | Path) -> ParsedRequest[Any]:
    """Return the request that an input makes. Raises what a client would get."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    if size > MAX_UPLOAD_BYTES:
        raise TooLarge
    return service.parse.check(content.read_bytes() if isinstance(content, Path) else content)


def is_ready() -> bool:
    """Tell whether a request would be served now."""
    try:
        service.worker.check()
    except (NotReady, Busy):
        return False
    return True


async def never() -> bool:
    """Tell whether the client has left: there is none."""
    return False


def store_files(answer: bytes, folder: Path, name: Name) -> bytes:
    """Write the files of an answer; return it with their paths in the folder for their contents."""
    document = from_json(answer)
    path = f"{name}{suffix_of(document)}"
    write_file(folder / path, iter([b64decode(document["data"])]))
    document["data"] = path
    return to_json(document)


def suffix_of(file: dict[str, Any]) -> str:
    """Return the suffix that tells a file's type."""
    return guess_extension(essence(file["content_type"])) or ".bin"


def open_batch(source: Path, target: Path) -> Batch:
    """Return the run that a command asks for. Raises Unusable and Locked."""
    if source.is_dir():
        inputs: LinesInput | FolderInput = FolderInput(source)
    elif source.is_file() and source.suffix in SUFFIXES:
        inputs = LinesInput(source)
    else:
        raise Unusable(f"{source} is no folder, and no file of JSON lines, such as NAME.jsonl.")
    if not inputs.total:
        raise Unusable(f"{source} holds nothing to answer.")
    if target.resolve().is_relative_to(source.resolve()):
        raise Unusable(f"{target} would be an input itself: name one outside of {source}.")
    job = {"input": inputs.digest, "model": service.runner.name}
    if target.suffix in SUFFIXES:
        return Batch(inputs, LinesOutput(target, job), None)
    if not service.is_file:
        raise Unusable(f"{target} has to end with .jsonl: answers of this model are no files.")
    return Batch(inputs, LinesOutput(target / "answers.jsonl", job), target)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("python -m serving.batch", description=__doc__)
    parser.add_argument("input", metavar="INPUT", type=Path)
    parser.add_argument("output", metavar="OUTPUT", type=Path)
    arguments = parser.parse_args()
    try:
        batch = open_batch(arguments.input, arguments.output)
    except Locked as error:
        sys.exit(str(error))
    except (OSError, Unusable) as error:
        parser.error(str(error))
    status = asyncio.run(batch.run())
    service.runner.close()
    sys.exit(status)


if __name__ == "__main__":
    main()
