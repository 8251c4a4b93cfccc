"""Tensors of the Open Inference Protocol, and the fields of `Params` and `Output` as tensors.

A tensor comes as JSON, or in the binary form of the protocol's extension: elements one after the
other, little-endian, each of BYTES behind its length.
"""

import base64
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from fastapi.exceptions import RequestValidationError
from pydantic_core import from_json, to_json

from serving.errors import BadInput, TooLarge

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
DATATYPES: tuple[str, ...] = get_args(Datatype)
INTEGERS = {"UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8"}
INTEGERS |= {"INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8"}
FLOATS = {"FP16": "<f2", "BF16": "<f4", "FP32": "<f4", "FP64": "<f8"}
DTYPES = {"BOOL": "?"} | INTEGERS | FLOATS

# Of the types of a JSON schema.
OF_SCHEMA: dict[str, Datatype] = {
    "boolean": "BOOL",
    "integer": "INT64",
    "number": "FP64",
    "string": "BYTES",
}
# Which others are taken for a datatype, and which Python types stand for it in JSON.
TAKEN = {"INT64": {*INTEGERS}, "FP32": {*FLOATS}, "FP64": {*INTEGERS, *FLOATS}}
IN_JSON: dict[str, set[type]] = {name: {int} for name in INTEGERS}
IN_JSON |= {name: {int, float} for name in FLOATS} | {"BOOL": {bool}, "BYTES": {str, bytes}}

MAX_SIZE = 2**56
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
LENGTH = struct.Struct("<I")  # before each element of BYTES
CHUNK = 16 * 1024  # elements of a list that are looked at without a break for other threads


@dataclass(frozen=True)
class Tensor:
    """A tensor as it was sent, or compact."""

    name: str
    datatype: Datatype
    shape: Sequence[int]
    data: Any = None  # a list, or lists in lists; compact: a flat array
    binary: bytes | None = None  # in place of `data`
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many elements its shape has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """How many bytes its elements take, once it is compact."""
        return len(self.binary) if self.binary is not None else int(self.data.nbytes)

    def compact(self, most: int, *, in_base64: bool = False) -> "Tensor":
        """Return it with its elements packed: lists of them take many times as much.

        Raises BadInput where they do not fit its shape, and TooLarge for more than these.
        """
        flat: Any = None
        if self.binary is None:
            flat = self._flat_list()
            self._check_fit(len(flat))
        elif self.datatype == "BYTES":
            if (self.count - 1) * LENGTH.size > len(self.binary):
                raise self._misfit(f"{len(self.binary)} bytes")
        else:
            self._check_fit(len(self._from_binary(self.binary)))
        if self.count > most:
            words = f"{self.count} elements are too many, send {most} at most"
            raise TooLarge(f"Tensor {self.name!r}: {words}.")
        if flat is None:
            return self
        if self.datatype == "BYTES":
            return replace(self, data=None, binary=self._pack(flat, in_base64=in_base64))
        return replace(self, data=self._from_list(flat))

    def elements(self) -> np.ndarray:
        """Return the elements of a compact tensor in its shape; those of BYTES are bytes.

        Raises BadInput.
        """
        if self.binary is None:
            flat = self.data
        elif self.datatype == "BYTES":
            flat = np.array(self._from_lengths(self.binary), object)
            self._check_fit(len(flat))
        else:
            flat = self._from_binary(self.binary)
        return np.asarray(flat).reshape(self.shape)

    def _check_fit(self, count: int) -> None:
        # An array of no elements has limits to its shape, too.
        if count != self.count or math.prod(size or 1 for size in self.shape) > MAX_SIZE:
            raise self._misfit(f"{count} elements")

    def _misfit(self, found: str) -> BadInput:
        return self.bad(f"the shape {list(self.shape)} does not fit the {found} of its data")

    def _flat_list(self) -> Sequence[Any]:
        flat = self.data
        while isinstance(flat, list) and flat and isinstance(flat[0], list):
            if not all(isinstance(row, list) for row in flat):
                raise self.bad("its data are nested unevenly")
            flat = list(chain.from_iterable(flat))
        if isinstance(flat, str | bytes) or not isinstance(flat, Sequence):
            raise self.bad("send its elements as a list in `data`, or as binary data")
        return flat

    def _chunks(self, flat: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """Yield the elements of a list some at a time, when they are what they should be."""
        for start in range(0, len(flat), CHUNK):
            chunk = flat[start : start + CHUNK]
            if not set(map(type, chunk)) <= IN_JSON[self.datatype]:
                raise self.bad(f"its data are not all {self.datatype}")
            yield chunk

    def _from_list(self, flat: Sequence[Any]) -> np.ndarray:
        found = np.empty(len(flat), DTYPES[self.datatype])
        end = 0
        try:
            with np.errstate(over="raise"):
                for chunk in self._chunks(flat):
                    start, end = end, end + len(chunk)
                    found[start:end] = np.array(chunk, found.dtype)
        except (OverflowError, FloatingPointError) as error:
            raise self.bad(f"an element is beyond what {self.datatype} holds") from error
        return found

    def _pack(self, flat: Sequence[Any], *, in_base64: bool) -> bytes:
        in_base64 |= self.parameters.get("content_type") == "base64"
        packed = bytearray()
        for text in chain.from_iterable(self._chunks(flat)):
            item = self._as_bytes(text, in_base64=in_base64)
            packed += LENGTH.pack(len(item)) + item
        return bytes(packed)

    def _as_bytes(self, text: str | bytes, *, in_base64: bool) -> bytes:
        if isinstance(text, bytes):
            return text
        try:
            return base64.b64decode(text, validate=True) if in_base64 else text.encode()
        except ValueError as error:
            kind = "base64" if in_base64 else "text"
            raise self.bad(f"an element is no {kind}: {error}") from error

    def _from_binary(self, binary: bytes) -> np.ndarray:
        dtype = np.dtype("<u2" if self.datatype == "BF16" else DTYPES[self.datatype])
        if len(binary) % dtype.itemsize:
            raise self.bad(f"{len(binary)} bytes are no whole number of {self.datatype}")
        flat = np.frombuffer(binary, dtype)
        if self.datatype == "BF16":  # the upper half of a float32
            return (flat.astype("<u4") << 16).view("<f4")
        return flat

    def _from_lengths(self, binary: bytes) -> list[bytes]:
        found: list[bytes] = []
        at = 0
        while at < len(binary):
            if len(found) == self.count:
                raise self._misfit(f"more than {self.count} elements")
            start = at + LENGTH.size
            size = LENGTH.unpack_from(binary, at)[0] if start <= len(binary) else 0
            at = start + size
            if at > len(binary):
                raise self.bad("its data end in the middle of an element")
            found.append(binary[start:at])
        return found

    def bad(self, message: str) -> BadInput:
        """Return the error for a tensor that cannot be what it is."""
        return BadInput(f"Tensor {self.name!r}: {message}.")


@dataclass(frozen=True)
class TensorForm:
    """What a tensor has to be whose elements are taken as they are."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]  # -1 is any size but 0
    content_type: str | None = None  # of BYTES

    @property
    def metadata(self) -> dict[str, Any]:
        """What clients are told."""
        return describe(self.name, self.datatype, self.shape, self.content_type)

    def check(self, tensor: Tensor) -> list[int]:
        """Return the shape; the first dimension may have been left out. Raises BadInput."""
        given = list(tensor.shape)
        if len(given) == len(self.shape) - 1:
            given = [1, *given]
        fits = len(given) == len(self.shape) and all(
            size == wanted or (wanted == -1 and size > 0)
            for size, wanted in zip(given, self.shape, strict=True)
        )
        if not fits or tensor.datatype not in TAKEN.get(self.datatype, {self.datatype}):
            wanted = f"{self.datatype} {list(self.shape)}, where -1 is any size"
            raise tensor.bad(f"send {wanted}; not {tensor.datatype} {list(tensor.shape)}")
        return given

    def take(self, tensor: Tensor) -> np.ndarray:
        """Return the elements of a compact tensor. Raises BadInput."""
        shape = self.check(tensor)
        return tensor.elements().reshape(shape).astype(DTYPES[self.datatype])


@dataclass(frozen=True)
class Answer:
    """A tensor of an answer."""

    name: str
    datatype: Datatype
    shape: list[int]
    flat: list[Any]  # its elements, row by row; those of BYTES are bytes
    content_type: str | None = None  # of BYTES

    @property
    def binary(self) -> bytes:
        """The elements in binary."""
        if self.datatype == "BYTES":
            return b"".join(LENGTH.pack(len(item)) + item for item in self.flat)
        return np.array(self.flat, DTYPES[self.datatype]).tobytes()


@dataclass(frozen=True)
class Column:
    """A field of `Params` or `Output` as a tensor."""

    name: str
    datatype: Datatype
    depth: int  # of lists in lists; 0 is a single value, which is a tensor of one element
    is_json: bool  # neither number, text nor list of these: elements hold JSON
    in_rows: bool  # whether there is one value for each of several inputs
    max_items: int | None = None  # of the list

    @property
    def metadata(self) -> dict[str, Any]:
        """What clients are told."""
        shape = [-1] * (self.depth + self.in_rows) or [1]
        return describe(self.name, self.datatype, shape, "json" if self.is_json else None)

    def is_in_rows(self, tensor: Tensor) -> bool:
        """Tell whether a tensor has one dimension more than the field needs: that of a batch."""
        return len(tensor.shape) > max(self.depth, 1)

    def check(self, given: Tensor, most: int) -> Tensor:
        """Return a tensor compact, as `take` wants it; a value has so many elements at most.

        Raises BadInput, TooLarge and RequestValidationError, before anything large is made.
        """
        if given.datatype not in TAKEN.get(self.datatype, {self.datatype}):
            raise given.bad(f"send {self.datatype}, not {given.datatype}")
        tensor = given.compact(most)
        more = len(tensor.shape) - self.depth
        if more < 0 or set(tensor.shape[:more]) - {1}:
            raise tensor.bad(f"send the shape {self.metadata['shape']}, not {list(tensor.shape)}")
        if tensor.datatype == "UINT64" and (tensor.elements() > INT64_MAX).any():
            raise tensor.bad("an element is beyond what INT64 holds")
        shape = tensor.shape[more:]
        if 0 in shape[1:]:  # else a few bytes could stand for any number of empty lists
            raise tensor.bad("only its first dimension may be 0")
        if self.max_items is not None and shape[0] > self.max_items:
            message = f"List should have at most {self.max_items} items after validation"
            item = {"type": "too_long", "loc": ("body", self.name)}
            raise RequestValidationError([item | {"msg": f"{message}, not {shape[0]}"}])
        if math.prod(shape[:-1]) > most // 4:
            words = f"{math.prod(shape[:-1])} rows are too many, send {most // 4} at most"
            raise TooLarge(f"Tensor {tensor.name!r}: {words}.")
        if self.is_json:
            check_json(tensor.binary or b"", most)
        return tensor

    def take(self, tensor: Tensor) -> Any:
        """Return the field's value, as in JSON, from a tensor that `check` has let through.

        Raises BadInput.
        """
        value = tensor.elements().reshape(tensor.shape[len(tensor.shape) - self.depth :]).tolist()
        if self.datatype != "BYTES":
            return value
        try:
            return change(value, from_json if self.is_json else bytes.decode)
        except ValueError as error:
            kind = "JSON" if self.is_json else "UTF-8"
            raise tensor.bad(f"an element is no {kind}: {error}") from error

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
        if self.datatype == "INT64" and not all(INT64_MIN <= value <= INT64_MAX for value in flat):
            raise BadInput(f"The tensor {self.name!r} would hold more than INT64 can.")
        if self.is_json:
            flat = [to_json(value, inf_nan_mode="null") for value in flat]
        elif self.datatype == "BYTES":
            flat = [value.encode() for value in flat]
        return Answer(self.name, self.datatype, shape, flat, "json" if self.is_json else None)


def describe(
    name: str, datatype: str, shape: Sequence[int], content_type: str | None
) -> dict[str, Any]:
    """Return a tensor's metadata."""
    metadata: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    if content_type:
        metadata["parameters"] = {"content_type": content_type}
    return metadata


def describe_column(
    name: str, schema: Mapping[str, Any], *, in_rows: bool, may_be_null: bool
) -> Column:
    """Return the tensor for a field of this JSON schema; a null is to be left out, or is JSON."""
    options = [x for x in schema.get("anyOf", [schema]) if x != {"type": "null"}]
    is_sure = len(options) == 1 and (may_be_null or "anyOf" not in schema)
    inner = options[0] if is_sure else {}
    depth = 0
    # A set may have fewer items than the tensor.
    max_items = None if inner.get("uniqueItems") else inner.get("maxItems")
    while inner.get("type") == "array" and isinstance(inner.get("items"), dict):
        depth += 1
        inner = inner["items"]
    if datatype := OF_SCHEMA.get(str(inner.get("type"))):
        max_items = max_items if depth else None
        return Column(name, datatype, depth, is_json=False, in_rows=in_rows, max_items=max_items)
    depth = 0 if in_rows else min(depth, 1)  # lists of objects are seldom of one length
    return Column(name, "BYTES", depth, is_json=True, in_rows=in_rows)


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
