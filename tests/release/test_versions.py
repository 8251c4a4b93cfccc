"""The oldest packages that a service allows; the other tests run on the newest that there are."""

import tomllib
from pathlib import Path

from tests.support.environments import run, tool
from tests.support.rendering import render
from tests.support.variants import CONTRACTS, FEATURES


def test_lowest_versions(tmp_path: Path) -> None:
    """A service's whole suite passes on the lowest versions that its pyproject.toml allows."""
    # With a process for the model the suite takes three times as long, and needs no other package.
    features = [feature for feature in FEATURES if feature != "isolation"]
    answers = {"model_type": "custom", "accelerator": "cpu", "auth": "jwt"}
    project = render(
        tmp_path / "service", answers | {"features": features, "contracts": list(CONTRACTS)}
    )
    declared = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    needs = [*declared["project"]["dependencies"], *declared["dependency-groups"]["dev"]]
    python = tool("lowest", *needs, options=("--resolution=lowest-direct",))
    for command in (["mypy"], ["pytest", "-q", "-p", "no:cacheprovider"]):
        run([python, "-m", *command], cwd=project)
