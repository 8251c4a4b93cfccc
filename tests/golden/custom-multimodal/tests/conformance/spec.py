"""What the conformance tests know of the spec, and of this service."""

from typing import Any

SPEC_VERSION = "1.0.0"
SERVICE = "my-model-server"
ROUTE = "/match"
ISOLATED = False  # whether the model has a process of its own
# What services are started with, whatever the environment says.
ENVIRONMENT: dict[str, str] = {}

REQUIREMENTS = {
    1: "Your files, and the template's folder",
    2: "The model has a file of its own",
    3: "`get_device()` returns a string",
    4: "Starts anywhere",
    5: "Other frameworks are asked in their own way",
    6: "The device is handed to the model",
    7: "The device is logged",
    8: "Loaded once, by the lifespan, into a global",
    9: "None until loaded",
    10: "Never lazily",
    11: "The load is logged",
    12: "A hook for cleaning up",
    13: "Environment variables, in one place",
    14: "`PORT`, 8000",
    15: "`MODEL_NAME`",
    16: "`MAX_UPLOAD_MB`, 20",
    17: "`INFER_TIMEOUT_SECONDS`, 60",
    18: "`LOG_LEVEL`, INFO",
    19: "CORS",
    20: "`GET /health`",
    21: "`GET /ready`",
    22: "A route named after what it does",
    23: "A form of request for each kind of input",
    24: "The response is a Pydantic model",
    25: "An empty upload is 400",
    26: "Too large is 413",
    27: "Not loaded is 503",
    28: "Off the event loop",
    29: "Too slow is 504",
    30: "The order of a request",
    31: "Corrupt input is 400",
    32: "A wrong content type is 415",
    33: "Invalid fields are 422",
    34: "Out of memory is 503",
    35: "No failure of the model is a raw 500",
    36: "`GET /gpu`",
    37: "Heat is logged",
    38: "Two stages, not root, locked",
    39: "HEALTHCHECK",
    40: "`PORT` in the image",
    41: "CUDA base image",
    42: "Nothing that is not needed",
    43: "Liveness probe",
    44: "Readiness probe",
    45: "Startup probe",
    46: "The checklist",
    47: "Verified",
    48: "A full queue is 503 at once",
    49: "A hung call ends the process",
    50: "SIGTERM ends it cleanly",
    51: "A client that leaves is no error",
    52: "A file can be the whole body",
    53: "The spec's version is told",
    54: "Work that nobody waits for",
    55: "Draining",
    56: "Slow bodies",
    57: "Threads follow the CPUs",
    58: "`GET /metrics`",
    59: "A request id",
    60: "`LOG_FORMAT`, text",
    61: "An answer in parts",
    62: "Who may ask",
    63: "Open Inference Protocol over HTTP",
    64: "Open Inference Protocol over gRPC",
    65: "SageMaker's contract",
    66: "Model Engine's contract",
    67: "Offered upgrades",
}

# Requirements that no live process shows, and what keeps them.
ELSEWHERE = {
    5: "depends on the hardware; the template's tests patch each framework's query",
    38: "seen in the image, which the template's tests build and run",
    39: "seen in the image, which the template's tests build and run",
    40: "seen in the image, which the template's tests build and run",
    41: "seen in the Dockerfile, which the template's tests read",
    42: "seen in the Dockerfile, which the template's tests read",
    43: "seen in k8s.yaml, which the template's tests read",
    44: "seen in k8s.yaml, which the template's tests read",
    45: "seen in k8s.yaml, which the template's tests read",
    46: "answered in AGENTS.md",
    62: "not chosen: the question auth",
    63: "not chosen: the question contracts",
    64: "not chosen: the question contracts",
    65: "not chosen: the question contracts",
    66: "not chosen: the question contracts",
}


def credentials() -> dict[str, str]:
    """Return the headers that these services want to see."""
    return {}


def example() -> dict[str, Any]:
    """Return the model's EXAMPLE. A running deployment can be asked without importing it."""
    from inference import EXAMPLE

    return EXAMPLE
