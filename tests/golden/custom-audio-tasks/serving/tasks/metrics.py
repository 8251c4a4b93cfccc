"""What `/metrics` says of tasks."""

from typing import TYPE_CHECKING, Any

import httpx
from prometheus_client import Counter, Gauge

from serving.tasks.queue import Tasks
from serving.tasks.records import Record, Status
from serving.tasks.webhooks import Webhooks

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

    async def _tell(self, client: httpx.AsyncClient, record: Record) -> Record | None:
        if told := await super()._tell(client, record):
            DELIVERIES.labels(told.webhook_status).inc()
        return told


class MeasuredTasks(Tasks):
    """Tasks that are counted."""

    def __init__(self, service: "Service[Any]") -> None:
        super().__init__(service)
        self.webhooks = MeasuredWebhooks(self.table, self.files)
        QUEUED.set_function(self.count_queued)
        RUNNING.set_function(lambda: len(self.running))
        OLDEST.set_function(self.oldest_age)

    async def _begin(self, task_id: str) -> Record | None:
        if record := await super()._begin(task_id):
            ATTEMPTS.inc()
        return record

    async def _finish(self, task_id: str, status: Status) -> Record:
        record = await super()._finish(task_id, status)
        ENDED.labels(status).inc()
        return record
