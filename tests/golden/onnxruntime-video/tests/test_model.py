"""What the model answers; replace this with known answers of your own model."""

import pytest

from conformance.plugin import ROOT, Service

ROUTE = "/describe"


def test_example(service: Service) -> None:
    """In the example all is still, but for a square that jumps after 1.5 s."""
    body = service.client.post(ROUTE, files={"file": (ROOT / "example.mp4").open("rb")})
    assert body.json()["busiest_second"] == pytest.approx(1.5, abs=0.01)
    assert 0.001 < body.json()["motion"] < 0.05
