"""Forms as clients write them: empty fields, odd file names, misspelt fields."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import Live, live
from tests.support.rendering import render
from tests.support.updating import change, python

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("forms")

FORM = {"Content-Type": "multipart/form-data; boundary=x"}
MORE = """
    least: float = 0.0
    größe: str = "small"
"""


def rendered(folder: Path, kind: str) -> Path:
    """Render the service of an input kind; with parameters it has more of them."""
    project = render(folder, {"model_type": "custom", "input_kind": kind, "accelerator": "cpu"})
    if kind == "image-params":
        last = 'description="colours to return at most")'
        change(project / "inference.py", last, last + MORE)
    return project


@contextmanager
def started(folder: Path, kind: str) -> Iterator[Live]:
    """Run the service of an input kind."""
    with live(rendered(folder, kind), python(), folder / "log") as running:
        running.ready()
        yield running


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run a service that takes a picture and parameters."""
    with started(tmp_path_factory.mktemp("forms") / "single", "image-params") as running:
        yield running


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run a service that takes several pictures."""
    with started(tmp_path_factory.mktemp("forms") / "batch", "image-batch") as running:
        yield running


def example(service: Live) -> bytes:
    """Return the picture beside the service."""
    return (service.file.parent / "example.png").read_bytes()


def part(disposition: bytes, content: bytes) -> bytes:
    """Return a part of a form."""
    head = b"--x\r\nContent-Disposition: form-data; " + disposition
    return head + b"\r\n\r\n" + content + b"\r\n"


def post(service: Live, *parts: bytes, query: str = "") -> tuple[int, Any]:
    """Return status and answer to a form of these parts."""
    body = b"".join(parts) + b"--x--\r\n"
    answer = service.client.post(f"/classify{query}", content=body, headers=FORM)
    return answer.status_code, answer.json()


def wrong(answer: tuple[int, Any]) -> dict[str, str]:
    """Return what a 422 says of each field."""
    status, body = answer
    assert status == 422, body
    return {item["loc"][-1]: item["msg"] for item in body["detail"]}


def test_empty_field(single: Live) -> None:
    """A form field that was left empty has its default, as in FastAPI's forms."""
    file = part(b'name="file"; filename="a"', example(single))
    status, default = post(single, file)
    assert status == 200
    empty = [part(f'name="{name}"'.encode(), b"") for name in ("top_k", "least", "größe")]
    assert post(single, file, *empty) == (200, default)
    assert len(post(single, file, empty[0], query="?top_k=1")[1]["colors"]) == 1


@pytest.mark.parametrize("value", [b"nan", b"-inf", b"1e999", b"Infinity"])
def test_number_that_is_none(single: Live, value: bytes) -> None:
    """NaN and infinity are no numbers here either, in the form and in the query."""
    file = part(b'name="file"; filename="a"', example(single))
    assert wrong(post(single, file, part(b'name="least"', value))) == {
        "least": "Input should be finite"
    }
    assert "least" in wrong(post(single, file, query=f"?least={value.decode()}"))


@pytest.mark.parametrize(
    "name",
    [
        *("é.png".encode(), "é.png".encode("latin-1"), "画像.png".encode("gbk")),
        *("画像表".encode("shift-jis"), "фото.png".encode("koi8-r"), "😀.png".encode()),
        *(b"", b"\\\\", b'a\\"b;c.png', b"a\x80\xff", b"%22%0A.png", b"../../a.png"),
    ],
)
def test_file_name(single: Live, name: bytes) -> None:
    """What a file is called does not matter, nor in which encoding; fields beside it are UTF-8."""
    file = part(b'name="file"; filename="' + name + b'"', example(single))
    top = part(b'name="top_k"', b"1")
    status, answer = post(single, file, top, part('name="größe"'.encode(), "klein ä".encode()))
    assert status == 200, answer
    assert len(answer["colors"]) == 1


@pytest.mark.parametrize(
    "disposition",
    [b'name="file"', b"name=file", b"name=\"file\"; filename*=UTF-8''%e2%82%ac.png"],
)
def test_no_file_name(single: Live, disposition: bytes) -> None:
    """A part with the name of the file is the file, whatever it says of a file's name."""
    assert post(single, part(disposition, example(single)))[0] == 200


def test_file_that_nobody_asked_for(single: Live, batch: Live) -> None:
    """It is 422, with the names that there are."""
    for service, field, names in (
        (single, "file", "file, top_k, least, größe"),
        (batch, "files", "files"),
    ):
        good = part(f'name="{field}"; filename="a"'.encode(), example(service))
        said = f"Extra inputs are not permitted; there is {names}"
        for name in ("image", "mask", "fil", "größe" if service is single else "text", ""):
            other = part(f'name="{name}"; filename="b"'.encode(), b"a")
            assert wrong(post(service, good, other)) == {name: said}
            assert wrong(post(service, other)) == {field: "Field required", name: said}


@pytest.mark.parametrize("name", ["topk", "top-k", "TOP_K", "top_k ", "topK", "Least", "große"])
def test_misspelt_field(single: Live, name: str) -> None:
    """A field that is nearly a known one is 422; in silence its value would be lost."""
    file = part(b'name="file"; filename="a"', example(single))
    said = "Extra inputs are not permitted; there is file, top_k, least, größe"
    assert wrong(post(single, file, part(f'name="{name}"'.encode(), b"1"))) == {name: said}
    assert wrong(post(single, file, query=f"?{name}=1")) == {name: said}


@pytest.mark.parametrize("name", ["comment", "csrf_token", "x", "submit", ""])
def test_other_field(single: Live, name: str) -> None:
    """What is like no known field goes by `Params`: by default it is ignored."""
    file = part(b'name="file"; filename="a"', example(single))
    assert post(single, file, part(f'name="{name}"'.encode(), b"1"))[0] == 200
    assert post(single, file, query=f"?{name}=1")[0] == 200


def test_fields_are_forbidden(tmp_path: Path) -> None:
    """With `extra="forbid"` each is 422."""
    project = rendered(tmp_path / "service", "image-params")
    change(
        project / "inference.py",
        "class Params(BaseModel)",
        'class Params(BaseModel, extra="forbid")',
    )
    with live(project, python(), tmp_path / "service" / "log") as service:
        service.ready()
        file = part(b'name="file"; filename="a"', example(service))
        answer = post(service, file, part(b'name="comment"', b"1"))
        assert wrong(answer) == {"comment": "Extra inputs are not permitted"}


def test_brackets(batch: Live) -> None:
    """`files[]` is `files`, as clients in JavaScript and PHP write it."""
    one = part(b'name="files[]"; filename="a"', example(batch))
    two = part(b'name="files"; filename="b"', example(batch))
    for parts in ([one, one], [one, two], [two, two]):
        status, answer = post(batch, *parts)
        assert (status, len(answer["outputs"])) == (200, 2)
