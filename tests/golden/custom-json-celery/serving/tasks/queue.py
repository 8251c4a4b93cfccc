"""The queue of many processes: a message of Celery's for each task, and a worker that takes it.

The table is what counts. A message is what makes a worker look, and is sent again where a task has
no end in time, so neither a broker that forgets nor a worker that dies loses a task.
"""

import asyncio
import hmac
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from celery.exceptions import OperationalError
from fastapi import APIRouter, Header

from serving.settings import settings
from serving.tasks.files import Entry, Folder
from serving.tasks.messages import connect, send
from serving.tasks.records import (
    RESEND_SECONDS,
    CannotKeep,
    HasEnded,
    IsRunning,
    NoSuchTask,
    Record,
    Status,
)
from serving.tasks.store import Bucket
from serving.tasks.table import Table
from serving.tasks.work import Work

if TYPE_CHECKING:
    from serving.service import Service

RENEWALS = 5  # before a lease is over; each looks whether the task was canceled elsewhere, too
MAX_RESEND_SECONDS = 600
LOOK_SECONDS = 2  # how often to look for tasks that are overdue
WAIT_SECONDS = 0.3  # how often to look whether a task has ended that a client waits for
SEND_SECONDS = 0.8
SENT_ROWS = 100  # at a time

logger = logging.getLogger(__name__)


class Tasks(Work):
    """Tasks that are done by whichever process a worker asks."""

    def __init__(self, service: "Service[Any]") -> None:
        folder = settings.tasks_dir
        files = Bucket(folder) if "://" in folder else Folder(Path(folder))
        super().__init__(service, Table(settings.redis_url), files)
        self.router = create_run_router(self)

    def _loops(self) -> list[asyncio.Task[None]]:
        return [*super()._loops(), asyncio.create_task(self._look_after())]

    async def _is_full(self) -> bool:
        return await self.table.count(Status.QUEUED) >= settings.max_queued_tasks

    async def _enqueue(self, record: Record) -> None:
        """Send a task's message; where the broker is away, it is sent later."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await asyncio.to_thread(send, record)
        except (OperationalError, TimeoutError) as error:
            logger.warning("The broker does not take task %s, yet: %s", record.id, error)
            with suppress(CannotKeep):
                await self.table.change(record.id, make_due)

    async def _see_to(self, record: Record) -> None:
        """Send the message again: whoever did not live to say 202 may not have sent it, either."""
        if record.status is Status.QUEUED:
            await self._enqueue(record)

    async def until_ended(self, task_id: str) -> None:
        """Return when a task has ended, or is no longer there."""
        record = await self.table.find(task_id)
        while record and not record.status.is_final:
            await asyncio.sleep(WAIT_SECONDS)
            record = await self.table.find(task_id)

    async def run(self, task_id: str, ticket: str) -> None:
        """Do a task, and return when it has ended. Raises NoSuchTask and IsRunning."""
        record = await self.table.find(task_id)
        if not record or not hmac.compare_digest(record.ticket.encode(), ticket.encode()):
            raise NoSuchTask
        if record.status.is_final:
            return
        check_lease(record)
        await self._do(record)

    async def _run(self, task_id: str) -> Entry | None:
        renewal = asyncio.create_task(self._renew(task_id))
        try:
            return await super()._run(task_id)
        finally:
            renewal.cancel()

    async def _renew(self, task_id: str) -> None:
        """Say that a task runs, for as long as it does; stop it where it was canceled."""
        while True:
            await asyncio.sleep(settings.task_lease_seconds / RENEWALS)
            run = self.running.get(task_id)
            try:
                await self.table.change(task_id, lease)
            except HasEnded:
                if run:
                    run.cancel()
            except CannotKeep:
                logger.warning("Task %s runs, and nobody can be told", task_id)

    def _mark_begun(self, record: Record) -> None:
        if record.id not in self.running:  # here, and out of memory
            check_lease(record)
        super()._mark_begun(record)
        lease(record)

    async def _look_after(self) -> None:
        """Send messages again, for tasks whose first one was lost or whose process has died."""
        with suppress(OperationalError):
            await asyncio.to_thread(connect)  # so that the first task need not wait for that
        while True:
            try:
                await self._resend()
            except CannotKeep:
                logger.warning("Redis does not say which tasks are overdue")
            await asyncio.sleep(LOOK_SECONDS)

    async def _resend(self) -> None:
        for record in await self.table.overdue(time.time(), SENT_ROWS):
            with suppress(HasEnded):
                if await self.table.change(record.id, take_back):
                    await self._enqueue(record)


def lease(record: Record) -> None:
    """Have nobody else begin with a task for a while. Raises HasEnded."""
    if record.status.is_final:
        raise HasEnded
    record.due = time.time() + settings.task_lease_seconds


def check_lease(record: Record) -> None:
    """Return where nobody goes on with a task. Raises IsRunning."""
    if record.status is Status.RUNNING and record.due > time.time():
        raise IsRunning


def make_due(record: Record) -> None:
    """Have a message sent as soon as that is possible."""
    record.due = time.time()


def take_back(record: Record) -> None:
    """Have a task begun by whoever gets its next message. Raises HasEnded where that is done."""
    now = time.time()
    if record.status.is_final or record.due > now:
        raise HasEnded
    record.status = Status.QUEUED
    # In a long queue it is no loss that a task has to wait: each time it may take twice as long.
    record.due = now + min(max(RESEND_SECONDS, now - record.created), MAX_RESEND_SECONDS)


def create_run_router(tasks: Tasks) -> APIRouter:
    """Return the route that workers ask; whoever has a task's ticket may."""
    router = APIRouter()

    @router.post("/tasks/{task_id}", status_code=204, include_in_schema=False)
    async def run_task(task_id: str, x_task_ticket: Annotated[str, Header()] = "") -> None:
        """Do a task, and answer when it has ended."""
        await tasks.run(task_id, x_task_ticket)

    return router
