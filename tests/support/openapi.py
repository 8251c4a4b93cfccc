"""The OpenAPI documents that a service writes."""

import json
from pathlib import Path
from typing import Any

from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator

from tests.support.environments import run
from tests.support.updating import python


def export(project: Path, folder: Path) -> dict[str, Any]:
    """Have the service write its documents, and return them."""
    printed = run([python(), "-m", "serving.openapi_export", str(folder)], cwd=project)
    files = [Path(line) for line in printed.splitlines()]
    assert [file.name for file in files] == ["openapi.json", "openapi-3.0.json", "metadata.json"]
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def validate(documents: dict[str, Any]) -> None:
    """Both documents are valid, each as what it says it is."""
    OpenAPIV31SpecValidator(documents["openapi.json"]).validate()
    OpenAPIV30SpecValidator(documents["openapi-3.0.json"]).validate()
    assert documents["openapi.json"]["openapi"].startswith("3.1.")
    assert documents["openapi-3.0.json"]["openapi"] == "3.0.3"
