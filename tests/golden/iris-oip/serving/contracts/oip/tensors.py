"""Tensors of the Open Inference Protocol.

A tensor comes as JSON, or in the binary form of the protocol's extension: elements one after the
other, little-endian, each of BYTES behind its length.
"""

import base64
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np

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

# Which Python types stand for a datatype in JSON.
IN_JSON: dict[str, set[type]] = {name: {int} for name in INTEGERS}
IN_JSON |= {name: {int, float} for name in FLOATS} | {"BOOL": {bool}, "BYTES": {str, bytes}}

MAX_SIZE = 2**56
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
    is_required = False  # encoded or decoded, either will do

    @property
    def metadata(self) -> dict[str, Any]:
        """What clients are told."""
        return describe(self.name, self.datatype, self.shape, self.content_type)

    @property
    def taken(self) -> set[str]:
        """The datatypes that are taken for it."""
        return {*FLOATS} if self.datatype in FLOATS else {self.datatype}

    def check(self, tensor: Tensor) -> list[int]:
        """Return the shape; the first dimension may have been left out. Raises BadInput."""
        given = list(tensor.shape)
        if len(given) == len(self.shape) - 1:
            given = [1, *given]
        fits = len(given) == len(self.shape) and all(
            size == wanted or (wanted == -1 and size > 0)
            for size, wanted in zip(given, self.shape, strict=True)
        )
        if not fits or tensor.datatype not in self.taken:
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
    content_type: str | None = None  # of BYTES; "base64" is what they are in JSON only

    @property
    def in_json(self) -> list[Any]:
        """The elements as JSON has them."""
        if self.datatype != "BYTES":
            return self.flat
        if self.content_type == "base64":
            return [base64.b64encode(item).decode() for item in self.flat]
        return [item.decode() for item in self.flat]

    @property
    def binary(self) -> bytes:
        """The elements in binary."""
        if self.datatype == "BYTES":
            return b"".join(LENGTH.pack(len(item)) + item for item in self.flat)
        packed = np.array(self.flat, DTYPES[self.datatype])
        if self.datatype == "BF16":  # the upper half of a float32, rounded
            packed = ((packed.view("<u4") + 0x8000) >> 16).astype("<u2")
        return packed.tobytes()


def describe(
    name: str, datatype: str, shape: Sequence[int], content_type: str | None
) -> dict[str, Any]:
    """Return a tensor's metadata."""
    metadata: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    if content_type:
        metadata["parameters"] = {"content_type": content_type}
    return metadata
