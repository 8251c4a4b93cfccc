"""The text-line classifier behind the rendered service."""

from pydantic import BaseModel
from serving import Decoder, Input

DECODER = Decoder()
MODEL_NAME = "text-line-angle"


class Params(BaseModel):
    """Parameters beside the picture: none."""


class Output(BaseModel):
    """Which way up the line is."""

    label: str
    score: float


EXAMPLE = {"file": "example.png"}


class Model:
    """The classifier, one picture at a time."""

    def __init__(self, device: str) -> None:
        from classifier import Classifier

        self.device = device
        self.classifier = Classifier()

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Classify each picture."""
        answers = [self.classifier.run(item.image) for item in inputs]
        return [Output(label=label, score=score) for label, score in answers]
