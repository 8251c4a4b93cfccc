"""Tasks, from their acceptance to their end; queue.py says who does them, and when."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

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
from serving.tasks.records import CannotKeep, HasEnded, KeyReused, Record, Status, TooManyTasks
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
SWEEPS_PER_SEARCH = 60  # all files are listed for it
# What says how a request's body is to be read, and answered.
HEADERS = ("content-type", "content-disposition", "accept")
OF_A_MOMENT = ("connection", "content-length", "retry-after")  # what no later answer has

Parse = Callable[[Request], Awaitable[ParsedRequest[Any]]]
T = TypeVar("T")

logger = logging.getLogger(__name__)


class Work:
    """A service's tasks. Its worker answers them like any request; here they wait for that."""

    def __init__(self, service: "Service[Any]", table: Table, files: Folder) -> None:
        self.service = service
        self.parsers: dict[str, Parse] = {}  # of each endpoint
        self.table = table
        self.files = files
        self.webhooks = Webhooks(self.table, self.files)
        self.running: dict[str, asyncio.Task[Entry]] = {}

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
        # Here, as TestClient has another event loop each time.
        self._checking = asyncio.Lock()  # a file, which takes many times its size when decoded
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
                await self._prepare()
                self.service.worker.starting.discard(PART)
                opened.set()
                await self._serve(closing)
        except Exception:
            if not self.service.worker.is_served:
                raise
            logger.critical("The tasks cannot be kept in %s", settings.tasks_dir, exc_info=True)
            self.service.worker.fail()
        finally:
            opened.set()  # or never will be

    async def _prepare(self) -> None:
        """Get ready to work, now that the table is open."""
        await asyncio.to_thread(self.files.open)

    async def _serve(self, closing: asyncio.Event) -> None:
        """Work on tasks until the service ends."""
        loops = self._loops()
        end = asyncio.create_task(closing.wait())
        await asyncio.wait([end, *loops], return_when=asyncio.FIRST_COMPLETED)
        for each in loops:
            if each.done():
                each.result()  # raises what nobody has foreseen
        await self._close()
        for task in (*loops, *self.running.values()):
            task.cancel()
        await asyncio.wait(loops)

    def _loops(self) -> list[asyncio.Task[None]]:
        """Begin with all that goes on until the service ends."""
        loops = [self._sweep()]
        if settings.webhook_secret:  # without one nobody is told
            loops.append(self.webhooks.deliver())
        return [asyncio.create_task(each) for each in loops]

    async def _close(self) -> None:
        """Wait for what runs, where no request does that."""

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
        kept = None
        if key := request.headers.get("idempotency-key"):
            record.id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{owner}\n{path}\n{key}"))
            kept = await self.table.find(record.id)
            if kept:
                await self._see_to(kept)
        kept = kept or await self._keep(record, asked)
        if kept.digest != record.digest:
            raise KeyReused
        return kept

    async def _keep(self, record: Record, asked: Entry) -> Record:
        """Write a task down, what it asks first; or return the one that has its id already.

        Where that fails between the two, a later sweep removes what was asked.
        """
        if await self._is_full():
            raise TooManyTasks
        try:
            await asyncio.to_thread(self.files.write, record.name, ASKED, asked)
            kept = await self.table.add(record)
        except (OSError, CannotKeep) as error:
            logger.exception("A task cannot be kept")
            raise CannotKeep from error
        if kept is record:
            logger.info("Task %s is accepted", record.id)
            await self._enqueue(record)
        return kept

    async def _is_full(self) -> bool:
        """Tell whether as many tasks wait as MAX_QUEUED_TASKS allows."""
        raise NotImplementedError

    async def _enqueue(self, record: Record) -> None:
        """Have a task done that has been written down."""
        raise NotImplementedError

    async def _see_to(self, record: Record) -> None:
        """Do what a process left undone that wrote a task down and then ended."""

    async def until_ended(self, task_id: str) -> None:
        """Return when a task has ended, or is no longer there."""
        raise NotImplementedError

    async def answer_to(self, record: Record) -> Entry | None:
        """Return what a task was answered; None where it was not. Raises CannotKeep."""
        try:
            return await asyncio.to_thread(self.files.read, record.name, ANSWERED)
        except OSError as error:
            raise CannotKeep from error

    async def cancel(self, task_id: str) -> Record:
        """Have a task not begun, or its answer dropped. Raises HasEnded."""
        record = await self._finish(task_id, Status.CANCELED)
        if run := self.running.get(task_id):
            run.cancel()
        return record

    async def _do(self, record: Record) -> None:
        """Have a task answered, by the model or because it cannot be."""
        request_id.set(record.request_id)
        async with self._alone if record.attempts else nullcontext():
            answer = await insist(partial(self.answer_to, record))
            if not answer and record.attempts >= settings.task_attempts:
                answer = failure(f"Begun {record.attempts} times; the last time the service ended.")
            answer = answer or await self._run(record.id)
            if answer:
                await insist(partial(self._end, record, answer))
        self.running.pop(record.id, None)

    async def _run(self, task_id: str) -> Entry | None:
        """Return what the task is answered; None where it is canceled."""
        record = await insist(partial(self._begin, task_id))
        if not record:
            return None
        asked = await insist(partial(asyncio.to_thread, self.files.read, record.name, ASKED))
        if not asked:
            return failure("What this task asked is lost.")
        run = self.running[task_id] = asyncio.create_task(self._ask(record, asked))
        await asyncio.wait([run])
        return None if run.cancelled() else run.result()

    async def _begin(self, task_id: str) -> Record | None:
        """Write down that the task is begun, before it is; None where it has ended."""
        try:
            record = await self.table.change(task_id, self._mark_begun)
        except HasEnded:
            return None
        if record:
            logger.info("Task %s begins, attempt %d", record.id, record.attempts)
        return record

    def _mark_begun(self, record: Record) -> None:
        if record.status.is_final:
            raise HasEnded
        record.status = Status.RUNNING
        record.attempts += 1
        record.started = record.started or time.time()

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

    async def _end(self, record: Record, answer: Entry) -> None:
        """Write down the answer, then that there is one, unless the task was canceled."""
        await asyncio.to_thread(self.files.write, record.name, ANSWERED, answer)
        is_error = answer.head["status"] >= ERRORS
        with suppress(HasEnded):
            await self._finish(record.id, Status.FAILED if is_error else Status.SUCCEEDED)

    async def _finish(self, task_id: str, status: Status) -> Record:
        """Write down that a task has ended. Raises HasEnded where it had, or is gone."""

        def finish(record: Record) -> None:
            if record.status.is_final:
                raise HasEnded
            record.status, record.ended = status, time.time()
            self.webhooks.announce(record)

        record = await self.table.change(task_id, finish)
        if not record:
            raise HasEnded
        logger.info("Task %s: %s", record.id, status)
        return record

    async def _sweep(self) -> None:
        """Remove what has expired, and what was written for tasks that were never accepted."""
        seconds = settings.result_ttl_hours * 3600
        for number in count():
            try:
                await self._remove_ended(time.time() - seconds)
                if number % SWEEPS_PER_SEARCH == 0:
                    await self._remove_orphans(time.time() - ORPHAN_SECONDS)
            except (OSError, CannotKeep):
                logger.exception("What has expired cannot be removed")
            await asyncio.sleep(min(SWEEP_SECONDS, seconds))

    async def _remove_ended(self, before: float) -> None:
        while expired := await self.table.ended_before(before, SWEEP_ROWS):
            await self.table.remove(expired)
            for record in expired:
                await asyncio.to_thread(self.files.remove, record.name)

    async def _remove_orphans(self, before: float) -> None:
        for name in await asyncio.to_thread(self.files.older_than, before):
            record = await self.table.find(name.partition(".")[0])
            if not record or record.name != name:
                await asyncio.to_thread(self.files.remove, name)


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
    """Return what a step returns, as soon as what keeps the tasks lets it."""
    while True:
        try:
            return await step()
        except (OSError, CannotKeep):
            logger.exception("A task cannot go on; trying again in %d s", RETRY_SECONDS)
        await asyncio.sleep(RETRY_SECONDS)


def keep(response: Response) -> Entry:
    """Return what is kept of an answer."""
    headers = {name: value for name, value in response.headers.items() if name not in OF_A_MOMENT}
    return Entry({"status": response.status_code, "headers": headers}, bytes(response.body))


def failure(detail: str) -> Entry:
    """Return the answer to a task that cannot have one."""
    return keep(JSONResponse({"detail": detail}, INTERNAL_ERROR))
