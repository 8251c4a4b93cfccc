"""What the model answers; replace this with known answers of your own model."""

from io import BytesIO
from zipfile import ZipFile

import pytest

from conformance.plugin import ROOT, Service

ROUTE = "/inspect"


def test_example(service: Service) -> None:
    """The example is a hundred bytes: a check mark is three, the rest is plain text."""
    body = service.client.post(ROUTE, files={"file": (ROOT / "example.txt").open("rb")}).json()
    shares = {"zero": 0.0, "control": 0.0, "text": 0.97, "high": 0.03}
    assert body == {"size": 100, **shares, "most": "text"}


@pytest.mark.parametrize(
    ("content", "most"),
    [(bytes(10), "zero"), (b"\x01\x7f", "control"), (b"a~\t \r\n", "text"), (b"\x80\xff", "high")],
)
def test_one_class(service: Service, content: bytes, most: str) -> None:
    """A file whose bytes are all of one class has no other."""
    body = service.client.post(ROUTE, files={"file": content}).json()
    assert body == {"size": len(content), "most": most} | {
        name: float(name == most) for name in ("zero", "control", "text", "high")
    }


def test_any_type(service: Service) -> None:
    """A ZIP archive is a file as well, and so is one of a type that nobody knows."""
    archive = BytesIO()
    with ZipFile(archive, "w") as writer:
        writer.writestr("zeros", bytes(1000))
    content = archive.getvalue()
    for content_type in ("application/zip", "x-of-mine/x-nobodys"):
        files = {"file": ("a.zip", content, content_type)}
        body = service.client.post(ROUTE, files=files).raise_for_status().json()
        assert (body["size"], body["most"]) == (len(content), "zero")
        assert body["zero"] == pytest.approx(content.count(0) / len(content), abs=1e-4)
