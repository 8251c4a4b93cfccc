"""What the model answers; replace this with known answers of your own model."""

import pytest

from conformance.plugin import Service

ROUTE = "/infer"


@pytest.mark.parametrize(
    ("values", "following"),
    [([1, 2, 3, 4], 5), ([40, 30, 20, 10], 0), ([7, 7, 7, 7], 7), ([9, 9, 0, 1, 2, 3], 4)],
)
def test_trend(service: Service, values: list[float], following: float) -> None:
    """A series goes on as its last four values do."""
    body = service.client.post(ROUTE, json={"values": values})
    assert body.json() == {"next": following}


def test_too_few_values(service: Service) -> None:
    """Fewer values than the model looks at are 422."""
    response = service.client.post(ROUTE, json={"values": [1, 2]})
    assert response.status_code == 422
