"""Turns measurements into docs/reference/benchmarks.md and its plots."""

import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from benchmarks.chart import bars
from benchmarks.peers import python_of
from benchmarks.processes import Sample
from tests.support.variants import ROOT

# The key is a subject and a number of connections, or None where nothing is connected.
Figures = Mapping[tuple[str, int | None], Mapping[str, float]]

LOADED = (16, 64)
OURS = "this template"
OBSERVED = "this template, metrics on"
FORM, RAW = "this template, multipart", "this template, raw body"
RAW_BATCHING = "this template, raw body, batching"
MOSEC = ("mosec, raw body", "mosec, raw body, batches")
BATCHING, SINGLE = "this template, batching", "this template, no batching"
OPENAI, OWN = "OpenAI's route", "the service's own route"
# Whose versions are named with a benchmark's figures: ours and the peers', from their environments.
WEB = ("fastapi", "starlette", "uvicorn", "pydantic")
PEERS = ("litserve", "bentoml", "mlserver", "mosec")
EMBEDDING = (*WEB, "torch", "transformers")
MEASURED = ("benchmarks", "copier.yml", "parts", "template")  # where a change may change figures
PACKAGES = {
    "b1": (*WEB, *PEERS),
    "b2": (*WEB, "onnxruntime", "litserve", "bentoml", "mosec"),
    "b3": (*EMBEDDING, "litserve", "bentoml"),
    "b4": (*WEB, *PEERS),
    "b5": (*EMBEDDING, "litserve", "bentoml"),
    "b6": (*WEB, "onnxruntime", "litserve"),
    "b7": WEB,
    "b8": (*WEB, "xllamacpp"),
    "b9": EMBEDDING,
    "b10": (*WEB, "celery", "redis", "bentoml"),
}
MEASURES = {
    "health": "alive",
    "ready": "ready",
    "answer": "first answer",
    "memory": "memory",
    "packages": "packages",
}
ABOUT = {
    "b1": """\
Four numbers go in and come back: what is left is the service. The bare route is FastAPI with the
same two Pydantic models, and nothing else: no limits, deadline, queue or thread. MLServer is asked
in the form of its own protocol. The peers' metrics and access logs are off, and so are ours
(`features=[]`); the row with metrics on is what is rendered by default.""",
    "b2": """\
A JPEG of 320 x 80 pixels (4.7 kB) with a line of text. The classifier that tells which way up it is
comes with rapidocr, and runs on ONNX Runtime with one thread. The limit is decoding and running, in
a loop in one process, on the same core in the same run. "The document's code" is what the document
that the specification comes from prints ([source.md](../explanation/source.md)), call for call.""",
    "b3": """\
One sentence per request, embedded by all-MiniLM-L6-v2 on torch with one thread. Offline is the same
code over ready batches, with no service around it.""",
    "b4": """\
Seconds from the start of the process to the first 200 of the liveness and readiness addresses, and
to the first right answer; memory after 50 requests (the proportional set size of all processes).
LitServe has one address for both. Packages are what an image of B2's service holds beside its base,
which may be the same for all, and the weights: the framework, Pillow, NumPy, ONNX Runtime, and what
they need, without bytecode. Our Dockerfile adds curl, for the health check. For this template the
seconds that `copier copy` takes are named too; the peers have nothing to render.""",
    "b5": """\
The work of B3. The peak is what 64 connections get that wait for their answers, before and after.
In between requests come at ten times that rate on up to 500 connections, and none waits for
another; "not sent" are those for which no connection was free. The generator is
`benchmarks/flood.py`. The server has one core for the model and the rejections.""",
    "b6": """\
The work and the form of B2. Server and load generator share two cores. `isolation` has the model in
one other process, `replicas` has two processes with a model each (`WORKERS=2`), and LitServe two
workers behind one API server.""",
    "b7": """\
Random pixels in a BMP, noise in stereo at 44.1 kHz in a WAV, 250 frames of 1280 x 720 in an MP4,
sent as a form to the services with the stock models. Seconds are the shortest of three requests;
memory is what the process had at its peak, less what it had when it was ready.""",
    "b8": """\
The preset `smollm2` with the contract `openai`, as it is rendered, metrics included, beside the
HTTP server of llama.cpp itself. Both are in the package that the preset runs on, xllamacpp: what is
between them is this template. Both have the same weights, one thread, four answers at a time and
the same context. Clients ask `/v1/chat/completions` for streams of 64 tokens at temperature 0, one
after the other each. Every request has another prompt, and neither server keeps prompts, so that no
prefix is computed for one of them alone. At first four answers of both are compared, and an answer
of another length fails the run.

The generator is `benchmarks/chats.py`, which counts tokens as they come. Each request has a
connection of its own: llama.cpp's server, when it was tried, now and then closed one that it had
kept, while the next request was on its way. "First" is the time to the first token of an answer: at
16 connections 12 requests wait for their turn, and that is in it. A turn has so few answers that
its p99 is the slowest of them, or nearly. What a server reaches of llama.cpp's is the ratio of two
measurements, one right after the other, of which ours is the first in one turn and the second in
the next.

By itself llama.cpp's server would keep prompts, so that the next turn of a conversation begins
sooner; the preset does not, for the same answer each time. That advantage is not measured here.""",
    "b9": """\
The sentence and the model of B3, without batches (`features=[]`): `POST /v1/embeddings`, of the
contract `openai`, beside `POST /embed` of the same service. The limit is the work alone in batches
of 1. Both answers have 384 numbers as text; that of OpenAI's API counts the tokens as well. With
`batching`, requests to `/embed` would share calls of the model (B3); those to `/v1/embeddings` have
a call each, for all the texts that they bring.""",
    "b10": """\
480 tasks from 16 clients, which then ask what has become of each; the time ends when the last end
is seen. All that a task needs has one core: the service, and for `celery` Redis, with `appendfsync
always`, and a worker. Both engines have a task on the disk before they accept it; BentoML keeps its
tasks in memory, and loses them with its process. Requests are those of 16 clients that wait for
their answers, to the same service. CPU is the service's alone, per task. The generator is
`benchmarks/later.py`.""",
}


# Said below the table where one of its rows is missed.
WHERE = {
    "b1": """\
mosec's HTTP is in Rust: the bare route, which is uvicorn and FastAPI with nothing in between, is
itself behind it, so that 0.85 of mosec would leave limits, deadline, queue and the hand-over to the
model's thread a tenth of a request. With no sockets, 16 requests at a time, the app takes 165 µs of
processor time for a request, and the bare route 123.""",
    "b2": """\
Where the time goes at 64 connections, by the processor time of each thread: by raw body the event
loop has 0.63 ms of a request and the model's thread 2.3, where the work alone takes 2.0. With
batches it is 0.35 and 2.1 ms. So the half of what the service costs is that the event loop wakes up
three times for each request, in the middle of the model's work on the same core, and both lose
their caches. Answers that share a wake-up, ten milliseconds long, brought 0.07 of the limit when
they were tried. mosec's HTTP is in Rust, in a process of its own.""",
    "b3": """\
What is missing to offline batches is the event loop's work for 64 requests between two of them, on
the same core.""",
    "b4": """\
mosec's own process is Rust and starts at once, and its worker imports little; a third of a second
is the import of FastAPI.""",
}


@dataclass(frozen=True)
class Floor:
    """What is to be reached, and how it follows from the figures."""

    benchmark: str
    text: str
    bound: float
    value: Callable[[Figures], float]
    at_least: bool = True

    def reached(self, value: float) -> bool:
        """Tell whether a value, as it is printed, is on the right side."""
        return value >= self.bound if self.at_least else value <= self.bound


def lead(ours: str, *others: str, at: tuple[int, ...] = LOADED) -> Callable[[Figures], float]:
    """Return ours over the fastest of the others, where that is least.

    Where a limit is measured beside each, what they reach of it is compared.
    """

    def value(figures: Figures) -> float:
        by = "share" if "share" in figures[ours, at[0]] else "rate"
        return min(
            figures[ours, number][by] / max(figures[other, number][by] for other in others)
            for number in at
        )

    return value


def share(ours: str, offline: str, at: tuple[int, ...] = LOADED) -> Callable[[Figures], float]:
    """Return ours over the fastest that runs with no service around it."""

    def value(figures: Figures) -> float:
        most = max(x["share"] for (name, _), x in figures.items() if name.startswith(offline))
        return min(figures[ours, number]["share"] for number in at) / most

    return value


def slowness(figures: Figures) -> float:
    """Return the p99 at 64 connections over the time that 64 requests take at least."""
    ours = figures[FORM, 64]
    return ours["p99"] / (64 / (ours["rate"] / ours["share"]) * 1e3)


def against_peers(measure: str) -> Callable[[Figures], float]:
    """Return our value of a measure over the least of the peers."""

    def value(figures: Figures) -> float:
        least = min(
            x[measure]
            for (name, _), x in figures.items()
            if measure in x and not name.startswith((OURS, "the model alone"))
        )
        return figures[OURS, None][measure] / least

    return value


FLOORS = [
    Floor("b1", "3 x LitServe", 3, lead(OURS, "LitServe")),
    Floor("b1", "3 x BentoML", 3, lead(OURS, "BentoML")),
    Floor("b1", "1.1 x MLServer", 1.1, lead(OURS, "MLServer")),
    Floor("b1", "0.85 x mosec", 0.85, lead(OURS, "mosec")),
    Floor("b1", "0.60 x the bare route", 0.60, lead(OURS, "bare FastAPI route")),
    Floor("b1", "metrics on: 0.45 x the bare route", 0.45, lead(OBSERVED, "bare FastAPI route")),
    Floor("b2", "0.72 of the limit, multipart", 0.72, share(FORM, "limit")),
    Floor("b2", "0.75 of the limit, raw body", 0.75, share(RAW, "limit")),
    Floor(
        "b2",
        "1.3 x LitServe, with or without batches",
        1.3,
        lead(FORM, "LitServe", "LitServe, batches"),
    ),
    Floor("b2", "1.6 x BentoML", 1.6, lead(FORM, "BentoML")),
    Floor("b2", "p99 at 64 connections under 2 x 64 / limit", 2, slowness, at_least=False),
    Floor("b2", "raw, batching: 0.92 x mosec's best", 0.92, lead(RAW_BATCHING, *MOSEC)),
    Floor(
        "b2",
        "raw, batching: p99 at 64 connections within 1.3 x mosec's",
        1.3,
        lambda x: x[RAW_BATCHING, 64]["p99"] / min(x[peer, 64]["p99"] for peer in MOSEC),
        at_least=False,
    ),
    Floor("b3", "0.93 of offline, 64 connections", 0.93, share(BATCHING, "offline", (64,))),
    Floor("b3", "1 connection: 0.95 of no batching", 0.95, lead(BATCHING, SINGLE, at=(1,))),
    *(
        Floor("b4", f"{name}: at most the best peer's", 1, against_peers(measure), at_least=False)
        for measure, name in MEASURES.items()
    ),
    Floor(
        "b5",
        "0.75 of the peak",
        0.75,
        lambda x: x[BATCHING, None]["rate"] / x[BATCHING, None]["peak"],
    ),
    Floor(
        "b5",
        "rejections under 10 ms at the median",
        10,
        lambda x: x[BATCHING, None]["refusal_p50"],
        at_least=False,
    ),
    Floor("b8", "0.95 of llama.cpp's, 1 connection", 0.95, lambda x: x[OURS, 1]["share"]),
    Floor(
        "b9",
        "0.9 of the service's own route, 1 and 16 connections",
        0.9,
        lead(OPENAI, OWN, at=(1, 16)),
    ),
]


def medians(samples: list[Sample]) -> Figures:
    """Return the median over the repeats of each figure."""
    groups: dict[tuple[str, int | None], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample["subject"], sample.get("connections")), []).append(sample)
    skipped = {"subject", "connections", "repeat"}
    return {
        key: {name: median(s[name] for s in group) for name in group[0] if name not in skipped}
        for key, group in groups.items()
    }


def machine(benchmark: str, command: str) -> dict[str, Any]:
    """Return what a benchmark's figures depend on: when and where it ran, code and versions."""
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    versions = {"Python": output(python_of("ours"), "--version").removeprefix("Python ")}
    for package in PACKAGES[benchmark]:
        python = python_of(package if package in PEERS else "ours")
        versions[package] = output(python, "-c", code, package)
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    changes = output("git", "status", "--porcelain", *MEASURED)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": output("git", "rev-parse", "--short", "HEAD") + " with changes" * bool(changes),
        "command": command,
        "cpu": cpu,
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "versions": versions,
    }


def output(*command: str) -> str:
    """Return what a command prints."""
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()


def write(
    benchmark: str,
    samples: list[Sample],
    titles: Mapping[str, str],
    about: Mapping[str, Any],
    docs: Path,
) -> None:
    """Write a benchmark's section of the page, and its plot; the other sections stay."""
    (docs / "benchmarks").mkdir(exist_ok=True)
    page, title, figures = docs / "benchmarks.md", titles[benchmark], medians(samples)
    (docs / "benchmarks" / f"{benchmark}.svg").write_text(
        plot(benchmark, figures), encoding="utf-8"
    )
    found = sections(page.read_text(encoding="utf-8")) if page.exists() else {}
    found[title] = "\n\n".join(
        [
            f"## {title}",
            ABOUT[benchmark],
            measured(about, samples),
            TABLES.get(benchmark, load_table)(figures) + floor_table(benchmark, figures),
            f"![{title}](benchmarks/{benchmark}.svg)\n",
        ]
    )
    kept = [found[title] for title in titles.values() if title in found]
    page.write_text("\n".join([introduction(), *kept]), encoding="utf-8")


def sections(page: str) -> dict[str, str]:
    """Return the page's sections by their titles."""
    _, *parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return {part.partition("\n")[0].removeprefix("## "): f"{part.rstrip()}\n" for part in parts}


def measured(about: Mapping[str, Any], samples: list[Sample]) -> str:
    """Return how and where a section's figures came about."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = (
        f"Measured on {about['date']} at commit {about['commit']} by `{about['command']}`: "
        f"{about['cpu']}, {about['system']}, {versions}."
    )
    if loops(samples):
        text += f" The loops got {core_share(samples):.0%} of their core."
    return fill(text, 100, break_on_hyphens=False, break_long_words=False)


def item(text: str) -> str:
    """Return a line of a Markdown list, wrapped."""
    return fill(text, 100, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def core_share(samples: list[Sample]) -> float:
    """Return how much of its core the work with no service around it had, where that was least.

    It never waits: what is missing had gone to something else on the machine.
    """
    return min((x["rate"] * x["cpu"] / 1e3 for x in loops(samples)), default=1)


def loops(samples: list[Sample]) -> list[Mapping[str, float]]:
    """Return the figures of the work with no service around it."""
    return [x for x in medians(samples).values() if "p50" not in x and "cpu" in x]


def introduction() -> str:
    """Return the head of the page: what all benchmarks have in common."""
    items = [
        """**Cores**: one has the server, with all its processes, another one the load generator,
        wrk where no other is named.""",
        """**Method**: the servers of a benchmark take turns; while one is measured, the others are
        stopped. A turn is a second of warm-up and `SECONDS` for each number of connections, in B3
        twice that, in B8 three times. Figures are medians of `REPEATS` turns, in B2, B3, B8 and B9
        of twice as many. Before each measurement the answer is compared with the one that it must
        be, and an error during it fails the run.""",
        """**Limit**: what the work alone reaches, in a loop with no service around it; in B3 over
        ready batches of 16. It is measured before and after each other measurement, and what that
        reaches of it is the ratio to the two: they are seconds apart, so it stands though the
        machine is faster at one time than at another. Floors of B2, B3 and B9 compare these
        ratios.""",
        """**CPU** is the processor time of all the server's processes per request, in B8 per token.
        It tells how much work a framework does, also where its processes wait for each other.""",
        """**Configuration**: for every framework the best one found, without access logs. This
        template: its default answers. LitServe: `fast_queue`, one API server, one worker, no wait
        for a batch. BentoML: one worker; metrics, monitoring and access log off; `async` where the
        model does nothing. MLServer: no worker processes; metrics, gzip and debug off. mosec: one
        worker, and its best wait for a batch, 10 ms. All compute with one thread.""",
    ]
    listed = "\n".join(item(" ".join(text.split())) for text in items)
    return f"""\
# Benchmarks

Written by `make bench` ([testing.md](../development/testing.md#benchmarks)), which measures all, or
those that it is asked for: each section says when, on what and with which versions.

{listed}

Absolute figures are of one machine; the ratios are what counts. A ratio is judged where it is
least, at 16 and 64 connections, unless the row names a number.
"""


def load_table(
    figures: Figures, rate: str = "requests/s", limit: str = "the limit", latency: str = ""
) -> str:
    """Return throughput, latency and processor time of each subject; what it reaches of a limit."""
    has_limit = any("share" in x for x in figures.values())
    head = ["connections", rate, f"{latency}p50 ms", f"{latency}p99 ms", "CPU ms"]
    if has_limit:
        head.insert(2, f"of {limit}")
    lines = [
        f"| | {' | '.join(head)} |",
        f"|---|{'---:|' * len(head)}",
    ]
    for (subject, connections), x in figures.items():
        cells = [subject, str(connections or ""), f"{x['rate']:.1f}"]
        if has_limit:
            cells.append(f"{x['share']:.3f}")
        cells += [f"{x[name]:.2f}" if name in x else "" for name in ("p50", "p99")]
        lines.append(f"| {' | '.join(cells)} | {x['cpu']:.3f} |")
    return "\n".join(lines)


def start_table(figures: Figures) -> str:
    """Return how each subject starts, and its memory."""
    alone = figures["the model alone", None]["memory"]
    lines = [
        "| | alive s | ready s | first answer s | memory MiB | less the model's | packages MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (subject, _), x in figures.items():
        seconds = " | ".join(f"{x[name]:.2f}" if name in x else "" for name in list(MEASURES)[:3])
        memory = f"{x['memory']:.1f} | {x['memory'] - alone:.1f}"
        packages = f"{x['packages']:.0f}" if "packages" in x else ""
        lines.append(f"| {subject} | {seconds} | {memory} | {packages} |")
    render = figures[OURS, None]["render"]
    return "\n".join(lines) + f"\n\n`copier copy` takes {render:.2f} s."


def flood_table(figures: Figures) -> str:
    """Return what each subject answers, and how, when too much is asked."""
    lines = [
        (
            "| | peak/s | answers/s | p99 ms | rejections/s | p50 of these ms | not sent/s "
            "| grown MiB |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (subject, _), x in figures.items():
        answers = f"{x['peak']:.1f} | {x['rate']:.1f} | {x['p99']:.0f}"
        refusals = f"{x['refusals']:.1f} | {x['refusal_p50']:.2f} | {x['unsent']:.1f}"
        lines.append(f"| {subject} | {answers} | {refusals} | {x['grown']:.1f} |")
    return "\n".join(lines)


def file_table(figures: Figures) -> str:
    """Return what each file takes."""
    lines = ["| | MB | seconds | memory at its peak, MiB more |", "|---|---:|---:|---:|"]
    for (subject, _), x in figures.items():
        lines.append(f"| {subject} | {x['mb']:.1f} | {x['seconds']:.2f} | {x['grown']:.0f} |")
    return "\n".join(lines)


def token_table(figures: Figures) -> str:
    """Return how fast tokens come from each subject, and how soon the first."""
    return load_table(figures, "tokens/s", "llama.cpp's", "first: ")


def task_table(figures: Figures) -> str:
    """Return how fast tasks are done, how soon they are accepted, and what more they cost."""
    lines = [
        "| | tasks/s | accepted: p50 ms | p99 ms | CPU ms | requests/s | ms more than a request |",
        f"|---|{'---:|' * 6}",
    ]
    for (subject, _), x in figures.items():
        more = 1e3 / x["rate"] - 1e3 / x["sync"]
        accepted = f"{x['p50']:.1f} | {x['p99']:.1f} | {x['cpu']:.2f}"
        lines.append(f"| {subject} | {x['rate']:.0f} | {accepted} | {x['sync']:.0f} | {more:.2f} |")
    return "\n".join(lines)


TABLES = {
    "b4": start_table,
    "b5": flood_table,
    "b7": file_table,
    "b8": token_table,
    "b10": task_table,
}


def floor_table(benchmark: str, figures: Figures) -> str:
    """Return what is to be reached, what was, and the verdict on the number as printed."""
    lines = ["", "", "| to reach | measured | |", "|---|---:|---|"]
    if not any(floor.benchmark == benchmark for floor in FLOORS):
        return ""
    for floor in FLOORS:
        if floor.benchmark != benchmark:
            continue
        value = round(floor.value(figures), 2)
        verdict = "reached" if floor.reached(value) else "**missed**"
        lines.append(f"| {floor.text} | {value:.2f} | {verdict} |")
    if benchmark in WHERE and "missed" in "".join(lines):
        lines += ["", WHERE[benchmark]]
    return "\n".join(lines)


def plot(benchmark: str, figures: Figures) -> str:
    """Return the benchmark's chart."""
    if benchmark == "b4":
        names = [MEASURES[name] for name in ("health", "ready", "answer")]
        return bars(
            "seconds from the start of the process",
            {
                subject: dict(zip(names, (x["health"], x["ready"], x["answer"]), strict=True))
                for (subject, _), x in figures.items()
                if "health" in x
            },
        )
    if benchmark == "b5":
        return bars(
            "answers per second",
            {
                subject: {"64 connections": x["peak"], "ten times as many requests": x["rate"]}
                for (subject, _), x in figures.items()
            },
        )
    if benchmark == "b7":
        return bars(
            "seconds to the answer",
            {subject: {"one at a time": x["seconds"]} for (subject, _), x in figures.items()},
        )
    if benchmark == "b10":
        return bars(
            "tasks per second",
            {subject: {"16 clients": x["rate"]} for (subject, _), x in figures.items()},
        )
    rows: dict[str, dict[str, float]] = {}
    lines: dict[str, float] = {}
    for (subject, connections), x in figures.items():
        if connections is None:
            lines = (
                {"offline": max(x["rate"], *lines.values())} if lines else {"offline": x["rate"]}
            )
        else:
            plural = "connection" if connections == 1 else "connections"
            rows.setdefault(subject, {})[f"{connections} {plural}"] = x["rate"]
    return bars(f"{'tokens' if benchmark == 'b8' else 'requests'} per second", rows, lines)
