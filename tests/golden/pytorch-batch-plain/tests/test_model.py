"""What the model answers; replace this with known answers of your own model."""

from io import BytesIO

from PIL import Image

from conformance.plugin import Service

ROUTE = "/classify"
COLORS = ["blue", "yellow", "black"]


def png(color: str) -> bytes:
    """Return a picture of one colour."""
    picture = BytesIO()
    Image.new("RGB", (40, 30), color).save(picture, format="PNG")
    return picture.getvalue()


def test_answers_keep_the_order(service: Service) -> None:
    """Each picture gets its own colour, in the order of the request."""
    files = [("files", png(color)) for color in COLORS]
    body = service.client.post(ROUTE, files=files).json()
    assert body == {"outputs": [{"color": color, "share": 1.0} for color in COLORS]}


def test_broken_picture_is_named(service: Service) -> None:
    """A picture that cannot be read is named by its place in the request."""
    files = [("files", png("blue")), ("files", b"not a picture")]
    response = service.client.post(ROUTE, files=files)
    assert response.status_code == 400
    assert "File 2 of 2" in response.json()["detail"]
