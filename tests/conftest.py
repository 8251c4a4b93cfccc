"""Sums up at the end of a run: variants by axis, at which depth, and the time of each stage."""

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support import suites

# As in the Makefile: else each start of a service would compile what it imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Workers share the cores. Where a framework's threads have to wait for one another, they burn them:
# a suite of a language model took 240 s with two threads, 60 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Files by the thousand are written, read once, and removed: in memory where there is enough. On a
# disk an update by Copier and git costs twice the time of a processor.
MEMORY, ENOUGH_BYTES = "/dev/shm", 8 * 1024**3  # noqa: S108 -- a file system; folders have own names
if Path(MEMORY).is_dir():
    about = os.statvfs(MEMORY)
    if about.f_bavail * about.f_frsize > ENOUGH_BYTES and not about.f_flag & os.ST_NOEXEC:
        tempfile.tempdir = os.environ.setdefault("TMPDIR", MEMORY)

STAGES = ("tree", "style", "types", "dependencies", "deployment", "answers")
BEGIN = pytest.StashKey[float]()  # of a test, in seconds on a processor
SLOWEST = 25  # files whose time is told
AXES = ("preset", "model_type", "input_kind", "accelerator")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when a test begins, before its fixtures are made."""
    item.stash[BEGIN] = processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Tell with the report of the tear-down what the test cost, and what it waited for."""
    yield
    item.user_properties.append(("processor_seconds", processor_seconds() - item.stash[BEGIN]))


def processor_seconds() -> float:
    """Return the time that this process, and those that have ended, spent on a processor."""
    return sum(os.times()[:4]) + sum(suites.processor_seconds)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a test that is skipped as failed, where everything has to be there."""
    report = yield
    if report.skipped and os.getenv("REQUIRE_ALL"):
        report.outcome = "failed"
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure's name and last line as it happens, so that a run cut off has named it."""
    # Pytest's own lines name only the file, and xdist's name nothing until the run is over.
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = crash.message.partition("\n")[0] if crash else ""
        print(f"\nFAILED in {report.when}: {report.nodeid}: {reason[:300]}", flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how the variants fared, how many mutants were noticed, and where the time went."""
    summarize_mutants(terminalreporter)
    summarize_variants(terminalreporter)
    summarize_time(terminalreporter)


def summarize_time(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests of each file took, all workers together, the dearest first."""
    waited: defaultdict[str, float] = defaultdict(float)
    spent: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                waited[file] += report.duration
                if report.when == "teardown":
                    properties: dict[str, Any] = dict(report.user_properties)
                    spent[file] += properties["processor_seconds"]
    if len(waited) > 1:
        terminalreporter.section("time by file")
        terminalreporter.write_line("on a processor    in all")
        for file in sorted(waited, key=lambda file: spent[file], reverse=True)[:SLOWEST]:
            terminalreporter.write_line(f"{spent[file]:12.0f} s  {waited[file]:6.0f} s  {file}")
        terminalreporter.write_line(f"{sum(spent.values()):12.0f} s  {sum(waited.values()):6.0f} s")


def summarize_mutants(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many of the broken services the conformance tests noticed."""
    killed, survived = (
        [
            report.nodeid
            for outcome in outcomes
            for report in terminalreporter.getreports(outcome)
            if "::test_mutant_is_killed" in report.nodeid
        ]
        for outcomes in (("passed",), ("failed", "error"))
    )
    if killed or survived:
        terminalreporter.section("mutants")
        terminalreporter.write_line(f"killed {len(killed)} of {len(killed) + len(survived)}")


def summarize_variants(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how the variants fared, by axis and by depth, and the time of each stage."""
    reports = [
        report
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.getreports(outcome)
        if isinstance(report, pytest.TestReport) and "test_variants.py" in report.nodeid
    ]
    # A failing report of the set-up has no properties; its own failure is listed anyway.
    reports = [report for report in reports if dict(report.user_properties).get("depth")]
    if not reports:
        return
    failed: set[str] = set()
    cells: dict[str, dict[str, Any]] = {}
    seconds: defaultdict[str, float] = defaultdict(float)
    rendered_tests = 0
    for report in reports:
        properties: dict[str, Any] = dict(report.user_properties)
        stage, _, name = report.nodeid.rpartition("::")[2].rstrip("]").partition("[")
        name = name.partition("@")[0]
        cells[name] = properties
        seconds[stage.removeprefix("test_")] += report.duration
        rendered_tests += properties.get("rendered_tests", 0)
        if report.failed:
            failed.add(name)
    write = terminalreporter.write_line
    terminalreporter.section("variants")
    for axis in AXES:
        passed: Counter[object] = Counter()
        total: Counter[object] = Counter()
        for name, properties in cells.items():
            total[properties[axis]] += 1
            passed[properties[axis]] += name not in failed
        write(f"{axis:12}" + "  ".join(f"{key} {passed[key]}/{total[key]}" for key in total))
    depths: defaultdict[object, list[str]] = defaultdict(list)
    for name, properties in cells.items():
        depths[properties["depth"]].append(name)
    write(f"{'depth':12}whole suite of the service: {len(depths['full'])} cells,")
    write(f"{'':12}known answers of the live service: {len(depths['answers'])} cells")
    write(f"{'stages':12}" + "  ".join(f"{stage} {seconds[stage]:.0f} s" for stage in STAGES))
    write(f"{'tests':12}{rendered_tests} tests of rendered services passed")
    write(f"{'variants':12}{len(cells) - len(failed)} passed, {len(failed)} failed")
