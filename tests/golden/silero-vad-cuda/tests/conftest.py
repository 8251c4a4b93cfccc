"""Your own fixtures, and what the conformance tests start the service with."""

import pytest


@pytest.fixture(scope="session")
def model_env() -> dict[str, str]:
    """Return the environment of the tests' services, such as a small MODEL_NAME."""
    return {}
