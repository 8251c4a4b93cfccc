"""Which device a service chooses, hands to its model and reports, on machines that we do not have.

Only what asks the hardware is a fake: the frameworks' modules, NVIDIA's driver and NVML.
"""

import json
import os
import re
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.environments import environment, run
from tests.support.live import START_SECONDS, Live, live
from tests.support.rendering import render
from tests.support.variants import table

# What the fakes of the frameworks begin with: HARDWARE is a list of devices, and BROKEN the
# name of what the import raises.
STUB = """
import builtins, os

def has(device):
    return device in os.environ["HARDWARE"].split()

def say(line):
    os.write(1, f"{line}\\n".encode())  # at once, or the log's lines come between

if os.environ.get("BROKEN"):
    raise getattr(builtins, os.environ["BROKEN"])("libcudart.so.12: cannot open shared object")
"""
TORCH = """
class cuda:
    is_available = staticmethod(lambda: has("cuda"))
    get_device_name = staticmethod(lambda: "Card")

class backends:
    class mps:
        is_available = staticmethod(lambda: has("mps"))
"""
# Each framework's module, by model type and input kind.
STUBS = {
    ("pytorch", "image"): {"torch": TORCH},
    ("transformers", "image"): {"torch": TORCH},
    ("onnxruntime", "image"): {
        "onnxruntime": """
NAMES = {"cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}
CPU = "CPUExecutionProvider"

def get_available_providers():
    # The CUDA build names its provider on machines without a GPU too.
    return [NAMES["mps"] if has("mps") else NAMES["cuda"], CPU]

def preload_dlls():
    say("The CUDA libraries are loaded")

class SessionOptions:
    pass

class InferenceSession:
    def __init__(self, path, options, providers):
        say(f"The session is asked for {' '.join(providers)}")
        device = {name: key for key, name in NAMES.items()}.get(providers[0])
        self.providers = providers if device is None or has(device) else [CPU]

    def get_providers(self):
        return self.providers

    def run(self, names, inputs):
        import numpy

        return [numpy.zeros((len(inputs["features"]), 12), dtype=numpy.float32)]
"""
    },
    ("paddle", "image"): {
        "paddle": """
class device:
    class cuda:
        device_count = staticmethod(lambda: int(has("cuda")))
        get_device_name = staticmethod(lambda: "Card")

def disable_signal_handler():
    pass
"""
    },
    ("ggml", "json"): {
        "xllamacpp": """
class Kind:
    def __init__(self, name):
        self.name = name

def get_device_info():
    found = ["CPU"] + ["GPU"] * (has("cuda") or has("mps"))
    kinds = [Kind("GGML_BACKEND_DEVICE_TYPE_" + name) for name in found]
    return [{"type": kind, "description": "Card"} for kind in kinds]
"""
    },
    ("ggml", "audio"): {
        "_pywhispercpp": "def whisper_log_set(function): pass\n",
        "pywhispercpp/model": """
class Model:
    @staticmethod
    def system_info():
        names = {"cuda": "CUDA : ARCHS = 750 | ", "mps": "Metal : EMBED_LIBRARY = 1 | "}
        return "".join(text for name, text in names.items() if has(name)) + "CPU : AVX = 1 | "
""",
    },
    ("custom", "image"): {},
}
CELLS = [
    pytest.param(*cell, accelerator, id="-".join([*cell, accelerator]))
    for cell in STUBS
    for accelerator in table("model_types")[cell[0]]["accelerators"]
]
CPU_LOG = "INFO Using cpu\n"
CHOOSE = """
import ctypes, importlib, json, logging, os, platform, sys
from io import StringIO

import device  # and all that it needs, before the machine becomes another one
from serving.settings import read_settings

class Driver:
    def cuInit(self, flags):
        return 0

    def cuDeviceGetName(self, name, size, number):
        name.value = b"Card"
        return 0

def load(name):
    if name != "libcuda.so.1" or "cuda" not in os.environ["HARDWARE"]:
        raise OSError(f"{name}: cannot open shared object file")
    return Driver()

ctypes.CDLL = load
linux, machine, known = sys.platform, platform.machine, set(sys.modules)
answers = []
for state in json.load(sys.stdin):
    for name in set(sys.modules) - known:
        del sys.modules[name]
    importlib.invalidate_caches()
    os.environ.update({"DEVICE": "", "BROKEN": "", "HARDWARE": ""} | state)
    is_mac = "mps" in os.environ["HARDWARE"]
    sys.platform = "darwin" if is_mac else linux
    platform.machine = (lambda: "arm64") if is_mac else machine
    log = StringIO()
    logging.basicConfig(stream=log, level="INFO", format="%(levelname)s %(message)s", force=True)
    try:
        device.settings = read_settings()
        chosen = device.get_device.__wrapped__()  # each time, not once
    except SystemExit as error:
        chosen = str(error)
    answers.append([chosen, log.getvalue()])
print(json.dumps(answers))
"""

DEVICES = "DEVICE must be 'cuda', 'mps', 'cpu', or 'cuda:1' for the second GPU"


@cache
def python() -> str:
    """Return an interpreter that has no framework at all."""
    return str(environment("custom") / "bin" / "python")


def with_stubs(project: Path, stubs: dict[str, str]) -> dict[str, str]:
    """Write the fakes beside a project; return the environment in which they are found."""
    folder = project.with_name("stubs")
    for name, code in stubs.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(STUB + code, encoding="utf-8")
    return os.environ | {"PYTHONPATH": str(folder), "HARDWARE": ""}


def choose(project: Path, env: dict[str, str], *states: dict[str, str]) -> list[tuple[str, str]]:
    """Return the device, or why there is none, and the log, for each state of a machine."""
    answer = run([python(), "-c", CHOOSE], cwd=project, env=env, input=json.dumps(states))
    return [(chosen, log) for chosen, log in json.loads(answer)]


def service(project: Path, env: dict[str, str], **more: str) -> AbstractContextManager[Live]:
    """Start a service in an environment with fakes."""
    return live(project, python(), project.with_name("log"), **env | more)


@pytest.mark.parametrize(("model_type", "input_kind", "accelerator"), CELLS)
def test_choice(tmp_path: Path, model_type: str, input_kind: str, accelerator: str) -> None:
    """The first device that the accelerator prefers and the machine has, else the CPU; logged."""
    answers = {"model_type": model_type, "input_kind": input_kind, "accelerator": accelerator}
    project = render(tmp_path / "project", answers)
    env = with_stubs(project, STUBS[model_type, input_kind])
    wanted = {*table("accelerators")[accelerator]["prefers"]}
    wanted &= {*table("model_types")[model_type]["accelerators"]}
    nothing, cuda, mps = choose(
        project, env, {"HARDWARE": ""}, {"HARDWARE": "cuda"}, {"HARDWARE": "mps"}
    )
    assert nothing == ("cpu", CPU_LOG)
    expected = "cuda" if "cuda" in wanted else "cpu"
    assert cuda == (expected, "INFO Using cuda: Card\n" if "cuda" in wanted else CPU_LOG)
    expected = "mps" if "mps" in wanted else "cpu"
    name = "Card" if input_kind == "json" else "Apple GPU"
    assert mps == (expected, f"INFO Using mps: {name}\n" if "mps" in wanted else CPU_LOG)


@pytest.mark.parametrize("model_type", ["pytorch", "transformers", "custom"])
def test_order(tmp_path: Path, model_type: str) -> None:
    """Where both kinds of GPU are there, CUDA comes first."""
    project = render(tmp_path / "project", {"model_type": model_type, "accelerator": "auto"})
    env = with_stubs(project, STUBS[model_type, "image"])
    assert choose(project, env, {"HARDWARE": "cuda mps"})[0][0] == "cuda"


@pytest.mark.parametrize(("model_type", "input_kind"), [cell for cell in STUBS if STUBS[cell]])
def test_broken_framework(tmp_path: Path, model_type: str, input_kind: str) -> None:
    """A framework that is missing, or whose libraries are, means the CPU, and a warning why."""
    project = render(
        tmp_path / "project",
        {"model_type": model_type, "input_kind": input_kind, "accelerator": "cuda"},
    )
    errors = ["ImportError", "OSError", "RuntimeError", "SystemError"]
    states = [{"HARDWARE": "cuda", "BROKEN": error} for error in errors]
    broken = choose(project, with_stubs(project, STUBS[model_type, input_kind]), *states)
    reason = "WARNING Cannot ask for cuda: libcudart.so.12: cannot open shared object"
    assert broken == [("cpu", f"{reason}\nINFO Using cpu\n")] * len(states)
    [(chosen, log)] = choose(project, os.environ | {"PYTHONPATH": ""}, {"HARDWARE": "cuda"})
    assert chosen == "cpu"
    assert re.match(r"WARNING Cannot ask for cuda: No module named '\w+'\nINFO Using cpu\n", log)


@pytest.mark.parametrize("accelerator", table("accelerators"))
def test_device_overrides(tmp_path: Path, accelerator: str) -> None:
    """DEVICE is taken as it stands, whatever is there; nothing in it is as if it were not set."""
    project = render(tmp_path / "project", {"model_type": "pytorch", "accelerator": accelerator})
    env = with_stubs(project, STUBS["pytorch", "image"])
    states = [
        {"DEVICE": name, "HARDWARE": "cuda mps"} for name in ("cuda", "mps", "cpu", "gpu", "cuda:")
    ]
    *taken, unknown, unnumbered = choose(project, env, *states)
    assert taken == [
        (name, f"INFO Using {name}, as DEVICE says\n") for name in ("cuda", "mps", "cpu")
    ]
    assert unknown == (f"{DEVICES}; not 'gpu'", "")
    assert unnumbered == (f"{DEVICES}; not 'cuda:'", "")


def test_gpu_by_number(tmp_path: Path) -> None:
    """With DEVICE=cuda:1 the model's process sees the second GPU alone, and is told "cuda"."""
    project = render(tmp_path / "project", {"model_type": "custom"})
    code = "import os, device; print(device.get_device(), os.environ['CUDA_VISIBLE_DEVICES'])"
    printed = run([python(), "-c", code], cwd=project, env=os.environ | {"DEVICE": "cuda:1"})
    assert printed == "cuda 1\n"


def test_wrong_device_ends_the_start(tmp_path: Path) -> None:
    """A DEVICE that is none ends the process with status 1, and one line says what is right."""
    project = render(tmp_path / "project", {"model_type": "custom"})
    with service(project, with_stubs(project, {}), DEVICE="cuda:one") as running:
        assert running.process.wait(START_SECONDS) == 1
    assert running.log == f"{DEVICES}; not 'cuda:one'\n"


@pytest.mark.parametrize(
    ("device", "provider"),
    [
        ("cuda", "CUDAExecutionProvider"),
        ("mps", "CoreMLExecutionProvider"),
        ("cpu", "CPUExecutionProvider"),
    ],
    ids=["cuda", "mps", "cpu"],
)
def test_session_gets_the_device(tmp_path: Path, device: str, provider: str) -> None:
    """ONNX Runtime is asked for the device's provider alone, with CUDA's libraries loaded."""
    project = render(tmp_path / "project", {"model_type": "onnxruntime"})
    env = with_stubs(project, STUBS["onnxruntime", "image"])
    with service(project, env, DEVICE=device, HARDWARE=device) as running:
        example = (project / "example.png").read_bytes()
        running.ready().post("/classify", files={"file": example}).raise_for_status()
    asked = [line for line in running.log.splitlines() if line.startswith("The ")]
    loaded = ["The CUDA libraries are loaded"] if device == "cuda" else []
    assert asked == [*loaded, f"The session is asked for {provider}"]
    assert f"Loading nearest-color.onnx on {device}" in running.log


@pytest.mark.parametrize(
    ("model_type", "input_kind", "reason"),
    [
        ("onnxruntime", "image", "CUDAExecutionProvider did not load; set DEVICE=cpu"),
        ("ggml", "json", "This build of xllamacpp has no cuda; set DEVICE=cpu"),
        ("ggml", "audio", "This build of pywhispercpp has no cuda; set DEVICE=cpu"),
    ],
    ids=["onnxruntime", "llama.cpp", "whisper.cpp"],
)
def test_silent_fallback_is_refused(
    tmp_path: Path, model_type: str, input_kind: str, reason: str
) -> None:
    """A framework that would run on the CPU in silence, where DEVICE is a GPU, ends the start."""
    project = render(tmp_path / "project", {"model_type": model_type, "input_kind": input_kind})
    env = with_stubs(project, STUBS[model_type, input_kind])
    with service(project, env, DEVICE="cuda") as running:
        assert running.process.wait(START_SECONDS) == 1
    assert f"The model cannot be loaded: {reason}" in running.log
    assert "Traceback" not in running.log


# A machine whose GPUs a test can heat: the file has their temperatures, or what NVML says.
NVML = """
import json
from pathlib import Path
from types import SimpleNamespace

NVML_TEMPERATURE_GPU = 0

class NVMLError(Exception):
    pass

def state():
    return json.loads(Path(os.environ["GPUS"]).read_text())

def nvmlInit():
    if isinstance(state(), str):
        raise NVMLError(state())

def nvmlShutdown():
    print("NVML is shut down")

def nvmlDeviceGetCount():
    return len(state())

def nvmlDeviceGetHandleByIndex(index):
    return index

def nvmlDeviceGetName(handle):
    return ["H200", b"Tesla T4"][handle % 2]

def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(used=3 * 2**30, total=139 * 2**30)

def nvmlDeviceGetUtilizationRates(handle):
    if handle % 2:
        raise NVMLError("Not Supported")
    return SimpleNamespace(gpu=42)

def nvmlDeviceGetTemperature(handle, sensor):
    if state()[handle] is None:
        raise NVMLError("Not Supported")
    return state()[handle]
"""


def test_gpu_page(tmp_path: Path) -> None:
    """/gpu tells memory, load and temperature; over 80 °C is a warning, over 85 °C an error."""
    project = render(tmp_path / "project", {"model_type": "custom", "accelerator": "cuda"})
    state = tmp_path / "gpus.json"
    env = with_stubs(project, {"pynvml": NVML}) | {"GPUS": str(state)}

    def ask(gpus: object) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Return the answer for this state of the machine, and what was logged of it."""
        before = len(running.log)
        state.write_text(json.dumps(gpus), encoding="utf-8")
        response = client.get("/gpu")
        assert response.status_code == 200
        return response.json(), re.findall(r"(\w+) serving\.gpu .*?: (.*)", running.log[before:])

    with service(project, env) as running:
        client = running.ready()
        body, logged = ask([60, None])
        gpu = {
            "index": 0,
            "name": "H200",
            "memory_used_mb": 3072,
            "memory_total_mb": 142_336,
            "utilization_percent": 42,
            "temperature_celsius": 60,
        }
        unknown = {"utilization_percent": None, "temperature_celsius": None}
        assert body == {"gpus": [gpu, gpu | {"index": 1, "name": "Tesla T4"} | unknown],
                        "reason": None}  # fmt: skip
        assert logged == []
        assert ask([80])[1] == []
        assert ask([81])[1] == [("WARNING", "GPU 0 (H200) is at 81 °C: high")]
        assert ask([85])[1] == [("WARNING", "GPU 0 (H200) is at 85 °C: high")]
        assert ask([60, 86])[1] == [("ERROR", "GPU 1 (Tesla T4) is at 86 °C: critical")]
        body, _ = ask("Driver Not Loaded")
        assert body["gpus"] == []
        assert "Driver Not Loaded" in body["reason"]
        assert ask([])[0]["gpus"] == []
    assert running.log.count("NVML is shut down") == 6


def test_gpu_page_without_nvml(tmp_path: Path) -> None:
    """Without the package nvidia-ml-py the service runs, and /gpu is 200 with the reason."""
    project = render(tmp_path / "project", {"model_type": "custom", "features": ["gpu"]})
    env = with_stubs(project, {"pynvml": ""}) | {"BROKEN": "ImportError"}
    with service(project, env, DEVICE="cpu") as running:
        body = running.ready().get("/gpu").raise_for_status().json()
    assert body == {"gpus": [], "reason": "The package nvidia-ml-py is not installed."}
