"""Services that break one requirement each: what the conformance tests have to notice."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
            file = project / name
            text = file.read_text(encoding="utf-8")
            assert old in text, f"{old!r} is not in {name}: the mutant needs other words"
            file.write_text(text.replace(old, new), encoding="utf-8")


def mutant(number: int, name: str, *edits: tuple[str, str, str], **answers: Any) -> Mutant:
    """Return a mutant of the lightest service, or of one with these answers."""
    return Mutant(number, name, edits, {"model_type": "custom"} | answers)


MAIN, DEVICE, INFERENCE = "main.py", "device.py", "inference.py"
INPUTS, REQUESTS = "serving/inputs.py", "serving/requests.py"
LIMITS, WORKER, SERVER = "serving/limits.py", "serving/worker.py", "serving/server.py"
THREADS, GPU, AUTH = "serving/threads.py", "serving/gpu.py", "serving/auth.py"
METRICS, OBSERVABILITY = "serving/metrics.py", "serving/observability.py"
STREAMING = "serving/streaming.py"
SAGEMAKER, MODEL_ENGINE = "serving/contracts/sagemaker.py", "serving/contracts/model_engine.py"
OIP, GRPC = "serving/contracts/oip/routes.py", "serving/contracts/oip/grpc_server.py"
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
SPEAKS_OIP = {"input_kind": "json", "contracts": ["oip"]}
SPEAKS_GRPC = {"input_kind": "json", "contracts": ["oip-grpc"]}
SPEAKS_SAGEMAKER = {"contracts": ["sagemaker"]}
SPEAKS_MODEL_ENGINE = {"contracts": ["model-engine"]}

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
        (MAIN, "model: Model | None", f"{MODEL}\n\nmodel: Model | None"),
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
    mutant(6, "device-not-handed-over", (MAIN, "loaded = Model(device)", 'loaded = Model("auto")')),
    mutant(7, "device-not-logged", (DEVICE, 'logger.info("Using', 'logger.debug("Using')),
    mutant(
        8,
        "loaded-by-each-call",
        (MAIN, "return model.predict(inputs)", 'return Model("cpu").predict(inputs)'),
    ),
    mutant(9, "never-none", (MAIN, "model: Model | None = None", "model = object()")),
    mutant(
        10,
        "loaded-by-the-first-request",
        (MAIN, "    worker.start()\n", ""),
        (MAIN, "    worker.check()", "    start()\n    worker.check()"),
        (MAIN, "@asynccontextmanager", "start = lru_cache(worker.start)\n\n\n@asynccontextmanager"),
        (MAIN, "import partial", "import lru_cache, partial"),
    ),
    mutant(11, "start-of-load-not-logged", (MAIN, 'logger.info("Loading', 'logger.debug("Loading')),
    mutant(
        11,
        "end-of-load-not-logged",
        (MAIN, 'logger.info("Model loaded', 'logger.debug("Model loaded'),
    ),
    mutant(12, "not-closed", (MAIN, "        close()\n", "        pass\n")),
    mutant(
        13, "wrong-number-becomes-the-default", (LIMITS, "value = minimum - 1", "value = default")
    ),
    mutant(13, "zero-is-taken", (LIMITS, "if value < minimum:", "if value < 0:")),
    mutant(13, "wrong-level-ends-in-a-traceback", (MAIN, "if LOG_LEVEL not in", "if not")),
    mutant(14, "fixed-port", (MAIN, "port=PORT", "port=8000")),
    mutant(
        15,
        "fixed-model-name",
        (INFERENCE, 'os.getenv("MODEL_NAME", "nearest-color")', '"nearest-color"'),
    ),
    mutant(16, "fixed-limit", (MAIN, 'env_int("MAX_UPLOAD_MB", 20, minimum=1)', "1")),
    mutant(17, "fixed-timeout", (MAIN, 'env_int("INFER_TIMEOUT_SECONDS", 60, minimum=1)', "1")),
    mutant(18, "fixed-level", (MAIN, "level=LOG_LEVEL", 'level="INFO"')),
    mutant(18, "server-logs-by-itself", (SERVER, "log_config=None", 'log_level="info"')),
    mutant(19, "no-cors", (MAIN, "app.add_middleware(\n    CORS", "print(\n    CORS")),
    mutant(19, "some-headers", (MAIN, 'allow_headers=["*"]', 'allow_headers=["X-Some"]')),
    mutant(
        19,
        "origins-cannot-be-tightened",
        (MAIN, "allow_origins=CORS_ORIGINS", 'allow_origins=["*"]'),
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
        (WORKER, "        if not self._is_loaded:\n            raise NotReady\n", ""),
    ),
    mutant(
        21,
        "lives-on-after-a-failed-load",
        (
            WORKER,
            '"The model failed to load", exc_info=True)\n            self.fail()',
            '"The model failed to load", exc_info=True)',
        ),
    ),
    mutant(
        21, "failed-load-is-success", (SERVER, "return 1 if door.worker.failed else 0", "return 0")
    ),
    mutant(
        21,
        "failed-load-without-reason",
        (WORKER, 'failed to load", exc_info=True', 'failed to load"'),
    ),
    mutant(
        22,
        "a-get-route-too",
        (
            MAIN,
            '@app.post(\n    "/classify",',
            '@app.api_route(\n    "/classify", methods=["GET", "POST"],',
        ),
    ),
    mutant(
        22, "everybody's-route", (MAIN, '@app.post(\n    "/classify"', '@app.post(\n    "/predict"')
    ),
    mutant(23, "no-forms", (REQUESTS, '== "multipart/form-data"', '== "multipart/mixed"')),
    mutant(23, "other-field", (REQUESTS, "part.name == self.field", 'part.name == "upload"')),
    mutant(24, "other-schema", (MAIN, "response_model=Output", "response_model=Params")),
    mutant(
        24, "answer-is-text", (MAIN, 'media_type="application/json"', 'media_type="text/plain"')
    ),
    mutant(25, "empty-is-unreadable", (REQUESTS, "if not all(files):", "if False:")),
    mutant(26, "declared-size-not-asked", (LIMITS, "int(declared) > self.max_bytes", "False")),
    mutant(26, "body-not-counted", (LIMITS, "if counted > self.max_bytes", "if False")),
    mutant(
        26, "files-not-measured", (REQUESTS, "if sum(map(len, files)) > self.max_bytes", "if False")
    ),
    mutant(
        26,
        "json-not-measured",
        (REQUESTS, "if len(body) > self.max_bytes", "if False"),
        input_kind="json",
    ),
    mutant(26, "other-words", (LIMITS, '"File too large."', '"Too big."')),
    mutant(
        27,
        "client's-mistake",
        (
            WORKER,
            "        if not self._has_loaded:\n            raise NotReady\n",
            "        if not self._has_loaded:\n            raise NotReady('Come back later.')\n",
        ),
    ),
    mutant(
        28,
        "on-the-event-loop",
        (
            MAIN,
            "await worker.run(job, gone=request.state.is_disconnected)",
            "worker.answer([job])[0]",
        ),
    ),
    mutant(
        29,
        "no-deadline",
        (WORKER, "time.monotonic() + self.bounds.timeout", "time.monotonic() + 3600"),
    ),
    mutant(29, "other-status", (LIMITS, 'reason = 504, "Inf', 'reason = 500, "Inf')),
    mutant(
        29,
        "hung-for-ever",
        (
            WORKER,
            "self._running = []\n            while",
            "self._changed.wait_for(lambda: self._waiting)\n            while",
        ),
    ),
    mutant(
        29,
        "ready-while-it-hangs",
        (WORKER, "        if running and all", "        if not running and all"),
    ),
    mutant(30, "readiness-first", (MAIN, "    worker.admit()\n", "    worker.check()\n")),
    mutant(
        31,
        "corrupt-is-unforeseen",
        (INPUTS, "    except Exception as error:", "    except KeyError as error:"),
    ),
    mutant(
        31,
        "json-in-tatters-is-a-wrong-field",
        (REQUESTS, '== "json_invalid"', '== "never"'),
        input_kind="json",
    ),
    mutant(
        32,
        "any-type",
        (REQUESTS, "if not set(types) <= {*self.content_types, *UNTYPED}", "if False"),
    ),
    mutant(32, "no-unknown-type", (REQUESTS, '{"", OCTET_STREAM}', '{""}')),
    mutant(33, "other-status", (LIMITS, "return 422, {", "return 400, {")),
    mutant(33, "missing-file-not-told", (REQUESTS, "missing=not files", "missing=False")),
    mutant(34, "main-memory-not-known", (LIMITS, "isinstance(error, MemoryError)", "False")),
    mutant(
        34,
        "messages-not-read",
        (LIMITS, "for text in texts", "for text in ()"),
    ),
    mutant(34, "no-time-to-retry", (LIMITS, '"Out of memory.", 5', '"Out of memory.", None')),
    mutant(34, "gpu-not-named", (WORKER, "GpuOutOfMemory() if is_gpu else ", "")),
    mutant(34, "gpu-named-on-the-cpu", (WORKER, 'get_device() != "cpu" and ', "")),
    mutant(35, "raw-500", (LIMITS, "    app.add_middleware(CatchAll)\n", "")),
    mutant(
        35,
        "no-id-in-the-log",
        (
            LIMITS,
            'logger.error("Error %s in %s %s", error_id, ',
            'logger.error("Error in %s %s", ',
        ),
    ),
    mutant(
        35,
        "timeouts-mixed-up",
        (
            WORKER,
            "except asyncio.CancelledError:",
            "except TimeoutError:\n            raise Busy\n        except asyncio.CancelledError:",
        ),
    ),
    mutant(
        35,
        "exit-ends-the-thread",
        (
            WORKER,
            "except BaseException as error:  # noqa: BLE001 -- sys",
            "except RuntimeError as error:  # noqa: BLE001 -- sys",
        ),
    ),
    mutant(
        35,
        "failure-without-cors",
        (MAIN, "guard(app, max_bytes=MAX_UPLOAD_BYTES)\n", ""),
        (
            MAIN,
            "observe(app, worker)\n",
            "guard(app, max_bytes=MAX_UPLOAD_BYTES)\nobserve(app, worker)\n",
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
        (MAIN, "worker.start()\n", "load()\n    worker.load = lambda: None\n    worker.start()\n"),
    ),
    mutant(48, "no-bound", (WORKER, "len(self._waiting) >= self.bounds.max_queue", "False")),
    mutant(
        48,
        "no-time-to-retry",
        (LIMITS, '"Too many requests are waiting.", 1', '"Too many requests are waiting.", None'),
    ),
    mutant(
        48,
        "body-read-first",
        (MAIN, "    worker.admit()\n", ""),
        (SERVER, "if not self.worker.is_full or", "if True or"),
    ),
    mutant(49, "hangs-on", (WORKER, "if hung and not self.failed:", "if False:")),
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
        (REQUESTS, "files = [body] if body or content_type else []", "files = []"),
    ),
    mutant(
        52,
        "query-not-read",
        (REQUESTS, "self._fields(request.query_params.multi_items())", "{}"),
        input_kind="image-params",
    ),
    mutant(53, "no-version", (MAIN, "ML Microservice Spec ", "ML Microservice Spec, version ")),
    mutant(53, "old-version", (MAIN, "ML Microservice Spec 1.", "ML Microservice Spec 0.")),
    mutant(54, "run-for-nobody", (WORKER, "if await call.gone() and", "if False and")),
    mutant(55, "nobody-told", (SERVER, "        self.worker.drain()\n", "")),
    mutant(55, "closed-at-once", (SERVER, "if DRAIN_SECONDS and", "if False and")),
    mutant(
        55,
        "requests-refused",
        (
            WORKER,
            "return len(self._waiting) >= self.bounds.max_q",
            "return self._draining or len(self._waiting) >= self.bounds.max_q",
        ),
    ),
    mutant(
        55, "signals-ignored", (SERVER, "        if self.should_exit:\n", "        if False:\n")
    ),
    mutant(
        56, "silence-endured", (SERVER, "self.since > REQUEST_TIMEOUT_SECONDS", "self.since > 3600")
    ),
    mutant(56, "half-a-body-endured", (LIMITS, "timeout_at(deadline)", "timeout_at(None)")),
    mutant(57, "as-many-as-the-host-has", (THREADS, "len(os.sched_getaffinity(0))", "64")),
    mutant(57, "frameworks-not-told", (THREADS, "os.environ.setdefault(", "print(")),
    mutant(57, "setting-not-read", (THREADS, '("NUM_THREADS", "OMP_NUM_THREADS")', "()")),
    mutant(57, "not-logged", (MAIN, 'logger.info("Threads:', 'logger.debug("Threads:')),
    mutant(58, "any-path-is-a-label", (METRICS, "in paths else OTHER", "in paths else path")),
    mutant(58, "worker-not-observed", (METRICS, '"model_queue_depth"', '"model_queue"')),
    mutant(58, "requests-not-counted", (OBSERVABILITY, "self.metrics.requested", "print")),
    mutant(59, "not-returned", (OBSERVABILITY, '(b"x-request-id", own', '(b"x-id", own')),
    mutant(59, "any-id-is-taken", (METRICS, 'rb"[!-~]{1,128}"', 'rb".*"')),
    mutant(
        59,
        "not-for-the-model",
        (WORKER, "request_id.set(job.request_id if job", 'request_id.set("" if job'),
    ),
    mutant(60, "not-json", (OBSERVABILITY, '"json": JsonFormatter', '"json": TextFormatter')),
    mutant(60, "traceback-left-out", (OBSERVABILITY, "if record.exc_info:", "if False:")),
    mutant(60, "queries-are-logged", (OBSERVABILITY, "uvicorn.access", "uvicorn.other")),
    mutant(
        60,
        "any-format",
        (OBSERVABILITY, "formatters[LOG_FORMAT]", "TextFormatter"),
        (OBSERVABILITY, "if LOG_FORMAT not in", "if not"),
    ),
    mutant(
        61,
        "deadline-for-all",
        (WORKER, "                call.deadline = now + self.bounds.timeout\n", ""),
        **STREAMS,
    ),
    mutant(
        61,
        "goes-on-for-nobody",
        (WORKER, "                if call.is_left:\n                    break\n", ""),
        **STREAMS,
    ),
    mutant(61, "no-end", (STREAMING, '            yield event("{}", "end")\n', ""), **STREAMS),
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
    mutant(62, "nobody-is-asked", (MAIN, "protect(app, authorizer)\n", ""), **KEYS),
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
        (AUTH, "if PDP_URL:\n            await", "if not PDP_URL:\n            await"),
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
        (AUTH, "algorithms=[JWT_ALGORITHM]", "algorithms=[*SECRET_BYTES]"),
        **TOKENS,
    ),
    mutant(
        62, "short-secret", (AUTH, "if JWT_SECRET and len(", "if not JWT_SECRET and len("), **TOKENS
    ),
    mutant(63, "any-model", (OIP, "if name != self.name or version", "if version"), **SPEAKS_OIP),
    mutant(63, "no-id", (OIP, "if asked.id is not None:", "if False:"), **SPEAKS_OIP),
    mutant(63, "all-outputs", (OIP, "dict.fromkeys(names or columns)", "columns"), **SPEAKS_OIP),
    mutant(63, "binary-not-sent", (OIP, "binary[column.name] is True", "False"), **SPEAKS_OIP),
    mutant(
        63,
        "errors-of-its-own",
        (LIMITS, 'body = {"error": as_sentence(body)}', "pass"),
        **SPEAKS_OIP,
    ),
    mutant(63, "unprocessable", (LIMITS, "status = 400  #", "status = 422  #"), **SPEAKS_OIP),
    mutant(
        63,
        "always-ready",
        (OIP, '        core.worker.check()\n        return {"ready"', '        return {"ready"'),
        **SPEAKS_OIP,
    ),
    mutant(64, "no-id", (GRPC, ", id=work.id", ""), **SPEAKS_GRPC),
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
        (GRPC, "SERVING if is_ready(self.core) else statuses.NOT_SERVING", "SERVING"),
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
        (SAGEMAKER, '== "application/json"', '== "never"'),
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
        (MODEL_ENGINE, "        core.worker.check()\n", ""),
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
        (LIMITS, "status = 429", "status = 503"),
        (MAIN, '"/predict": 429', '"/predict": 503'),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "body-read-first",
        (MODEL_ENGINE, "        core.worker.admit()\n", ""),
        (SERVER, "if not self.worker.is_full or", "if True or"),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "in-tatters-is-unforeseen",
        (MODEL_ENGINE, "except ValueError as error:", "except OSError as error:"),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "any-type",
        (MODEL_ENGINE, 'if content_type != "application/json" and', "if False and"),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "answer-is-text",
        (MODEL_ENGINE, 'media_type="application/json"', 'media_type="text/plain"'),
        **SPEAKS_MODEL_ENGINE,
    ),
    mutant(
        66,
        "answer-in-one-piece",
        (MODEL_ENGINE, "if core.streams:", "if not core.streams:"),
        **SPEAKS_MODEL_ENGINE,
        **STREAMS,
    ),
    mutant(67, "body-lost-in-silence", (SERVER, "NoUpgrades(app)", "app")),
    mutant(
        67,
        "body-is-the-next-request",
        (LIMITS, '(b"connection", b"close")', '(b"x-connection", b"close")'),
    ),
]
