"""What the model answers; replace this with known answers of your own model."""

import pytest

from conformance.plugin import ROOT, Service

ROUTE = "/colors"


@pytest.mark.parametrize("top_k", [1, 2])
def test_example(service: Service, top_k: int) -> None:
    """The example is a red field with a blue disc; top_k says how many colours are told."""
    file = (ROOT / "example.png").read_bytes()
    body = service.client.post(ROUTE, files={"file": file}, data={"top_k": top_k})
    assert [item["color"] for item in body.json()["colors"]] == ["red", "blue"][:top_k]


def test_parameters_are_checked(service: Service) -> None:
    """A top_k that cannot be is 422, and says why."""
    file = (ROOT / "example.png").read_bytes()
    response = service.client.post(ROUTE, files={"file": file}, data={"top_k": "0"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "top_k"]
