"""The fields of `Params` and `Output` as tensors."""

import math
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from fastapi.exceptions import RequestValidationError
from pydantic import AliasPath, BaseModel, GetJsonSchemaHandler
from pydantic_core import CoreSchema, from_json, to_json

from serving.contracts.oip.tensors import (
    DATATYPES,
    DTYPES,
    FLOATS,
    INTEGERS,
    Answer,
    Datatype,
    Tensor,
    describe,
)
from serving.errors import BadInput, TooLarge
from serving.schemas import inline_refs

# Of the types of a JSON schema.
OF_SCHEMA: dict[str, Datatype] = {
    "boolean": "BOOL",
    "integer": "INT64",
    "number": "FP64",
    "string": "BYTES",
}
NUMBERS = {*INTEGERS, *FLOATS}
DECLARATION = "x-tensor"  # of AsTensor, in a field's JSON schema
MAX_ROWS = 10_000  # of one request: each is an input of its own
# As MLServer's codecs mark what they make: a list becomes a column.
CODECS = {"np", "str", "base64"}


@dataclass(frozen=True)
class AsTensor:
    """Declares how a field of `Params` or `Output` travels: its datatype, its name, or both.

    `scores: Annotated[list[float], AsTensor("FP32", name="output.0")]`
    """

    datatype: Datatype | None = None
    name: str | None = None

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Write it into the field's JSON schema."""
        if self.datatype not in (None, *DATATYPES):
            sys.exit(f"AsTensor({self.datatype!r}) is no datatype: use {', '.join(DATATYPES)}")
        told = {"datatype": self.datatype, "name": self.name}
        return {**handler(schema), DECLARATION: {key: x for key, x in told.items() if x}}


@dataclass(frozen=True)
class Column:
    """A field of `Params` or `Output` as a tensor."""

    name: str
    field: str  # its name in JSON
    datatype: Datatype
    depth: int  # of lists in lists; 0 is a single value, which is a tensor of one element
    is_json: bool  # neither number, text nor list of these: elements hold JSON
    in_rows: bool  # whether there is one value for each of several inputs
    max_items: int | None = None  # of the list
    is_required: bool = True
    is_base64: bool = False  # in JSON; elements are what is encoded so
    part: str = ""  # of a file, or of each in a list of them

    @property
    def shape(self) -> list[int]:
        """Its shape; -1 is any size."""
        return [-1] * (self.depth + self.in_rows) or [1]

    @property
    def metadata(self) -> dict[str, Any]:
        """What clients are told."""
        told = describe(self.name, self.datatype, self.shape, self.content_type)
        field = f"{self.field}.{self.part}" if self.part else self.field
        if self.name != field:
            told["parameters"] = {**told.get("parameters", {}), "field": field}
        return told

    @property
    def content_type(self) -> str | None:
        """What elements of BYTES hold, where that is no text."""
        return "json" if self.is_json else "base64" if self.is_base64 else None

    @property
    def taken(self) -> set[str]:
        """The datatypes that are taken for it."""
        if self.datatype in FLOATS:
            return NUMBERS
        return {*INTEGERS} if self.datatype in INTEGERS else {self.datatype}

    def check(self, given: Tensor, most: int, *, is_frame: bool) -> Tensor:
        """Return a tensor compact: of one dimension more than the field where it has rows.

        A value has so many elements at most; `is_frame` says that the request is a table, whose
        columns are rows. Raises BadInput, TooLarge and RequestValidationError, before anything
        large is made.
        """
        if given.datatype not in self.taken:
            raise given.bad(f"send {self.datatype}, not {given.datatype}")
        tensor = given.compact(most)
        tensor = replace(tensor, shape=self._shape_of(tensor, is_frame=is_frame))
        self._check_range(tensor)
        shape = tensor.shape[len(tensor.shape) - self.depth :]
        if 0 in shape[1:]:  # else a few bytes could stand for any number of empty lists
            raise tensor.bad("only its first dimension may be 0")
        if self.max_items is not None and shape[0] > self.max_items:
            message = f"List should have at most {self.max_items} items after validation"
            item = {"type": "too_long", "loc": ("body", self.field)}
            raise RequestValidationError([item | {"msg": f"{message}, not {shape[0]}"}])
        if self.depth and math.prod(tensor.shape[:-1]) > most // 4:
            words = f"{math.prod(tensor.shape[:-1])} rows are too many, send {most // 4} at most"
            raise TooLarge(f"Tensor {tensor.name!r}: {words}.")
        if self.is_json:
            check_json(tensor.binary or b"", most)
        return tensor

    def _shape_of(self, tensor: Tensor, *, is_frame: bool) -> list[int]:
        """Return a tensor's shape: the field's, or one for several rows. Raises BadInput."""
        shape = list(tensor.shape)
        is_column = self.depth == 1 and len(shape) == self.depth + 1 and shape[-1] == 1
        if is_column and not is_frame and tensor.parameters.get("content_type") in CODECS:
            return shape[:1]
        more = len(shape) - self.depth
        if more < 0 or set(shape[1:more]) - {1}:
            raise tensor.bad(f"send the shape {self.shape}, not {shape}")
        if more == 0 or (self.depth == 0 and more == 1 and shape[0] == 1):
            return shape[more:]
        rows = shape[0]
        if not 0 < rows <= MAX_ROWS:
            raise tensor.bad(f"send 1 to {MAX_ROWS} rows, not {rows}")
        return [rows, *shape[more:]]

    def _check_range(self, tensor: Tensor) -> None:
        if self.datatype not in INTEGERS or tensor.datatype == self.datatype:
            return
        limits, elements = np.iinfo(DTYPES[self.datatype]), tensor.elements()
        if (elements < limits.min).any() or (elements > limits.max).any():
            raise tensor.bad(f"an element is beyond what {self.datatype} holds")

    def has_rows(self, tensor: Tensor) -> bool:
        """Tell whether a tensor that `check` has let through has a value for each row."""
        return len(tensor.shape) > self.depth

    def take(self, tensor: Tensor) -> Any:
        """Return the field's value as in JSON, or a list of one for each row. Raises BadInput."""
        value = tensor.elements().tolist()
        if self.datatype != "BYTES":
            return value
        try:
            return change(value, from_json if self.is_json else bytes.decode)
        except ValueError as error:
            kind = "JSON" if self.is_json else "UTF-8"
            raise tensor.bad(f"an element is no {kind}: {error}") from error

    def value(self, row: Mapping[str, Any]) -> Any:
        """Return the field's value in an answer as it is in JSON."""
        value = row[self.field]
        if not self.part:
            return value
        return [x[self.part] for x in value] if isinstance(value, list) else value[self.part]

    def give(self, values: list[Any]) -> Answer:
        """Return the tensor of the field's values, one for each input. Raises BadInput.

        Rows that differ in length make no tensor: then its elements hold JSON, one for each input.
        """
        shape, flat = [1], values
        if dimensions := self.depth + self.in_rows:
            try:
                shape, flat = flatten(values if self.in_rows else values[0], dimensions)
            except ValueError:
                return replace(self, datatype="BYTES", depth=0, is_json=True).give(values)
        if self.is_json:
            flat = [to_json(value, inf_nan_mode="null") for value in flat]
        elif self.is_base64:
            flat = [b64decode(value) for value in flat]
        elif self.datatype == "BYTES":
            flat = [value.encode() for value in flat]
        elif self.datatype in FLOATS:
            flat = [math.nan if value is None else value for value in flat]
        if not self._holds(flat):
            raise BadInput(f"The tensor {self.name!r} would hold more than {self.datatype} can.")
        return Answer(self.name, self.datatype, shape, flat, self.content_type)

    def _holds(self, flat: Sequence[Any]) -> bool:
        """Tell whether the datatype has room for these elements."""
        if self.datatype in INTEGERS:
            limits = np.iinfo(DTYPES[self.datatype])
            return all(limits.min <= value <= limits.max for value in flat)
        if self.datatype in FLOATS:
            try:
                with np.errstate(over="raise"):
                    np.array(flat, DTYPES[self.datatype])
            except (OverflowError, FloatingPointError):
                return False
        return True


def columns(model: type[BaseModel], *, in_rows: bool, output: bool) -> list[Column]:
    """Return the fields of a model as tensors; one that cannot be a tensor ends the start."""
    if output:  # by the names that an answer in JSON has
        by_alias = bool(model.model_config.get("serialize_by_alias"))
        schema = model.model_json_schema(by_alias=by_alias, mode="serialization")
    else:
        schema = model.model_json_schema()
        for name, field in model.model_fields.items():
            if isinstance(field.validation_alias, AliasPath):
                sys.exit(f"{model.__name__}.{name} must have a name of its own, not an AliasPath")
    fields = inline_refs(schema).get("properties")
    if fields is None:
        sys.exit(f"{model.__name__} must have named fields: each is a tensor of contracts=[oip]")
    found = []
    whole = ((name, "", field) for name, field in fields.items())
    for name, part, form in spread_files(fields) if output else whole:
        try:
            column = describe_column(name, form, in_rows=in_rows, output=output)
        except ValueError as error:
            sys.exit(f"{model.__name__}.{name} is declared {error}")
        is_required = name in schema.get("required", ())
        title = f"{column.name}_{part}" if part not in ("", "data") else column.name
        found.append(replace(column, name=title, part=part, is_required=is_required))
    names = [column.name for column in found]
    if twice := {name for name in names if names.count(name) > 1}:
        sys.exit(f"{model.__name__} has two fields that are the tensor {min(twice)!r}")
    return found


def spread_files(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each field's name and schema; of a file, or a list of them, those of each part."""
    for name, field in fields.items():
        inner = field.get("items", field)
        parts = inner.get("properties", {})
        if parts.get("data", {}).get("contentEncoding") != "base64":
            yield name, "", field
            continue
        declared = {DECLARATION: field.get(DECLARATION, {})}
        for part, schema in parts.items():
            yield name, part, {**field, "items": schema} if "items" in field else schema | declared


def describe_column(
    field: str, schema: Mapping[str, Any], *, in_rows: bool, output: bool
) -> Column:
    """Return the tensor for a field of this JSON schema; a null is to be left out, or is JSON.

    Raises ValueError for a declared datatype that the field cannot have.
    """
    declared = schema.get(DECLARATION, {})
    name, wanted = declared.get("name", field), declared.get("datatype")
    options = [x for x in schema.get("anyOf", [schema]) if x != {"type": "null"}]
    # Of the numbers that are declared, a null is NaN.
    may_be_null = not output or wanted in FLOATS or "anyOf" not in schema
    inner = options[0] if len(options) == 1 and may_be_null else {}
    depth = 0
    # A set may have fewer items than the tensor.
    max_items = None if inner.get("uniqueItems") else inner.get("maxItems")
    while inner.get("type") == "array" and isinstance(inner.get("items"), dict):
        depth += 1
        inner = inner["items"]
    if datatype := OF_SCHEMA.get(str(inner.get("type"))):
        check_declared(wanted or datatype, datatype, output=output)
        column = Column(name, field, wanted or datatype, depth, is_json=False, in_rows=in_rows)
        is_base64 = output and inner.get("contentEncoding") == "base64"
        return replace(column, max_items=max_items if depth else None, is_base64=is_base64)
    check_declared(wanted or "BYTES", "BYTES", output=output)
    depth = 0 if in_rows else min(depth, 1)  # lists of objects are seldom of one length
    return Column(name, field, "BYTES", depth, is_json=True, in_rows=in_rows)


def check_declared(wanted: Datatype, datatype: Datatype, *, output: bool) -> None:
    """Raise ValueError where a field of this datatype cannot have the one that is wanted."""
    able: set[str] = {datatype}
    if datatype != "BYTES":
        able |= {*FLOATS} if output and datatype == "FP64" else NUMBERS
    if wanted not in able:
        names = ", ".join(name for name in DATATYPES if name in able)
        raise ValueError(f"{wanted}, but can only be {names}")


def check_json(text: bytes, most: int) -> None:
    """Raise TooLarge for JSON of more values than these, or of many lists: those take more."""
    if text.count(b",") > most or text.count(b"[") + text.count(b"{") > most // 4:
        words = f"{most} commas and {most // 4} opening brackets"
        raise TooLarge(f"JSON may have {words} at most; send tensors in binary.")


def flatten(value: Any, depth: int) -> tuple[list[int], list[Any]]:
    """Return the shape and the elements of lists in lists. Raises ValueError if they are uneven."""
    shape: list[int] = []
    flat = [value]
    for _ in range(depth):
        sizes = {len(row) for row in flat} or {0}
        if len(sizes) > 1:
            raise ValueError("uneven")
        shape += sizes
        flat = list(chain.from_iterable(flat))
    return shape, flat


def change(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return lists in lists with each element changed."""
    if isinstance(value, list):
        return [change(item, function) for item in value]
    return function(value)
