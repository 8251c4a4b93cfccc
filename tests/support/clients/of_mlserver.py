"""Drives `mlserver infer`, which sends the requests that stand in a file, one a line."""

import json
import urllib.request
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from click.testing import CliRunner
from lines import serve
from mlserver.cli.main import root
from mlserver.codecs import Base64Codec, NumpyCodec, PandasCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse, RequestOutput


def infer(
    address: str, model: str, requests: list[dict[str, Any]], *, binary: bool = False
) -> list[dict[str, Any]]:
    """Return the answers to requests, as they stand in the file that the command writes."""
    with TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked"), Path(folder, "answered")
        asked.write_text("".join(f"{json.dumps(request)}\n" for request in requests))
        command = ["infer", "-u", address, "-m", model, "-i", str(asked), "-o", str(answered)]
        options = ["--retries", "1", *(["--binary-data"] if binary else [])]
        result = CliRunner().invoke(root, [*command, *options], catch_exceptions=False)
        if result.exit_code:
            raise RuntimeError(result.output)
        answers = [json.loads(line) for line in answered.read_text().splitlines()]
    return sorted(answers, key=lambda answer: int(answer["parameters"]["batch_index"]))


def codecs(url: str, lists: dict[str, list[Any]], *, in_base64: bool = False) -> dict[str, Any]:
    """Ask with lists as the codecs encode them, and return what they make of the answer."""
    inputs = []
    for name, values in lists.items():
        if in_base64:
            inputs.append(Base64Codec.encode_input(name, [x.encode() for x in values]))
        elif isinstance(values[0], str):
            inputs.append(StringCodec.encode_input(name, values))
        else:
            inputs.append(NumpyCodec.encode_input(name, np.array(values)))
    return ask(url, InferenceRequest(inputs=inputs), [*lists])


def table(url: str, columns: dict[str, list[Any]]) -> dict[str, Any]:
    """Likewise with a table of pandas."""
    frame = pd.DataFrame(
        {
            name: pd.Series(x, dtype=object if isinstance(x[0], str) else None)
            for name, x in columns.items()
        }
    )
    return ask(url, PandasCodec.encode_request(frame), [*columns])


def ask(url: str, request: InferenceRequest, names: list[str]) -> dict[str, Any]:
    """Send a request with all of its nulls, and return the decoded outputs of these names."""
    wanted = [*(name.replace("INPUT", "OUTPUT") for name in names), "together"]
    # It knows no BF16, of which there is an output.
    request.outputs = [RequestOutput(name=name) for name in wanted]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = request.dict()  # as its users do: model_dump leaves nulls out
    body = json.dumps(document, default=bytes.decode).encode()
    assert b"null" in body
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
        response = InferenceResponse.model_validate_json(answer.read())
    found = {}
    for output in response.outputs:
        codec = StringCodec if output.datatype == "BYTES" else NumpyCodec
        found[output.name] = [*map(plain, codec.decode_output(output))]
    return found


def plain(value: Any) -> Any:
    """Return an element as Python has it."""
    return value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    serve({"infer": infer, "codecs": codecs, "table": table})
