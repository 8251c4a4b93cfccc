"""The tasks' table, in a Redis that all processes share."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving.tasks.records import CannotKeep, Record, Status

if TYPE_CHECKING:
    from redis.asyncio.client import Pipeline

REDIS_SECONDS = 0.8  # for what a request waits for: a Redis that is away is 503 within a second
PAGE_ROWS = 100  # at a time
PREFIX = "my-model-server:tasks"
# Sorted sets of the tasks' ids; each score is a time.
DUE, ENDED, WEBHOOKS = (f"{PREFIX}:{name}" for name in ("due", "ended", "webhooks"))

T = TypeVar("T")


class Table:
    """A row for each task, and sorted sets to find it by. Every method raises CannotKeep."""

    def __init__(self, url: str) -> None:
        self.url = url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take connections, when they are needed. It need not be there yet."""
        async with Redis.from_url(self.url, decode_responses=True) as self._redis:
            yield

    async def add(self, record: Record) -> Record:
        """Write a row, and return it; where the task has one already, return that."""

        async def add(pipe: "Pipeline") -> Record:
            if row := await pipe.get(key_of(record.id)):
                pipe.multi()
                return Record.model_validate_json(row)
            pipe.multi()
            write(pipe, record)
            return record

        return await self._transact(record.id, add)

    async def change(self, task_id: str, change: Callable[[Record], None]) -> Record | None:
        """Change a row where nothing else does meanwhile; return it, None where there is none.

        Raises what `change` does, and then leaves the row as it was.
        """

        async def rewrite(pipe: "Pipeline") -> Record | None:
            row = await pipe.get(key_of(task_id))
            record = Record.model_validate_json(row) if row else None
            if record:
                change(record)
            pipe.multi()
            if record:
                write(pipe, record)
            return record

        return await self._transact(task_id, rewrite)

    async def find(self, task_id: str) -> Record | None:
        """Return a task's row; None where there is none."""
        row = await self._run(self._redis.get(key_of(task_id)))
        return Record.model_validate_json(row) if row else None

    async def count(self, status: Status) -> int:
        """Return how many tasks have this status, which is none that they end with."""
        number: int = await self._run(self._redis.zcard(name_of(status)))
        return number

    async def oldest_age(self) -> float:
        """Return for how many seconds the task has waited that has waited longest."""
        first = await self._run(self._redis.zrange(name_of(Status.QUEUED), 0, 0, withscores=True))
        return time.time() - float(first[0][1]) if first else 0

    async def overdue(self, time: float, limit: int) -> list[Record]:
        """Return tasks that nobody has begun or gone on with until this time."""
        return await self._before(DUE, time, limit)

    async def ended_before(self, time: float, limit: int) -> list[Record]:
        """Return tasks that ended before this time."""
        return await self._before(ENDED, time, limit)

    async def with_webhook_due(self, time: float, limit: int) -> list[Record]:
        """Return tasks whose webhook is due, the longest due first."""
        return await self._before(WEBHOOKS, time, limit)

    async def page(
        self, path: str, owner: str, status: Status | None, before: tuple[float, str], limit: int
    ) -> list[Record]:
        """Return an endpoint's tasks, newest first, from the next after this time and id."""
        found: list[Record] = []
        offset, last = 0, False
        while len(found) < limit and not last:
            ids = await self._run(
                self._redis.zrevrangebyscore(
                    name_of_age(path, owner), before[0], "-inf", start=offset, num=PAGE_ROWS
                )
            )
            offset, last = offset + len(ids), len(ids) < PAGE_ROWS
            for record in await self._read(ids):
                is_later = (record.created, record.id) < before
                if is_later and status in (None, record.status):
                    found.append(record)
        return found[:limit]

    async def remove(self, records: list[Record]) -> None:
        """Remove the rows of these tasks."""
        async with self._redis.pipeline() as pipe:
            for record in records:
                pipe.delete(key_of(record.id))
                for name in scores(record):
                    pipe.zrem(name, record.id)
            await self._run(pipe.execute())

    async def _before(self, name: str, time: float, limit: int) -> list[Record]:
        ids = await self._run(self._redis.zrangebyscore(name, "-inf", time, start=0, num=limit))
        return await self._read(ids)

    async def _read(self, ids: list[str]) -> list[Record]:
        rows = await self._run(self._redis.mget(map(key_of, ids))) if ids else []
        return [Record.model_validate_json(row) for row in rows if row]

    async def _transact(self, task_id: str, step: Callable[["Pipeline"], Awaitable[T]]) -> T:
        """Do this as if alone: once more where another process has changed the row meanwhile."""
        done: T = await self._run(
            self._redis.transaction(step, key_of(task_id), value_from_callable=True)
        )
        return done

    async def _run(self, step: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                return await step
        except (RedisError, TimeoutError) as error:
            raise CannotKeep from error


def key_of(task_id: str) -> str:
    """Return where a task's row is."""
    return f"{PREFIX}:row:{task_id}"


def name_of(status: Status) -> str:
    """Return the set of the tasks that have this status."""
    return f"{PREFIX}:{status}"


def name_of_age(path: str, owner: str) -> str:
    """Return the set of an owner's tasks at an endpoint."""
    return f"{PREFIX}:of:{path}:{owner}"


def scores(record: Record) -> dict[str, float | None]:
    """Return the time that a task has in each set; None where it is not in there."""
    return {
        name_of_age(record.path, record.owner): record.created,
        name_of(Status.QUEUED): record.created if record.status is Status.QUEUED else None,
        name_of(Status.RUNNING): record.created if record.status is Status.RUNNING else None,
        DUE: None if record.status.is_final else record.due,
        ENDED: record.ended,
        WEBHOOKS: record.webhook_due,
    }


def write(pipe: "Pipeline", record: Record) -> None:
    """Have a row written, and found where it belongs."""
    pipe.set(key_of(record.id), record.model_dump_json())
    for name, score in scores(record).items():
        if score is None:
            pipe.zrem(name, record.id)
        else:
            pipe.zadd(name, {record.id: score})
