"""Your own fixtures; conftest.py, which is the template's, asks for `model_env`."""

import pytest


@pytest.fixture(scope="session")
def model_env() -> dict[str, str]:
    """Return the environment of the tests' services, such as a small MODEL_NAME."""
    return {}
