"""Asks each operation by a client that openapi-python-client has made: `URL CALLS` prints answers.

CALLS is JSON: of each operation the arguments of its path, and its body or the fields of its form.
"""

import inspect
import json
import sys
from base64 import b64decode
from contextlib import suppress
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, get_args

import made_client
from made_client import api


def ask(module: Any, url: str, call: dict[str, Any]) -> Any:
    """Return the answer to a call."""
    arguments = dict(call["path"])
    body = call.get("body")
    if "files" in call:
        files = {name: [*map(b64decode, x)] for name, x in call["files"].items()}
        body = call["fields"] | {x: y if call["several"] else y[0] for x, y in files.items()}
    if body:
        annotation = inspect.signature(module.sync_detailed).parameters["body"].annotation
        for kind in get_args(annotation) or [annotation]:
            with suppress(AttributeError, KeyError):  # it is the other form of the body, or none
                arguments["body"] = kind.from_dict(body)
    client = made_client.Client(base_url=url, raise_on_unexpected_status=True)
    response = module.sync_detailed(client=client, **arguments)
    assert response.status_code == 200, response.content
    return plain(response.parsed)


def plain(answer: Any) -> Any:
    """Return an answer as JSON has it."""
    if isinstance(answer, list):
        return [plain(item) for item in answer]
    return answer.to_dict() if hasattr(answer, "to_dict") else answer


if __name__ == "__main__":
    found = walk_packages(api.__path__, f"{api.__name__}.")
    names = [module.name for module in found if not module.ispkg]
    modules = {name.rpartition(".")[2]: import_module(name) for name in names}
    calls = json.loads(sys.argv[2])
    answers = {name: ask(modules[name], sys.argv[1], call) for name, call in calls.items()}
    print(json.dumps(answers))
