"""What the model answers; replace this with known answers of your own model."""

from io import BytesIO

import pytest
from PIL import Image

from conformance.plugin import ROOT, Service

ROUTE = "/classify"


def test_example(service: Service) -> None:
    """The example is a red field with a blue disc on a quarter of it."""
    body = service.client.post(ROUTE, files={"file": (ROOT / "example.png").open("rb")})
    assert body.json()["color"] == "red"
    assert body.json()["share"] == pytest.approx(0.77, abs=0.02)


@pytest.mark.parametrize("color", ["black", "white", "red", "yellow", "green", "cyan", "blue"])
def test_plain_picture(service: Service, color: str) -> None:
    """A picture of one colour has that colour."""
    picture = BytesIO()
    Image.new("RGB", (40, 30), color).save(picture, format="PNG")
    body = service.client.post(ROUTE, files={"file": picture.getvalue()})
    assert body.json() == {"color": color, "share": 1.0}


def test_orientation_and_formats(service: Service) -> None:
    """A palette GIF and a CMYK JPEG are pictures as well."""
    for mode, name in (("P", "GIF"), ("CMYK", "JPEG")):
        picture = BytesIO()
        Image.new("RGB", (40, 30), "blue").convert(mode).save(picture, format=name)
        body = service.client.post(ROUTE, files={"file": picture.getvalue()})
        assert body.json()["color"] == "blue"
