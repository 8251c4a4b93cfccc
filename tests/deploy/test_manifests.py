"""Manifests of custom resources, held against the models that their projects publish."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support import manifests
from tests.support.clients import driver
from tests.support.environments import run, tool
from tests.support.live import live
from tests.support.rendering import render
from tests.support.updating import python
from tests.support.variants import choices

PLAIN = {"model_type": "custom", "input_kind": "json"}
# Prints what is left of a ScaledObject when KEDA's models have read it.
KEDA = """
import json, sys, yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject

document = yaml.safe_load(open(sys.argv[1]))
model = ScaledObject.model_validate(document)
print(json.dumps([document, model.model_dump(by_alias=True, exclude_none=True, mode="json")]))
"""


@pytest.mark.parametrize("features", [[], ["observability"], ["observability", "batching"]])
def test_keda(tmp_path: Path, features: list[str]) -> None:
    """KEDA's models know each key of what scales the service, and its workers."""
    answers = {"deploy": ["kubernetes", "autoscaling"], "predictions": "celery"}
    project = render(tmp_path / "service", PLAIN | answers | {"features": features})
    found = sorted(path.name for path in project.glob("keda*.yaml"))
    assert found == ["keda-tasks.yaml", *(["keda.yaml"] if features else [])]
    reader = tool("keda", "cloudcoil.models.keda>=2.16,<3")
    for name in found:
        document, kept = json.loads(run([reader, "-c", KEDA, str(project / name)]))
        assert kept == document


@pytest.mark.parametrize("mode", [name for name in choices("deploy") if name.startswith("kserve")])
@pytest.mark.parametrize("accelerator", ["cuda", "auto"])
@pytest.mark.parametrize("contracts", [[], ["oip-grpc"]])
def test_kserve(tmp_path: Path, mode: str, accelerator: str, contracts: list[str]) -> None:
    """KServe's models know each key of an InferenceService."""
    answers = {"deploy": [mode], "accelerator": accelerator, "contracts": contracts}
    answers |= {"predictions": "celery", "auth": "jwt"}
    project = render(tmp_path / "service", PLAIN | answers)
    document = manifests.load(project / "kserve.yaml")["InferenceService"]
    assert driver("of_kserve")("unknown", document) == []
    document["spec"]["predictor"]["containers"][0]["imagePolicy"] = "Always"
    assert driver("of_kserve")("unknown", document) == [
        "spec.predictor.containers[0].imagePolicy: no key of V1Container"
    ]


@pytest.mark.parametrize("mode", [name for name in choices("deploy") if name.startswith("kserve")])
def test_as_the_manifest_starts_it(tmp_path: Path, mode: str) -> None:
    """KServe's client asks a service that is started with exactly what the manifest says."""
    project = render(tmp_path / "service", PLAIN | {"deploy": [mode], "contracts": ["oip"]})
    document = manifests.load(project / "kserve.yaml")["InferenceService"]
    [container] = document["spec"]["predictor"]["containers"]
    env: dict[str, Any] = {each["name"]: each["value"] for each in container["env"]}
    given = {name: value for name, value in env.items() if name not in ("PORT", "DRAIN_SECONDS")}
    with live(project, python(), tmp_path / "log", **given) as service:
        service.ready()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container[probe]["httpGet"]["path"]
            assert httpx.get(f"{service.url}{path}").status_code == 200
        inputs = [{"name": "values", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}]
        name = document["metadata"]["name"]
        answer = driver("of_kserve")("infer", service.url.removeprefix("http://"), name, inputs)
        [output] = answer["outputs"]
        assert (output["name"], output["data"]) == ("next", [5.0])


@pytest.mark.parametrize("accelerator", ["cuda", "cpu"])
def test_compose(tmp_path: Path, accelerator: str) -> None:
    """Compose takes its file, and says what is missing where there is no key."""
    compose = shutil.which("docker-compose")
    if not compose:
        pytest.skip("docker-compose is missing")
    answers = {"predictions": "celery", "auth": "api-key", "accelerator": accelerator}
    project = render(tmp_path / "service", PLAIN | answers)
    command = [compose, "--file", "compose.celery.yaml", "config"]

    def ask(**env: str) -> subprocess.CompletedProcess[str]:
        given = os.environ | env
        return subprocess.run(
            command, cwd=project, env=given, capture_output=True, text=True, check=False
        )

    refused = ask()
    assert (refused.returncode, "openssl rand -hex 32" in refused.stderr) == (1, True)
    taken = ask(API_KEYS="a-key-of-the-tests")
    assert taken.returncode == 0, taken.stderr
    services = yaml.safe_load(taken.stdout)["services"]
    assert services.keys() == {"redis", "service", "worker"}
    assert ("deploy" in services["service"]) == (accelerator == "cuda")
    [target] = {
        each["environment"]["SERVICE_URL"] for name, each in services.items() if name != "redis"
    }
    assert target == f"http://service:{services['service']['ports'][0]['target']}"


def test_without_metrics(tmp_path: Path) -> None:
    """Without observability there is nothing to ask for KEDA; there is the one by CPU."""
    answers = {"deploy": ["kubernetes", "autoscaling"], "features": []}
    project = render(tmp_path / "service", PLAIN | answers)
    documents = yaml.safe_load((project / "hpa.yaml").read_text(encoding="utf-8"))
    assert documents["spec"]["metrics"][0]["resource"]["name"] == "cpu"
    assert not (project / "keda.yaml").exists()
