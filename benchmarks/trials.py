"""Break a service that answers later, in each way that a machine breaks, and count its tasks.

`make trials` writes docs/reference/trials.md.
"""

import argparse
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count as count_up
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any, NamedTuple

import httpx

from benchmarks.report import output
from tests.support.cluster import Redis, start_worker
from tests.support.live import Live, free_port, held_port, live, wait_for
from tests.support.scripted_model import calls, make
from tests.support.updating import python
from tests.support.variants import ROOT

PAGE = ROOT / "docs" / "reference" / "trials.md"
ROUTE = "/infer/tasks"
# Bytes of a task's body: most are small, and one in twenty has 20 MB.
SIZES = (*[100] * 9, 100_000, *[100] * 6, 3_000_000, 100, 100, 19_900_000)
WORK = "__import__('select').select([], [], [], 0.05)"  # libfaketime breaks time.sleep
POISON = "os._exit(9)"
END_SECONDS = 300
LIBRARIES = Path("/usr/lib")

ABOUT = """\
# Trials of tasks

What becomes of [tasks](../how-to/answer-later.md) while a service is broken. A client sends {tasks}
of them one after another, each with an `Idempotency-Key`, and again where no answer or a 503 comes;
most bodies are small, one in twenty has 20 MB. Meanwhile the service is broken, or with `celery`
its worker or Redis, and started again as a container engine would. Then the client asks for each
answer. `make trials` made this table at commit {commit}; the tests do some with twenty.

| {titles} |
|---|{rulers}|
{rows}

Lost is a task that was accepted and that later is not there, has no end, or has another one's
answer. Begun again is one whose `attempts` is more than 1, for the process ended in the middle, or
the memory did; a run that `attempts` does not tell would be one too many that nobody knows of.
Refused is each 503 on the way. Memory is the most that the service's process had; on disk are all
answers, which stay for `RESULT_TTL_HOURS`.
"""
TITLES: tuple[str, ...] = ("what happens", "accepted", "succeeded", "failed", "lost", "begun again")
TITLES += ("runs not told", "refused", "memory", "on disk")


@dataclass
class Counts:
    """What became of a trial's tasks."""

    accepted: int = 0
    succeeded: int = 0
    failed: int = 0
    lost: int = 0
    again: int = 0
    untold: int = 0
    refused: int = 0
    memory: int = 0  # in bytes
    disk: int = 0

    @property
    def row(self) -> list[str]:
        """Return the cells of a table."""
        counts = [self.accepted, self.succeeded, self.failed, self.lost, self.again]
        sizes = [f"{size / 1e6:.0f} MB" for size in (self.memory, self.disk)]
        return [*map(str, [*counts, self.untold, self.refused]), *sizes]


class Pod:
    """A service and, on a cluster, its worker; each is started again whenever it has ended."""

    def __init__(self, subject: "Subject", held: ExitStack) -> None:
        self._subject = subject
        self._held = held
        self._env = subject.env | {"PORT": held.enter_context(held_port())}
        self.is_retired = False
        self.start_service()
        self.worker: subprocess.Popen[bytes] | None = None
        if subject.redis:
            self.start_worker()

    def start_service(self) -> None:
        """Start the service."""
        log = self._subject.next_log()
        started = live(self._subject.project, python(), log, **self._env)
        self.service = self._held.enter_context(started)

    def start_worker(self) -> None:
        """Start the worker."""
        log = self._subject.next_log()
        self.worker = start_worker(self.service, self._subject.project, log, **self._env)
        self._held.callback(self.worker.kill)

    def revive(self) -> None:
        """Start again what has ended."""
        if self.is_retired:
            return
        self._subject.memory = max(self._subject.memory, self.service.peak_bytes)
        if self.service.process.poll() is not None:
            self.start_service()
        if self.worker and self.worker.poll() is not None:
            self.start_worker()

    def retire(self) -> None:
        """Ask both to end, as a rollout does: the worker first."""
        self.is_retired = True
        for process in (self.worker, self.service.process):
            if process:
                process.terminate()
                process.wait(END_SECONDS)


@dataclass
class Subject:
    """A service that is started again whenever its process ends, with all that it needs."""

    project: Path
    folder: Path
    env: dict[str, str]
    tasks: int  # how many there will be
    poison: int  # which of them ends the process
    redis: Redis | None = None  # where it keeps its tasks on a cluster
    ids: list[str] = field(default_factory=list)  # of the tasks that were accepted
    refused: int = 0
    memory: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the service, and leave no process behind."""
        self._logs, self._closing = count_up(1), Event()
        with ExitStack() as self._held:
            if self.redis:
                self.redis.start()
                self._held.callback(self.redis.kill)
            self.pod = Pod(self, self._held)
            supervisor = Thread(target=self._supervise)
            supervisor.start()
            try:
                yield
            finally:
                self._closing.set()
                supervisor.join()

    @property
    def service(self) -> Live:
        """The service, as it runs now."""
        return self.pod.service

    def kill(self) -> None:
        """Kill the process."""
        self.service.process.kill()

    def stop(self) -> None:
        """Ask the process to end."""
        self.service.process.terminate()

    def kill_model(self) -> None:
        """Kill the process of the model, which with isolation is one of the service's own."""
        for child in output("pgrep", "-P", str(self.service.process.pid)).split():
            subprocess.run(["kill", "-9", child], check=False)  # one may have ended by itself

    def kill_worker(self) -> None:
        """Kill the worker."""
        assert self.pod.worker
        self.pod.worker.kill()

    def kill_redis(self) -> None:
        """Kill Redis, and start it again."""
        assert self.redis
        self.redis.kill()
        self.redis.start()

    def kill_all(self) -> None:
        """Kill all at once."""
        self.kill_worker()
        self.kill()
        self.kill_redis()

    def roll_out(self) -> None:
        """Start another pod beside this one, which then is to end."""
        before, self.pod = self.pod, Pod(self, self._held)
        if self.redis:
            self.service.ready()
        else:
            other = "Another process has the tasks"
            wait_for(lambda: other in self.service.log, seconds=60)
        before.retire()

    def limit_files(self, size: str) -> None:
        """Have no file grow beyond this size, as on a full disk."""
        pid = str(self.service.process.pid)
        output("prlimit", "--pid", pid, f"--fsize={size}:unlimited")

    def moments(self, number: int) -> Iterator[int]:
        """Yield so many times while the tasks are sent."""
        for moment in range(number):
            share = self.tasks * (moment + 1) // (number + 1)
            wait_for(lambda share=share: len(self.ids) >= share, seconds=END_SECONDS)  # type: ignore[misc]
            yield moment

    def ask(self, path: str) -> httpx.Response:
        """Ask whatever process there is, until one answers."""
        while True:
            with suppress(httpx.TransportError):
                response = httpx.get(f"{self.service.url}{path}", timeout=90)
                if response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                    return response
            time.sleep(0.1)

    def next_log(self) -> Path:
        """Return where the next process is to write its log."""
        return self.folder / f"log-{next(self._logs)}"

    def _supervise(self) -> None:
        while not self._closing.wait(0.05):
            self.pod.revive()


class Trial(NamedTuple):
    """One way to break it."""

    name: str
    disturb: Callable[[Subject, float], None]  # for an outage of so many seconds
    engine: str = "local"
    features: tuple[str, ...] = ()
    has_poison: bool = False  # a task that ends the process whenever it is begun
    has_clock: bool = False  # of its own

    @property
    def title(self) -> str:
        """What the table calls it."""
        return f"`{self.engine}`: {self.name}"


def repeatedly(number: int, act: Callable[[Subject], None]) -> Callable[[Subject, float], None]:
    """Return what does this so many times."""

    def disturb(subject: Subject, _outage: float) -> None:
        for _ in subject.moments(number):
            act(subject)

    return disturb


kill = repeatedly(5, Subject.kill)
stop = repeatedly(5, Subject.stop)
kill_model = repeatedly(5, Subject.kill_model)
kill_worker = repeatedly(5, Subject.kill_worker)
kill_redis = repeatedly(5, Subject.kill_redis)
kill_all = repeatedly(3, Subject.kill_all)
roll_out = repeatedly(2, Subject.roll_out)


def fill_disk(subject: Subject, outage: float) -> None:
    """Let nothing be written for a while."""
    for _ in subject.moments(1):
        subject.limit_files("4096")
        time.sleep(outage)
        subject.limit_files("unlimited")


def hang_redis(subject: Subject, outage: float) -> None:
    """Let Redis answer nothing for a while."""
    assert subject.redis
    for _ in subject.moments(1):
        with subject.redis.hanging():
            time.sleep(outage)


def set_clock(subject: Subject, _outage: float) -> None:
    """Set the clock forward, then back behind where it was, then right."""
    for moment in subject.moments(3):
        Path(subject.env["FAKETIME_TIMESTAMP_FILE"]).write_text(("+2h", "-2h", "+0")[moment])


def leave_alone(_subject: Subject, _outage: float) -> None:
    """Break nothing."""


POISONED = "one task ends the process whenever it is begun"
TRIALS = (
    Trial("nothing", leave_alone),
    Trial("kill -9 of the service, five times", kill),
    Trial("SIGTERM, five times", stop),
    Trial("two rollouts, each with both processes on one folder", roll_out),
    Trial(
        "kill -9 of the model's process (`isolation`), five times",
        kill_model,
        features=("isolation",),
    ),
    Trial(POISONED, leave_alone, has_poison=True),
    Trial("the disk is full for a while", fill_disk),
    Trial("the clock jumps by hours, forward and back", set_clock, has_clock=True),
    Trial("nothing", leave_alone, "celery"),
    Trial("kill -9 of the service, five times", kill, "celery"),
    Trial("kill -9 of the worker, five times", kill_worker, "celery"),
    Trial("kill -9 of Redis, five times", kill_redis, "celery"),
    Trial("kill -9 of all three at once, three times", kill_all, "celery"),
    Trial("two rollouts, of service and worker", roll_out, "celery"),
    Trial("Redis answers nothing for a while", hang_redis, "celery"),
    Trial(POISONED, leave_alone, "celery", has_poison=True),
)


def run(trial: Trial, folder: Path, tasks: int, outage: float) -> Counts:
    """Send so many tasks to a service that is broken meanwhile, and count what becomes of them."""
    features = ["observability", *trial.features]
    project = make(folder / "service", predictions=trial.engine, features=features)
    redis = Redis(folder, free_port()) if trial.engine == "celery" else None
    env = {"WARMUP": "0", "TASKS_DIR": str(folder / "tasks")} | (redis.env if redis else {})
    if not trial.has_poison:  # no task is to blame for what is done here, however often
        env["TASK_ATTEMPTS"] = "20"
    if trial.has_clock:
        library = next(LIBRARIES.glob("*/faketime/libfaketime.so.1"))
        env |= {"LD_PRELOAD": str(library), "DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
        env["FAKETIME_TIMESTAMP_FILE"] = str(folder / "clock")
        (folder / "clock").write_text("+0")
    poison = tasks // 2 if trial.has_poison else -1
    subject = Subject(project, folder, env, tasks=tasks, poison=poison, redis=redis)
    with subject.running():
        sender = Thread(target=send, args=(subject,))
        sender.start()
        trial.disturb(subject, outage)
        sender.join()
        return count(subject)


def send(subject: Subject) -> None:
    """Have each task accepted."""
    for number, size in enumerate(islice(cycle(SIZES), subject.tasks)):
        work = POISON if number == subject.poison else WORK
        body = {"number": number, "orders": f"{work}#{'x' * size}"}
        key = {"Idempotency-Key": f"number-{number}"}
        while len(subject.ids) == number:
            with suppress(httpx.TransportError):
                url = f"{subject.service.url}{ROUTE}"
                response = httpx.post(url, json=body, headers=key, timeout=30)
                if response.status_code == HTTPStatus.ACCEPTED:
                    subject.ids.append(response.json()["id"])
                    continue
                assert response.status_code == HTTPStatus.SERVICE_UNAVAILABLE, response.text
                subject.refused += 1
            time.sleep(0.1)


def count(subject: Subject) -> Counts:
    """Wait for each task's end."""
    counts = Counts(accepted=len(subject.ids), refused=subject.refused)
    told: Counter[int] = Counter()
    for number, task_id in enumerate(subject.ids):
        task: dict[str, Any] = {"status": "queued"}
        deadline = time.monotonic() + END_SECONDS
        while task.get("status") in ("queued", "running") and time.monotonic() < deadline:
            task = subject.ask(f"{ROUTE}/{task_id}?wait=10").json()
        has_failed = task.get("status") == "failed"
        is_answered = bool(task.get("result")) and task["result"]["number"] == number
        counts.succeeded += is_answered
        counts.failed += has_failed
        counts.lost += not (is_answered or has_failed)
        told[number] = task.get("attempts", 0)
        counts.again += told[number] > 1
    ran = Counter(number for call in calls(subject.project) for number in call)
    counts.untold = (ran - told).total()
    counts.memory = subject.memory
    files = [path for path in (subject.folder / "tasks").rglob("*") if path.is_file()]
    counts.disk = sum(path.stat().st_size for path in files)
    return counts


def main() -> None:
    """Run all trials, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--outage", type=float, default=30, help="in seconds")
    parser.add_argument("--only", default="", help="trials with this in their names")
    options = parser.parse_args()
    rows = []
    for trial in [trial for trial in TRIALS if options.only in trial.title]:
        with TemporaryDirectory() as folder:
            counts = run(trial, Path(folder), options.tasks, options.outage)
        print(f"{trial.title}: {counts}", flush=True)
        rows.append(f"| {trial.title} | {' | '.join(counts.row)} |")
    if options.only:
        return
    commit = output("git", "rev-parse", "--short", "HEAD")
    titles, rulers = " | ".join(TITLES), "|".join("---:" for _ in TITLES[1:])
    page = ABOUT.format(
        tasks=options.tasks, commit=commit, titles=titles, rulers=rulers, rows="\n".join(rows)
    )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
