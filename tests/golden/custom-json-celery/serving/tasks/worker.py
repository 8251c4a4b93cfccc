"""A worker: takes messages, and has the service beside it do the tasks. It holds no model.

`python -m serving.tasks.worker`
"""

import logging
import time

import httpx

from serving.logs import configure_logging
from serving.settings import settings
from serving.tasks.messages import RUN, app

RETRY_SECONDS = 1
CONNECT_SECONDS = 5

logger = logging.getLogger(__name__)
# An answer takes as long as the task: the service has the deadlines.
client = httpx.Client(
    base_url=settings.service_url or f"http://127.0.0.1:{settings.port}",
    timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
    trust_env=False,
)


@app.task(name=RUN)
def run(task_id: str, ticket: str) -> None:
    """Ask the service until it has done the task, or says that another process does."""
    while True:
        try:
            response = client.post(f"/tasks/{task_id}", headers={"X-Task-Ticket": ticket})
        except httpx.TransportError as error:  # it starts, or has just died
            logger.warning("The service does not answer: %s", error)
        else:
            if not httpx.codes.is_server_error(response.status_code):
                return
            logger.warning("The service answers %d: %s", response.status_code, response.text)
        time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    configure_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each task
    threads = f"--concurrency={settings.task_concurrency}"
    app.worker_main(["worker", "--pool=threads", threads, "--without-gossip", "--without-mingle"])
