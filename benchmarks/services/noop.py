"""A model that does nothing: what is left is the service."""

from pydantic import BaseModel
from serving import Input

MODEL_NAME = "noop"


class Params(BaseModel):
    """The request's body."""

    values: list[float]


class Output(BaseModel):
    """The same numbers."""

    values: list[float]


EXAMPLE = {"values": [1.0, 2.0, 3.0, 4.0]}


class Model:
    """Gives back what it got."""

    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return each input's numbers."""
        return [Output(values=item.params.values) for item in inputs]
