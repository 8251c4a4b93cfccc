"""Celery's app: what the service sends, and a worker takes."""

from celery import Celery

from serving.settings import settings
from serving.tasks.records import RESEND_SECONDS, Record

RUN = "run"  # the one kind of message
BROKER = settings.broker_url or settings.redis_url
REDIS_OPTIONS = {
    "global_keyprefix": "my-model-server:",  # several services may share a Redis
    # After which another worker gets a message. A task that runs by then is not begun again.
    "visibility_timeout": RESEND_SECONDS,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "socket_connect_timeout": 1,
    "socket_timeout": 10,
    "max_retries": 1,
}

app = Celery("my-model-server", broker=BROKER)
app.conf.update(
    task_default_queue="my-model-server",
    task_ignore_result=True,  # the table has it
    task_acks_late=True,  # a worker that dies has not taken its message
    task_publish_retry=False,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,  # a worker waits for its broker
    broker_transport_options=(
        REDIS_OPTIONS if BROKER.startswith(("redis", "sentinel")) else {"confirm_publish": True}
    ),
)


def connect() -> None:
    """Connect to the broker, which imports what speaks its protocol. Raises OperationalError."""
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)


def send(record: Record) -> None:
    """Have a worker do a task. Raises OperationalError."""
    app.send_task(RUN, (record.id, record.ticket))
