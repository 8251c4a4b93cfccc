"""What is known of a task: as the table has it, and as its clients see it."""

import json
import time
from datetime import datetime
from enum import StrEnum
from secrets import token_urlsafe
from typing import Any, Self

from pydantic import BaseModel, Field

from serving.errors import ServiceError
from serving.settings import settings
from serving.tasks.files import Entry

RESEND_SECONDS = 4 * settings.task_lease_seconds  # after which a message is taken for lost


class Status(StrEnum):
    """How far a task is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether it stays so."""
        return self not in (Status.QUEUED, Status.RUNNING)


class Delivery(StrEnum):
    """How far a webhook is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Record(BaseModel):
    """What the table has of a task; times are seconds since 1970."""

    id: str
    path: str  # of the endpoint
    owner: str  # who sent it; empty where nobody has to say who they are
    digest: str  # of what it asks
    request_id: str
    status: Status = Status.QUEUED
    attempts: int = 0
    created: float = Field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    webhook: str = ""  # where its end is told
    webhook_status: Delivery | None = None
    webhook_attempts: int = 0
    webhook_due: float | None = None
    due: float = Field(default_factory=lambda: time.time() + RESEND_SECONDS)  # its next message
    ticket: str = Field(default_factory=token_urlsafe)  # what a worker shows to have it done

    @property
    def name(self) -> str:
        """What its files are called: of two requests with one key, each has its own."""
        return f"{self.id}.{self.digest[:16]}"


class TaskError(BaseModel):
    """Why a task has failed: what its request would have been answered with."""

    status: int
    detail: Any


class Webhook(BaseModel):
    """Where the task's end is told, and whether it is."""

    url: str
    status: Delivery
    attempts: int


class Task(BaseModel):
    """One prediction, and how far it is."""

    id: str
    status: Status
    attempts: int
    """How often the model began with it; more than once where the service ended meanwhile."""
    created: datetime
    started: datetime | None
    ended: datetime | None
    result: Any = None
    """The answer, where it is JSON; `/result` has any."""
    error: TaskError | None = None
    webhook: Webhook | None = None
    """Null as long as the task has not ended, or where nobody wants to be told."""

    @classmethod
    def of(cls, record: Record, answer: Entry | None = None) -> Self:
        """Return what clients see of a task."""
        task = cls.model_validate(record.model_dump(exclude={"webhook"}))
        if record.webhook_status:
            attempts = record.webhook_attempts
            task.webhook = Webhook(
                url=record.webhook, status=record.webhook_status, attempts=attempts
            )
        if answer and answer.head["headers"].get("content-type") == "application/json":
            document = json.loads(answer.body)
            if record.status is Status.SUCCEEDED:
                task.result = document
            elif record.status is Status.FAILED:
                task.error = TaskError(status=answer.head["status"], detail=document["detail"])
        return task


class TaskPage(BaseModel):
    """Some of the tasks, newest first, without their results."""

    tasks: list[Task]
    next_cursor: str | None
    """What the next page is asked with; null on the last."""


class NoSuchTask(ServiceError):
    """There is no task with this id, or no longer, or it is somebody else's."""

    status, message = 404, "There is no such task, or no longer."


class HasEnded(ServiceError):
    """The task can no longer be canceled."""

    status, message = 409, "The task has ended."


class IsRunning(ServiceError):
    """Another process has begun the task, and goes on with it."""

    status, message = 409, "The task runs already."


class HasNoAnswer(ServiceError):
    """The task will not be answered."""

    status, message = 409, "The task was canceled."


class HasNoAnswerYet(ServiceError):
    """The task has not ended."""

    status, message, retry_after = 409, "The task has not ended.", 1


class KeyReused(ServiceError):
    """The idempotency key came with another request before."""

    status, message = 422, "This Idempotency-Key was sent with another request before."


class TooManyTasks(ServiceError):
    """As many tasks wait as MAX_QUEUED_TASKS allows."""

    status, message, retry_after = 503, "Too many tasks are waiting.", 10


class CannotKeep(ServiceError):
    """What keeps the tasks is away, or fails."""

    status, message, retry_after = 503, "Tasks cannot be kept at present.", 10
