"""Writes the service's OpenAPI documents: `python -m serving.openapi_export [folder]`.

`openapi.json` is what the service serves, OpenAPI 3.1. `openapi-3.0.json` says the same to the many
generators of clients that know 3.0 only. The same code gives the same bytes, so both can be kept
in version control. `metadata.json` says what they belong to: the git commit and tag as well
where there are any.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from main import app

Schema = dict[str, Any]

# What a 3.0 schema does not know, or says in another way.
OF_REFERENCES = ("$ref", "$defs", "$schema", "$id", "$anchor", "$comment", "$dynamicRef")
OF_VALUES = ("const", "examples", "exclusiveMaximum", "exclusiveMinimum", "prefixItems")
OF_STRINGS = ("contentEncoding", "contentMediaType", "contentSchema")
OF_OBJECTS = ("patternProperties", "propertyNames", "unevaluatedProperties", "dependentRequired")
NEWER = {*OF_REFERENCES, *OF_VALUES, *OF_STRINGS, *OF_OBJECTS, "if", "then", "else", "contains"}
INFO = ("title", "description", "termsOfService", "contact", "license", "version")


def schema_30(schema: Any) -> Schema:
    """Return a 3.1 schema as one of 3.0; what that cannot say is left open."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    found = {key: value for key, value in schema.items() if key not in NEWER}
    take_type(schema, found)
    take_values(schema, found)
    take_bounds(schema, found)
    take_items(schema, found)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            take_options(key, schema[key], found)
    for key in ("items", "not"):
        if key in found:
            found[key] = schema_30(found[key])
    if "properties" in found:  # its keys are names: one may be called "const"
        found["properties"] = {name: schema_30(x) for name, x in found["properties"].items()}
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = schema_30(found["additionalProperties"])
    if "$ref" in schema:  # 3.0 ignores whatever stands beside it
        reference = {"$ref": schema["$ref"]}
        return {"allOf": [reference], **found} if found else reference
    return found


def take_type(schema: Schema, found: Schema) -> None:
    """Take over the type: 3.0 has one, and `nullable` for a second that is null."""
    types = schema.get("type", [])
    if isinstance(types, str):
        types = [types]
    if "null" in types:
        found["nullable"] = True
    others = [name for name in types if name != "null"]
    found.pop("type", None)
    if len(others) == 1:
        found["type"] = others[0]
    elif others:
        found["anyOf"] = [{"type": name} for name in others]
    if "contentMediaType" in schema or "contentEncoding" in schema:
        is_text = schema.get("contentEncoding") in ("base64", "base64url")
        found["format"] = "byte" if is_text else "binary"


def take_values(schema: Schema, found: Schema) -> None:
    """Take over constants, enumerations and examples."""
    if "const" in schema:
        found["enum"] = [schema["const"]]
    if None in found.get("enum", []):
        found["nullable"] = True
    if schema.get("examples"):
        found.setdefault("example", schema["examples"][0])


def take_bounds(schema: Schema, found: Schema) -> None:
    """Take over exclusive bounds: a switch beside the inclusive ones in 3.0."""
    for exclusive, inclusive, stricter in (
        ("exclusiveMinimum", "minimum", max),
        ("exclusiveMaximum", "maximum", min),
    ):
        if exclusive in schema:
            bound = schema[exclusive]
            found[inclusive] = stricter(bound, schema.get(inclusive, bound))
            if found[inclusive] == bound:
                found[exclusive] = True


def take_items(schema: Schema, found: Schema) -> None:
    """Take over tuples: 3.0 knows only that each item is one of these."""
    if "prefixItems" in schema:
        found["items"] = {"anyOf": schema["prefixItems"]}
        if isinstance(rest := schema.get("items"), dict):
            found["items"]["anyOf"] = [*schema["prefixItems"], rest]
    elif found.get("type") == "array":
        found.setdefault("items", {})


def take_options(key: str, options: list[Any], found: Schema) -> None:
    """Take over alternatives; null is none of them in 3.0."""
    others = [option for option in options if option != {"type": "null"}]
    if len(others) < len(options):
        found["nullable"] = True
    if len(others) == 1 and len(options) > 1:
        del found[key]
        only = schema_30(others[0])
        found.update({"allOf": [only]} if "$ref" in only else {**only, **found})
    else:
        found[key] = [schema_30(option) for option in others]


def document_30(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI 3.1 document as one of 3.0.3."""
    info = {key: document["info"][key] for key in INFO if key in document["info"]}
    texts = (document["info"].get("summary"), document["info"].get("description"))
    info["description"] = "\n\n".join(text for text in texts if text)
    dropped = ("webhooks", "jsonSchemaDialect")
    rest = {key: value for key, value in document.items() if key not in dropped}
    return {**convert(rest, schema_30), "openapi": "3.0.3", "info": info}


def convert(node: Any, change: Callable[[Any], Any]) -> Any:
    """Return the document with its schemas changed, found by where they stand and not by a key."""
    if isinstance(node, list):
        return [convert(item, change) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {}
    for key, value in node.items():
        if key == "schema":
            changed[key] = change(value)
        elif key == "schemas":
            changed[key] = {name: change(schema) for name, schema in value.items()}
        elif key in ("example", "examples", "default"):
            changed[key] = value
        else:
            changed[key] = convert(value, change)
    return changed


def as_text(document: Mapping[str, Any]) -> str:
    """Return a document as it is written."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def git(*arguments: str) -> str:
    """Return what git says of the service's own folder; nothing where it is in no repository."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def export(folder: Path) -> None:
    """Write the three files, and say where."""
    document = app.openapi()
    texts = {"openapi.json": as_text(document), "openapi-3.0.json": as_text(document_30(document))}
    about = {key: document["info"][key] for key in ("title", "summary", "version")}
    commit, tag = git("rev-parse", "HEAD"), git("describe", "--tags", "--exact-match")
    about |= {key: value for key, value in {"commit": commit, "tag": tag}.items() if value}
    about["sha256"] = {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**texts, "metadata.json": as_text(about)}.items():
        (folder / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    export(Path(*sys.argv[1:2]))
