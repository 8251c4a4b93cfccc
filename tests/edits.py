"""What users do to their services. Each edit takes the service's folder."""

from pathlib import Path

from updating import MARKS, append, change, put_seam

# A model of a user's own, for a service that takes a picture.
BRIGHTNESS = '''
MODEL_NAME = os.getenv("MODEL_NAME", "brightness")


class Params(BaseModel):
    """How to weigh the pixels."""

    gamma: float = Field(default=1.0, gt=0)


class Output(BaseModel):
    """How bright the picture is."""

    brightness: float


EXAMPLE = {"file": "example.png", "gamma": 1.0}


class Model:
    """Measures brightness."""

    def __init__(self, device: str) -> None:
        """Learn to see."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Measure each picture."""
        return [self._measure(item) for item in inputs]

    def _measure(self, item: Input[Params]) -> Output:
        gray = np.asarray(item.image.convert("L"), dtype=np.float32) / 255
        return Output(brightness=round(float(gray.mean()) ** item.params.gamma, 4))


'''
BRIGHTNESS_TEST = '''"""What is bright."""

from io import BytesIO

import pytest
from PIL import Image

from conftest import Service


@pytest.mark.parametrize(("color", "brightness"), [("white", 1.0), ("black", 0.0)])
def test_brightness(service: Service, color: str, brightness: float) -> None:
    """White is bright, black is not."""
    picture = BytesIO()
    Image.new("RGB", (4, 4), color).save(picture, format="PNG")
    answer = service.client.post("/classify", files={"file": picture.getvalue()})
    assert answer.json() == {"brightness": brightness}
'''
# What inference.py needs beside it, and what main.py has in its place.
IMPORT = "from inference import EXAMPLE, MODEL_NAME, Model, Output, Params\n"
IMPORTS = '''"""Brightness."""

import os

import numpy as np
from pydantic import BaseModel, Field

from inputs import Input

'''


def rewrite_the_seam(project: Path) -> None:
    """Put another model between the marks, and its tests into test_model.py."""
    put_seam(project, BRIGHTNESS)
    (project / "tests" / "test_model.py").write_text(BRIGHTNESS_TEST, encoding="utf-8")


def add_a_parameter_and_an_output_field(project: Path) -> None:
    """Extend the stock seam by a field on either side."""
    main = project / "main.py"
    change(
        main,
        '    """Parameters beside the picture: none."""\n',
        '    """Parameters beside the picture."""\n\n'
        '    title: str = Field(default="", max_length=80)\n',
    )
    share = "    share: float = Field("
    change(main, share, f'    title: str = Field(default="", description="as sent")\n{share}')
    change(
        main,
        "return [self._dominant(item.image) for item in inputs]",
        "return [\n"
        '            self._dominant(item.image).model_copy(update={"title": item.params.title})\n'
        "            for item in inputs\n"
        "        ]",
    )
    change(
        project / "tests" / "test_model.py",
        'json() == {"color": color, "share": 1.0}',
        'json() == {"title": "", "color": color, "share": 1.0}',
    )
    append(
        project / "tests" / "test_model.py",
        '''

def test_title(service: Service) -> None:
    """The title comes back."""
    file = (ROOT / "example.png").read_bytes()
    body = service.client.post(ROUTE, files={"file": file}, data={"title": "A disc"})
    assert body.json()["title"] == "A disc"
''',
    )


def add_an_endpoint(project: Path) -> None:
    """Write another route into main.py, and a test of it into a file of their own."""
    change(
        project / "main.py",
        "\n\ndef serve() -> None:\n",
        '\n\n@app.get("/owner")\n'
        "async def owner() -> dict[str, str]:\n"
        '    """Who is called when it breaks."""\n'
        '    return {"owner": "The team of pictures"}\n'
        "\n\ndef serve() -> None:\n",
    )
    (project / "tests" / "test_owner.py").write_text(
        """from conftest import Service


def test_owner(service: Service) -> None:
    assert service.client.get("/owner").json() == {"owner": "The team of pictures"}
""",
        encoding="utf-8",
    )


def add_dependencies(project: Path) -> None:
    """Declare packages, and have another taste in rules."""
    file = project / "pyproject.toml"
    change(file, '    "pillow', '    "anyio>=4",\n    "pillow')
    change(file, '    "httpx', '    "packaging>=24",\n    "httpx')
    change(file, '    "EM",', '    "D",\n    "EM",')


def add_debian_packages(project: Path) -> None:
    """Install more into the image."""
    change(
        project / "Dockerfile", "no-install-recommends curl", "no-install-recommends curl ffmpeg"
    )
    change(project / "Dockerfile", "EXPOSE 8000\n", "ENV OMP_NUM_THREADS=2\nEXPOSE 8000\n")


def change_the_manifest(project: Path) -> None:
    """Run more of them, with more memory."""
    change(project / "k8s.yaml", "replicas: 1", "replicas: 3")
    change(project / "k8s.yaml", "memory: 2Gi", "memory: 6Gi")


def delete_files_of_the_template(project: Path) -> None:
    """Do without Kubernetes, and without a file that mypy and ruff do not need."""
    (project / "k8s.yaml").unlink()
    (project / ".python-version").unlink()


def delete_files_of_theirs(project: Path) -> None:
    """Do without a README and the known answers of the stock model."""
    (project / "README.md").unlink()
    (project / "tests" / "test_model.py").unlink()


def rewrite_the_readme(project: Path) -> None:
    """Say it in other words."""
    (project / "README.md").write_text("# Pictures\n\nAsk the team.\n", encoding="utf-8")


def replace_the_example(project: Path) -> None:
    """Send a picture of their own instead."""
    (project / "example.png").rename(project / "photo.png")
    change(project / "main.py", '"example.png"', '"photo.png"')
    change(project / "tests" / "test_model.py", '"example.png"', '"photo.png"')


def add_a_module_and_weights(project: Path) -> None:
    """Keep code and weights in files of their own, which the seam loads."""
    (project / "network.py").write_text(
        '''"""Reads weights."""

from pathlib import Path


def read(file: Path) -> bytes:
    """Return all of them."""
    return file.read_bytes()
''',
        encoding="utf-8",
    )
    (project / "weights.bin").write_bytes(bytes(range(256)) * 64)
    change(
        project / "main.py",
        "        self.device = device\n",
        "        from pathlib import Path\n\n        import network\n\n"
        '        self.raw = network.read(Path(__file__).with_name("weights.bin"))\n'
        "        self.device = device\n",
    )


def change_settings(project: Path) -> None:
    """Have another default, and another middleware."""
    main = project / "main.py"
    change(main, '"MAX_QUEUE_SIZE", 64', '"MAX_QUEUE_SIZE", 16')
    cors = "from fastapi.middleware.cors import CORSMiddleware\n"
    change(main, cors, cors + "from fastapi.middleware.gzip import GZipMiddleware\n")
    change(
        main,
        '\n\n@app.get("/health")',
        'app.add_middleware(GZipMiddleware)\n\n\n@app.get("/health")',
    )


def edit_the_machinery(project: Path) -> None:
    """Log more in worker.py, and say something else in limits.py."""
    change(
        project / "worker.py",
        "                call.started = now\n",
        "                call.started = now\n"
        '            logger.debug("A call starts; %d wait", len(self._waiting))\n',
    )
    append(
        project / "limits.py",
        '''

class TooBlurred(BadInput):
    """A picture that nobody could read."""

    reason = "The picture is blurred."
''',
    )


def write_fixtures(project: Path) -> None:
    """Run the tests' services with settings of their own."""
    change(project / "tests" / "fixtures.py", "return {}", 'return {"MODEL_NAME": "tiny"}')
    append(
        project / "tests" / "test_model.py",
        '''

def test_model_name(service: Service) -> None:
    """The fixture's name is the one that is loaded."""
    service.wait_for_log("Loading tiny on cpu")
''',
    )


def write_rules(project: Path) -> None:
    """Add to what git leaves out, and to what agents are told."""
    append(project / ".gitignore", "data/\n")
    append(project / "CLAUDE.md", "\n## Ours\n\nAsk the team of pictures first.\n")


def choose_a_python(project: Path) -> None:
    """Run on another Python, without asking the template."""
    (project / ".python-version").write_text("3.13\n", encoding="utf-8")


def change_the_route(project: Path) -> None:
    """Have their tests ask for the route that comes."""
    change(project / "tests" / "test_model.py", '"/classify"', '"/look"')


def seam_and_endpoint(project: Path) -> None:
    """Have a model and a route of their own."""
    rewrite_the_seam(project)
    add_an_endpoint(project)


def move_to_inference(project: Path) -> None:
    """Move the model from main.py to inference.py by hand."""
    (project / "inference.py").write_text(IMPORTS + BRIGHTNESS, encoding="utf-8")
    put_seam(project, "")
    change(project / "main.py", "".join(MARKS), "")
    change(project / "main.py", "from inputs import", f"{IMPORT}from inputs import")


def move_to_main(project: Path) -> None:
    """Move it back."""
    (project / "inference.py").unlink()
    main = project / "main.py"
    logger = "\nlogger = logging.getLogger(__name__)\n"
    change(main, logger, f"{logger}\n\n{MARKS[0]}{BRIGHTNESS}{MARKS[1]}")
    change(main, IMPORT, "")
    change(main, "from inputs import ", "from inputs import Input, ")
    change(
        main,
        "from fastapi import ",
        "import numpy as np\nfrom pydantic import BaseModel, Field\nfrom fastapi import ",
    )
