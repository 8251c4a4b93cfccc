"""Services that break one requirement each: what the conformance tests have to notice."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.updating import change


@dataclass(frozen=True)
class Mutant:
    """A rendered service that is changed in one respect, and the requirement that this breaks."""

    number: int
    name: str
    edits: tuple[tuple[str, str, str], ...] = ()  # file, old text, new text
    answers: dict[str, Any] = field(default_factory=lambda: {"model_type": "custom"})
    moved: tuple[str, str] | None = None  # a file or folder, and its new name

    def __str__(self) -> str:
        return f"ms-{self.number}-{self.name}"

    def apply(self, project: Path) -> None:
        """Change the service; each edit has to find its text."""
        if self.moved:
            old, new = self.moved
            (project / old).rename(project / new)
        for name, old, new in self.edits:
            change(project / name, old, new)


def mutant(number: int, name: str, *edits: tuple[str, str, str], **answers: Any) -> Mutant:
    """Return a mutant of the lightest service, or of one with these answers."""
    return Mutant(number, name, edits, {"model_type": "custom"} | answers)


MAIN, DEVICE, INFERENCE = "main.py", "device.py", "inference.py"
INPUTS, REQUESTS = "serving/inputs.py", "serving/requests.py"
LIMITS, WORKER, SERVER = "serving/limits.py", "serving/worker.py", "serving/server.py"
ERRORS, RUNNER, SERVICE = "serving/errors.py", "serving/runner.py", "serving/service.py"
SETTINGS, LOGS = "serving/settings.py", "serving/logs.py"
THREADS, GPU, AUTH = "serving/threads.py", "serving/gpu.py", "serving/auth.py"
METRICS, OBSERVABILITY = "serving/metrics.py", "serving/observability.py"
BATCHING, ISOLATION = "serving/batching.py", "serving/isolation.py"
STREAMING, DOCUMENTS = "serving/streaming.py", "serving/contracts/documents.py"
SAGEMAKER, MODEL_ENGINE = "serving/contracts/sagemaker.py", "serving/contracts/model_engine.py"
OIP, GRPC = "serving/contracts/oip/routes.py", "serving/contracts/oip/grpc_server.py"
OPENAI, TASKS = "serving/contracts/openai/", "serving/tasks/"
BATCH, BATCH_FILES = "serving/batch.py", "serving/batch_files.py"
SIGNATURE, OUTPUTS = "serving/contracts/oip/signature.py", "serving/outputs.py"
# An answer that is a file, with two headers.
ANSWERS_A_FILE = (
    (INFERENCE, "import Decoder, Input", "import Decoder, Input, Picture"),
    (INFERENCE, "class Output(BaseModel):", "class Output(Picture):"),
    (INFERENCE, "return Output(", "return Output.of(image, "),
)
# A model in few lines.
MODEL = """
class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [Output(color="red", share=1.0) for _ in inputs]
"""
HAS_GPU = {"features": ["observability", "gpu"]}
KEYS = {"input_kind": "json", "auth": "api-key"}
TOKENS = {"input_kind": "json", "auth": "jwt"}
# The lightest service whose stock model answers in parts.
STREAMS = {"model_type": "ggml", "input_kind": "json", "features": ["observability", "streaming"]}
BATCHES = {"features": ["observability", "batching"]}
SWAPPED = (WORKER, "zip(calls, answers, strict", "zip(calls, reversed(answers), strict")
SPEAKS_OIP = {"input_kind": "json", "contracts": ["oip"]}
SPEAKS_GRPC = {"input_kind": "json", "contracts": ["oip-grpc"]}
SPEAKS_SAGEMAKER = {"contracts": ["sagemaker"]}
SPEAKS_MODEL_ENGINE = {"contracts": ["model-engine"]}
SPEAKS_OPENAI = {"contracts": ["openai"]}
HAS_BATCH_JOBS = {"input_kind": "json", "features": ["batch-jobs"]}
TAKES_TASKS = {"predictions": "local"}
ON_A_CLUSTER = {"predictions": "celery"}

MUTANTS = [
    Mutant(1, "rules-under-another-name", moved=("AGENTS.md", "RULES.md")),
    Mutant(1, "machinery-in-another-folder", moved=("serving", "app")),
    Mutant(
        2,
        "imported-from-elsewhere",
        ((MAIN, "from inference import", "from model import"),),
        moved=("inference.py", "model.py"),
    ),
    mutant(
        2,
        "in-main",
        (MAIN, "MODEL_NAME, Model, Output", "MODEL_NAME, Output"),
        (MAIN, "import RESPONSES\n", "import RESPONSES\nfrom serving.inputs import Input\n"),
        (MAIN, "configure_logging()\n", f"configure_logging()\n{MODEL}\n\n"),
    ),
    mutant(3, "device-with-index", (DEVICE, 'return "cpu"', 'return "cpu:0"')),
    mutant(
        4,
        "framework-imported-at-the-top",
        (DEVICE, "import ctypes", "import ctypes\nimport onnxruntime"),
        model_type="onnxruntime",
    ),
    mutant(
        4,
        "missing-framework-ends-it",
        (DEVICE, "except Exception as", "except OSError as"),
        model_type="onnxruntime",
    ),
    mutant(6, "device-not-handed-over", (RUNNER, "model_class(device)", 'model_class("auto")')),
    mutant(7, "device-not-logged", (DEVICE, 'logger.info("Using', 'logger.debug("Using')),
    mutant(
        8,
        "loaded-by-each-call",
        (RUNNER, "= self.model.predict(inputs)", '= self.model_class("cpu").predict(inputs)'),
    ),
    mutant(
        9,
        "never-none",
        (
            WORKER,
            "        if not self.is_loaded:\n            raise NotReady\n        self.admit()",
            "",
        ),
    ),
    mutant(
        10,
        "loaded-by-the-first-request",
        (SERVICE, "        self.worker.start()\n", ""),
        (
            WORKER,
            "        if self._is_draining:\n",
            (
                '        if not hasattr(self, "_loop"):\n            self.start()\n'
                "        if self._is_draining:\n"
            ),
        ),
    ),
    mutant(
        11, "start-of-load-not-logged", (RUNNER, 'logger.info("Loading', 'logger.debug("Loading')
    ),
    mutant(
        11,
        "end-of-load-not-logged",
        (RUNNER, 'logger.info("Model loaded', 'logger.debug("Model loaded'),
    ),
    mutant(12, "not-closed", (RUNNER, "            close()\n", "            pass\n")),
    mutant(
        13,
        "wrong-number-becomes-the-default",
        (
            SETTINGS,
            "        sys.exit(f",
            "        return Settings.model_construct()\n        print(f",
        ),
    ),
    mutant(
        13,
        "zero-is-taken",
        (SETTINGS, "timeout_seconds: PositiveInt", "timeout_seconds: NonNegativeInt"),
    ),
    mutant(
        13,
        "any-level-is-taken",
        (SETTINGS, 'Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]', "str"),
    ),
    mutant(14, "fixed-port", (SERVER, "port=settings.port", "port=8000")),
    mutant(
        15,
        "fixed-model-name",
        (INFERENCE, 'os.getenv("MODEL_NAME", "nearest-color")', '"nearest-color"'),
    ),
    mutant(16, "fixed-limit", (LIMITS, "settings.max_upload_mb", "1")),
    mutant(
        17,
        "fixed-timeout",
        (WORKER, "call_later(settings.infer_timeout_seconds", "call_later(1"),
    ),
    mutant(18, "fixed-level", (LOGS, "level=settings.log_level", 'level="INFO"')),
    mutant(18, "server-logs-by-itself", (SERVER, "log_config=None", 'log_level="info"')),
    mutant(
        19,
        "no-cors",
        (SERVICE, "app.add_middleware(\n            CORS", "print(\n            CORS"),
    ),
    mutant(19, "some-headers", (SERVICE, 'allow_headers=["*"]', 'allow_headers=["X-Some"]')),
    mutant(
        19,
        "origins-cannot-be-tightened",
        (SERVICE, "allow_origins=settings.cors_origins", 'allow_origins=["*"]'),
    ),
    mutant(20, "other-words", (MAIN, '{"status": "ok"}', '{"status": "healthy"}')),
    mutant(
        20,
        "healthy-when-loaded",
        (MAIN, '    return {"status": "ok"}', '    await ready()\n    return {"status": "ok"}'),
    ),
    mutant(
        21,
        "always-ready",
        (WORKER, "        if not self.is_loaded:\n            raise NotReady\n", ""),
    ),
    mutant(
        21,
        "lives-on-after-a-failed-load",
        (
            WORKER,
            "                    self.fail()\n                else",
            "                    pass\n                else",
        ),
    ),
    mutant(
        21,
        "failed-load-is-success",
        (SERVICE, "SystemExit(int(self.worker.failed))", "SystemExit(0)"),
    ),
    mutant(
        21,
        "failed-load-without-reason",
        (WORKER, 'loaded: %s", error, exc_info=trace', 'loaded"'),
    ),
    mutant(
        22,
        "a-get-route-too",
        (
            MAIN,
            '@model_router.post(\n    "/classify",',
            '@model_router.api_route(\n    "/classify", methods=["GET", "POST"],',
        ),
    ),
    mutant(
        22,
        "everybody's-route",
        (MAIN, '@model_router.post(\n    "/classify"', '@app.post(\n    "/predict"'),
    ),
    mutant(23, "no-forms", (REQUESTS, '== "multipart/form-data"', '== "multipart/mixed"')),
    mutant(23, "other-field", (REQUESTS, "name_of(part) in self.names", 'part.name == "upload"')),
    mutant(24, "other-schema", (MAIN, "response_model=Output", "response_model=Params")),
    mutant(
        24, "answer-is-text", (SERVICE, 'media_type="application/json"', 'media_type="text/plain"')
    ),
    mutant(24, "another-file", *ANSWERS_A_FILE, (OUTPUTS, "(file.data,", "(file.data[1:],")),
    mutant(
        24, "another-type", *ANSWERS_A_FILE, (OUTPUTS, '"Content-Type": file', '"No-Type": file')
    ),
    mutant(24, "headers-lost", *ANSWERS_A_FILE, (OUTPUTS, "fixed | headers", "fixed")),
    mutant(
        25,
        "empty-is-unreadable",
        (REQUESTS, "if not all(file.content for file in files):", "if False:"),
    ),
    mutant(26, "declared-size-not-asked", (LIMITS, "int(declared) > MAX_BODY_BYTES", "False")),
    mutant(26, "body-not-counted", (LIMITS, "if self.held + size > MAX_BODY_BYTES", "if False")),
    mutant(
        26,
        "files-not-measured",
        (REQUESTS, "if sum(len(file.content) for file in files) > MAX_UPLOAD_BYTES", "if False"),
    ),
    mutant(
        26,
        "json-not-measured",
        (REQUESTS, "if len(body) > MAX_UPLOAD_BYTES", "if False"),
        input_kind="json",
    ),
    mutant(26, "other-words", (ERRORS, '"File too large."', '"Too big."')),
    mutant(
        27,
        "client's-mistake",
        (
            WORKER,
            "            raise NotReady\n        self.admit()",
            "            raise NotReady('Come back later.')\n        self.admit()",
        ),
    ),
    mutant(
        28,
        "on-the-event-loop",
        (
            SERVICE,
            "await self.worker.run(job, request.state.body.is_disconnected)",
            "self.runner.answer([job])[0]",
        ),
    ),
    mutant(
        29,
        "no-deadline",
        (WORKER, "call_later(settings.infer_timeout_seconds", "call_later(3600"),
    ),
    mutant(29, "other-status", (ERRORS, 'message = 504, "Inf', 'message = 500, "Inf')),
    mutant(
        29,
        "hung-for-ever",
        (
            WORKER,
            "self.running = []\n            while",
            "self._changed.wait_for(self._has_work)\n            while",
        ),
    ),
    mutant(
        29,
        "ready-while-it-hangs",
        (WORKER, "return bool(running) and all", "return not running and all"),
    ),
    mutant(
        30,
        "readiness-first",
        (
            SERVICE,
            "        parsed = await parse(request)\n",
            "        self.worker.check()\n        parsed = await parse(request)\n",
        ),
    ),
    mutant(
        31,
        "corrupt-is-unforeseen",
        (INPUTS, 'raise BadInput(f"No readable', 'raise ValueError(f"No readable'),
    ),
    mutant(
        31,
        "json-in-tatters-is-a-wrong-field",
        (REQUESTS, '== "json_invalid"', '== "never"'),
        input_kind="json",
    ),
    mutant(32, "any-type", (REQUESTS, "name in UNTYPED or", "True or")),
    mutant(
        32,
        "type-that-is-not-declared",
        (INFERENCE, '("*/*",)', '("text/*",)'),
        (INPUTS, 'tuple(name.partition("*")[0] for name in self.content_types)', '("",)'),
        input_kind="file",
    ),
    mutant(32, "no-unknown-type", (REQUESTS, '("", OCTET_STREAM, ', '("", ')),
    mutant(33, "other-status", (ERRORS, "return 422, {", "return 400, {")),
    mutant(33, "missing-file-not-told", (REQUESTS, "if not files:", "if False:")),
    mutant(34, "main-memory-not-known", (ERRORS, "isinstance(error, MemoryError)", "False")),
    mutant(
        34,
        "messages-not-read",
        (ERRORS, "for text in texts", "for text in ()"),
    ),
    mutant(34, "no-time-to-retry", (ERRORS, '"Out of memory.", 5', '"Out of memory.", None')),
    mutant(34, "gpu-not-named", (RUNNER, '"GPU out of memory." if is_gpu else ', "")),
    mutant(34, "gpu-named-on-the-cpu", (RUNNER, 'get_device() != "cpu" and ', "")),
    mutant(
        35,
        "raw-500",
        (LIMITS, "            response = respond(error, scope)\n", "            raise\n"),
    ),
    mutant(
        35,
        "no-id-in-the-log",
        (
            ERRORS,
            'logger.error("Error %s in %s %s", error_id, ',
            'logger.error("Error in %s %s", ',
        ),
    ),
    mutant(
        35,
        "timeouts-mixed-up",
        (
            WORKER,
            "elif isinstance(answer, Exception):",
            (
                "elif isinstance(answer, TimeoutError):\n"
                "            self.future.set_exception(DeadlineExceeded())\n"
                "        elif isinstance(answer, Exception):"
            ),
        ),
    ),
    mutant(
        35,
        "exit-ends-the-thread",
        (
            RUNNER,
            "except BaseException as error:  # noqa: BLE001 -- sys",
            "except RuntimeError as error:  # noqa: BLE001 -- sys",
        ),
    ),
    mutant(
        35,
        "failure-without-cors",
        (SERVICE, "        app.add_middleware(BodyLimit)\n", ""),
        (
            SERVICE,
            "        install_observability(",
            "        app.add_middleware(BodyLimit)\n        install_observability(",
        ),
    ),
    mutant(
        36, "pynvml-at-the-top", (GPU, "import logging", "import logging\nimport pynvml"), **HAS_GPU
    ),
    mutant(
        36,
        "no-reason",
        (GPU, 'reason="The package nvidia-ml-py is not installed."', "reason=None"),
        **HAS_GPU,
    ),
    mutant(
        37,
        "lower-threshold-first",
        (GPU, "celsius > CRITICAL_CELSIUS", "celsius > HIGH_CELSIUS"),
        **HAS_GPU,
    ),
    mutant(37, "no-warning", (GPU, "elif celsius > HIGH_CELSIUS", "elif celsius > 90"), **HAS_GPU),
    mutant(
        47,
        "closed-until-loaded",
        (
            SERVICE,
            "        self.worker.start()\n",
            (
                "        self.runner.load()\n        self.runner.load = lambda: None\n"
                "        self.worker.start()\n"
            ),
        ),
    ),
    mutant(48, "no-bound", (WORKER, "len(self.waiting) >= settings.max_queue_size", "False")),
    mutant(
        48,
        "no-time-to-retry",
        (ERRORS, 'waiting.", 1', 'waiting.", None'),
    ),
    mutant(
        48,
        "body-read-first",
        (LIMITS, "may_reject = self.worker.is_full and", "may_reject = False and"),
    ),
    mutant(49, "hangs-on", (WORKER, "> limit and not self.failed:", "> limit and False:")),
    mutant(49, "ends-as-if-all-were-well", (WORKER, "        self.failed = True\n", "")),
    mutant(
        50,
        "ended-by-the-signal",
        (SERVER, "        self.should_exit = True\n", "        super().handle_exit(sig, frame)\n"),
    ),
    mutant(
        51,
        "a-traceback",
        (LIMITS, "isinstance(error, ClientDisconnect)", "isinstance(error, KeyError)"),
    ),
    mutant(
        52,
        "no-raw-body",
        (REQUESTS, 'files = [Upload.sent(body, said.get("filename"), header)]', "files = []"),
    ),
    mutant(
        52,
        "query-not-read",
        (REQUESTS, "self._fields(request.query_params.multi_items())", "{}"),
        input_kind="image-params",
    ),
    mutant(53, "no-version", (MAIN, "ML Microservice Spec ", "ML Microservice Spec, version ")),
    mutant(53, "old-version", (MAIN, "ML Microservice Spec 1.", "ML Microservice Spec 0.")),
    mutant(54, "run-for-nobody", (WORKER, "if await call.is_disconnected() and", "if False and")),
    mutant(55, "nobody-told", (SERVER, "        self.worker.drain()\n", "")),
    mutant(55, "closed-at-once", (SERVER, "if settings.drain_seconds and", "if False and")),
    mutant(
        55,
        "requests-refused",
        (
            WORKER,
            "return len(self.waiting) >= settings.max_q",
            "return self._is_draining or len(self.waiting) >= settings.max_q",
        ),
    ),
    mutant(
        55, "signals-ignored", (SERVER, "        if self.should_exit:\n", "        if False:\n")
    ),
    mutant(56, "half-a-body-endured", (LIMITS, "timeout_at(self._deadline)", "timeout_at(None)")),
    mutant(57, "as-many-as-the-host-has", (THREADS, "len(os.sched_getaffinity(0))", "64")),
    mutant(
        57,
        "frameworks-not-told",
        (THREADS, 'os.environ["OMP_NUM_THREADS"]', 'os.environ["X_NUM_THREADS"]'),
    ),
    mutant(
        57,
        "setting-not-read",
        (SETTINGS, 'AliasChoices("NUM_THREADS", ', 'AliasChoices("X_THREADS", '),
    ),
    mutant(57, "not-logged", (RUNNER, 'logger.info("Threads:', 'logger.debug("Threads:')),
    mutant(
        58,
        "any-path-is-a-label",
        (OBSERVABILITY, 'getattr(find_route(scope), "path", OTHER)', 'scope["path"]'),
    ),
    mutant(58, "worker-not-observed", (METRICS, '"model_queue_depth"', '"model_queue"')),
    mutant(
        58,
        "requests-not-counted",
        (OBSERVABILITY, "REQUESTS.labels(method, route, status).inc()", "pass"),
    ),
    mutant(59, "not-returned", (OBSERVABILITY, '(b"x-request-id", own_id.', '(b"x-id", own_id.')),
    mutant(59, "any-id-is-taken", (OBSERVABILITY, 'rb"[!-~]{1,128}"', 'rb".*"')),
    mutant(
        59,
        "not-for-the-model",
        (RUNNER, "request_id.set(job.request_id if job", 'request_id.set("" if job'),
    ),
    mutant(60, "not-json", (LOGS, 'settings.log_format == "json"', "False")),
    mutant(60, "traceback-left-out", (LOGS, '"exc_info": "exception"', '"exc_info": "error"')),
    mutant(60, "queries-are-logged", (LOGS, "uvicorn.access", "uvicorn.other")),
    mutant(
        60,
        "any-format",
        (SETTINGS, 'Literal["text", "json"]', "str"),
    ),
    mutant(
        61,
        "deadline-for-all",
        (
            STREAMING,
            "                    deadline = now() + settings.infer_timeout_seconds\n",
            "                    pass\n",
        ),
        **STREAMS,
    ),
    mutant(
        61,
        "goes-on-for-nobody",
        (STREAMING, "                if call.future.done():\n                    break\n", ""),
        **STREAMS,
    ),
    mutant(
        61,
        "parts-of-another-kind",
        (
            INFERENCE,
            "    def predict(",
            "    def stream(self, item):\n        yield item.params\n\n    def predict(",
        ),
        input_kind="json",
        features=["streaming"],
    ),
    mutant(61, "no-end", (STREAMING, "            yield end\n", ""), **STREAMS),
    mutant(
        61,
        "failure-ends-the-connection",
        (STREAMING, "except Exception as error:", "except OSError as error:"),
        **STREAMS,
    ),
    mutant(
        62,
        "no-key-will-do",
        (
            AUTH,
            "if not key:\n            raise Unauthorized",
            "if not key:\n            return Caller('', {})",
        ),
        **KEYS,
    ),
    mutant(62, "any-key-will-do", (AUTH, "hmac.compare_digest(digest, known)", "known"), **KEYS),
    mutant(62, "short-keys", (AUTH, "{16,}", "{1,}"), **KEYS),
    mutant(62, "one-header-only", (AUTH, 'headers.get(b"x-api-key", b"")', 'b""'), **KEYS),
    mutant(
        62, "nobody-is-asked", (SERVICE, "        install_auth(app, self.authorizer)\n", ""), **KEYS
    ),
    mutant(
        62, "health-asks", (AUTH, 'frozenset({"GET", "HEAD", "OPTIONS"})', "frozenset()"), **KEYS
    ),
    mutant(
        62,
        "one-route-only",
        (AUTH, "if method in SAFE_METHODS:", 'if method in SAFE_METHODS or path != "/infer":'),
        **KEYS,
    ),
    mutant(
        62,
        "body-read-first",
        (AUTH, "        method = scope", "        await receive()\n        method = scope"),
        **KEYS,
    ),
    mutant(62, "challenge-left-out", (AUTH, '"WWW-Authenticate"', '"X-Authenticate"'), **KEYS),
    mutant(
        62, "not-in-the-document", (AUTH, 'operation["security"]', 'operation["secure"]'), **KEYS
    ),
    mutant(
        62,
        "key-is-logged",
        (AUTH, "        if not key:", '        logger.info("Key %s", key)\n        if not key:'),
        **KEYS,
    ),
    mutant(
        62,
        "policy-not-asked",
        (
            AUTH,
            "if settings.pdp_url:\n            await",
            "if not settings.pdp_url:\n            await",
        ),
        **KEYS,
    ),
    mutant(
        62, "absent-policy-consents", (AUTH, "raise CannotAuthorize from error", "return"), **KEYS
    ),
    mutant(
        62,
        "no-decision-consents",
        (AUTH, "else result) is True", "else result) is not False"),
        **KEYS,
    ),
    mutant(
        62,
        "no-token-will-do",
        (
            AUTH,
            "if token is None:\n            raise Unauthorized",
            "if token is None:\n            return Caller('', {})",
        ),
        **TOKENS,
    ),
    mutant(
        62,
        "signature-not-checked",
        (AUTH, '"require": ["exp"]', '"require": ["exp"], "verify_signature": False'),
        **TOKENS,
    ),
    mutant(
        62,
        "expired",
        (AUTH, '"require": ["exp"]', '"require": ["exp"], "verify_exp": False'),
        **TOKENS,
    ),
    mutant(62, "for-ever", (AUTH, '"require": ["exp"]', '"require": []'), **TOKENS),
    mutant(
        62,
        "for-anybody",
        (AUTH, '"require": ["exp"]', '"require": ["exp"], "verify_aud": False'),
        **TOKENS,
    ),
    mutant(
        62,
        "any-algorithm",
        (AUTH, "algorithms=[ALGORITHM]", "algorithms=[*SECRET_BYTES]"),
        **TOKENS,
    ),
    mutant(62, "text-for-a-time", (AUTH, "            check_claims(claims)\n", ""), **TOKENS),
    mutant(
        62,
        "message-before-the-key",
        (GRPC, "[authorizing, tolerant()]", "[tolerant()]"),
        **KEYS | SPEAKS_GRPC,
    ),
    mutant(62, "short-secret", (AUTH, "if secret and len(", "if not secret and len("), **TOKENS),
    mutant(63, "any-model", (SIGNATURE, "if name != NAME or version", "if version"), **SPEAKS_OIP),
    mutant(63, "no-id", (OIP, "if asked.id is not None:", "if False:"), **SPEAKS_OIP),
    mutant(
        63,
        "all-outputs",
        (SIGNATURE, "for name in outputs or columns]", "for name in columns]"),
        **SPEAKS_OIP,
    ),
    mutant(63, "binary-not-sent", (OIP, "in_general) is True", "in_general) is ..."), **SPEAKS_OIP),
    mutant(
        63,
        "errors-of-its-own",
        (OIP, '{"error": as_sentence(body)}', "body"),
        **SPEAKS_OIP,
    ),
    mutant(
        63,
        "unprocessable",
        (OIP, "return 400 if is_invalid", "return 422 if is_invalid"),
        **SPEAKS_OIP,
    ),
    mutant(
        63,
        "always-ready",
        (OIP, '        service.worker.check()\n        return {"ready"', '        return {"ready"'),
        **SPEAKS_OIP,
    ),
    mutant(
        63,
        "uncounted",
        (
            "serving/contracts/oip/statistics.py",
            "        self.stats.success.add(time.monotonic_ns() - start)\n",
            "",
        ),
        **SPEAKS_OIP,
    ),
    mutant(64, "no-id", (GRPC, ", id=work.id", ""), **SPEAKS_GRPC),
    mutant(
        64, "no-config", (GRPC, "    async def ModelConfig", "    async def Config"), **SPEAKS_GRPC
    ),
    mutant(64, "not-found-is-wrong", (GRPC, '    404: "NOT_FOUND",\n', ""), **SPEAKS_GRPC),
    mutant(
        64,
        "no-reflection",
        (GRPC, "protocol.reflection.enable_server_reflection(", "print("),
        **SPEAKS_GRPC,
    ),
    mutant(
        64,
        "always-serving",
        (GRPC, "SERVING if is_ready(self.service) else statuses.NOT_SERVING", "SERVING"),
        **SPEAKS_GRPC,
    ),
    mutant(64, "watchers-hold-it-up", (GRPC, "        watch.stopping.set()\n", ""), **SPEAKS_GRPC),
    mutant(
        65,
        "handlers-not-taken",
        (SAGEMAKER, "    sagemaker.register_sagemaker_overrides()\n", ""),
        **SPEAKS_SAGEMAKER,
    ),
    mutant(
        65,
        "busy-is-replaced",
        (SAGEMAKER, "with suppress(Busy):", "with suppress(KeyError):"),
        **SPEAKS_SAGEMAKER,
    ),
    mutant(
        65,
        "no-json",
        (SAGEMAKER, 'not in ("application/json", "text/json")', 'not in ("never",)'),
        **SPEAKS_SAGEMAKER,
    ),
    mutant(
        65,
        "broken-script-in-a-traceback",
        (SAGEMAKER, "        sys.exit(1)\n", "        raise\n"),
        **SPEAKS_SAGEMAKER,
    ),
    mutant(
        66,
        "ready-at-once",
        (MODEL_ENGINE, "        service.worker.check()\n", ""),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "args-not-unwrapped",
        (MODEL_ENGINE, "if self.wraps and", "if False and"),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "args-only",
        (MODEL_ENGINE, 'and "args" in document', ""),
        (MODEL_ENGINE, 'document["args"]', 'document.get("args")'),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "full-is-not-ready",
        (MODEL_ENGINE, "return 429 if", "return 503 if"),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "body-read-first",
        (LIMITS, "may_reject = self.worker.is_full and", "may_reject = False and"),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "in-tatters-is-unforeseen",
        (DOCUMENTS, "except ValueError as error:", "except OSError as error:"),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "any-type",
        (DOCUMENTS, "if not is_json and", "if False and"),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "answer-is-text",
        (SERVICE, 'media_type="application/json"', 'media_type="text/plain"'),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "answer-in-one-piece",
        (MODEL_ENGINE, "if service.streams:", "if not service.streams:"),
        **SPEAKS_MODEL_ENGINE,
        **STREAMS,
    ),
    mutant(
        67, "body-lost-in-silence", (SERVER, "reject if loses_body and has_body(scope) else ", "")
    ),
    mutant(
        67,
        "body-is-the-next-request",
        (SERVER, '(b"connection", b"close")', '(b"x-connection", b"close")'),
    ),
    mutant(
        68,
        "kept-for-all",
        (
            SERVICE,
            "        job = Job(parsed.decode, encode_answer)\n",
            (
                "        self.job = Job(parsed.decode, encode_answer)\n"
                "        await __import__('asyncio').sleep(0.1)\n        job = self.job\n"
            ),
        ),
    ),
    mutant(68, "swapped-in-a-batch", SWAPPED, **BATCHES),
    mutant(68, "swapped-in-a-batch-over-oip", SWAPPED, **BATCHES, **SPEAKS_OIP),
    mutant(
        68,
        "all-fail-with-one",
        (BATCHING, "        if only:\n            return", "        if True:\n            return"),
        **BATCHES,
    ),
    mutant(
        68,
        "one-answer-late-in-a-process",
        (
            ISOLATION,
            "        return answers\n",
            (
                "        self._kept, answers = answers, getattr(self, '_kept', answers)\n"
                "        return answers\n"
            ),
        ),
        features=["observability", "isolation"],
    ),
    mutant(
        68,
        "one-queue-for-all-streams",
        (
            STREAMING,
            "default_factory=asyncio.Queue)",
            "default_factory=lambda queue=asyncio.Queue(): queue)",
        ),
        **STREAMS,
    ),
    mutant(
        68,
        "kept-for-all-by-grpc",
        (
            GRPC,
            "            found = await statistics.run(self.service.worker, work.job,",
            (
                "            self.job = work.job\n"
                "            await __import__('asyncio').sleep(0.1)\n"
                "            found = await statistics.run(self.service.worker, self.job,"
            ),
        ),
        **SPEAKS_GRPC,
    ),
    mutant(
        68,
        "kept-for-all-by-predict",
        (
            MODEL_ENGINE,
            "        return await off_the_loop(self.parse_body, await read_json(request))\n",
            (
                "        self.kept = await read_json(request)\n"
                "        await __import__('asyncio').sleep(0.1)\n"
                "        return self.parse_body(self.kept)\n"
            ),
        ),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        68,
        "kept-for-all-at-invocations",
        (
            SAGEMAKER,
            "await off_the_loop(partial(parse_json, service.parse), await read_json(request))\n",
            (
                "service.kept = await read_json(request)\n"
                "        await __import__('asyncio').sleep(0.1)\n"
                "        parsed = parse_json(service.parse, service.kept)\n"
            ),
        ),
        **SPEAKS_SAGEMAKER,
    ),
    mutant(69, "last-come-first-served", (WORKER, "waiting.popleft()", "waiting.pop()")),
    mutant(
        69,
        "last-come-first-in-a-batch",
        (BATCHING, "calls.append(self.waiting.popleft())", "calls.append(self.waiting.pop())"),
        **BATCHES,
    ),
    mutant(
        70,
        "exception-in-a-500",
        (ERRORS, '"detail": "Internal server error."', '"detail": f"Internal: {error!r}"'),
    ),
    mutant(
        70,
        "class-in-a-500",
        (ERRORS, '"error_id": error_id}', '"error_id": error_id, "type": type(error).__name__}'),
    ),
    mutant(
        70,
        "text-when-memory-is-out",
        (RUNNER, '        logger.exception("Out of memory")\n', "        text = str(error)\n"),
        (RUNNER, "if is_gpu else None)", "if is_gpu else text)"),
    ),
    mutant(
        70,
        "text-of-the-decoder",
        (INPUTS, 'raise BadInput(f"No readable', 'raise BadInput(f"{error!r} No readable'),
    ),
    mutant(
        70,
        "text-in-a-stream",
        (STREAMING, '{"status": status, **body}', '{"status": status, **body, "why": repr(error)}'),
        **STREAMS,
    ),
    mutant(
        70,
        "text-over-oip",
        (OIP, '{"error": as_sentence(body)}', '{"error": as_sentence(body) + str(error)}'),
        **SPEAKS_OIP,
    ),
    mutant(
        70,
        "text-over-grpc",
        (GRPC, 'self.abort(context, code, body["error"])', "self.abort(context, code, text)"),
        (GRPC, "            scope = {", "            text = str(error)\n            scope = {"),
        **SPEAKS_GRPC,
    ),
    mutant(
        71,
        "cut-off",
        (
            SERVER,
            "        for _ in range(2):",
            "        self.force_exit = True\n        for _ in range(2):",
        ),
    ),
    mutant(
        71,
        "what-waits-is-rejected",
        (
            SERVER,
            "        for _ in range(2):",
            "        self.worker.stop()\n        for _ in range(2):",
        ),
    ),
    mutant(
        72,
        "any-model",
        (f"{OPENAI}requests.py", "    if name != own:", "    if not name:"),
        **SPEAKS_OPENAI,
    ),
    mutant(
        72,
        "errors-of-the-own-route",
        (
            f"{OPENAI}errors.py",
            'return status, {"error": {**details',
            'return status, {**body, "e": {**details',
        ),
        **SPEAKS_OPENAI,
    ),
    mutant(
        72,
        "rest-is-not-there",
        (f"{OPENAI}routes.py", "    add_rest(router)\n", ""),
        **SPEAKS_OPENAI,
    ),
    mutant(
        72,
        "what-is-not-known-is-ignored",
        (f"{OPENAI}requests.py", 'extra="forbid"', 'extra="ignore"'),
        **SPEAKS_OPENAI,
    ),
    mutant(
        72,
        "stream-without-an-end",
        (f"{OPENAI}routes.py", 'DONE = "data: [DONE]\\n\\n"', 'DONE = ""'),
        **SPEAKS_OPENAI,
    ),
    mutant(
        72,
        "chunks-with-a-word-too-few",
        (
            f"{OPENAI}answers.py",
            "for chunk in form.chunk(*part):",
            "for chunk in [*form.chunk(*part)][:1]:",
        ),
        **SPEAKS_OPENAI,
    ),
    mutant(
        72,
        "another-form-in-its-place",
        (f"{OPENAI}media.py", "    if wanted not in (None, form):", "    if form is None:"),
        **SPEAKS_OPENAI,
    ),
    mutant(
        73,
        "done-twice",
        (BATCH_FILES, '            self.done.add(row["input"])\n', ""),
        **HAS_BATCH_JOBS,
    ),
    mutant(
        73,
        "the-last-left-out",
        (
            BATCH,
            "            while begun:\n                self.write(await begun.popleft(), bar)\n",
            "",
        ),
        **HAS_BATCH_JOBS,
    ),
    mutant(
        73,
        "a-bad-line-ends-it",
        (BATCH, "        except Exception as error:", "        except KeyError as error:"),
        **HAS_BATCH_JOBS,
    ),
    mutant(
        74,
        "accepted-unread",
        (f"{TASKS}work.py", "await asyncio.to_thread(parsed.decode)", "pass"),
        **TAKES_TASKS,
    ),
    mutant(
        74,
        "what-ran-is-forgotten",
        (f"{TASKS}table.py", "WHERE ended IS NULL", "WHERE started IS NULL"),
        **TAKES_TASKS,
    ),
    mutant(
        74,
        "each-time-another-task",
        (f"{TASKS}work.py", "record.id = str(uuid.uuid5(", "_ = str(uuid.uuid5("),
        **TAKES_TASKS,
    ),
    mutant(
        74,
        "canceled-and-answered",
        (
            f"{TASKS}work.py",
            "                raise HasEnded\n            record.status, record.ended",
            "                pass\n            record.status, record.ended",
        ),
        (f"{TASKS}work.py", "            run.cancel()\n", "            pass\n"),
        **TAKES_TASKS,
    ),
    mutant(
        74,
        "failures-succeed",
        (f"{TASKS}work.py", "Status.FAILED if is_error else", "Status.SUCCEEDED if is_error else"),
        **TAKES_TASKS,
    ),
    mutant(
        74,
        "nobody-goes-on-with-it",
        (f"{TASKS}queue.py", "await self.table.overdue(time.time(), SENT_ROWS)", "[]"),
        (f"{TASKS}messages.py", 'timeout": RESEND_SECONDS', 'timeout": 3600'),
        **ON_A_CLUSTER,
    ),
]
