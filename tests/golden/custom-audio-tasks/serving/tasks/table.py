"""The tasks' table, in an SQLite file that belongs to this process."""

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import TextIO, TypeVar

from serving.tasks.records import CannotKeep, Record, Status

LOCK_SECONDS = 0.5  # how often to look whether another process has let go of the file
SCHEMA = """
PRAGMA user_version = 1;
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    owner TEXT NOT NULL,
    digest TEXT NOT NULL,
    request_id TEXT NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    webhook TEXT NOT NULL,
    webhook_status TEXT,
    webhook_attempts INTEGER NOT NULL,
    webhook_due REAL
) STRICT;
CREATE INDEX IF NOT EXISTS by_age ON tasks (path, owner, created, id);
CREATE INDEX IF NOT EXISTS by_end ON tasks (ended);
CREATE INDEX IF NOT EXISTS by_webhook ON tasks (webhook_due) WHERE webhook_due IS NOT NULL;
"""
SAVE = """
INTO tasks VALUES (
    :id, :path, :owner, :digest, :request_id, :status, :attempts, :created, :started, :ended,
    :webhook, :webhook_status, :webhook_attempts, :webhook_due
)
"""
FIND = "SELECT * FROM tasks WHERE id = :id"
PAGE = """
SELECT * FROM tasks
WHERE path = :path AND owner = :owner AND status = coalesce(:status, status)
    AND (created, id) < (:created, :id)
ORDER BY created DESC, id DESC LIMIT :limit
"""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Table:
    """One row for each task. What a method has written is on the disk when it returns.

    Every method raises CannotKeep, for instance where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, "tasks")  # the one that uses the connection

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hold the file, as soon as no other process does: two would do each other's work."""
        with await self._run(self._open_lock) as lock:
            await acquire(lock)
            self._connection = await self._run(self._connect)
            with closing(self._connection):
                yield
                await self._run(lambda: None)  # what is under way may end

    def _open_lock(self) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / "lock").open("w")

    def _connect(self) -> sqlite3.Connection:
        path = self.folder / "tasks.db"
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a power cut loses nothing that was said
        connection.executescript(SCHEMA)
        return connection

    async def add(self, record: Record) -> Record:
        """Write a row, and return it; where the task has one already, return that."""

        def add() -> Record:
            values = record.model_dump()
            added = self._connection.execute(f"INSERT OR IGNORE {SAVE}", values)
            return record if added.rowcount else self._read(FIND, values)[0]

        return await self._run(add)

    async def change(self, task_id: str, change: Callable[[Record], None]) -> Record | None:
        """Change a row where nothing else does meanwhile; return it, None where there is none.

        Raises what `change` does, and then leaves the row as it was.
        """

        def rewrite() -> Record | None:
            for record in self._read(FIND, {"id": task_id}):
                change(record)
                self._connection.execute(f"INSERT OR REPLACE {SAVE}", record.model_dump())
                return record
            return None

        return await self._run(rewrite)

    async def find(self, task_id: str) -> Record | None:
        """Return a task's row; None where there is none."""
        return next(iter(await self._select(FIND, {"id": task_id})), None)

    async def unfinished(self) -> list[Record]:
        """Return the tasks that have not ended, oldest first."""
        return await self._select("SELECT * FROM tasks WHERE ended IS NULL ORDER BY created", {})

    async def ended_before(self, time: float, limit: int) -> list[Record]:
        """Return tasks that ended before this time."""
        query = "SELECT * FROM tasks WHERE ended < :time LIMIT :limit"
        return await self._select(query, {"time": time, "limit": limit})

    async def with_webhook_due(self, time: float, limit: int) -> list[Record]:
        """Return tasks whose webhook is due, the longest due first."""
        query = "SELECT * FROM tasks WHERE webhook_due < :time ORDER BY webhook_due LIMIT :limit"
        return await self._select(query, {"time": time, "limit": limit})

    async def page(
        self, path: str, owner: str, status: Status | None, before: tuple[float, str], limit: int
    ) -> list[Record]:
        """Return an endpoint's tasks, newest first, from the next after this time and id."""
        created, task_id = before
        where = {"path": path, "owner": owner, "status": status, "created": created, "id": task_id}
        return await self._select(PAGE, {**where, "limit": limit})

    async def remove(self, records: list[Record]) -> None:
        """Remove the rows of these tasks, all with one write to the disk."""
        query = "DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(:ids))"
        ids = json.dumps([record.id for record in records])
        await self._run(lambda: self._connection.execute(query, {"ids": ids}))

    async def _select(self, query: str, values: dict[str, object]) -> list[Record]:
        return await self._run(lambda: self._read(query, values))

    def _read(self, query: str, values: dict[str, object]) -> list[Record]:
        return [Record(**dict(row)) for row in self._connection.execute(query, values).fetchall()]

    async def _run(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except sqlite3.Error as error:
            raise CannotKeep from error


async def acquire(file: TextIO) -> None:
    """Take the lock of a file, as soon as no other process has it."""
    waits = False
    while True:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            if not waits:
                logger.warning("Another process has the tasks; waiting for it to end")
            waits = True
            await asyncio.sleep(LOCK_SECONDS)
        else:
            return
