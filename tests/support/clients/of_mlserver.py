"""Drives `mlserver infer`, which sends the requests that stand in a file, one a line."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from click.testing import CliRunner
from lines import serve
from mlserver.cli.main import root


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


if __name__ == "__main__":
    serve({"infer": infer})
