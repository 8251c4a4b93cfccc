"""Takes a request off the wire: a multipart form, or a raw body; parameters also in the query."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any, Generic

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from multipart import MultipartError, MultipartParser, MultipartPart, parse_options_header
from pydantic import ValidationError

from serving.errors import BadInput, CannotLoad, TooLarge, UnsupportedType
from serving.inputs import MAX_PARTS, Decoder, Input, ParamsT, Upload
from serving.limits import MAX_UPLOAD_BYTES
from serving.schemas import field_errors, inline_refs, is_finite

ROOT = Path(__file__).parents[1]
# A sender that does not know the type sends one of these; the decoder then looks at the content.
OCTET_STREAM = "application/octet-stream"
UNTYPED = ("", OCTET_STREAM, "binary/octet-stream", "*/*")
WARNING = "X-Input-Warning"  # a header of the answer
# What the OpenAPI document says of it, on each route that has it.
WARNS = {
    "200": {
        "headers": {
            WARNING: {
                "description": "That not all of the file could be decoded, where that is so.",
                "schema": {"type": "string"},
            }
        }
    }
}


@dataclass(slots=True)
class ParsedRequest(Generic[ParamsT]):
    """One request as it came: its files, not decoded yet, and its parameters."""

    files: list[Upload]
    params: ParamsT
    decoder: Decoder
    warning: str = ""  # that not all of its file could be decoded, once that is known

    def decode(self) -> list[Input[ParamsT]]:
        """Return what the model takes, an `Input` for each file. Raises BadInput."""
        inputs = self.decoder.decode(self.files, self.params)
        self.warning = inputs[0].warning
        return inputs

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says of the input, beside what the model says."""
        return {WARNING: self.warning} if self.warning else {}


class RequestParser(Generic[ParamsT]):
    """Reads and checks a request that carries files, and the fields of `params`."""

    def __init__(self, params: type[ParamsT], decoder: Decoder) -> None:
        self.params = params
        self.decoder = decoder
        self.field = decoder.field
        # Some clients write the name of a list as PHP wants it.
        self.names = {self.field, f"{self.field}[]"} if decoder.several else {self.field}
        self.schema = inline_refs(params.model_json_schema())
        properties = self.schema.get("properties", {})
        self.known = [self.field, *properties]
        self.lists = {name for name in properties if takes_several(properties[name])}

    async def __call__(self, request: Request) -> ParsedRequest[ParamsT]:
        """Return the request's files and parameters. Raises what `parse_form` and `check` do."""
        header = request.headers.get("content-type", "")
        content_type = essence(header)
        fields: dict[str, Any] = {}
        unknown: set[str] = set()
        if request.scope["query_string"]:
            fields = self._fields(request.query_params.multi_items())
            unknown = {name for name in request.query_params if self._is_misspelt(name)}
        body = await request.body()
        check_encoding(request)
        if content_type == "multipart/form-data":
            parts = parse_form(body, header)
            named = [part for part in parts if name_of(part) in self.names]
            files = [
                Upload.sent(part.raw, part.filename, part.headers.get("Content-Type"))
                for part in (named if self.decoder.several else named[-1:])
            ]
            others = [part for part in parts if name_of(part) not in self.names]
            texts = [(name_of(part), text_of(part)) for part in others if part.filename is None]
            # As in FastAPI's forms: a field that was left empty has its default.
            fields |= self._fields([text for text in texts if text[1]])
            unknown |= {name_of(part) for part in others if part.filename is not None}
            unknown |= {name for name, _ in texts if self._is_misspelt(name)}
        else:
            _, said = parse_options_header(request.headers.get("content-disposition", ""))
            files = [Upload.sent(body, said.get("filename"), header)] if body or header else []
        return self.check(files, fields, sorted(unknown))

    def check(
        self, files: list[Upload], fields: Mapping[str, Any], unknown: Iterable[str] = ()
    ) -> ParsedRequest[ParamsT]:
        """Return the request that these files and fields make.

        Raises, in this order, TooLarge, RequestValidationError, which has the unknown names too,
        UnsupportedType and BadInput.
        """
        if sum(len(file.content) for file in files) > MAX_UPLOAD_BYTES:
            raise TooLarge
        errors: list[dict[str, Any]] = []
        if not files:
            errors = [{"type": "missing", "loc": ("body", self.field), "msg": "Field required"}]
        for name in unknown:
            message = f"Extra inputs are not permitted; there is {', '.join(self.known)}"
            errors.append({"type": "extra_forbidden", "loc": ("body", name), "msg": message})
        params = self.validate(fields, errors)
        types = [essence(file.content_type) for file in files]
        if not all(name in UNTYPED or name.startswith(self.decoder.media_types) for name in types):
            raise UnsupportedType(f"Send one of {', '.join(sorted(self.decoder.content_types))}.")
        if not all(file.content for file in files):
            raise BadInput("Empty upload.")
        return ParsedRequest(files, params, self.decoder)

    def validate(self, fields: Mapping[str, Any], errors: Sequence[dict[str, Any]] = ()) -> ParamsT:
        """Return the parameters. Raises RequestValidationError, which these errors are part of."""
        try:
            params = self.params.model_validate(dict(fields))
        except ValidationError as error:
            raise RequestValidationError([*errors, *field_errors(error)]) from error
        given = params.model_dump(by_alias=True, exclude_unset=True)
        infinite = [
            {"type": "finite_number", "loc": ("body", name), "msg": "Input should be finite"}
            for name, value in given.items()
            if not is_finite(value)
        ]
        if errors or infinite:
            raise RequestValidationError([*errors, *infinite])
        return params

    def decode_example(self, example: Mapping[str, Any]) -> list[Input[ParamsT]]:
        """Return what the model takes of these form fields; files lie beside main.py.

        Raises CannotLoad where there is no such field.
        """
        if self.field not in example:
            raise CannotLoad(f"EXAMPLE in inference.py has no {self.field!r}, DECODER's field")
        names = example[self.field] if self.decoder.several else [example[self.field]]
        fields = {name: value for name, value in example.items() if name != self.field}
        files = [Upload((ROOT / name).read_bytes(), Path(name).name) for name in names]
        return self.decoder.decode(files, self.params(**fields))

    def openapi(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Describe the form for the OpenAPI document, and the raw body in words.

        Generators of clients fail at a body of several content types.
        """
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
        types = ", ".join(sorted({*self.decoder.content_types, OCTET_STREAM}))
        body = {
            "description": f"A form; or a file alone ({types}), with other fields in the query.",
            "required": True,
            "content": {"multipart/form-data": {"schema": form}},
        }
        return {"requestBody": body, "responses": WARNS}

    def _is_misspelt(self, name: str) -> bool:
        """Tell whether this is no field's name, and nearly one."""
        _, *names = self.known
        folded = [known.casefold() for known in names]
        return name not in names and bool(get_close_matches(name.casefold(), folded, cutoff=0.75))

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
        parser = MultipartParser(
            BytesIO(body),
            options["boundary"],
            charset="latin-1",  # takes the name of a file in any encoding
            part_limit=MAX_PARTS,
            **limits,
        )
        return parser.parts()
    except KeyError as error:
        raise BadInput("The form's content type names no boundary.") from error
    except (MultipartError, ValueError) as error:
        raise BadInput(f"The form cannot be read: {error}.") from error


def name_of(part: MultipartPart) -> str:
    """Return a field's name, which is UTF-8."""
    return part.name.encode("latin-1").decode(errors="replace")


def text_of(part: MultipartPart) -> str:
    """Return a field's value. Raises RequestValidationError."""
    _, options = parse_options_header(part.headers.get("Content-Type", ""))
    charset = options.get("charset", "utf-8")
    try:
        return str(part.raw, charset)
    except (LookupError, UnicodeError) as error:
        message = f"Input should be {charset} text"
        item = {"type": "string_unicode", "loc": ("body", name_of(part)), "msg": message}
        raise RequestValidationError([item]) from error


def essence(content_type: str | None) -> str:
    """Return a content type without its parameters: "image/png; q=1" is "image/png"."""
    return (content_type or "").partition(";")[0].strip().lower()


def check_encoding(request: Request) -> None:
    """Reject a body that says it is compressed: nothing is unpacked. Raises UnsupportedType."""
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise UnsupportedType(f"Content-Encoding {encoding} is not taken: send the body unpacked.")


def takes_several(schema: Mapping[str, Any]) -> bool:
    """Tell whether a parameter of this schema is a list, be it an optional one."""
    return any(option.get("type") == "array" for option in (schema, *schema.get("anyOf", ())))
