"""What users do to their services. Each edit takes the service's folder."""

from pathlib import Path

from tests.support.updating import append, change, put_model

# A helper of the model's.
LIMIT = '''@cache
def limit() -> int:
    """Return how many pictures there may be."""
    return 99


'''
# A model of a user's own, for a service that takes a picture: no part is as it was rendered.
BRIGHTNESS = '''"""How bright pictures are."""

import os
from functools import cache

import numpy as np
from pydantic import BaseModel, Field

from serving import BadInput, Decoder, Input

DECODER = Decoder(mode="L", background="black")

MODEL_NAME = os.getenv("MODEL_NAME", "brightness")


class Params(BaseModel):
    """How to weigh the pixels."""

    gamma: float = Field(default=1.0, gt=0)


class Output(BaseModel):
    """How bright the picture is."""

    brightness: float


EXAMPLE = {"file": "example.png", "gamma": 1.0}


@cache
def digits() -> int:
    """Return how many digits of an answer are true."""
    return 4


class Model:
    """Measures brightness."""

    def __init__(self, device: str) -> None:
        """Learn to see."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Measure each picture."""
        return [self._measure(item) for item in inputs]

    def _measure(self, item: Input[Params]) -> Output:
        gray = np.asarray(item.image, dtype=np.float32) / 255
        if not gray.size:
            raise BadInput("The picture is empty.")
        return Output(brightness=round(float(gray.mean()) ** item.params.gamma, digits()))
'''
BRIGHTNESS_TEST = '''"""What is bright."""

from io import BytesIO

import pytest
from PIL import Image

from conformance.plugin import Service


@pytest.mark.parametrize(("color", "brightness"), [("white", 1.0), ("black", 0.0)])
def test_brightness(service: Service, color: str, brightness: float) -> None:
    """White is bright, black is not."""
    picture = BytesIO()
    Image.new("RGB", (4, 4), color).save(picture, format="PNG")
    answer = service.client.post("/classify", files={"file": picture.getvalue()})
    assert answer.json() == {"brightness": brightness}
'''


def rewrite_the_model(project: Path) -> None:
    """Write another model into inference.py, and its tests into test_model.py."""
    put_model(project, BRIGHTNESS)
    (project / "tests" / "test_model.py").write_text(BRIGHTNESS_TEST, encoding="utf-8")


def add_a_parameter_and_an_output_field(project: Path) -> None:
    """Extend the stock model by a field on either side."""
    model = project / "inference.py"
    change(
        model,
        '    """Parameters beside the picture: none."""\n',
        '    """Parameters beside the picture."""\n\n'
        '    title: str = Field(default="", max_length=80)\n',
    )
    share = "    share: float = Field("
    change(model, share, f'    title: str = Field(default="", description="as sent")\n{share}')
    change(
        model,
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


def edit_every_part_of_the_model(project: Path) -> None:
    """Change each part of the stock inference.py where it stands."""
    model = project / "inference.py"
    change(model, '"""The model: ', '"""The colours: ')
    change(model, "import os\n", "import os\nfrom functools import cache\n")
    change(model, "from serving import ", "from serving import BadInput, ")
    change(model, 'background="white"', 'field="picture", background="black"')
    change(model, '"nearest-color")', '"colors")')
    change(model, '"black": (0, 0, 0)', '"black": (1, 1, 1)')
    change(model, "class Params(BaseModel):\n", f"{LIMIT}class Params(BaseModel):\n")
    change(model, "the picture: none.", "the picture: still none.")
    change(model, "    share: float", '    unit: str = "part"\n    share: float')
    change(model, '{"file": "example.png"}', '{"picture": "example.png"}')
    change(model, "        self.device = device\n", '        self.device = f"{device}"\n')
    change(
        model,
        '"""Return the dominant colour of each picture."""\n',
        '"""Return the dominant colour of each picture."""\n'
        "        if len(inputs) > limit():\n"
        '            raise BadInput("There are too many.")\n',
    )
    change(model, "(64, 64)", "(96, 96)")
    test = project / "tests" / "test_model.py"
    change(test, '{"file": ', '{"picture": ')
    change(test, '"share": 1.0}', '"share": 1.0, "unit": "part"}')


def add_to_main(project: Path, text: str) -> None:
    """Write something where main.py says that it goes."""
    place = "# Your own endpoints, routers and middleware go here."
    main = project / "main.py"
    [note] = [line for line in main.read_text("utf-8").splitlines() if line.startswith(place)]
    change(main, f"{note}\n\n", f"{note}\n{text}")


def add_an_endpoint(project: Path) -> None:
    """Write another route into main.py, and a test of it into a file of their own."""
    add_to_main(
        project,
        '\n\n@app.get("/owner")\n'
        "async def owner() -> dict[str, str]:\n"
        '    """Who is called when it breaks."""\n'
        '    return {"owner": "The team of pictures"}\n\n\n',
    )
    (project / "tests" / "test_owner.py").write_text(
        """from conformance.plugin import Service


def test_owner(service: Service) -> None:
    assert service.client.get("/owner").json() == {"owner": "The team of pictures"}
""",
        encoding="utf-8",
    )


def add_a_router(project: Path) -> None:
    """Have routes and settings in a file of their own, and a dependency that all routes have."""
    (project / "team.py").write_text(
        '''"""Routes of the team's."""

import os
from typing import Annotated

from fastapi import APIRouter, Header, Response

TEAM = os.getenv("TEAM", "pictures")
router = APIRouter(prefix="/team")


async def mark(response: Response, x_caller: Annotated[str, Header()] = "nobody") -> None:
    """Say who asked."""
    response.headers["X-Caller"] = x_caller


@router.get("/name")
async def name() -> dict[str, str]:
    """Who is called when it breaks."""
    return {"team": TEAM}
''',
        encoding="utf-8",
    )
    main = project / "main.py"
    change(
        main,
        "from fastapi import APIRouter, FastAPI",
        "from fastapi import APIRouter, Depends, FastAPI",
    )
    change(
        main,
        "\nfrom inference import ",
        "from fastapi.middleware.gzip import GZipMiddleware\n\nimport team\nfrom inference import ",
    )
    change(
        main,
        "    lifespan=lifespan,\n",
        "    dependencies=[Depends(team.mark)],\n    lifespan=lifespan,\n",
    )
    add_to_main(
        project, "\napp.include_router(team.router)\napp.add_middleware(GZipMiddleware)\n\n"
    )
    (project / "tests" / "test_team.py").write_text(
        """from conformance.plugin import Service


def test_team(service: Service) -> None:
    answer = service.client.get("/team/name", headers={"X-Caller": "me"})
    assert answer.json() == {"team": "pictures"}
    assert answer.headers["X-Caller"] == "me"
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
    change(project / "inference.py", '"example.png"', '"photo.png"')
    change(project / "tests" / "test_model.py", '"example.png"', '"photo.png"')


def add_a_module_and_weights(project: Path) -> None:
    """Keep code and weights in files of their own, which the model loads."""
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
        project / "inference.py",
        "        self.device = device\n",
        "        from pathlib import Path\n\n        import network\n\n"
        '        self.raw = network.read(Path(__file__).with_name("weights.bin"))\n'
        "        self.device = device\n",
    )


def change_settings(project: Path) -> None:
    """Have another default, and another middleware."""
    main = project / "main.py"
    change(project / "serving" / "settings.py", "size: PositiveInt = 64", "size: PositiveInt = 16")
    change(
        main,
        "\nfrom inference import ",
        "from fastapi.middleware.gzip import GZipMiddleware\n\nfrom inference import ",
    )
    add_to_main(project, "\napp.add_middleware(GZipMiddleware)\n\n")


def edit_the_machinery(project: Path) -> None:
    """Log more in serving/worker.py, and say something else in serving/errors.py."""
    change(
        project / "serving" / "worker.py",
        "                call.started = time.monotonic()\n",
        "                call.started = time.monotonic()\n"
        '            logger.debug("A call starts; %d wait", len(self.waiting))\n',
    )
    append(
        project / "serving" / "errors.py",
        '''

class TooBlurred(BadInput):
    """A picture that nobody could read."""

    message = "The picture is blurred."
''',
    )


def write_fixtures(project: Path) -> None:
    """Run the tests' services with settings of their own."""
    change(project / "tests" / "conftest.py", "return {}", 'return {"MODEL_NAME": "tiny"}')
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
    append(project / "AGENTS.md", "\n## Ours\n\nAsk the team of pictures first.\n")


def choose_a_python(project: Path) -> None:
    """Run on another Python, without asking the template."""
    (project / ".python-version").write_text("3.13\n", encoding="utf-8")


def change_the_route(project: Path) -> None:
    """Have their tests ask for the route that comes."""
    change(project / "tests" / "test_model.py", '"/classify"', '"/look"')


def model_and_endpoint(project: Path) -> None:
    """Have a model and a route of their own."""
    rewrite_the_model(project)
    add_an_endpoint(project)
