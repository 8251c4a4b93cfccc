"""`POST /<endpoint>/tasks`, and what has become of each; `Prefer: respond-async` is the same."""

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import RESPONSES, BadInput, ErrorBody
from serving.requests import RequestParser
from serving.tasks.queue import Tasks
from serving.tasks.records import (
    HasNoAnswer,
    HasNoAnswerYet,
    NoSuchTask,
    Record,
    Status,
    Task,
    TaskPage,
)

if TYPE_CHECKING:
    from serving.service import Service

MAX_WAIT_SECONDS = 60
MAX_PAGE = 100
RETRY_AFTER = {"Retry-After": "1"}
GONE: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": NoSuchTask.__doc__},
}
ENDED: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "The task has ended, or has no answer."},
}

Wait = Annotated[
    float, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for its end.")
]


class Endpoint:
    """An endpoint's tasks, as their owners may see them."""

    def __init__(self, service: "Service[Any]", path: str) -> None:
        self.service = service
        self.path = path

    async def owner_of(self, _request: Request) -> str:
        """Return nobody's name: everybody may see every task."""
        return ""

    async def find(self, request: Request, task_id: str) -> Record:
        """Return the caller's task. Raises NoSuchTask."""
        record = await self.service.tasks.table.find(task_id)
        owner = await self.owner_of(request)
        if not record or (record.path, record.owner) != (self.path, owner):
            raise NoSuchTask
        return record

    async def wait_for(self, request: Request, task_id: str, seconds: float) -> Record:
        """Return the caller's task when it has ended, or when the time is up. Raises NoSuchTask."""
        record = await self.find(request, task_id)
        if not seconds or record.status.is_final:
            return record
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.service.tasks.until_ended(task_id)
        return await self.find(request, task_id)


def create_router(
    service: "Service[Any]", path: str, parse: RequestParser[Any], example: Any
) -> APIRouter:
    """Return the routes for the tasks of an endpoint, whose requests `parse` reads."""
    tasks = service.tasks
    tasks.parsers[path] = parse
    endpoint = Endpoint(service, path)
    router = APIRouter(prefix=f"{path}/tasks", tags=["Tasks"])

    @router.post(
        "",
        status_code=202,
        responses={**RESPONSES, 422: {"description": "A field is wrong, or the idempotency key."}},
        openapi_extra=parse.openapi(example),
    )
    async def create_task(request: Request, response: Response) -> Task:
        """Accept a request, to be answered later."""
        record = await tasks.add(request, path, await endpoint.owner_of(request))
        root = request.scope.get("root_path", "")
        response.headers.update({"Location": f"{root}{path}/tasks/{record.id}", **RETRY_AFTER})
        return Task.of(record)

    @router.get("")
    async def list_tasks(
        request: Request,
        status: Status | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
        cursor: str = "",
    ) -> TaskPage:
        """List your tasks, newest first."""
        owner = await endpoint.owner_of(request)
        found = await tasks.table.page(path, owner, status, read_cursor(cursor), limit + 1)
        following = None
        if len(found) > limit:
            found.pop()
            following = f"{found[-1].created}/{found[-1].id}"
        return TaskPage(tasks=[Task.of(record) for record in found], next_cursor=following)

    @router.get("/{task_id}", responses=GONE)
    async def get_task(request: Request, response: Response, task_id: str, wait: Wait = 0) -> Task:
        """Tell how far a task is, and its result when it has one."""
        record = await endpoint.wait_for(request, task_id, wait)
        if not record.status.is_final:
            response.headers.update(RETRY_AFTER)
        return Task.of(record, await tasks.answer_to(record))

    @router.get("/{task_id}/result", response_class=Response, responses={**GONE, **ENDED})
    async def get_result(request: Request, task_id: str, wait: Wait = 0) -> Response:
        """Answer as the endpoint itself would have."""
        record = await endpoint.wait_for(request, task_id, wait)
        if record.status == Status.CANCELED:
            raise HasNoAnswer
        answer = await tasks.answer_to(record) if record.status.is_final else None
        if not answer:
            raise HasNoAnswerYet
        return Response(answer.body, answer.head["status"], answer.head["headers"])

    @router.delete("/{task_id}", responses={**GONE, **ENDED})
    async def cancel_task(request: Request, task_id: str) -> Task:
        """Cancel a task that has not ended."""
        await endpoint.find(request, task_id)
        return Task.of(await tasks.cancel(task_id))

    return router


def read_cursor(cursor: str) -> tuple[float, str]:
    """Return when the last task came that was listed, and its id. Raises BadInput."""
    if not cursor:
        return math.inf, ""
    created, _, task_id = cursor.partition("/")
    try:
        return float(created), task_id
    except ValueError:
        raise BadInput("cursor has to be the next_cursor of another page.") from None


class RespondAsync:
    """Middleware that makes a task of a request to an endpoint with `Prefer: respond-async`."""

    def __init__(self, app: ASGIApp, tasks: Tasks) -> None:
        self.app = app
        self.tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, to where tasks are created if it prefers that."""
        if scope.get("method") == "POST":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            prefers = Headers(scope=scope).get("prefer", "").lower().split(",")
            if path in self.tasks.parsers and "respond-async" in map(str.strip, prefers):
                scope = {**scope, "path": f"{scope['path']}/tasks"}
        await self.app(scope, receive, send)
