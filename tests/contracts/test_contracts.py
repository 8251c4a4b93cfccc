"""Every combination of contracts, over every input kind: each is kept, whatever else is."""

import base64
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import clients
from tests.support.live import live
from tests.support.rendering import render
from tests.support.updating import python
from tests.support.variants import CONTRACTS, choices, table, variants

# A path of each, which is not there where the contract was not chosen.
PATHS = {"oip": "/v2", "sagemaker": "/ping", "model-engine": "/readyz", "openai": "/v1/models"}


def sets() -> Iterator[tuple[str, ...]]:
    """Return each set of contracts that differs from the others: gRPC brings HTTP along.

    OpenAI's API shares nothing with the others but the core: it is asked alone, and with all.
    """
    others = [contract for contract in CONTRACTS if contract != "openai"]
    for size in range(1, len(others) + 1):
        for chosen in combinations(others, size):
            if not {"oip", "oip-grpc"} <= set(chosen):
                yield chosen
    yield ("openai",)
    yield ("oip-grpc", "sagemaker", "model-engine", "openai")


def ask(client: httpx.Client, kind: str, project: Path) -> tuple[Any, dict[str, Any]]:
    """Return the service's own answer to a valid request, and the request as one JSON document."""
    row = table("input_kinds")[kind]
    if row["field"] == "json":
        document: dict[str, Any] = {"values": [1.0, 2.0, 3.0, 4.0]}
        response = client.post(f"/{row['endpoint']}", json=document)
        return response.raise_for_status().json(), document
    file = next(project.glob("example*.*")).read_bytes()
    fields = {"text": "a red picture"} if kind == "multimodal" else {}
    text = base64.b64encode(file).decode()
    document = {row["field"]: [text] if row["field"] == "files" else text, **fields}
    response = client.post(f"/{row['endpoint']}", data=fields, files={row["field"]: file})
    return response.raise_for_status().json(), document


@pytest.mark.parametrize("kind", choices("input_kind"))
@pytest.mark.parametrize("contracts", list(sets()), ids="+".join)
def test_combination(contracts: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    """The clients of each contract get the answer that the service's own route gives."""
    answers = {"model_type": "custom", "input_kind": kind, "accelerator": "cpu"}
    project = render(tmp_path / "service", answers | {"contracts": list(contracts)})
    with live(project, python(), tmp_path / "log") as service:
        client = service.ready()
        answer, document = ask(client, kind, project)
        kept = {contract.removesuffix("-grpc") for contract in contracts}
        for contract, path in PATHS.items():
            assert (client.get(path).status_code == 200) == (contract in kept), contract
        if "openai" in kept:
            assert_refused(client.post("/v1/chat/completions", json={}), "error")
        if "oip" in kept:
            clients.check(service, project)
            model = "/v2/models/my-model-server/infer"
            assert_refused(client.post(model, json={"inputs": []}), "error")
        for contract, route in {"sagemaker": "/invocations", "model-engine": "/predict"}.items():
            if contract in kept:
                response = client.post(route, json=document)
                assert response.raise_for_status().json() == answer
                assert_refused(client.post(route, json=[]), "detail")
        routes = client.get("/openapi.json").raise_for_status().json()["paths"]
        own = f"/{table('input_kinds')[kind]['endpoint']}"
        for route in {own, "/invocations", "/predict"} & routes.keys():
            headers = routes[route]["post"]["responses"]["200"].get("headers", {})
            assert ("X-Input-Warning" in headers) == (kind in ("audio", "video")), route
    assert "ERROR" not in service.log


def test_every_model_type_has_each() -> None:
    """Each contract, with each model type and each input kind, is in a cell that runs all tests."""
    found = {
        (value, contract)
        for variant in variants()
        if variant.is_full_depth
        for value in (variant.model_type, variant.input_kind)
        for contract in dict(variant.others)["contracts"]
    }
    assert found >= {*product(choices("model_type") + choices("input_kind"), CONTRACTS)}


def assert_refused(response: httpx.Response, key: str) -> None:
    """Check that a client's fault is told to it, in the contract's own form."""
    assert 400 <= response.status_code < 500
    assert list(response.json()) == [key]
    assert response.json()[key]
