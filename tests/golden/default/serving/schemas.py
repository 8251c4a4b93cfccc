"""Pydantic's errors and schemas, in the form that FastAPI and OpenAPI have them."""

from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import from_json, to_json


def field_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Return what is wrong with each field, as FastAPI reports it and without the input."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    return [{**item, "loc": ("body", *item["loc"])} for item in errors]


def is_finite(value: Any) -> bool:
    """Tell whether what a model has been dumped to is free of NaN and infinity.

    Pydantic makes them of 1e999 and of the text "nan" as well, where a number is due.
    """
    dumped = to_json(value, inf_nan_mode="constants", bytes_mode="base64", serialize_unknown=True)
    if b"NaN" not in dumped and b"Infinity" not in dumped:
        return True
    try:  # they may be words of a text
        from_json(dumped, allow_inf_nan=False)
    except ValueError:
        return False
    return True


def inline_refs(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema with its `$defs` put in place, as OpenAPI wants them."""
    definitions = schema.get("$defs", {})

    def resolve(node: Any, seen: frozenset[str]) -> Any:
        if isinstance(node, list):
            return [resolve(item, seen) for item in node]
        if not isinstance(node, dict):
            return node
        name = str(node.get("$ref", "")).removeprefix("#/$defs/")
        if name in seen:  # a model that holds itself: what is inside stays open
            return {"type": "object"}
        if name in definitions:  # a field's own default and description stand beside its $ref
            beside = {key: value for key, value in node.items() if key != "$ref"}
            return resolve({**definitions[name], **beside}, seen | {name})
        # A discriminator tells schemas apart by their names, which are gone.
        gone = {"$defs", "discriminator"} if "oneOf" in node else {"$defs"}
        return {key: resolve(value, seen) for key, value in node.items() if key not in gone}

    return cast("dict[str, Any]", resolve(schema, frozenset()))
