"""Takes a request off the wire: a multipart form, or a raw body; parameters also in the query."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import ImmutableMultiDict, UploadFile

from limits import BadInput, TooLarge, UnsupportedType, field_errors, inline_refs

HERE = Path(__file__).parent
# A sender that does not know the type sends one of these; the decoder then looks at the content.
OCTET_STREAM = "application/octet-stream"
UNTYPED = frozenset({"", OCTET_STREAM})

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
        content_types: Collection[str],
        max_bytes: int,
    ) -> None:
        """Take files in this form field: one, or several where it is called "files"."""
        self.params = params
        self.field = field
        self.several = field == "files"
        self.content_types = content_types
        self.schema = inline_refs(params.model_json_schema())
        properties = self.schema.get("properties", {})
        self.lists = {name for name in properties if takes_several(properties[name])}
        self.max_bytes = max_bytes

    async def __call__(self, request: Request) -> Upload[ParamsT]:
        """Return the request's files and parameters.

        Raises, in this order, TooLarge, RequestValidationError, UnsupportedType and BadInput.
        """
        content_type = essence(request.headers.get("content-type"))
        fields = self._fields(request.query_params)
        if content_type == "multipart/form-data":
            try:
                form = await request.form()
            except (LookupError, UnicodeError) as error:  # Starlette trusts the charset
                raise BadInput("The form's charset is unknown.") from error
            parts = [part for part in form.getlist(self.field) if isinstance(part, UploadFile)]
            files = [await part.read() for part in (parts if self.several else parts[-1:])]
            types = {essence(part.content_type) for part in parts}
            fields |= self._fields(form)
            await form.close()
        else:
            body = await request.body()
            files = [body] if body or content_type else []
            types = {content_type}
        if sum(map(len, files)) > self.max_bytes:
            raise TooLarge
        params = self._validate(fields, missing=not files)
        if not types <= {*self.content_types, *UNTYPED}:
            raise UnsupportedType(f"Send one of {', '.join(sorted(self.content_types))}.")
        if not all(files):
            raise BadInput("Empty upload.")
        return Upload(files, params)

    def example(self, example: Mapping[str, Any]) -> Upload[ParamsT]:
        """Return the upload that a request of these form fields makes; files lie in this folder."""
        names = example[self.field] if self.several else [example[self.field]]
        fields = {name: value for name, value in example.items() if name != self.field}
        return Upload([(HERE / name).read_bytes() for name in names], self.params(**fields))

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

    def _fields(self, values: ImmutableMultiDict[str, Any]) -> dict[str, Any]:
        """Return what is no file: each field's last value, or all where the model has a list."""
        return {
            name: values.getlist(name) if name in self.lists else values[name]
            for name in values
            if name != self.field
        }

    def _validate(self, fields: Mapping[str, Any], *, missing: bool) -> ParamsT:
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


def essence(content_type: str | None) -> str:
    """Return a content type without its parameters: "image/png; q=1" is "image/png"."""
    return (content_type or "").partition(";")[0].strip().lower()


def takes_several(schema: Mapping[str, Any]) -> bool:
    """Tell whether a parameter of this schema is a list, be it an optional one."""
    return any(option.get("type") == "array" for option in (schema, *schema.get("anyOf", ())))
