"""Turns measurements into docs/reference/benchmarks.md and its plots."""

import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from benchmarks.chart import bars
from benchmarks.peers import python_of
from benchmarks.processes import Sample

# The key is a subject and a number of connections, or None where nothing is connected.
Figures = Mapping[tuple[str, int | None], Mapping[str, float]]

LOADED = (16, 64)
OURS = "this template"
OBSERVED = "this template, metrics on"
FORM, RAW = "this template, multipart", "this template, raw body"
RAW_BATCHING = "this template, raw body, batching"
MOSEC = ("mosec, raw body", "mosec, raw body, batches")
BATCHING, SINGLE = "this template, batching", "this template, no batching"
CORES = "One core has the server, with all its processes, another one the load generator, wrk."
PACKAGES = {
    "ours": ["fastapi", "starlette", "uvicorn", "pydantic", "onnxruntime", "torch", "transformers"],
    "litserve": ["litserve"],
    "bentoml": ["bentoml"],
    "mlserver": ["mlserver"],
    "mosec": ["mosec"],
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


def machine(seconds: int, repeats: int) -> dict[str, Any]:
    """Return what the figures depend on: machine, versions, settings."""
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    versions: dict[str, str] = {}
    for peer, packages in PACKAGES.items():
        command = [python_of(peer), "-c", code, *packages]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        versions |= dict(zip(packages, found, strict=True))
    python = subprocess.run(
        [python_of("ours"), "-c", "import platform; print(platform.python_version())"],
        check=True,
        capture_output=True,
        text=True,
    )
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    return {
        "cpu": cpu,
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "python": python.stdout.strip(),
        "versions": versions,
        "seconds": seconds,
        "repeats": repeats,
    }


def write(
    results: Mapping[str, list[Sample]],
    about: Mapping[str, Any],
    titles: Mapping[str, str],
    docs: Path,
) -> None:
    """Write the page and a plot for each benchmark."""
    (docs / "benchmarks").mkdir(exist_ok=True)
    sections = []
    for name, samples in results.items():
        figures = medians(samples)
        (docs / "benchmarks" / f"{name}.svg").write_text(plot(name, figures), encoding="utf-8")
        table = TABLES.get(name, load_table)(figures)
        sections.append(
            f"## {titles[name]}\n\n{ABOUT[name]}\n\n{table}{floor_table(name, figures)}\n\n"
            f"![{titles[name]}](benchmarks/{name}.svg)\n"
        )
    page = f"{introduction(about, results)}\n" + "\n".join(sections)
    (docs / "benchmarks.md").write_text(page, encoding="utf-8")


def item(text: str) -> str:
    """Return a line of a Markdown list, wrapped."""
    return fill(text, 100, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def core_share(results: Mapping[str, list[Sample]]) -> float:
    """Return how much of its core the work with no service around it had, where that was least.

    It never waits: what is missing had gone to something else on the machine.
    """
    figures = [x for samples in results.values() for x in medians(samples).values()]
    return min(
        (x["rate"] * x["cpu"] / 1e3 for x in figures if "p50" not in x and "cpu" in x), default=1
    )


def introduction(about: Mapping[str, Any], results: Mapping[str, list[Sample]]) -> str:
    """Return the head of the page: how it was measured, on what, with which versions."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    seconds, repeats = about["seconds"], about["repeats"]
    items = [
        f"""**Machine**: {about["cpu"]}, {about["system"]}. One core has the server, with all its
        processes, another one the load generator, wrk.""",
        f"""**Versions**: Python {about["python"]}; {versions}.""",
        f"""**Method**: the servers of a benchmark take turns; while one is measured, the others are
        stopped. A turn is a second of warm-up and {seconds} s for each number of connections,
        in B3 twice that. Figures are medians of {repeats} turns, in B2 and B3 of twice as many.
        Before each measurement the answer is compared with the one that it must be, and an error
        during it fails the run.""",
        f"""**Limit**: what the work alone reaches, in a loop with no service around it; in B3 over
        ready batches of 16. It is measured before and after each other measurement, and what that
        reaches of it is the ratio to the two: they are seconds apart, so it stands though the
        machine is faster at one time than at another. Floors of B2 and B3 compare these ratios.
        The loops got {core_share(results):.0%} of their core.""",
        """**CPU** is the processor time of all the server's processes per request. It tells how
        much work a framework does, also where its processes wait for each other.""",
        """**Configuration**: for every framework the best one found, without access logs. This
        template: its default answers. LitServe: `fast_queue`, one API server, one worker, no wait
        for a batch. BentoML: one worker; metrics, monitoring and access log off; `async` where the
        model does nothing. MLServer: no worker processes; metrics, gzip and debug off. mosec: one
        worker, and its best wait for a batch, 10 ms. All compute with one thread.""",
    ]
    listed = "\n".join(item(" ".join(text.split())) for text in items)
    return f"""\
# Benchmarks

Written by `make bench SECONDS={seconds} REPEATS={repeats}`, which measures all of this in one run
([testing.md](../development/testing.md#benchmarks)).

{listed}

Absolute figures are of this machine; the ratios are what counts. A ratio is judged where it is
least, at 16 and 64 connections, unless the row names a number.
"""


def load_table(figures: Figures) -> str:
    """Return throughput, latency and processor time of each subject; what it reaches of a limit."""
    has_limit = any("share" in x for x in figures.values())
    lines = [
        f"| | connections | requests/s |{' of the limit |' * has_limit} p50 ms | p99 ms | CPU ms |",
        f"|---|---:|---:|{'---:|' * has_limit}---:|---:|---:|",
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


TABLES = {"b4": start_table, "b5": flood_table, "b7": file_table}


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
    return bars("requests per second", rows, lines)
