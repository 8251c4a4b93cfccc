"""Takes a request off the wire: a multipart form, or a raw body; parameters also in the query."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from pydantic import BaseModel, ValidationError

from serving.limits import (
    BadInput,
    CannotLoad,
    TooLarge,
    UnsupportedType,
    field_errors,
    inline_refs,
)

ROOT = Path(__file__).parents[1]
# A sender that does not know the type sends one of these; the decoder then looks at the content.
OCTET_STREAM = "application/octet-stream"
UNTYPED = frozenset({"", OCTET_STREAM})
MAX_PARTS = 2000

ParamsT = TypeVar("ParamsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Upload(Generic[ParamsT]):
    """One request as it came: its files, not decoded yet, and its parameters."""

    files: list[bytes]
    params: ParamsT


class Reader(Generic[ParamsT]):
    """FastAPI dependency that reads and checks one request."""

    def __init__(
        self,
        params: type[ParamsT],
        *,
        field: str,
        several: bool,
        content_types: Collection[str],
        max_bytes: int,
    ) -> None:
        """Take one file, or several, in this form field."""
        self.params = params
        self.field = field
        self.several = several
        self.content_types = content_types
        self.schema = inline_refs(params.model_json_schema())
        properties = self.schema.get("properties", {})
        self.lists = {name for name in properties if takes_several(properties[name])}
        self.max_bytes = max_bytes

    async def __call__(self, request: Request) -> Upload[ParamsT]:
        """Return the request's files and parameters. Raises what `parse_form` and `check` do."""
        header = request.headers.get("content-type", "")
        content_type = essence(header)
        query = request.scope["query_string"]
        fields = self._fields(request.query_params.multi_items()) if query else {}
        body = await request.body()
        if content_type == "multipart/form-data":
            parts = parse_form(body, header)
            named = [part for part in parts if part.name == self.field and part.is_file]
            files = [part.content for part in (named if self.several else named[-1:])]
            types = {part.content_type for part in named}
            fields |= self._fields((part.name, part.text()) for part in parts if not part.is_file)
        else:
            files = [body] if body or content_type else []
            types = {content_type}
        return self.check(files, types, fields)

    def check(
        self, files: list[bytes], types: Collection[str], fields: Mapping[str, Any]
    ) -> Upload[ParamsT]:
        """Return the request that these files, of these content types, and fields make.

        Raises, in this order, TooLarge, RequestValidationError, UnsupportedType and BadInput.
        """
        if sum(map(len, files)) > self.max_bytes:
            raise TooLarge
        params = self.validate(fields, missing=not files)
        if not set(types) <= {*self.content_types, *UNTYPED}:
            raise UnsupportedType(f"Send one of {', '.join(sorted(self.content_types))}.")
        if not all(files):
            raise BadInput("Empty upload.")
        return Upload(files, params)

    def validate(self, fields: Mapping[str, Any], *, missing: bool = False) -> ParamsT:
        """Return the parameters; a missing file is an error too. Raises RequestValidationError."""
        errors: list[dict[str, Any]] = []
        if missing:
            errors = [{"type": "missing", "loc": ("body", self.field), "msg": "Field required"}]
        try:
            params = self.params.model_validate(dict(fields))
        except ValidationError as error:
            raise RequestValidationError(errors + field_errors(error)) from error
        if errors:
            raise RequestValidationError(errors)
        return params

    def example(self, example: Mapping[str, Any]) -> Upload[ParamsT]:
        """Return the upload that a request of these form fields makes; files lie beside main.py.

        Raises CannotLoad where there is no such field.
        """
        if self.field not in example:
            raise CannotLoad(f"EXAMPLE in inference.py has no {self.field!r}, DECODER's field")
        names = example[self.field] if self.several else [example[self.field]]
        fields = {name: value for name, value in example.items() if name != self.field}
        return Upload([(ROOT / name).read_bytes() for name in names], self.params(**fields))

    def openapi(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Describe the form and the raw body for the OpenAPI document."""
        binary: dict[str, Any] = {"type": "string", "format": "binary"}
        batch = {"type": "array", "items": binary, "minItems": 1}
        properties = {
            name: {**schema, "example": example[name]} if name in example else schema
            for name, schema in self.schema.get("properties", {}).items()
        }
        form: dict[str, Any] = {
            "type": "object",
            "properties": {self.field: batch if self.several else binary, **properties},
            "required": [self.field, *self.schema.get("required", [])],
        }
        content = {"multipart/form-data": {"schema": form}}
        types = sorted({*self.content_types, OCTET_STREAM})
        content |= {name: {"schema": binary} for name in types}
        query = [
            {
                "name": name,
                "in": "query",
                "description": "In place of the form's field, as beside a raw body.",
                "required": False,
                "schema": properties[name],
            }
            for name in properties
        ]
        return {"requestBody": {"required": True, "content": content}, "parameters": query}

    def _fields(self, values: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Return what is no file: each field's last value, or all where the model has a list."""
        fields: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in values:
            if name != self.field:
                fields[name].append(value)
        return {name: all_ if name in self.lists else all_[-1] for name, all_ in fields.items()}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form: a file, or a field."""

    name: str
    content: bytes
    content_type: str
    charset: str
    is_file: bool

    def text(self) -> str:
        """Return a field's value. Raises RequestValidationError."""
        try:
            return self.content.decode(self.charset)
        except (LookupError, UnicodeError) as error:
            message = f"Input should be {self.charset} text"
            item = {"type": "string_unicode", "loc": ("body", self.name), "msg": message}
            raise RequestValidationError([item]) from error


def parse_form(body: bytes, content_type: str) -> list[Part]:
    """Return the parts of a multipart form. Raises BadInput."""
    _, options = parse_options_header(content_type)
    parts: list[Part] = []
    chunks: list[bytes] = []
    try:
        with PushMultipartParser(options["boundary"], max_segment_count=MAX_PARTS) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    segment, chunks = event, []
                elif event:
                    chunks.append(event)
                else:
                    parts.append(make_part(segment, b"".join(chunks)))
    except KeyError as error:
        raise BadInput("The form's content type names no boundary.") from error
    except (MultipartError, ValueError) as error:
        raise BadInput(f"The form cannot be read: {error}.") from error
    return parts


def make_part(segment: MultipartSegment, content: bytes) -> Part:
    """Return a part of the form, from what stands above it."""
    return Part(
        segment.name or "",
        content,
        segment.content_type or "",
        segment.charset or "utf-8",
        segment.filename is not None,
    )


def essence(content_type: str | None) -> str:
    """Return a content type without its parameters: "image/png; q=1" is "image/png"."""
    return (content_type or "").partition(";")[0].strip().lower()


def takes_several(schema: Mapping[str, Any]) -> bool:
    """Tell whether a parameter of this schema is a list, be it an optional one."""
    return any(option.get("type") == "array" for option in (schema, *schema.get("anyOf", ())))
