"""What a reader of Kubernetes manifests can check, without a cluster."""

from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
# What the "restricted" Pod Security Standard lets a pod mount.
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def load(file: Path) -> dict[str, Manifest]:
    """Return the documents of a file by their kind, of which there is one each."""
    documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def violations(pod: Manifest) -> list[str]:
    """Return what in a pod's spec the "restricted" Pod Security Standard forbids."""
    containers = [*pod["containers"], *pod.get("initContainers", [])]
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    for volume in pod.get("volumes", []):
        found += [f"volume {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    for container in containers:
        own = container.get("securityContext", {})
        context = pod.get("securityContext", {}) | own
        capabilities = own.get("capabilities", {})
        rules = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": context.get("runAsNonRoot") is True,
            "runAsUser": context.get("runAsUser") != 0,
            "seccompProfile": context.get("seccompProfile", {}).get("type")
            in {"RuntimeDefault", "Localhost"},
            "capabilities.drop": "ALL" in capabilities.get("drop", []),
            "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "procMount": own.get("procMount", "Default") == "Default",
            "hostPort": not any("hostPort" in port for port in container.get("ports", [])),
        }
        found += [f"{container['name']}: {name}" for name, is_kept in rules.items() if not is_kept]
    return found


def selectors(documents: dict[str, Manifest]) -> dict[str, dict[str, str]]:
    """Return the labels by which each object finds its pods."""
    specs = {kind: document["spec"] for kind, document in documents.items()}
    [spread] = specs["Deployment"]["template"]["spec"]["topologySpreadConstraints"]
    return {
        "Deployment": specs["Deployment"]["selector"]["matchLabels"],
        "topologySpreadConstraints": spread["labelSelector"]["matchLabels"],
        "Service": specs["Service"]["selector"],
        "PodDisruptionBudget": specs["PodDisruptionBudget"]["selector"]["matchLabels"],
        "NetworkPolicy": specs["NetworkPolicy"]["podSelector"]["matchLabels"],
    }
