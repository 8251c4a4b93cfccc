"""Asks each operation by a client that OpenAPI Generator 6.4 has made: `URL CALLS` prints answers.

CALLS is JSON: of each operation the arguments of its path, and its body or the fields of its form.
"""

import json
import sys
from base64 import b64decode
from typing import Any

import openapi_client
from openapi_client.apis.tag_to_api import tag_to_api


def ask(operation: str, url: str, call: dict[str, Any]) -> Any:
    """Return the answer to a call, which the client has understood."""
    client = openapi_client.ApiClient(openapi_client.Configuration(host=url))
    [api, *_] = [x for x in tag_to_api.values() if hasattr(x, operation)]
    arguments: dict[str, Any] = {"path_params": call["path"]} if call["path"] else {}
    if "body" in call:
        arguments["body"] = call["body"]
    elif "files" in call:
        [(name, [content])] = call["files"].items()
        arguments["body"] = {name: b64decode(content), **call["fields"]}
    return json.loads(getattr(api(client), operation)(**arguments).response.data)


if __name__ == "__main__":
    calls = json.loads(sys.argv[2])
    print(json.dumps({name: ask(name, sys.argv[1], call) for name, call in calls.items()}))
