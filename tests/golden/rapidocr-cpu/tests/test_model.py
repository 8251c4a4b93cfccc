"""What the model answers; replace this with known answers on pictures of your own."""

from io import BytesIO

from PIL import Image

from conformance.plugin import ROOT, Service

ROUTE = "/ocr"


def test_example(service: Service) -> None:
    """The example shows two lines of text."""
    file = (ROOT / "example-page.png").read_bytes()
    lines = service.client.post(ROUTE, files={"file": file}).json()["lines"]
    assert [line["text"] for line in lines] == ["Hello, world", "Invoice 2048"]
    assert all(line["confidence"] > 0.9 for line in lines)
    tops = [min(y for _, y in line["box"]) for line in lines]
    assert tops == sorted(tops)


def test_blank_page(service: Service) -> None:
    """A picture without text has no lines."""
    page = BytesIO()
    Image.new("RGB", (300, 200), "white").save(page, format="PNG")
    assert service.client.post(ROUTE, files={"file": page.getvalue()}).json() == {"lines": []}


def test_min_confidence(service: Service) -> None:
    """No line is as sure as min_confidence=1 demands."""
    file = (ROOT / "example-page.png").read_bytes()
    response = service.client.post(ROUTE, files={"file": file}, data={"min_confidence": "1"})
    assert response.json() == {"lines": []}


def test_thin_picture(service: Service) -> None:
    """A picture so thin that the engine would enlarge it beyond all memory is refused at once."""
    for size in ((2000, 1), (1, 2000)):
        strip = BytesIO()
        Image.new("RGB", size).save(strip, format="PNG")
        response = service.client.post(ROUTE, files={"file": strip.getvalue()})
        assert response.status_code == 400
