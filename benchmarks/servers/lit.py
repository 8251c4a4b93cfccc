"""LitServe: `lit.py noop`, `classifier` or `encoder`, and a size where it is to batch.

`fast_queue` (ZeroMQ) is what its documentation recommends from 100 requests a second on. One API
server, and one worker for each core. Of the waits for a batch, none at all was the best one.
"""

import os
import sys
from typing import Any

import litserve
from fastapi import Request


class Noop(litserve.LitAPI):
    """Gives back what it got."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def predict(self, x: dict[str, Any]) -> dict[str, Any]:
        """Return the same numbers."""
        return {"values": x["values"]}


class Classify(litserve.LitAPI):
    """The text-line classifier."""

    def setup(self, device: str) -> None:
        """Load the model."""
        from classifier import Classifier

        self.classifier = Classifier()

    def decode_request(self, request: Request) -> Any:
        """Decode the picture."""
        from classifier import decode

        return decode(request["file"].file.read())

    def predict(self, x: Any) -> Any:
        """Classify one picture, or each of a batch."""
        return (
            [self.classifier.run(image) for image in x]
            if isinstance(x, list)
            else self.classifier.run(x)
        )

    def encode_response(self, output: tuple[str, float]) -> dict[str, Any]:
        """Return the answer."""
        return {"label": output[0], "score": output[1]}


class Encode(litserve.LitAPI):
    """MiniLM."""

    def setup(self, device: str) -> None:
        """Load the model."""
        from encoder import Encoder

        self.encoder = Encoder()

    def decode_request(self, request: Request) -> Any:
        """Take the text."""
        return request["text"]

    def predict(self, x: list[str]) -> list[list[float]]:
        """Embed a batch."""
        return self.encoder.run(x)

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        """Return the answer."""
        return {"embedding": output}


if __name__ == "__main__":
    apis = {"noop": Noop, "classifier": Classify, "encoder": Encode}
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    api = apis[sys.argv[1]](api_path="/infer", max_batch_size=size, batch_timeout=0)
    workers = int(os.getenv("WORKERS", "1"))
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=workers, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
