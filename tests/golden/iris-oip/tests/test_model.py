"""What the model answers; replace this with known answers of your own model."""

import pytest

from conformance.plugin import Service
from inference import COLUMNS

ROUTE = "/classify"
OIP_ROUTE = "/v2/models/my-model-server/infer"

# Sepal length, sepal width, petal length and petal width: the first of each species in Fisher's
# table of 1936.
FLOWERS = [
    ((5.1, 3.5, 1.4, 0.2), "setosa"),
    ((7.0, 3.2, 4.7, 1.4), "versicolor"),
    ((6.3, 3.3, 6.0, 2.5), "virginica"),
]


def as_document(lengths: tuple[float, ...]) -> dict[str, float]:
    """Return a row as a request's body."""
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    return dict(zip(names, lengths, strict=True))


@pytest.mark.parametrize(("lengths", "species"), FLOWERS)
def test_species(service: Service, lengths: tuple[float, ...], species: str) -> None:
    """The model names the species that Fisher measured."""
    answer = service.client.post(ROUTE, json=as_document(lengths)).raise_for_status().json()
    assert answer["species"] == species
    assert answer["probability"] > 0.8


def test_between_two_species(service: Service) -> None:
    """Of a flower between two species the model is not sure."""
    answer = service.client.post(ROUTE, json=as_document((6.3, 2.8, 4.9, 1.7))).json()
    assert answer["probability"] < 0.7


@pytest.mark.parametrize("place", range(4))
def test_millimetres(service: Service, place: int) -> None:
    """A length that no iris has is 422, not a sure answer."""
    lengths = [7.0, 3.2, 4.7, 1.4]
    lengths[place] *= 10
    response = service.client.post(ROUTE, json=as_document(tuple(lengths)))
    assert response.status_code == 422


def test_many_rows_in_one_request(service: Service) -> None:
    """Rows that come together are answered as each is alone."""
    rows = [lengths for lengths, _ in FLOWERS] * 100
    columns = [
        {"name": name, "datatype": "FP64", "shape": [len(rows), 1], "data": list(column)}
        for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)
    ]
    answer = service.client.post(OIP_ROUTE, json={"inputs": columns}).raise_for_status().json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["species"] == [species for _, species in FLOWERS] * 100
    alone = service.client.post(ROUTE, json=as_document(rows[0])).json()
    assert outputs["probability"][0] == alone["probability"]
