"""What the model takes and gives, in the protocol's words, and what a request makes of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from serving.contracts.documents import ANYTHING
from serving.contracts.oip.fields import Column, columns
from serving.contracts.oip.large import LARGE, result, settle
from serving.contracts.oip.messages import (
    InputConfig,
    ModelConfiguration,
    ModelMetadata,
    Parameters,
    TensorConfig,
    TensorMetadata,
)
from serving.contracts.oip.tensors import Answer, Tensor
from serving.errors import BadInput, ServiceError, TooLarge
from serving.inputs import Input, ParamsT
from serving.limits import MAX_UPLOAD_BYTES
from serving.requests import RequestParser
from serving.settings import settings

NAME, VERSION = settings.oip_model_name, settings.oip_model_version
PLATFORM = "custom"

# What an element of a field takes of MAX_UPLOAD_MB, however short it comes: a number in a list of
# Python's takes as much.
ELEMENT_BYTES = 32

# Parameters that are meant for the protocol, or for servers that have what this one has not.
RESERVED = {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority"}
RESERVED |= {"timeout", "headers", "content_type"}
NO_SHARED_MEMORY = "There is no shared memory here: send the data, and get them in the answer."


class UnknownModel(ServiceError):
    """A name or version that is not served here."""

    status = 404
    message = f"Request for unknown model: there is {NAME}, version {VERSION}."


@dataclass(frozen=True)
class Rows(Generic[ParamsT]):
    """A request's rows, validated; isolation sends them on."""

    params: Sequence[ParamsT]

    def decode(self) -> list[Input[ParamsT]]:
        """Return what the model takes: an `Input` for each row."""
        return [Input(params) for params in self.params]


@dataclass(frozen=True)
class Question(Generic[ParamsT]):
    """A request's inputs, checked as far as that takes no memory; isolation sends it on."""

    parse: RequestParser[ParamsT]
    columns: Sequence[Column]
    tensors: Sequence[Tensor]  # compact, one for each column
    rows: int | None  # each is an input; None where no tensor has any
    rest: bytes  # the other fields, as JSON

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return sum(tensor.size for tensor in self.tensors) + len(self.rest)

    def check_size(self, most: int) -> None:
        """Raise TooLarge where all rows together have more elements: each has the shared ones."""
        rows = self.rows or 1
        pairs = zip(self.columns, self.tensors, strict=True)
        shared = sum(tensor.count for column, tensor in pairs if not column.has_rows(tensor))
        if rows > 1 and (rows * shared > most or rows * len(self.rest) > MAX_UPLOAD_BYTES):
            raise TooLarge(f"{rows} rows with the other fields are too many: send fewer.")

    def decoder(self) -> Callable[[], list[Input[ParamsT]]]:
        """Return what decodes it. Raises BadInput and RequestValidationError.

        What is wrong with small fields is known at once. Large ones wait for the model as they
        came, since their values take many times as much.
        """
        return self.decode if self.size > LARGE else self.check()

    def documents(self) -> Iterator[Parameters]:
        """Yield the values of the fields, for each row. Raises BadInput."""
        shared: Parameters = from_json(self.rest)
        of_rows: dict[str, list[Any]] = {}
        for column, tensor in zip(self.columns, self.tensors, strict=True):
            kept = of_rows if column.has_rows(tensor) else shared
            kept[column.field] = column.take(tensor)
        for row in range(self.rows or 1):
            yield shared | {name: values[row] for name, values in of_rows.items()}

    def check(self) -> Callable[[], list[Input[ParamsT]]]:
        """Return what decodes it. Raises BadInput and RequestValidationError."""
        return Rows([self.parse.validate(ANYTHING.dump_json(x)) for x in self.documents()]).decode

    def decode(self) -> list[Input[ParamsT]]:
        """Check and decode it, on the model's thread: of the large ones, one at a time."""
        return result(settle(self._decode))

    def _decode(self) -> list[Input[ParamsT]]:
        return self.check()()


class Signature(Generic[ParamsT]):
    """The tensors that the model takes and gives."""

    def __init__(self, parse: RequestParser[ParamsT], output: type[BaseModel]) -> None:
        """Derive them from `Params` and `Output`."""
        self.parse = parse
        self.max_elements = MAX_UPLOAD_BYTES // ELEMENT_BYTES
        self.params = columns(parse.params, in_rows=False, output=False)
        self.inputs = self.params
        self.outputs = columns(output, in_rows=False, output=True)

    def check(self, name: str, version: str) -> None:
        """Raise UnknownModel where another model, or another version, is meant."""
        if name != NAME or version not in ("", VERSION):
            raise UnknownModel

    def metadata(self) -> ModelMetadata:
        """Tell what the model takes and gives."""
        return ModelMetadata(
            name=NAME,
            versions=[VERSION],
            platform=PLATFORM,
            inputs=[TensorMetadata(**column.metadata) for column in self.inputs],
            outputs=[TensorMetadata(**column.metadata) for column in self.outputs],
        )

    def config(self) -> ModelConfiguration:
        """Tell the same as Triton's configuration does."""
        return ModelConfiguration(
            name=NAME,
            platform=PLATFORM,
            backend="python",
            input=[
                InputConfig(**configure(column.metadata), optional=not column.is_required)
                for column in self.inputs
            ],
            output=[TensorConfig(**configure(column.metadata)) for column in self.outputs],
        )

    def read(self, tensors: Sequence[Tensor], parameters: Mapping[str, Any]) -> Question[ParamsT]:
        """Return a request's inputs. Raises BadInput, TooLarge and RequestValidationError."""
        given = {tensor.name: tensor for tensor in tensors}
        names = [column.name for column in self.inputs]
        if unknown := set(given) - set(names):
            raise BadInput(f"There is no input {min(unknown)!r}: send {', '.join(names)}.")
        if len(given) < len(tensors):
            raise BadInput("An input stands there twice.")
        if any("shared_memory_region" in tensor.parameters for tensor in tensors):
            raise BadInput(NO_SHARED_MEMORY)
        named = {column.name: column for column in self.params}
        fields = {column.field for column in self.params}
        if parameters.get("sequence_id") and "sequence_id" not in fields:
            raise BadInput("There are no sequences here: each request stands for itself.")
        meant = parameters.keys() - (RESERVED - fields)
        rest = {name: parameters[name] for name in meant}
        is_frame = parameters.get("content_type") == "pd"
        most = self.max_elements
        taken = [named[name].check(x, most, is_frame=is_frame) for name, x in given.items()]
        columns = [named[name] for name in given]
        for column in columns:
            rest.pop(column.field, None)
        rows = count_rows(columns, taken)
        question = Question(self.parse, columns, taken, rows, to_json(rest))
        question.check_size(most)
        return question

    def wanted(self, outputs: Mapping[str, Mapping[str, Any]], *, in_rows: bool) -> list[Column]:
        """Return the outputs of these names, with their parameters, or all where there are none.

        They have a dimension for rows where the inputs have. Raises BadInput.
        """
        for name, parameters in outputs.items():
            if "shared_memory_region" in parameters:
                raise BadInput(NO_SHARED_MEMORY)
            if parameters.get("classification"):
                raise BadInput(f"Output {name!r} can be had as it is, without classification.")
        columns = {x.name: replace(x, in_rows=x.in_rows or in_rows) for x in self.outputs}
        try:
            return [columns[name] for name in outputs or columns]
        except KeyError as error:
            raise BadInput(f"There is no output {error}: ask for {', '.join(columns)}.") from error


def configure(metadata: Mapping[str, Any]) -> Parameters:
    """Return a tensor's metadata as Triton's configuration has them."""
    datatype = metadata["datatype"]
    kind = "STRING" if datatype == "BYTES" else datatype
    return {"name": metadata["name"], "data_type": f"TYPE_{kind}", "dims": metadata["shape"]}


def count_rows(columns: Sequence[Column], tensors: Sequence[Tensor]) -> int | None:
    """Return how many rows the tensors have, or None where none has any. Raises BadInput."""
    pairs = zip(columns, tensors, strict=True)
    found = {x.name: x.shape[0] for column, x in pairs if column.has_rows(x)}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {rows}" for name, rows in found.items())
        raise BadInput(f"Send as many rows of each input; not {told}.")
    return next(iter(found.values()), None)


def answers(columns: Sequence[Column], outputs: Sequence[BaseModel]) -> list[Answer]:
    """Return the model's outputs as tensors."""
    rows = [output.model_dump(mode="json") for output in outputs]
    return [column.give([column.value(row) for row in rows]) for column in columns]
