"""The queue of a single process: what waits in its table waits in its memory as well."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from serving.settings import settings
from serving.tasks.files import Folder
from serving.tasks.records import Record, Status
from serving.tasks.table import Table
from serving.tasks.work import Work, insist

if TYPE_CHECKING:
    from serving.service import Service


class Tasks(Work):
    """Tasks that this process does, as many at once as TASK_CONCURRENCY says."""

    def __init__(self, service: "Service[Any]") -> None:
        folder = Path(settings.tasks_dir)
        super().__init__(service, Table(folder), Folder(folder / "files"))
        self.waiting: dict[str, float] = {}  # since when; the first is the next
        self._ends = WeakValueDictionary[str, asyncio.Event]()  # of tasks that somebody waits for

    async def _prepare(self) -> None:
        await super()._prepare()
        self._is_closing = False
        self._more = asyncio.Condition()  # are waiting, or the service ends
        self.waiting = {record.id: record.created for record in await self.table.unfinished()}

    def _loops(self) -> list[asyncio.Task[None]]:
        self._hands = [asyncio.create_task(self._work()) for _ in range(settings.task_concurrency)]
        return [*super()._loops(), *self._hands]

    async def _close(self) -> None:
        """Begin with no other task; what runs has the time of a request."""
        async with self._more:
            self._is_closing = True
            self._more.notify_all()
        await asyncio.wait(self._hands, timeout=settings.infer_timeout_seconds)

    async def _is_full(self) -> bool:
        return len(self.waiting) >= settings.max_queued_tasks

    async def _enqueue(self, record: Record) -> None:
        async with self._more:
            self.waiting[record.id] = record.created
            self._more.notify()

    async def until_ended(self, task_id: str) -> None:
        """Return when a task has ended, or is no longer there."""
        end = self._ends.setdefault(task_id, asyncio.Event())
        record = await self.table.find(task_id)  # it may have ended before there was an event
        if record and not record.status.is_final:
            await end.wait()

    async def _finish(self, task_id: str, status: Status) -> Record:
        record = await super()._finish(task_id, status)
        self.waiting.pop(task_id, None)
        if end := self._ends.get(task_id):
            end.set()
        return record

    async def _work(self) -> None:
        """Do one task after the other; as many of these run as TASK_CONCURRENCY says."""
        while task_id := await self._next():
            if record := await insist(partial(self.table.find, task_id)):
                await self._do(record)

    async def _next(self) -> str | None:
        """Return the task that has waited longest; None when the service ends."""
        async with self._more:
            await self._more.wait_for(lambda: self.waiting or self._is_closing)
            if self._is_closing:
                return None
            task_id = next(iter(self.waiting))
            del self.waiting[task_id]
            return task_id

    def count_queued(self) -> int:
        """Return how many tasks wait."""
        return len(self.waiting)

    def oldest_age(self) -> float:
        """Return for how many seconds the task has waited that has waited longest."""
        since = next(iter(self.waiting.values()), None)
        return time.time() - since if since else 0
