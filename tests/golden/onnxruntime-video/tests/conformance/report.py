"""Ends a run of the conformance tests with a table of the requirements, and writes it to files."""

import json
import re
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from conformance.spec import ELSEWHERE, REQUIREMENTS, SERVICE, SPEC_VERSION

PASS, FAIL, NOT_APPLICABLE, NOT_RUN = "pass", "fail", "not applicable", "not run"


@dataclass
class Test:
    """One test of a requirement: "passed", "failed" or "skipped", and why."""

    name: str
    outcome: str
    seconds: float
    reason: str


@dataclass
class Requirement:
    """One requirement, and what its tests say of it."""

    id: str
    title: str
    outcome: str
    reason: str
    tests: list[Test] = field(default_factory=list)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table, and write report.json and junit.xml."""
    tests = _tests(terminalreporter)
    if not tests:
        return
    requirements = [_requirement(number, tests[number]) for number in REQUIREMENTS]
    subject = config.getoption("--url") or SERVICE
    write = terminalreporter.write_line
    terminalreporter.section(f"ML Microservice Spec {SPEC_VERSION}: {subject}")
    for row in requirements:
        reason = f" ({row.reason})" if row.reason else ""
        write(f"{row.id:6} {row.outcome:14}  {row.title}{reason}", red=row.outcome == FAIL)
    counts = {
        outcome: sum(row.outcome == outcome for row in requirements)
        for outcome in (PASS, FAIL, NOT_APPLICABLE, NOT_RUN)
    }
    write(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    folder = Path(config.getoption("--report"))
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "spec": SPEC_VERSION,
        "subject": subject,
        "summary": counts,
        "requirements": [asdict(row) for row in requirements],
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _junit(subject, requirements).write(
        folder / "junit.xml", encoding="utf-8", xml_declaration=True
    )
    write(f"The same in {folder / 'report.json'} and {folder / 'junit.xml'}")


def _tests(reporter: pytest.TerminalReporter) -> dict[int, list[Test]]:
    """Return the tests that ran, by the number that their name carries."""
    tests: defaultdict[int, list[Test]] = defaultdict(list)
    for category in ("passed", "failed", "error", "skipped"):
        for report in reporter.getreports(category):
            name = report.nodeid.rpartition("::")[2]
            if number := re.match(r"test_ms_(\d+)_", name):
                test = Test(name, report.outcome, round(report.duration, 3), _reason(report))
                tests[int(number[1])].append(test)
    return tests


def _reason(report: pytest.TestReport) -> str:
    """Return in one line why a test failed or was skipped."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = str(crash.message if crash else report.longrepr).splitlines()
        return lines[0] if lines else "failed"
    return ""


def _requirement(number: int, tests: list[Test]) -> Requirement:
    """Sum up the tests of one requirement."""
    row = Requirement(f"MS-{number}", REQUIREMENTS[number], NOT_RUN, "", tests)
    outcomes = {test.outcome for test in tests}
    if "failed" in outcomes:
        row.outcome = FAIL
        row.reason = next(test.reason for test in tests if test.outcome == "failed")
    elif "passed" in outcomes:
        row.outcome = PASS
        left_out = [test for test in tests if test.outcome == "skipped"]
        if left_out:
            row.reason = f"{len(left_out)} of {len(tests)} tests left out: {left_out[0].reason}"
    elif tests:
        row.outcome = NOT_APPLICABLE
        row.reason = tests[0].reason
    elif number in ELSEWHERE:
        row.outcome = NOT_APPLICABLE
        row.reason = ELSEWHERE[number]
    return row


def _junit(subject: str, requirements: list[Requirement]) -> "ET.ElementTree[ET.Element]":
    """Return the report in the form that CI systems read: a case for each requirement."""
    outcomes = [row.outcome for row in requirements]
    suite = ET.Element(
        "testsuite",
        name=f"ML Microservice Spec {SPEC_VERSION}: {subject}",
        tests=str(len(requirements)),
        failures=str(outcomes.count(FAIL)),
        skipped=str(outcomes.count(NOT_APPLICABLE) + outcomes.count(NOT_RUN)),
        errors="0",
    )
    for row in requirements:
        case = ET.SubElement(
            suite,
            "testcase",
            classname="ms",
            name=f"{row.id} {row.title}",
            time=f"{sum(test.seconds for test in row.tests):.3f}",
        )
        if row.outcome == FAIL:
            ET.SubElement(case, "failure", message=row.reason)
        elif row.outcome != PASS:
            ET.SubElement(case, "skipped", message=row.reason or row.outcome)
    suites = ET.Element("testsuites")
    suites.append(suite)
    return ET.ElementTree(suites)
