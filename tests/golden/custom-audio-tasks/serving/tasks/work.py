"""Tasks, from their acceptance to their end."""

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Message, Scope

from serving.errors import NotReady, OutOfMemory, respond
from serving.limits import Body
from serving.requests import ParsedRequest
from serving.runner import request_id
from serving.settings import settings
from serving.tasks.digest import digest
from serving.tasks.files import ANSWERED, ASKED, Entry, Folder
from serving.tasks.records import (
    CannotKeep,
    HasEnded,
    KeyReused,
    Record,
    Status,
    TooManyTasks,
)
from serving.tasks.table import Table
from serving.tasks.webhooks import Webhooks, choose_url

if TYPE_CHECKING:
    from serving.service import Service

PART = "tasks"  # of what has to be there before requests should come
ERRORS, INTERNAL_ERROR, UNAVAILABLE = 400, 500, 503
RETRY_SECONDS = 5
SWEEP_SECONDS = 60
SWEEP_ROWS = 200  # at a time
ORPHAN_SECONDS = 3600
# What says how a request's body is to be read, and answered.
HEADERS = ("content-type", "content-disposition", "accept")
OF_A_MOMENT = ("connection", "content-length", "retry-after")  # what no later answer has

Parse = Callable[[Request], Awaitable[ParsedRequest[Any]]]
T = TypeVar("T")

logger = logging.getLogger(__name__)


class Tasks:
    """A service's tasks. Its worker answers them like any request; here they wait for that."""

    def __init__(self, service: "Service[Any]") -> None:
        self.service = service
        self.parsers: dict[str, Parse] = {}  # of each endpoint
        folder = Path(settings.tasks_dir)
        self.table = Table(folder)
        self.files = Folder(folder / "files")
        self.webhooks = Webhooks(self.table, self.files)
        self.waiting: dict[str, float] = {}  # since when; the first is the next
        self.running: dict[str, asyncio.Task[Entry]] = {}
        self._ends = WeakValueDictionary[str, asyncio.Event]()  # of tasks that somebody waits for

    @property
    def is_open(self) -> bool:
        """Whether tasks can be taken."""
        return PART not in self.service.worker.starting

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Work on tasks. Until the table is open, none is taken, and the service is not ready.

        FastAPI's TestClient waits for that.
        """
        worker = self.service.worker
        worker.starting.add(PART)
        self._is_closing = False
        # Here, as TestClient has another event loop each time.
        self._more = asyncio.Condition()  # are waiting, or the service ends
        self._checking = asyncio.Lock()  # a file, which takes many times its size when decoded
        self._changing = asyncio.Lock()  # a task's status
        self._adding = asyncio.Lock()  # a task that has a key
        # For what was begun before: the process may have ended with one of these.
        self._alone = asyncio.Lock()
        opened, closing = asyncio.Event(), asyncio.Event()
        life = asyncio.create_task(self._live(opened, closing))
        if not worker.is_served:
            await opened.wait()
            if life.done():
                life.result()
        try:
            yield
        finally:
            closing.set()
            if not opened.is_set():  # another process has the table
                life.cancel()
            with suppress(asyncio.CancelledError):
                await life

    async def _live(self, opened: asyncio.Event, closing: asyncio.Event) -> None:
        try:
            async with self.table.open():
                await asyncio.to_thread(self.files.open)
                unfinished = await self.table.unfinished()
                self.waiting = {record.id: record.created for record in unfinished}
                self.service.worker.starting.discard(PART)
                opened.set()
                await self._serve(closing)
        except Exception:
            if not self.service.worker.is_served:
                raise
            logger.critical("The tasks cannot be kept in %s", self.table.folder, exc_info=True)
            self.service.worker.fail()
        finally:
            opened.set()  # or never will be

    async def _serve(self, closing: asyncio.Event) -> None:
        """Work on tasks until the service ends; what runs then has the time of a request."""
        helpers = [asyncio.create_task(self._sweep())]
        if settings.webhook_secret:  # without one nobody is told
            helpers.append(asyncio.create_task(self.webhooks.deliver()))
        hands = [asyncio.create_task(self._work()) for _ in range(settings.task_concurrency)]
        end = asyncio.create_task(closing.wait())
        await asyncio.wait([end, *helpers, *hands], return_when=asyncio.FIRST_COMPLETED)
        for each in (*helpers, *hands):
            if each.done():
                each.result()  # raises what nobody has foreseen
        async with self._more:
            self._is_closing = True
            self._more.notify_all()
        await asyncio.wait(hands, timeout=settings.infer_timeout_seconds)
        for task in (*helpers, *hands, *self.running.values()):
            task.cancel()
        await asyncio.wait([*helpers, *hands])

    async def add(self, request: Request, path: str, owner: str) -> Record:
        """Return the task that a request becomes, or has become when its key came before.

        Raises what the endpoint would before it asks the model, KeyReused, BadWebhook, TooManyTasks
        and CannotKeep.
        """
        if not self.is_open:
            raise NotReady("Starting: tasks.")
        webhook = choose_url(request.headers.get("webhook-url"))
        parsed = await self.parsers[path](request)
        async with self._checking:
            await asyncio.to_thread(parsed.decode)
        headers = {name: request.headers[name] for name in HEADERS if name in request.headers}
        head = {"query": request.scope["query_string"].decode("latin-1"), "headers": headers}
        asked = Entry(head, await request.body())
        record = Record(
            id=str(uuid.uuid4()),
            path=path,
            owner=owner,
            digest=await asyncio.to_thread(digest, parsed),
            request_id=request_id.get(),
            webhook=webhook,
        )
        key = request.headers.get("idempotency-key")
        if not key:
            return await self._keep(record, asked)
        record.id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{owner}\n{path}\n{key}"))
        async with self._adding:
            found = await self.table.find(record.id)
            if found and found.digest != record.digest:
                raise KeyReused
            return found or await self._keep(record, asked)

    async def _keep(self, record: Record, asked: Entry) -> Record:
        """Write a task down: first what it asks, then that there is something to be done."""
        if len(self.waiting) >= settings.max_queued_tasks:
            raise TooManyTasks
        try:
            await asyncio.to_thread(self.files.write, record.id, ASKED, asked)
            await self.table.save(record)
        except (OSError, sqlite3.Error) as error:
            logger.exception("A task cannot be kept")
            await asyncio.to_thread(self.files.remove, record.id)
            raise CannotKeep from error
        logger.info("Task %s is accepted", record.id)
        async with self._more:
            self.waiting[record.id] = record.created
            self._more.notify()
        return record

    def end_of(self, task_id: str) -> asyncio.Event:
        """Return what is set when a task ends; to be held as long as somebody waits for it."""
        event = self._ends.get(task_id) or asyncio.Event()
        self._ends[task_id] = event
        return event

    async def answer_to(self, task_id: str) -> Entry | None:
        """Return what a task was answered; None where it was not."""
        return await asyncio.to_thread(self.files.read, task_id, ANSWERED)

    async def cancel(self, task_id: str) -> Record:
        """Have a task not begun, or its answer dropped. Raises HasEnded."""
        async with self._changing:
            record = await self.table.find(task_id)
            if not record or record.status.is_final:
                raise HasEnded
            await self._finish(record, Status.CANCELED)
            self.waiting.pop(task_id, None)
            if run := self.running.get(task_id):
                run.cancel()
        return record

    async def _work(self) -> None:
        """Do one task after the other; as many of these run as TASK_CONCURRENCY says."""
        while task_id := await self._next():
            record = await insist(partial(self.table.find, task_id))
            if record:
                request_id.set(record.request_id)
                async with self._alone if record.attempts else nullcontext():
                    await self._do(record)
            self.running.pop(task_id, None)

    async def _next(self) -> str | None:
        """Return the task that has waited longest; None when the service ends."""
        async with self._more:
            await self._more.wait_for(lambda: self.waiting or self._is_closing)
            if self._is_closing:
                return None
            task_id = next(iter(self.waiting))
            del self.waiting[task_id]
            return task_id

    async def _do(self, record: Record) -> None:
        answer = await insist(partial(self.answer_to, record.id))
        if not answer and record.attempts >= settings.task_attempts:
            answer = failure(f"Begun {record.attempts} times; the last time the service ended.")
        answer = answer or await self._run(record.id)
        if answer:
            await insist(partial(self._end, record.id, answer))

    async def _run(self, task_id: str) -> Entry | None:
        """Return what the task is answered; None where it is canceled."""
        record = await insist(partial(self._begin, task_id))
        if not record:
            return None
        asked = await insist(partial(asyncio.to_thread, self.files.read, task_id, ASKED))
        if not asked:
            return failure("What this task asked is lost.")
        run = self.running[task_id] = asyncio.create_task(self._ask(record, asked))
        await asyncio.wait([run])
        return None if run.cancelled() else run.result()

    async def _begin(self, task_id: str) -> Record | None:
        """Write down that the task is begun, before it is; None where it is canceled."""
        async with self._changing:
            record = await self.table.find(task_id)
            if not record or record.status.is_final:
                return None
            record.status = Status.RUNNING
            record.attempts += 1
            record.started = record.started or time.time()
            await self.table.save(record)
            logger.info("Task %s begins, attempt %d", record.id, record.attempts)
            return record

    async def _ask(self, record: Record, asked: Entry) -> Entry:
        """Have the service answer, as soon as it can."""
        headers = asked.head["headers"].items()
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": record.path,
            "query_string": asked.head["query"].encode("latin-1"),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
            "route": None,  # whose errors would have a form of their own
        }
        while True:
            try:
                with Body(Source(asked.body)) as body:
                    scope["state"] = {"body": body}
                    request = Request(scope, body.receive)
                    return keep(await self.service.answer(request, self.parsers[record.path]))
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is the answer
                is_begun = isinstance(error, OutOfMemory)
                passes = getattr(error, "status_code", None) == UNAVAILABLE
                if not passes or (is_begun and record.attempts >= settings.task_attempts):
                    return keep(respond(error, scope))
                pause = getattr(error, "retry_after", None) or 1
            await asyncio.sleep(pause)
            if is_begun:
                begun = await insist(partial(self._begin, record.id))
                record = begun or record

    async def _end(self, task_id: str, answer: Entry) -> None:
        """Write down the answer, then that there is one."""
        await asyncio.to_thread(self.files.write, task_id, ANSWERED, answer)
        async with self._changing:
            record = await self.table.find(task_id)
            if not record or record.status.is_final:
                return
            is_error = answer.head["status"] >= ERRORS
            await self._finish(record, Status.FAILED if is_error else Status.SUCCEEDED)

    async def _finish(self, record: Record, status: Status) -> None:
        record.status, record.ended = status, time.time()
        self.webhooks.announce(record)
        await self.table.save(record)
        if event := self._ends.get(record.id):
            event.set()
        logger.info("Task %s: %s", record.id, status)

    async def _sweep(self) -> None:
        """Remove what has expired, and what was written for tasks that were never accepted."""
        seconds = settings.result_ttl_hours * 3600
        while True:
            try:
                await self._remove_ended(time.time() - seconds)
                await self._remove_orphans(time.time() - ORPHAN_SECONDS)
            except (OSError, sqlite3.Error):
                logger.exception("What has expired cannot be removed")
            await asyncio.sleep(min(SWEEP_SECONDS, seconds))

    async def _remove_ended(self, before: float) -> None:
        while expired := await self.table.ended_before(before, SWEEP_ROWS):
            await self.table.remove([record.id for record in expired])
            for record in expired:
                await asyncio.to_thread(self.files.remove, record.id)

    async def _remove_orphans(self, before: float) -> None:
        for task_id in await asyncio.to_thread(self.files.older_than, before):
            if not await self.table.find(task_id):
                await asyncio.to_thread(self.files.remove, task_id)


class Source:
    """Gives a body that is there already, as a server would; then nothing comes any more."""

    def __init__(self, body: bytes) -> None:
        self.body: bytes | None = body

    async def __call__(self) -> Message:
        """Return the body; the second time wait for good."""
        if self.body is None:
            await asyncio.Event().wait()
        message = {"type": "http.request", "body": self.body}
        self.body = None
        return message


async def insist(step: Callable[[], Awaitable[T]]) -> T:
    """Return what a step returns, as soon as the disk lets it."""
    while True:
        try:
            return await step()
        except (OSError, sqlite3.Error):
            logger.exception("A task cannot go on; trying again in %d s", RETRY_SECONDS)
        await asyncio.sleep(RETRY_SECONDS)


def keep(response: Response) -> Entry:
    """Return what is kept of an answer."""
    headers = {name: value for name, value in response.headers.items() if name not in OF_A_MOMENT}
    return Entry({"status": response.status_code, "headers": headers}, bytes(response.body))


def failure(detail: str) -> Entry:
    """Return the answer to a task that cannot have one."""
    return keep(JSONResponse({"detail": detail}, INTERNAL_ERROR))
