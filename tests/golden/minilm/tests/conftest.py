"""Your own fixtures, and what the conformance tests start the service with."""

import os

import pytest

from checkpoint import make_checkpoint


@pytest.fixture(scope="session")
def model_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of the tests' services: a model that needs no hub."""
    name = os.getenv("MODEL_NAME") or make_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return {"MODEL_NAME": str(name)}
