"""The trials of `make trials`, with few tasks: nothing that was accepted is lost."""

from pathlib import Path

import pytest

from benchmarks.trials import (
    LIBRARIES,
    PAGE,
    TRIALS,
    Trial,
    kill,
    kill_all,
    roll_out,
    run,
    set_clock,
)

TASKS = 20
# What the others break, test_tasks.py, test_cluster.py and test_isolation.py break by itself.
TRIED = [trial for trial in TRIALS if trial.disturb in (kill, kill_all, roll_out, set_clock)]


@pytest.mark.parametrize("trial", TRIED, ids=lambda trial: trial.title.partition(",")[0])
def test_nothing_is_lost(trial: Trial, tmp_path: Path) -> None:
    """Each task has an end that its owner can see, and no run of the model is a secret."""
    if trial.has_clock and not list(LIBRARIES.glob("*/faketime")):
        pytest.skip("libfaketime is missing")
    counts = run(trial, tmp_path, TASKS, outage=2)
    assert (counts.accepted, counts.lost, counts.untold) == (TASKS, 0, 0), counts
    assert (counts.succeeded, counts.failed) == (TASKS, 0), counts


def test_page() -> None:
    """The table has every trial, and in none of them a task was lost."""
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line[:2] == "| "]
    titles, *cells = [[cell.strip("| ") for cell in row] for row in rows]
    assert [row[0] for row in cells] == [trial.title for trial in TRIALS]
    lost, secret = titles.index("lost"), titles.index("runs not told")
    assert {(row[lost], row[secret]) for row in cells} == {("0", "0")}
