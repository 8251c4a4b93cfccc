"""BentoML: `bentoml serve bento:Noop`, `Classify`, `Encode` or `Later`.

One worker, for the one core. bento.yaml turns access log, metrics and monitoring off. The no-op is
`async`, which spares it the hand-over to a thread; the others compute, and its documentation wants
those to be synchronous. Pictures come as PIL images, which was faster than a path to a file.
"""

from typing import Any

import bentoml
from PIL import ImageOps
from PIL.Image import Image


@bentoml.service(workers=1)
class Noop:
    """Gives back what it got."""

    @bentoml.api(route="/infer")
    async def infer(self, values: list[float]) -> dict[str, Any]:
        """Return the same numbers."""
        return {"values": values}


@bentoml.service(workers=1)
class Classify:
    """The text-line classifier."""

    def __init__(self) -> None:
        from classifier import Classifier

        self.classifier = Classifier()

    @bentoml.api(route="/infer")
    def infer(self, file: Image) -> dict[str, Any]:
        """Classify one picture."""
        label, score = self.classifier.run(ImageOps.exif_transpose(file).convert("RGB"))
        return {"label": label, "score": score}


@bentoml.service(workers=1)
class Encode:
    """MiniLM, with adaptive batching."""

    def __init__(self) -> None:
        from encoder import Encoder

        self.encoder = Encoder()

    @bentoml.api(route="/infer", batchable=True, max_batch_size=32)
    def infer(self, texts: list[str]) -> list[list[float]]:
        """Embed a batch."""
        return self.encoder.run(texts)


@bentoml.service(workers=1)
class Later:
    """Gives back what it got, when it is asked for."""

    @bentoml.task(route="/infer")
    def infer(self, values: list[float]) -> dict[str, Any]:
        """Return the same numbers."""
        return {"values": values}
