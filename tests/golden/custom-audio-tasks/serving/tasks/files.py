"""What a task is asked and what it has answered, as files beside the queue."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

ASKED, ANSWERED = "request", "answer"


class Entry(NamedTuple):
    """A request or an answer: what is known of it, and its body."""

    head: dict[str, Any]
    body: bytes


class Folder:
    """A folder of entries. Each is there whole or not at all, also after a power cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        """Make the folder where it is missing; remove what was not written to its end."""
        self.path.mkdir(parents=True, exist_ok=True)
        for torn in self.path.glob("*.part"):
            torn.unlink()

    def write(self, task_id: str, kind: str, entry: Entry) -> None:
        """Write an entry; when this returns, it is on the disk. Raises OSError."""
        path = self._path(task_id, kind)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(json.dumps(entry.head).encode() + b"\n")
                file.write(entry.body)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        sync_folder(self.path)

    def read(self, task_id: str, kind: str) -> Entry | None:
        """Return an entry; None where there is none, or what is there is no entry."""
        try:
            head, _, body = self._path(task_id, kind).read_bytes().partition(b"\n")
            return Entry(json.loads(head), body)
        except (FileNotFoundError, ValueError):
            return None

    def remove(self, task_id: str) -> None:
        """Remove all that is there of a task."""
        for kind in (ASKED, ANSWERED):
            self._path(task_id, kind).unlink(missing_ok=True)

    def older_than(self, timestamp: float) -> list[str]:
        """Return the tasks whose request was there before this time."""
        asked = self.path.glob(f"*.{ASKED}")
        return [path.stem for path in asked if path.stat().st_mtime < timestamp]

    def _path(self, task_id: str, kind: str) -> Path:
        return self.path / f"{task_id}.{kind}"


def sync_folder(path: Path) -> None:
    """Have the disk keep a folder's names."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
