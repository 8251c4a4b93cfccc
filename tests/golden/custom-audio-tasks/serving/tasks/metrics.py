"""What `/metrics` says of tasks."""

import time
from typing import TYPE_CHECKING, Any

import httpx
from prometheus_client import Counter, Gauge

from serving.tasks.records import Record, Status
from serving.tasks.webhooks import Webhooks
from serving.tasks.work import Tasks

if TYPE_CHECKING:
    from serving.service import Service

QUEUED = Gauge("tasks_queued", "Tasks that wait.")
RUNNING = Gauge("tasks_running", "Tasks that are asked of the model.")
OLDEST = Gauge("tasks_oldest_age_seconds", "How long the task has waited that has waited longest.")
ATTEMPTS = Counter("task_attempts", "Times that a task was begun.")
ENDED = Counter("tasks_ended", "Tasks that have ended.", ["status"])
DELIVERIES = Counter("webhook_attempts", "Attempts to tell of a task's end.", ["outcome"])


class MeasuredWebhooks(Webhooks):
    """Webhooks whose attempts are counted."""

    async def _tell(self, client: httpx.AsyncClient, record: Record) -> None:
        await super()._tell(client, record)
        DELIVERIES.labels(record.webhook_status).inc()


class MeasuredTasks(Tasks):
    """Tasks that are counted."""

    def __init__(self, service: "Service[Any]") -> None:
        super().__init__(service)
        self.webhooks = MeasuredWebhooks(self.table, self.files)
        QUEUED.set_function(lambda: len(self.waiting))
        RUNNING.set_function(lambda: len(self.running))
        OLDEST.set_function(self._oldest_age)

    def _oldest_age(self) -> float:
        since = next(iter(self.waiting.values()), None)
        return time.time() - since if since else 0

    async def _begin(self, task_id: str) -> Record | None:
        if record := await super()._begin(task_id):
            ATTEMPTS.inc()
        return record

    async def _finish(self, record: Record, status: Status) -> None:
        await super()._finish(record, status)
        ENDED.labels(status).inc()
