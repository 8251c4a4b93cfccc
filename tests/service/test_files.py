"""Files of any type, and for the other input kinds the file as it was sent."""

import json
import textwrap
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
from PIL import Image

from tests.support.code_blocks import blocks
from tests.support.environments import run, uv
from tests.support.live import Live, live, wait_for
from tests.support.rendering import render
from tests.support.suites import run_suite
from tests.support.updating import put_model, python
from tests.support.variants import ROOT, example_of, table

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("files")

# A model that tells what it got, and opens it as a library does that wants a path.
MODEL = '''"""Tells what it got."""

import time
from hashlib import sha256

from pydantic import BaseModel

from serving import BadInput, Decoder, Input

DECODER = Decoder({decoder})
MODEL_NAME = "tells"


class Params(BaseModel):
    """How to end."""

    end: str = ""


class Output(BaseModel):
    """What came."""

    name: str | None
    content_type: str | None
    sha256: str
    path: str


EXAMPLE = {{DECODER.field: {example}}}


class Model:
    """Tells."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Tell of each."""
        return [self._tell(item) for item in inputs]

    def _tell(self, item: Input[Params]) -> Output:
        with item.file.path() as path:
            found = sha256(path.read_bytes()).hexdigest()
            assert item.file.content == path.read_bytes()
            if item.params.end == "bad":
                raise BadInput("This one cannot be read.")
            if item.params.end == "hangs":
                time.sleep(600)
            assert item.params.end != "fails"
        return Output(
            name=item.file.name, content_type=item.file.content_type, sha256=found, path=str(path)
        )
'''
CONTRACTS = ["oip", "sagemaker", "model-engine"]
INFER = "/v2/models/my-model-server/infer"
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"

Start = Callable[[str], Live]


def archive() -> bytes:
    """Return a ZIP archive of one file."""
    file = BytesIO()
    with ZipFile(file, "w") as writer:
        writer.writestr("a", bytes(1000))
    return file.getvalue()


def make(folder: Path, kind: str, decoder: str = "", features: Sequence[str] = ()) -> Path:
    """Render the service of an input kind, with the model that tells what it got."""
    answers: dict[str, Any] = {"model_type": "custom", "input_kind": kind, "endpoint": "tell"}
    answers |= {"contracts": CONTRACTS, "features": list(features)}
    project = render(folder, answers)
    name = example_of(kind)
    example: Any = [name] if table("input_kinds")[kind]["field"] == "files" else name
    put_model(project, MODEL.format(decoder=decoder, example=repr(example).replace("'", '"')))
    return project


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return a function that starts the service of an input kind, once."""
    with ExitStack() as stack:

        @cache
        def started(kind: str) -> Live:
            folder = tmp_path_factory.mktemp(kind)
            (folder / "tmp").mkdir()
            env = {"TMPDIR": str(folder / "tmp"), "MAX_UPLOAD_MB": "1"}
            project = make(folder / "service", kind)
            service = stack.enter_context(live(project, python(), folder / "log", **env))
            service.ready()
            return service

        yield started


@pytest.fixture
def service(start: Start) -> Iterator[Live]:
    """Return the service that takes any file; it leaves no copy of one behind."""
    running = start("file")
    yield running
    assert_no_copies(running)


def assert_no_copies(service: Live) -> None:
    """See that there is no temporary file of the service's."""
    assert list((service.file.parent / "tmp").iterdir()) == []


def told(response: httpx.Response, content: bytes) -> tuple[str | None, str | None, str]:
    """Return the name, the type and the suffix of a path that the model got with this content."""
    answer = response.raise_for_status().json()
    assert answer["sha256"] == sha256(content).hexdigest()
    path = Path(answer["path"])
    assert not path.exists()
    assert not path.parent.exists()
    return answer["name"], answer["content_type"], path.name.removeprefix("file")


def part(head: bytes, content: bytes) -> bytes:
    """Return a form of one part with more in its head."""
    start = b'--x\r\nContent-Disposition: form-data; name="file"'
    return start + head + b"\r\n\r\n" + content + b"\r\n--x--\r\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", (None, None, "")),
        (b'; filename=""', (None, None, "")),
        (b'; filename="a/.."', (None, None, "")),
        (
            b'; filename="a.pdf"\r\nContent-Type: application/pdf',
            ("a.pdf", "application/pdf", ".pdf"),
        ),
        (b'; filename="a"\r\nContent-Type: application/zip', ("a", "application/zip", ".zip")),
        (
            b"\r\nContent-Type: Text/Plain; charset=latin-1",
            (None, "Text/Plain; charset=latin-1", ".txt"),
        ),
        (b'; filename="a"\r\nContent-Type: no type', ("a", "no type", "")),
        (b'; filename="a.tar.gz"', ("a.tar.gz", None, ".tar.gz")),
        (b'; filename="../../etc/passwd.d/a.b c"', ("a.b c", None, "")),
        (b'; filename="C:\\\\dir\\\\a.doc"', ("a.doc", None, ".doc")),
        (b'; filename="a.\\x00/"', ("a.\\x00", None, "")),
        (b'; filename="' + b"a" * 300 + b'.txt"', ("a" * 300 + ".txt", None, ".txt")),
        ('; filename="größe 画像.png"'.encode(), ("größe 画像.png", None, ".png")),
        ('; filename="größe.png"'.encode("latin-1"), ("gr\ufffd\ufffde.png", None, ".png")),
        (b'; filename="a.%22%0A.png"', ('a."\n.png', None, ".png")),
    ],
)
def test_form(service: Live, head: bytes, expected: tuple[Any, ...]) -> None:
    """The model gets the bytes, the name without folders and the type; a path ends as the name."""
    content = archive()
    response = service.client.post("/tell", content=part(head, content), headers=FORM)
    assert told(response, content) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (None, None, "")),
        ({"Content-Type": "application/pdf"}, (None, "application/pdf", ".pdf")),
        ({"Content-Type": "application/json"}, (None, "application/json", ".json")),
        ({"Content-Type": "application/x-www-form-urlencoded"}, (None, ..., "")),
        ({"Content-Type": "x-of-no/kind"}, (None, ..., "")),
        ({"Content-Disposition": 'attachment; filename="a b.pdf"'}, ("a b.pdf", None, ".pdf")),
        ({"Content-Disposition": 'inline; filename="../../ä.pdf"'}, ("ä.pdf", None, ".pdf")),
        ({"Content-Disposition": "attachment"}, (None, None, "")),
    ],
)
def test_raw_body(service: Live, headers: dict[str, str], expected: tuple[Any, ...]) -> None:
    """A body of any type is a file; a header may say its name."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    found = told(service.client.post("/tell", content=PDF, headers=raw), PDF)
    assert found == tuple(headers["Content-Type"] if value is ... else value for value in expected)


def test_json_contracts(service: Live) -> None:
    """In JSON a file is base64, whose type a data URI says."""
    plain = b64encode(PDF).decode()
    for text, expected in {
        plain: (None, None, ""),
        f"data:application/pdf;base64,{plain}": (None, "application/pdf", ".pdf"),
        f"data:text/plain;charset=utf-8;base64,{plain}": (None, "text/plain;charset=utf-8", ".txt"),
        f"data:;base64,{plain}": (None, None, ""),
    }.items():
        for route, document in {
            "/invocations": {"file": text},
            "/predict": {"args": {"file": text}},
        }.items():
            assert told(service.client.post(route, json=document), PDF) == expected
    lines = "\n".join(json.dumps({"file": b64encode(x).decode()}) for x in (PDF, archive()))
    headers = {"Content-Type": "application/jsonlines"}
    answers = service.client.post("/invocations", content=lines, headers=headers).text.split("\n")
    hashes = [json.loads(answer)["sha256"] for answer in answers]
    assert hashes == [sha256(x).hexdigest() for x in (PDF, archive())]
    headers = {"Content-Type": "application/pdf"}
    raw = service.client.post("/invocations", content=PDF, headers=headers)
    assert told(raw, PDF) == (None, "application/pdf", ".pdf")


def infer(service: Live, name: str, datatype: str, shape: list[int], data: Any) -> httpx.Response:
    """Send a tensor, and return the answer."""
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return service.client.post(INFER, json={"inputs": [tensor]})


def test_open_inference_protocol(service: Live) -> None:
    """Files are elements of BYTES, or rows of UINT8: a file of no name and type."""
    files = [PDF, archive()]
    texts = [b64encode(content).decode() for content in files]
    rows = [list(PDF), list(PDF[::-1])]
    for tensor, expected in (
        (("file", "BYTES", [2], texts), files),
        (("bytes", "UINT8", [2, len(PDF)], rows), [PDF, PDF[::-1]]),
        (("bytes", "UINT8", [len(PDF)], rows[0]), [PDF]),
    ):
        outputs = infer(service, *tensor).raise_for_status().json()["outputs"]
        found = {output["name"]: output["data"] for output in outputs}
        assert found["sha256"] == [sha256(content).hexdigest() for content in expected]
        assert {*found["name"], *found["content_type"]} == {"null"}
    for tensor in (
        ("file", "BYTES", [1], [""]),
        ("bytes", "UINT8", [0], []),
        ("bytes", "INT16", [1], [1]),
        ("bytes", "UINT8", [2001, 1], [0] * 2001),
    ):
        assert infer(service, *tensor).status_code == 400, tensor


def test_limits(service: Live) -> None:
    """The limits are those of the other kinds: none is empty, none is too large."""
    post, most = service.client.post, bytes(1024 * 1024)
    whole = {"Content-Type": "application/pdf"}
    sent = b64encode(b"").decode()
    for empty in (
        post("/tell", files={"file": ("a.pdf", b"")}),
        post("/tell", content=b"", headers=whole),
        post("/invocations", json={"file": sent}),
        post("/predict", json={"file": sent}),
    ):
        assert (empty.status_code, empty.json()["detail"]) == (400, "Empty upload.")
    told(post("/tell", content=most, headers=whole), most)
    told(post("/tell", files={"file": most}), most)
    for large in (
        post("/tell", content=most + b"a", headers=whole),
        post("/tell", files={"file": most + b"a"}),
        post("/invocations", json={"file": b64encode(most).decode()}),
    ):
        assert (large.status_code, large.json()["detail"]) == (413, "File too large.")
    packed = {"Content-Encoding": "gzip"}
    assert post("/tell", content=archive(), headers=packed).status_code == 415
    assert post("/tell", data={"end": "a"}, files={"other": b"a"}).status_code == 422


def test_copy_is_gone_after_a_failure(service: Live) -> None:
    """What the model opens by a path is gone, also where the call fails."""
    for end, status in {"bad": 400, "fails": 500}.items():
        answer = service.client.post("/tell", files={"file": ("a.pdf", PDF)}, data={"end": end})
        assert answer.status_code == status
        assert_no_copies(service)


def test_copy_of_a_killed_call_is_gone(tmp_path: Path) -> None:
    """So it is where the process of the model is killed, as its call is past the deadline."""
    project = make(tmp_path / "service", "file", features=["isolation"])
    copies = tmp_path / "tmp"
    copies.mkdir()
    env = {"TMPDIR": str(copies), "INFER_TIMEOUT_SECONDS": "2", "WARMUP": "0"}
    with live(project, python(), tmp_path / "log", **env) as service:
        client = service.ready()
        told(client.post("/tell", files={"file": PDF}), PDF)
        hangs = client.post("/tell", files={"file": ("a.pdf", PDF)}, data={"end": "hangs"})
        assert hangs.status_code == 504
        wait_for(lambda: not [*copies.rglob("file*")], seconds=20)
        service.ready()
        told(client.post("/tell", files={"file": PDF}), PDF)
        service.process.terminate()
        service.process.wait(60)
    assert list(copies.iterdir()) == []


def test_pictures_as_they_were_sent(start: Start) -> None:
    """Each picture of a request has its own file."""
    service = start("image-batch")
    content = (service.file.parent / "service" / "example.png").read_bytes()
    damaged = content + b"more"
    files = [
        ("files", ("a.png", content, "image/png")),
        ("files", ("b.PNG", damaged, "image/x-png")),
    ]
    outputs = service.client.post("/tell", files=files).raise_for_status().json()["outputs"]
    found = [told(httpx.Response(200, json=output, request=httpx.Request("POST", "/")), sent)
             for output, sent in zip(outputs, (content, damaged), strict=True)]  # fmt: skip
    assert found == [("a.png", "image/png", ".png"), ("b.PNG", "image/x-png", ".PNG")]
    assert_no_copies(service)


def test_recording_as_it_was_sent(start: Start) -> None:
    """A recording's file is what was sent, and no tensor is one."""
    service = start("audio")
    content = (service.file.parent / "service" / "example.wav").read_bytes()
    form = service.client.post("/tell", files={"file": ("a.wav", content, "audio/x-wav")})
    assert told(form, content) == ("a.wav", "audio/x-wav", ".wav")
    document = {"file": f"data:audio/mpeg;base64,{b64encode(content).decode()}"}
    assert told(service.client.post("/predict", json=document), content)[1:] == (
        "audio/mpeg",
        ".mp3",
    )
    document = {"file": document["file"].replace("audio/mpeg", "text/plain")}
    assert service.client.post("/predict", json=document).status_code == 415
    encoded = infer(service, "file", "BYTES", [1], [b64encode(content).decode()])
    encoded.raise_for_status()
    decoded = infer(service, "samples", "FP32", [16_000], [0.0] * 16_000)
    assert decoded.status_code == 400
    assert "Send the file itself" in decoded.json()["error"]
    assert_no_copies(service)


def test_declared_types(tmp_path: Path) -> None:
    """What `DECODER` does not name is 415, whoever sends it, and the conformance tests see that."""
    project = make(tmp_path / "service", "file", 'content_types=("application/pdf", "text/*")')
    with live(project, python(), tmp_path / "log") as service:
        client = service.ready()
        plain = b64encode(PDF).decode()
        for content_type, status in {
            "application/pdf": 200,
            "Text/CSV; charset=utf-8": 200,
            "application/octet-stream": 200,
            "application/zip": 415,
            "application/json": 415,
            "no type": 415,
        }.items():
            raw = client.post("/tell", content=PDF, headers={"Content-Type": content_type})
            form = client.post("/tell", files={"file": ("a", PDF, content_type)})
            uri = f"data:{content_type};base64,{plain}"
            document = client.post("/predict", json={"file": uri})
            found = [answer.status_code for answer in (raw, form, document)]
            assert found == [status] * 3, content_type
        assert raw.json()["detail"] == "Send one of application/pdf, text/*."
        assert client.post("/tell", content=PDF).status_code == 200
    result = run_suite(python(), project, "tests/conformance", "-k", "ms_30 or ms_31 or ms_32")
    assert result.returncode == 0, result.stdout
    report = json.loads((project / ".conformance" / "report.json").read_text("utf-8"))
    outcomes = {row["id"]: (row["outcome"], row["reason"]) for row in report["requirements"]}
    assert outcomes["MS-31"] == (
        "not applicable",
        "only the model knows which files it can read",
    )
    assert outcomes["MS-32"] == ("pass", "")


# A picture's EXIF data, as a library finds them that opens a path.
LIBRARY = """

class Library:
    def predict(self, path: str) -> str:
        with Image.open(path) as picture:
            return f"{picture.format} {picture.getexif()[0x0112]}"

"""
TELL_BY_LIBRARY = """
        assert item.image.size == (20, 30)  # upright
        return Output(name=found, content_type=None, sha256="", path=str(path))
"""


def documented(page: str, test: str) -> str:
    """Return the Python that a page of the documents shows, and that this test tries."""
    text = (ROOT / "docs" / "how-to" / page).read_text("utf-8")
    [code] = [
        block.text
        for block in blocks(text)
        if block.mark.endswith(f"::{test}") and block.language == "python"
    ]
    return code


def test_documented_path(tmp_path: Path) -> None:
    """A library that opens a path finds what was sent, such as EXIF data, which are not decoded."""
    project = make(tmp_path / "service", "image")
    block = textwrap.indent(documented("wrap-a-model.md", "test_documented_path"), " " * 8)
    whole = MODEL.format(decoder="", example='"example.png"')
    model = whole.partition("        with item.file")[0]
    model = model.replace("\n\nclass Params", f"{LIBRARY}\nclass Params")
    model = model.replace("from pydantic", "from PIL import Image\nfrom pydantic")
    model = model.replace('"""Load nothing."""', "self.library = Library()")
    put_model(project, model + block + TELL_BY_LIBRARY)
    picture, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(picture, "JPEG", exif=exif)
    with live(project, python(), tmp_path / "log", WARMUP="0") as service:
        files = {"file": ("a.jpg", picture.getvalue(), "image/jpeg")}
        answer = service.ready().post("/tell", files=files).raise_for_status().json()
        assert answer["name"] == "JPEG 6"
        assert not Path(answer["path"]).exists()
        assert answer["path"].endswith("file.jpg")


def pdf(text: str) -> bytes:
    """Return a document of two pages with this text."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
    page = "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 5 0 R"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R 4 0 R]/Count 2>>",
        *[f"{page}/Resources<</Font<</F1 6 0 R>>>>>>"] * 2,
        f"<</Length {len(content)}>>stream\n{content}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    whole, places = "%PDF-1.4\n", []
    for number, item in enumerate(objects, start=1):
        places.append(f"{len(whole):010} 00000 n \n")
        whole += f"{number} 0 obj{item}endobj\n"
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{''.join(places)}"
    trailer = f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(whole)}\n%%EOF\n"
    return f"{whole}{table}{trailer}".encode()


def test_documented_reader(tmp_path: Path) -> None:
    """The service that the documents make reads PDF documents, and rejects what is none."""
    answers = {"model_type": "custom", "input_kind": "file", "endpoint": "read-text"}
    project = render(tmp_path / "service", answers)
    put_model(project, documented("files.md", "test_documented_reader"))
    (project / "example.pdf").write_bytes(pdf("An example"))
    for check in (["format", "--check"], ["check"]):
        run([python(), "-m", "ruff", *check, "--no-cache", "inference.py"], cwd=project)
    packages = str(tmp_path / "packages")
    options = ["--quiet", "--python", python(), "--target", packages, "--no-deps"]
    run([uv(), "pip", "install", *options, "pypdf"])
    with live(project, python(), tmp_path / "log", PYTHONPATH=packages) as service:
        post = service.ready().post
        headers = {"Content-Type": "application/pdf"}
        whole = post("/read-text", content=pdf("Hello"), headers=headers)
        assert whole.raise_for_status().json() == {"pages": ["Hello", "Hello"]}
        form = post("/read-text", files={"file": pdf("Hello")}, data={"max_pages": "1"})
        assert form.raise_for_status().json() == {"pages": ["Hello"]}
        for content in (b"%PDF-1.4", pdf("Hello")[:100], archive(), b"text"):
            broken = post("/read-text", content=content, headers=headers)
            assert (broken.status_code, "cannot be read" in broken.text) == (400, True)
        assert post("/read-text", content=b"a", headers={"Content-Type": "a/b"}).status_code == 415
