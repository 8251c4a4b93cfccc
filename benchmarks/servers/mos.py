"""mosec: `mos.py noop` or `classifier`, and a size where it is to batch.

Its HTTP is in Rust, in a process of its own; the model is in another. Of the waits for a batch, 10
ms was its best.
"""

import os
import sys
from typing import Any

from mosec import Server, Worker


class Noop(Worker):
    """Gives back what it got."""

    def forward(self, data: Any) -> Any:
        """Return the same numbers."""
        return {"values": data["values"]}


class Classify(Worker):
    """The text-line classifier, asked by raw bodies."""

    def __init__(self) -> None:
        from classifier import Classifier

        self.classifier = Classifier()

    def deserialize(self, data: bytes) -> Any:
        """Decode the picture."""
        from classifier import decode

        return decode(data)

    def forward(self, data: Any) -> Any:
        """Classify one picture, or each of a batch."""
        images = data if isinstance(data, list) else [data]
        answers = [self.classifier.run(image) for image in images]
        outputs = [{"label": label, "score": score} for label, score in answers]
        return outputs if isinstance(data, list) else outputs[0]


if __name__ == "__main__":
    worker = {"noop": Noop, "classifier": Classify}[sys.argv[1]]
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", os.environ["PORT"], "--log-level", "error"]
    server = Server()
    server.append_worker(worker, num=1, max_batch_size=size, max_wait_time=10, route="/infer")
    server.run()
