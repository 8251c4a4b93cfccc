"""What the model takes: the document of a request."""

from dataclasses import dataclass
from typing import Generic

from serving.requests import ParamsT, Upload


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One document: `Model.predict` gets a list of these."""

    params: ParamsT


def decode(upload: Upload[ParamsT]) -> list[Input[ParamsT]]:
    """Return what the model takes: one `Input`."""
    return [Input(upload.params)]
