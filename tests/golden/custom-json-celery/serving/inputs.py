"""What the model takes: the document of a request."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

ParamsT = TypeVar("ParamsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One document: `Model.predict` gets a list of these."""

    params: ParamsT
