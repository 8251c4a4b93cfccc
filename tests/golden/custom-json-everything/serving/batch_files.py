"""What a batch job reads and writes, so that it can be ended at any time and gone on with."""

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

OK = 200
SERVER_ERROR = 500  # and above: no fault of the input's, so that the next run tries it again
BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
SYNC_SECONDS = 1  # what may be lost with the machine's power; a process that is killed loses none

Name = int | str  # the number of a line, from 1, or the path of a file in its folder


class Unusable(Exception):
    """INPUT or OUTPUT cannot be used as they are; the message says what would be right."""


class Locked(Exception):
    """Another run writes OUTPUT."""


class Line(NamedTuple):
    """A line of OUTPUT."""

    name: Name
    status: int
    text: bytes


class LinesInput:
    """A file of JSON lines. Raises Unusable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as lines:
            self.digest = hashlib.file_digest(lines, "sha256").hexdigest()
            lines.seek(0)
            if lines.read(3).startswith(BYTE_ORDER_MARKS):
                raise Unusable(f"{path} begins with a byte order mark: write UTF-8 without one.")
            lines.seek(0)
            self.total = sum(bool(line.strip()) for line in lines)

    def __iter__(self) -> Iterator[tuple[Name, bytes]]:
        """Yield the lines that are not empty, with their numbers."""
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if content := line.strip():
                    yield number, content


class FolderInput:
    """A folder: its files and those of its sub-folders, but for what is hidden. Raises Unusable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
        self.names = [
            file.as_posix() for file in files if not any(part[0] == "." for part in file.parts)
        ]
        self.total = len(self.names)
        digest = hashlib.sha256()
        for name in self.names:
            try:
                digest.update(f"{name}\0{(path / name).stat().st_size}\0".encode())
            except UnicodeEncodeError:
                raise Unusable(f"The name of {path / name!a} is not UTF-8: rename it.") from None
        self.digest = digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[Name, Path]]:
        """Yield the files, sorted by their paths."""
        for name in self.names:
            yield name, self.path / name


class LinesOutput:
    """A file of JSON lines, one for each input, that one run at a time adds to."""

    def __init__(self, path: Path, job: dict[str, str]) -> None:
        """Take up what is there. `job` tells what it belongs to. Raises Unusable and Locked."""
        self.done: set[Name] = set()
        self.statuses: Counter[int] = Counter()  # of what is done
        path.parent.mkdir(parents=True, exist_ok=True)
        # Open to the end: it holds the lock, which goes with the process, however that ends.
        self._job = path.with_name(f"{path.name}.job").open("a+")
        try:
            fcntl.flock(self._job, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(f"Another run writes {path}.") from error
        self._check(path, job)
        self._take_up(path)
        self._lines = path.open("ab")
        self._synced = time.monotonic()

    def add(self, line: Line) -> None:
        """Write a line."""
        self._lines.write(line.text + b"\n")
        self._lines.flush()
        self.done.add(line.name)
        self.statuses[line.status] += 1
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Have the disk hold what is written."""
        os.fsync(self._lines.fileno())
        self._synced = time.monotonic()

    def _check(self, path: Path, job: dict[str, str]) -> None:
        """Compare the job with the one that the file belongs to so far."""
        self._job.seek(0)
        if text := self._job.read():
            before = json.loads(text)
            if changed := [key for key, value in job.items() if before.get(key) != value]:
                raise Unusable(
                    f"{path} is another job's: {' and '.join(changed)} changed. Name another "
                    f"OUTPUT, or delete {path} and {self._job.name} to begin anew."
                )
        elif path.exists():
            raise Unusable(f"{path} is there, and no job has written it: name another OUTPUT.")
        else:
            json.dump(job, self._job, indent=2)
            self._job.flush()
            os.fsync(self._job.fileno())

    def _take_up(self, path: Path) -> None:
        """Note what is done, and leave only that in the file."""
        if not path.exists():
            return
        size = 0
        for line, row in read_done(path):
            size += len(line)
            self.done.add(row["input"])
            self.statuses[row.get("status", OK)] += 1
        if size < path.stat().st_size:
            write_file(path, (line for line, _ in read_done(path)))


def read_done(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines that stay: none that is cut off, or tells of a failure of the server."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                row = from_json(line)
                if row.get("status", OK) < SERVER_ERROR:
                    yield line, row


def write_file(path: Path, content: Iterator[bytes]) -> None:
    """Write a file so that it is there whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.writelines(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
