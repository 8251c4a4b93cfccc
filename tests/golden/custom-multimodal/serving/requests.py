"""Takes a request off the wire: a multipart form, or a raw body; parameters also in the query."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Generic

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from multipart import MultipartError, MultipartParser, MultipartPart, parse_options_header
from pydantic import ValidationError

from serving.errors import BadInput, CannotLoad, TooLarge, UnsupportedType
from serving.inputs import CONTENT_TYPES, MAX_PARTS, Decoder, Input, ParamsT
from serving.limits import MAX_UPLOAD_BYTES
from serving.schemas import field_errors, inline_refs

ROOT = Path(__file__).parents[1]
# A sender that does not know the type sends one of these; the decoder then looks at the content.
OCTET_STREAM = "application/octet-stream"
UNTYPED = frozenset({"", OCTET_STREAM})


@dataclass(frozen=True, slots=True)
class ParsedRequest(Generic[ParamsT]):
    """One request as it came: its files, not decoded yet, and its parameters."""

    files: list[bytes]
    params: ParamsT
    decoder: Decoder

    def decode(self) -> list[Input[ParamsT]]:
        """Return what the model takes, an `Input` for each file. Raises BadInput."""
        return self.decoder.decode(self.files, self.params)


class RequestParser(Generic[ParamsT]):
    """Reads and checks a request that carries files, and the fields of `params`."""

    def __init__(self, params: type[ParamsT], decoder: Decoder) -> None:
        self.params = params
        self.decoder = decoder
        self.field = decoder.field
        self.schema = inline_refs(params.model_json_schema())
        properties = self.schema.get("properties", {})
        self.lists = {name for name in properties if takes_several(properties[name])}

    async def __call__(self, request: Request) -> ParsedRequest[ParamsT]:
        """Return the request's files and parameters. Raises what `parse_form` and `check` do."""
        header = request.headers.get("content-type", "")
        content_type = essence(header)
        query = request.scope["query_string"]
        fields = self._fields(request.query_params.multi_items()) if query else {}
        body = await request.body()
        if content_type == "multipart/form-data":
            parts = parse_form(body, header)
            uploads = [part for part in parts if part.filename is not None]
            named = [part for part in uploads if part.name == self.field]
            files = [part.raw for part in (named if self.decoder.several else named[-1:])]
            types = {essence(part.headers.get("Content-Type")) for part in named}
            fields |= self._fields((x.name, text_of(x)) for x in parts if x not in uploads)
        else:
            files = [body] if body or content_type else []
            types = {content_type}
        return self.check(files, types, fields)

    def check(
        self, files: list[bytes], types: Collection[str], fields: Mapping[str, Any]
    ) -> ParsedRequest[ParamsT]:
        """Return the request that these files, of these content types, and fields make.

        Raises, in this order, TooLarge, RequestValidationError, UnsupportedType and BadInput.
        """
        if sum(map(len, files)) > MAX_UPLOAD_BYTES:
            raise TooLarge
        params = self.validate(fields, missing=not files)
        if not set(types) <= {*CONTENT_TYPES, *UNTYPED}:
            raise UnsupportedType(f"Send one of {', '.join(sorted(CONTENT_TYPES))}.")
        if not all(files):
            raise BadInput("Empty upload.")
        return ParsedRequest(files, params, self.decoder)

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

    def decode_example(self, example: Mapping[str, Any]) -> list[Input[ParamsT]]:
        """Return what the model takes of these form fields; files lie beside main.py.

        Raises CannotLoad where there is no such field.
        """
        if self.field not in example:
            raise CannotLoad(f"EXAMPLE in inference.py has no {self.field!r}, DECODER's field")
        names = example[self.field] if self.decoder.several else [example[self.field]]
        fields = {name: value for name, value in example.items() if name != self.field}
        files = [(ROOT / name).read_bytes() for name in names]
        return self.decoder.decode(files, self.params(**fields))

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
            "properties": {self.field: batch if self.decoder.several else binary, **properties},
            "required": [self.field, *self.schema.get("required", [])],
        }
        content = {"multipart/form-data": {"schema": form}}
        types = sorted({*CONTENT_TYPES, OCTET_STREAM})
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


def parse_form(body: bytes, content_type: str) -> list[MultipartPart]:
    """Return the parts of a multipart form. Raises BadInput."""
    _, options = parse_options_header(content_type)
    limits = dict.fromkeys(("spool_limit", "memory_limit"), len(body) + 1)  # nothing goes to disk
    try:
        boundary = options["boundary"]
        return MultipartParser(BytesIO(body), boundary, part_limit=MAX_PARTS, **limits).parts()
    except KeyError as error:
        raise BadInput("The form's content type names no boundary.") from error
    except (MultipartError, ValueError) as error:
        raise BadInput(f"The form cannot be read: {error}.") from error


def text_of(part: MultipartPart) -> str:
    """Return a field's value. Raises RequestValidationError."""
    try:
        return str(part.raw, part.charset)
    except (LookupError, UnicodeError) as error:
        message = f"Input should be {part.charset} text"
        item = {"type": "string_unicode", "loc": ("body", part.name), "msg": message}
        raise RequestValidationError([item]) from error


def essence(content_type: str | None) -> str:
    """Return a content type without its parameters: "image/png; q=1" is "image/png"."""
    return (content_type or "").partition(";")[0].strip().lower()


def takes_several(schema: Mapping[str, Any]) -> bool:
    """Tell whether a parameter of this schema is a list, be it an optional one."""
    return any(option.get("type") == "array" for option in (schema, *schema.get("anyOf", ())))
