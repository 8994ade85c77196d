"""Requests that are derived from an OpenAPI document: a valid one for each operation, and variations of it.

A variation that breaks a rule of the document is marked as invalid: it may only be answered with 4xx.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from .json_schema import Schemas

Document = Mapping[str, Any]

VERBS = ("get", "head", "post", "put", "patch", "delete", "options", "trace", "brew")
CONDITIONS = ("*", '"1"', 'W/"1"', '"99", "1"', '"1', "", "1")
CODINGS = ("gzip", "br", "GZIP", "x-gzip", "identity, gzip", "aes128gcm")
_SENDABLE = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class GeneratedRequest:
    """A request of an operation; `path` and `verb` are those of the document, `method` is the one that is sent."""

    path: str
    verb: str
    method: str
    why: str = "valid"
    is_invalid: bool = False
    in_path: Mapping[str, str] = field(default_factory=dict)
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def url(self) -> str:
        """The path with its values, and the query."""
        path = self.path.format_map({name: quote(value, safe="") for name, value in self.in_path.items()})
        query = "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in self.query)
        return f"{path}?{query}" if query else path

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.url[:100]} ({self.why[:100]})"


class Generator:
    """Derives requests; `known` has values of path parameters that exist, `token` the header of a user."""

    def __init__(self, document: Document, known: Mapping[str, str], token: Mapping[str, str]) -> None:
        self._document, self._known, self._token = document, known, token
        self._schemas = Schemas(document)

    def valid(self, path: str, verb: str) -> GeneratedRequest:
        """Returns a request with everything that the operation requires, and its own value for a key."""
        operation = self._document["paths"][path][verb]
        request = GeneratedRequest(path, verb, verb)
        for parameter in _parameters(operation):
            if parameter["required"]:
                value = self._known.get(parameter["name"]) or str(self._schemas.example(parameter["schema"]))
                request = _with(request, parameter, value)
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            request = _with_body(request, self._schemas.example(schema))
        token = self._token if "security" in operation else {}
        own_key = {"Idempotency-Key": f"key-{next(_numbers)}"} if "Idempotency-Key" in request.headers else {}
        return replace(request, headers={**request.headers, **own_key, **token})

    def variations(self, path: str, verb: str) -> Iterator[GeneratedRequest]:
        """Yields variations of the valid request, each in one place."""
        operation, request = self._document["paths"][path][verb], self.valid(path, verb)
        for parameter in _parameters(operation):
            yield from self._parameter(request, parameter)
        if any(parameter["in"] == "query" for parameter in _parameters(operation)):
            for value in ("", "1"):
                query = (*request.query, ("not-documented", value))
                yield replace(request, query=query, why=f"unknown parameter {value!r}", is_invalid=True)
        if "requestBody" in operation:
            yield from self._body(request, operation["requestBody"]["content"]["application/json"]["schema"])
        if "security" in operation:
            yield from _tokens(request)
        yield from _any_operation(request)

    def methods(self, path: str) -> Iterator[GeneratedRequest]:
        """Yields requests with methods that the path does not document."""
        verbs = self._document["paths"][path]
        request = self.valid(path, next(iter(verbs)))
        for method in VERBS:
            if method not in verbs:
                invalid = method != "options" and not (method == "head" and "get" in verbs)
                verb = "get" if method == "head" and "get" in verbs else request.verb
                yield replace(request, verb=verb, method=method, why="another method", is_invalid=invalid)

    def _parameter(self, request: GeneratedRequest, parameter: Mapping[str, Any]) -> Iterator[GeneratedRequest]:
        name, place = parameter["name"], parameter["in"]
        texts = {each if isinstance(each, str) else json.dumps(each) for each in self._proposals(parameter["schema"])}
        for text in sorted(texts):
            if (place == "header" and not _SENDABLE.fullmatch(text)) or (place == "path" and not text):
                continue
            invalid = not self._is_valid_text(parameter["schema"], text)
            yield replace(_with(request, parameter, text), why=f"{name} {text!r}", is_invalid=invalid)
        if place == "query":
            value = str(self._schemas.example(parameter["schema"]))
            yield replace(request, query=((name, value), (name, value)), why=f"{name} twice", is_invalid=True)
        if place == "header" and parameter["required"]:
            others = {key: value for key, value in request.headers.items() if key != name}
            yield replace(request, headers=others, why=f"without {name}", is_invalid=True)

    def _proposals(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        yield from self._schemas.proposals(schema)
        yield self._schemas.example(schema)

    def _is_valid_text(self, schema: Mapping[str, Any], text: str) -> bool:
        if schema.get("type") != "integer":
            return self._schemas.is_valid(schema, text)
        return bool(re.fullmatch("-?[0-9]+", text)) and self._schemas.is_valid(schema, int(text))

    def _body(self, request: GeneratedRequest, schema: Mapping[str, Any]) -> Iterator[GeneratedRequest]:
        for value in self._schemas.proposals(schema):
            invalid = not self._schemas.is_valid(schema, value)
            yield replace(_with_body(request, value), why=f"body {json.dumps(value)}", is_invalid=invalid)
        for content in (b"", b"{", b"\xff", request.content[:-1], request.content + b"x"):
            yield replace(request, content=content, why=f"body {content!r}", is_invalid=True)
        for kind in ("", "text/plain", "application/xml"):
            headers = {**request.headers, "content-type": kind}
            yield replace(request, headers=headers, why=f"content type {kind!r}", is_invalid=True)
        for coding in CODINGS:
            headers = {**request.headers, "content-encoding": coding}
            yield replace(request, headers=headers, why=f"content coding {coding!r}", is_invalid=True)


def _parameters(operation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(operation.get("parameters", ()))


def _with(request: GeneratedRequest, parameter: Mapping[str, Any], value: str) -> GeneratedRequest:
    name = parameter["name"]
    if parameter["in"] == "path":
        return replace(request, in_path={**request.in_path, name: value})
    if parameter["in"] == "query":
        return replace(request, query=(*request.query, (name, value)))
    return replace(request, headers={**request.headers, name: value})


def _with_body(request: GeneratedRequest, value: Any) -> GeneratedRequest:
    headers = {**request.headers, "content-type": "application/json"}
    return replace(request, headers=headers, content=json.dumps(value).encode())


def _tokens(request: GeneratedRequest) -> Iterator[GeneratedRequest]:
    without = {name: value for name, value in request.headers.items() if name.lower() != "authorization"}
    yield replace(request, headers=without, why="without a token", is_invalid=True)
    for value in ("", "Bearer", "Bearer x", "Bearer a.b.c", "Basic YTpi"):
        yield replace(request, headers={**without, "authorization": value}, why=f"token {value!r}", is_invalid=True)


def _any_operation(request: GeneratedRequest) -> Iterator[GeneratedRequest]:
    for name, value in itertools.product(("if-match", "if-none-match"), CONDITIONS):
        yield replace(request, headers={**request.headers, name: value}, why=f"{name}: {value}")
    yield replace(request, headers={**request.headers, "expect": "tea"}, why="expect")
    yield replace(request, headers={**request.headers, "x-long": "x" * 20_000}, why="long head", is_invalid=True)
    long = {**request.headers, "content-type": "application/json"}
    yield replace(request, headers=long, content=b" " * 200_000, why="long body", is_invalid=request.verb == "post")
