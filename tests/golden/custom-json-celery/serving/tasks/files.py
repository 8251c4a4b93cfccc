"""What a task is asked and what it has answered, as files beside the queue."""

import json
import os
import time
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

ASKED, ANSWERED = "request", "answer"
TORN_SECONDS = 3600  # nobody has been writing for so long


class Entry(NamedTuple):
    """A request or an answer: what is known of it, and its body."""

    head: dict[str, Any]
    body: bytes


class Folder:
    """A folder of entries. Each is there whole or not at all, also after a power cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        """Make the folder where it is missing; remove what was never written to its end."""
        self.path.mkdir(parents=True, exist_ok=True)
        for torn in self.path.glob("*.part"):
            if torn.stat().st_mtime < time.time() - TORN_SECONDS:
                torn.unlink(missing_ok=True)

    def write(self, name: str, kind: str, entry: Entry) -> None:
        """Write an entry; when this returns, it is there to stay. Raises OSError."""
        self._put(f"{name}.{kind}", json.dumps(entry.head).encode() + b"\n", entry.body)

    def read(self, name: str, kind: str) -> Entry | None:
        """Return an entry; None where there is none, or what is there is no entry."""
        try:
            head, _, body = self._get(f"{name}.{kind}").partition(b"\n")
            return Entry(json.loads(head), body)
        except (FileNotFoundError, ValueError):
            return None

    def remove(self, name: str) -> None:
        """Remove all that is there of a task."""
        for kind in (ASKED, ANSWERED):
            self._delete(f"{name}.{kind}")

    def older_than(self, timestamp: float) -> list[str]:
        """Return the names whose request was there before this time."""
        asked = self.path.glob(f"*.{ASKED}")
        return [path.stem for path in asked if path.stat().st_mtime < timestamp]

    def _put(self, file: str, head: bytes, body: bytes) -> None:
        # Of a name of its own: a request may come twice at once, with the same key.
        with NamedTemporaryFile(dir=self.path, suffix=".part", delete=False) as written:
            part = Path(written.name)
            try:
                written.write(head)
                written.write(body)
                written.flush()
                os.fsync(written.fileno())
                part.rename(self.path / file)
            except OSError:
                part.unlink(missing_ok=True)
                raise
        sync_folder(self.path)

    def _get(self, file: str) -> bytes:
        return (self.path / file).read_bytes()

    def _delete(self, file: str) -> None:
        (self.path / file).unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Have the disk keep a folder's names."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
