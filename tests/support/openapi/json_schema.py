"""The part of JSON Schema 2020-12 that the OpenAPI document uses: checks values, and proposes valid and invalid ones.

Invariant: an unknown keyword is an error, so that no rule of the document is overlooked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

Schema = Mapping[str, Any]

ANNOTATIONS = {"title", "description", "default", "examples"}
ASSERTIONS = {
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
}
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}
_ANYTHING: tuple[Any, ...] = (None, True, 0, 7, 1.5, "", " ", "x", "\n", "\x00", [], [None], {})


class Schemas:
    """The schemas of a document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._named: Mapping[str, Schema] = document["components"]["schemas"]

    def unknown_keywords(self, schema: Schema) -> set[str]:
        """Returns the keywords that JSON Schema does not have, or that this module does not implement."""
        found = set(schema) - ANNOTATIONS - ASSERTIONS
        inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
        inner += [schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), dict)]
        return found.union(*(self.unknown_keywords(each) for each in inner))

    def is_valid(self, schema: Schema, value: Any) -> bool:
        """True if a value keeps all rules of a schema."""
        if "$ref" in schema:
            return self.is_valid(self._resolved(schema), value)
        if "anyOf" in schema and not any(self.is_valid(each, value) for each in schema["anyOf"]):
            return False
        if "type" in schema and not _is_of(schema["type"], value):
            return False
        if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
            return False
        return self._has_valid_parts(schema, value)

    def _has_valid_parts(self, schema: Schema, value: Any) -> bool:
        if isinstance(value, str):
            return _is_valid_text(schema, value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
        if isinstance(value, list):
            items = all(self.is_valid(schema.get("items", {}), each) for each in value)
            return items and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return not isinstance(value, dict) or self._is_valid_object(schema, value)

    def _is_valid_object(self, schema: Schema, value: Mapping[str, Any]) -> bool:
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        inner = {name: known.get(name, {} if others is True else others) for name in value}
        if not set(schema.get("required", ())) <= set(value) or False in inner.values():
            return False
        return all(self.is_valid(inner[name], each) for name, each in value.items())

    def example(self, schema: Schema) -> Any:
        """Returns a valid value."""
        schema = self._resolved(schema)
        for name in ("examples", "enum"):
            if name in schema:
                return schema[name][0]
        if schema["type"] == "object":
            return {name: self.example(schema["properties"][name]) for name in schema.get("required", ())}
        if schema["type"] == "array":
            return [self.example(schema["items"])] * schema.get("minItems", 0)
        if schema.get("format") == "uuid":
            return str(UUID(int=0))
        return schema.get("minimum", 1) if schema["type"] == "integer" else "x" * schema.get("minLength", 1)

    def proposals(self, schema: Schema) -> Iterator[Any]:
        """Yields values at and beyond each bound of a schema and of its parts, valid ones and invalid ones."""
        schema, example = self._resolved(schema), self.example(schema)
        yield from _ANYTHING
        yield from (schema[name] + step for name in ("minimum", "maximum") if name in schema for step in (-1, 0, 1))
        if isinstance(example, str):
            yield from (f"{example}\n", f"{example}\x00", f" {example}", example.swapcase())
            yield from (
                "x" * (schema[name] + step) for name in ("minLength", "maxLength") if name in schema for step in (0, 1)
            )
        if isinstance(example, list):
            yield from (example[:1] * (schema[name] + step) for name in ("minItems", "maxItems") for step in (-1, 0, 1))
            yield from ([each] for each in self.proposals(schema["items"]))
        if isinstance(example, dict):
            yield example | {"not-documented": 1}
            for name, inner in schema["properties"].items():
                yield {key: value for key, value in example.items() if key != name}
                yield from (example | {name: each} for each in self.proposals(inner))

    def _resolved(self, schema: Schema) -> Schema:
        return self._named[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _is_of(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])


def _is_valid_text(schema: Schema, text: str) -> bool:
    if not schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", len(text)):
        return False
    # In JSON Schema `$` is the end of the text only; in Python it is also before a line break at the end.
    if "pattern" in schema and not re.search(re.sub(r"\$$", r"\\Z", schema["pattern"]), text):
        return False
    return schema.get("format") != "uuid" or _is_uuid(text)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
