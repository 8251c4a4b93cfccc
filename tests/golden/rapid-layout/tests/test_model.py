"""What the model answers; replace this with known answers on pictures of your own."""

from io import BytesIO

import pytest
from PIL import Image

from conformance.plugin import ROOT, Service

ROUTE = "/detect-layout"

# What is on the example, from top to bottom: left, top, right and bottom in pixels.
PARTS = {
    "title": (187, 45, 426, 75),
    "text": (60, 110, 550, 238),
    "table_caption": (241, 269, 371, 279),
    "table": (126, 286, 486, 418),
    "figure": (170, 595, 440, 721),
    "figure_caption": (233, 735, 380, 745),
}


def test_example(service: Service) -> None:
    """The example has each part where a person sees it, and two paragraphs."""
    file = (ROOT / "example-report.png").read_bytes()
    regions = service.client.post(ROUTE, files={"file": file}).raise_for_status().json()["regions"]
    kinds = [region["kind"] for region in regions]
    assert kinds == [*list(PARTS)[:4], "text", *list(PARTS)[4:]]
    for kind, box in PARTS.items():
        found = regions[kinds.index(kind)]["box"]
        assert found == pytest.approx(box, abs=20)


def test_blank_page(service: Service) -> None:
    """A blank page has no parts."""
    page = BytesIO()
    Image.new("RGB", (600, 800), "white").save(page, format="PNG")
    assert service.client.post(ROUTE, files={"file": page.getvalue()}).json() == {"regions": []}


def test_min_confidence(service: Service) -> None:
    """With a lower bound there are as many regions or more, and each is as sure as demanded."""
    file = (ROOT / "example-report.png").read_bytes()
    counts = []
    for bound in (0.1, 0.5, 0.95):
        data = {"min_confidence": str(bound)}
        response = service.client.post(ROUTE, files={"file": file}, data=data)
        found = response.raise_for_status().json()["regions"]
        assert all(region["confidence"] >= bound for region in found)
        counts.append(len(found))
    assert counts[0] > counts[1] > counts[2] > 0


def test_thin_picture(service: Service) -> None:
    """A picture of extreme shape is answered, and no box leaves it."""
    strip = BytesIO()
    Image.new("RGB", (2000, 1)).save(strip, format="PNG")
    response = service.client.post(ROUTE, files={"file": strip.getvalue()})
    for region in response.raise_for_status().json()["regions"]:
        left, top, right, bottom = region["box"]
        assert 0 <= left <= right <= 2000
        assert 0 <= top <= bottom <= 1
