"""What the conformance tests know of the spec, and of this service."""

from typing import Any

SPEC_VERSION = "1.0.0"
SERVICE = "my-model-server"
ROUTE = "/infer"
ISOLATED = False  # whether the model has a process of its own
# What services are started with, whatever the environment says.
ENVIRONMENT = {"API_KEYS": "first-key-of-the-tests, second-key-of-the-tests", "PDP_URL": ""}

REQUIREMENTS = {
    1: "Project layout",
    2: "The model in its own file",
    3: "`get_device()` returns a string",
    4: "Starts without a GPU",
    5: "Device detection per framework",
    6: "The device is passed to the model",
    7: "The device is logged",
    8: "Loaded once, in the lifespan",
    9: "No request before the model is loaded",
    10: "No lazy loading",
    11: "Loading is logged",
    12: "Clean-up on shutdown",
    13: "Settings from environment variables",
    14: "`PORT`, default 8000",
    15: "`MODEL_NAME`",
    16: "`MAX_UPLOAD_MB`, default 20, for clips 200",
    17: "`INFER_TIMEOUT_SECONDS`, default 60",
    18: "`LOG_LEVEL`, default INFO",
    19: "CORS",
    20: "`GET /health`",
    21: "`GET /ready`",
    22: "The route is named after the task",
    23: "One request format per input kind",
    24: "Typed responses",
    25: "Empty upload: 400",
    26: "Body too large: 413",
    27: "Model not loaded: 503",
    28: "Inference runs off the event loop",
    29: "Inference timeout: 504",
    30: "Order of the checks",
    31: "Corrupt input: 400",
    32: "Unsupported content type: 415",
    33: "Invalid fields: 422",
    34: "Out of memory: 503",
    35: "Unexpected errors: JSON 500",
    36: "`GET /gpu`",
    37: "GPU temperature is logged",
    38: "Multi-stage image, non-root, locked",
    39: "HEALTHCHECK",
    40: "`PORT` in the image",
    41: "CUDA base image",
    42: "No build tools in the image",
    43: "Liveness probe",
    44: "Readiness probe",
    45: "Startup probe",
    46: "The checklist",
    47: "End-to-end check",
    48: "Full queue: 503 before the body is read",
    49: "A hung call ends the process",
    50: "Graceful shutdown on SIGTERM",
    51: "Client disconnects are not errors",
    52: "Raw request bodies",
    53: "The spec version is published",
    54: "Abandoned requests are cancelled",
    55: "Draining",
    56: "Slow request bodies: 408",
    57: "Thread count follows the CPU limit",
    58: "`GET /metrics`",
    59: "Request ids",
    60: "`LOG_FORMAT`, default text",
    61: "Streaming",
    62: "Authentication and authorization",
    63: "Open Inference Protocol over HTTP",
    64: "Open Inference Protocol over gRPC",
    65: "SageMaker contract",
    66: "Model Engine contract",
    67: "HTTP upgrade offers",
    68: "Each request gets its own answer",
    69: "First come, first served",
    70: "Failures tell nothing of the inside",
    71: "What has begun is finished",
    72: "OpenAI API",
    73: "Batch jobs",
    74: "Answers later",
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
    63: "not chosen: the question contracts",
    64: "not chosen: the question contracts",
    65: "not chosen: the question contracts",
    66: "not chosen: the question contracts",
    72: "not chosen: the question contracts",
    73: "not chosen: the question features",
}


def credentials() -> dict[str, str]:
    """Return the headers that these services want to see."""
    return {"Authorization": "Bearer second-key-of-the-tests"}


def example() -> Any:
    """Return the model's EXAMPLE. A running deployment can be asked without importing it."""
    from inference import EXAMPLE

    return EXAMPLE
