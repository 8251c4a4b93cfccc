"""The benchmarks' own arithmetic, page and processes; nothing here is timed."""

import platform
import re
import signal
import sys
import time
import xml.etree.ElementTree as ET  # what is parsed was written here
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from benchmarks import report, tokens
from benchmarks.bench import beside
from benchmarks.processes import (
    START_SECONDS,
    Request,
    Sample,
    Server,
    looping,
    matches,
    serving,
)
from benchmarks.report import FLOORS, Figures, write
from benchmarks.report import sections as sections_of
from benchmarks.subjects import BENCHMARKS, form
from tests.support.live import is_alive
from tests.support.variants import ROOT

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
TITLES = {benchmark.name: benchmark.title for benchmark in BENCHMARKS}
ABOUT = {
    "date": "2026-11-26",
    "commit": "af42581",
    "command": "make bench ONLY=b1",
    "cpu": "some CPU",
    "system": "some system",
    "versions": {"Python": "3.11.7", "torch": "2.13.0"},
}
# Starts a server that has a child in a session of its own, as some frameworks do.
PARENT = """
import http.server, os, subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleep, start_new_session=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"child": %d, "score": 0.50004}' % child.pid
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

# Work that goes faster from run to run.
WORK = """
import sys
for rate, _ in enumerate(sys.stdin, 2):
    print('{"rate": %d}' % (rate * 50), flush=True)
"""


# Streams LENGTH words of a chat, as fast as it can.
CHATS = """
import http.server, json, os
def chunk(reason, **delta):
    choice = {"delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\\n\\n"
words = [chunk(None, content=os.environ["WORD"])] * int(os.environ["LENGTH"])
BODY = "".join([*words, chunk("length"), "data: [DONE]\\n\\n"]).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@contextmanager
def chats(folder: Path, name: str, word: str = "word", length: int = 64) -> Iterator[Server]:
    """Start such a server, which stands until it is measured."""
    env = {"WORD": word, "LENGTH": str(length)}
    with serving([sys.executable, "-c", CHATS], folder, env, folder / name) as server:
        wait_for_200(server)
        server.signal(signal.SIGSTOP)
        yield server


def wait_for_200(server: Server) -> None:
    """Wait until a server of chats answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            httpx.post(server.url, content=b"").raise_for_status()
            return
        time.sleep(0.05)
    pytest.fail("no answer")


def sections(page: str) -> dict[str, str]:
    """Return the page's text for each benchmark."""
    names = {title: name for name, title in TITLES.items()}
    return {names[title]: text for title, text in sections_of(page).items()}


def rows(text: str, columns: int) -> list[list[str]]:
    """Return the cells of the Markdown tables that have so many columns, without their heads."""
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in row] for row in cells if len(row) == columns]
    return [row for row in table[2:] if not row[0].startswith("---")]


def figures_of(section: str) -> Figures:
    """Return a page's table of throughput and latency as figures."""
    figures: dict[tuple[str, int | None], dict[str, float]] = {}
    for name, connections, rate, *share, _p50, p99, _cpu in rows(section, 6) or rows(section, 7):
        figures[name, int(connections) if connections else None] = {
            "rate": float(rate),
            **({"share": float(share[0])} if share else {}),
            **({"p99": float(p99)} if p99 else {}),
        }
    return figures


def load_samples(subject: str, *rates: float) -> list[Sample]:
    """Return samples of a subject whose repeats had these rates, at each number of connections."""
    return [
        {"subject": subject, "repeat": repeat, "connections": connections, "rate": rate}
        | {"p50": 1.0, "p99": 2.0, "cpu": 0.1}
        for repeat, rate in enumerate(rates)
        for connections in (1, 16, 64)
    ]


def test_report(tmp_path: Path) -> None:
    """Medians are compared, a floor is judged by them, and the chart's bars are as long as they."""
    samples = [
        *load_samples("this template", 5000, 100, 6000),
        *load_samples("LitServe", 1000, 1667, 9000),
        *load_samples("BentoML", 1000, 1000, 1000),
        *load_samples("MLServer", 3000, 3000, 3000),
        *load_samples("mosec", 6000, 6000, 6000),
        *load_samples("this template, metrics on", 4000, 4000, 4000),
        *load_samples("bare FastAPI route", 9900, 9999, 20000),
    ]
    write("b1", samples, TITLES, ABOUT, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    verdicts = {row[0]: row[1:] for row in rows(sections(page)["b1"], 3)}
    assert verdicts == {
        "3 x LitServe": ["3.00", "reached"],
        "3 x BentoML": ["5.00", "reached"],
        "1.1 x MLServer": ["1.67", "reached"],
        "0.85 x mosec": ["0.83", "**missed**"],
        "0.60 x the bare route": ["0.50", "**missed**"],
        "metrics on: 0.45 x the bare route": ["0.40", "**missed**"],
    }
    write("b1", samples + 3 * load_samples("LitServe", 2600), TITLES, ABOUT, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "| 3 x LitServe | 1.92 | **missed** |" in page
    chart = ET.fromstring(  # noqa: S314
        (tmp_path / "benchmarks" / "b1.svg").read_text(encoding="utf-8")
    )
    bars = [
        float(element.attrib["width"])
        for element in chart.iter("{http://www.w3.org/2000/svg}rect")
        if element.attrib.get("x") == "210" and element.attrib["width"] != "11"
    ]
    assert len(bars) == 21
    assert bars[0] / bars[-1] == pytest.approx(5000 / 9999, abs=0.01)


def test_sections_stay(tmp_path: Path) -> None:
    """What is measured alone replaces its own section; each says when and how it came about."""
    page = tmp_path / "benchmarks.md"
    later = ABOUT | {"date": "2026-11-27", "command": "make bench ONLY=b6"}
    slow, fast = load_samples("LitServe, two workers", 1), load_samples("LitServe, two workers", 2)
    for benchmark in ("b6", "b1", "b7"):
        samples = [{"subject": "a clip", "repeat": 0, "mb": 1, "seconds": 1, "grown": 1}]
        if benchmark == "b1":
            names = ["LitServe", "BentoML", "MLServer", "mosec", "bare FastAPI route"]
            names += ["this template", "this template, metrics on"]
            samples = [sample for name in names for sample in load_samples(name, 1)]
        write(benchmark, slow if benchmark == "b6" else samples, TITLES, ABOUT, tmp_path)
    before = sections(page.read_text(encoding="utf-8"))
    chart = (tmp_path / "benchmarks" / "b1.svg").read_bytes()
    write("b6", fast, TITLES, later, tmp_path)
    after = sections(page.read_text(encoding="utf-8"))
    assert list(before) == list(after) == ["b1", "b6", "b7"]
    assert before | {"b6": after["b6"]} == after
    assert (tmp_path / "benchmarks" / "b1.svg").read_bytes() == chart
    assert "| LitServe, two workers | 16 | 1.0 |" in before["b6"]
    assert "| LitServe, two workers | 16 | 2.0 |" in after["b6"]
    assert "Measured on 2026-11-26 at commit af42581 by `make bench ONLY=b1`" in after["b1"]
    assert "Measured on 2026-11-27 at commit af42581 by `make bench ONLY=b6`" in after["b6"]
    assert page.read_text(encoding="utf-8").count("# Benchmarks\n") == 1


def test_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section names the versions of its own packages, each from the environment that has it."""
    asked: list[str] = []

    def python_of(peer: str) -> str:
        asked.append(peer)
        return sys.executable

    monkeypatch.setattr(report, "python_of", python_of)
    monkeypatch.setattr(report, "PEERS", ("httpx",))
    monkeypatch.setitem(report.PACKAGES, "b9", ("pytest", "httpx"))
    about = report.machine("b9", "make bench ONLY=b9")
    assert about["versions"] == {
        "Python": platform.python_version(),
        "pytest": pytest.__version__,
        "httpx": httpx.__version__,
    }
    assert asked == ["ours", "ours", "httpx"]
    assert about["command"] == "make bench ONLY=b9"
    assert re.fullmatch(r"[\da-f]{7,}( with changes)?", about["commit"])


def test_every_benchmark_is_described() -> None:
    """Each has a text on the page, and names the packages that its figures depend on."""
    assert list(report.ABOUT) == list(report.PACKAGES) == list(TITLES)


def test_page() -> None:
    """Every verdict of the page follows from the figures beside it."""
    found = sections(PAGE.read_text(encoding="utf-8"))
    assert list(found) == list(TITLES)
    assert all(text.count("\nMeasured on ") == 1 for text in found.values())
    for benchmark in ("b1", "b2", "b3", "b8", "b9"):
        figures = figures_of(found[benchmark])
        verdicts = {row[0]: row[1:] for row in rows(found[benchmark], 3)}
        floors = [floor for floor in FLOORS if floor.benchmark == benchmark]
        assert list(verdicts) == [floor.text for floor in floors]
        for floor in floors:
            printed, verdict = verdicts[floor.text]
            assert float(printed) == pytest.approx(floor.value(figures), abs=0.011)
            assert verdict == ("reached" if floor.reached(float(printed)) else "**missed**")


def test_page_names_no_machine_paths() -> None:
    """The page and the plots can be read anywhere."""
    for path in (PAGE, *PAGE.with_suffix("").glob("*.svg")):
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text
        assert str(Path.home()) not in text


def test_answers_are_compared() -> None:
    """An answer is right where all that is expected is in it; numbers up to rounding."""
    expected = {"label": "0", "score": 0.9949}
    assert matches({"label": "0", "score": 0.99495, "more": 1}, expected)
    assert not matches({"label": "180", "score": 0.9949}, expected)
    assert not matches({"label": "0", "score": 0.9}, expected)
    assert not matches({"label": "0"}, expected)
    assert not matches([expected], expected)
    assert not matches([1.0, 2.0], [1.0])


def test_limit_is_measured_beside_each(tmp_path: Path) -> None:
    """A sample is compared with the work alone, as it was just before and just after."""
    with looping([sys.executable, "-c", WORK], tmp_path, {}) as limit:
        samples = list(beside(limit, [{"rate": 125.0}, {"rate": 87.5}]))
        assert limit.run(1) == {"rate": 250}
    assert samples == [{"rate": 125.0, "share": 1.0}, {"rate": 87.5, "share": 0.5}]
    assert list(beside(None, [{"rate": 125.0}])) == [{"rate": 125.0}]


def test_nothing_is_left_running(tmp_path: Path) -> None:
    """A server is asked until it answers right, and ends with its children, wherever they are."""
    body, content_type = form(b"a file")
    right = Request("/", body, content_type, {"score": 0.5})
    wrong = Request("/", body, content_type, {"score": 0.6})
    command = [sys.executable, "-c", PARENT]
    with serving(command, tmp_path, {}, tmp_path / "log") as server:
        server.wait_until(right)
        with pytest.raises(AssertionError):
            server.wait_until(wrong)
        members = server.members()
        assert len(members) == 2
        assert all(map(is_alive, members))
    assert not any(map(is_alive, members))


def test_tokens_are_counted(tmp_path: Path) -> None:
    """Tokens are counted while clients ask; an answer that is too short ends the measurement."""
    with chats(tmp_path, "right") as server:
        figures = tokens.measure(server, 2, 1)
        assert figures["rate"] > 0
        assert 0 < figures["p50"] <= figures["p99"]
        assert figures["cpu"] > 0
    with (
        chats(tmp_path, "short", length=63) as server,
        pytest.raises(RuntimeError, match="63 tokens"),
    ):
        tokens.measure(server, 2, 1)


def test_texts_are_compared(tmp_path: Path) -> None:
    """Servers that answer differently are not compared by how fast they are."""
    with chats(tmp_path, "one") as one, chats(tmp_path, "other", word="other") as other:
        tokens.check_same({tokens.LLAMA: one, "the same": one})
        with pytest.raises(RuntimeError, match="differ"):
            tokens.check_same({tokens.LLAMA: one, "another": other})
