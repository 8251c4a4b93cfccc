"""Asks each operation by a client that OpenAPI Generator has made: `URL CALLS` prints the answers.

CALLS is JSON: of each operation the arguments of its path, and its body or the fields of its form.
"""

import inspect
import json
import sys
from base64 import b64decode
from typing import Any, get_args

import openapi_client


def find(operation: str, url: str) -> Any:
    """Return the client's method for an operation."""
    client = openapi_client.ApiClient(openapi_client.Configuration(host=url))
    classes = [x for x in vars(openapi_client).values() if inspect.isclass(x)]
    [api, *_] = [x for x in classes if hasattr(x, f"{operation}_with_http_info")]
    return getattr(api(client), operation)


def ask(operation: str, url: str, call: dict[str, Any]) -> Any:
    """Return the answer to a call."""
    method = find(operation, url)
    arguments = dict(call["path"])
    if body := call.get("body"):
        parameters = inspect.signature(method).parameters.items()
        # Behind the path's; all others that can be passed are of the client's own, or optional.
        name, parameter = next(x for x in parameters if x[0] not in arguments)
        [kind, *_] = get_args(parameter.annotation) or [parameter.annotation]  # it may be optional
        arguments[name] = kind.from_dict(body)
    for name, values in call.get("files", {}).items():
        files = [("file", b64decode(value)) for value in values]
        arguments[name] = files if call["several"] else files[0]
    return plain(method(**arguments, **call.get("fields", {})))


def plain(answer: Any) -> Any:
    """Return an answer as JSON has it."""
    if isinstance(answer, list):
        return [plain(item) for item in answer]
    return json.loads(answer.to_json()) if hasattr(answer, "to_json") else answer


if __name__ == "__main__":
    calls = json.loads(sys.argv[2])
    print(json.dumps({name: ask(name, sys.argv[1], call) for name, call in calls.items()}))
