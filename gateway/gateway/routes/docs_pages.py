"""Serves the documentation: the OpenAPI document and HTML pages, which are self-contained and rendered once."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from typing import Any

from sanic import Blueprint, HTTPResponse, Request, html

from gateway.http.problems import KINDS, Kind, Problem
from gateway.routes import openapi

routes = Blueprint("docs_pages")

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.4 ui-monospace, monospace } pre { overflow-x: auto; padding: .6rem; background: #8881 }
h2 { border-top: 1px solid #8886; padding-top: 1rem; margin-top: 2rem } td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top }
.verb { display: inline-block; min-width: 3.5rem; font-weight: 700 }
"""  # noqa: E501 - a style sheet


@routes.get("/openapi.json")
async def get_openapi(_: Request) -> HTTPResponse:
    """Read this interface as an OpenAPI 3.1 document."""
    return HTTPResponse(_document(), content_type="application/json")


@routes.get("/docs")
async def get_docs(_: Request) -> HTTPResponse:
    """Read this interface as a page."""
    return html(_docs())


@routes.get("/problems/<name:str>")
async def get_problem(_: Request, name: str) -> HTTPResponse:
    """Read the meaning of a type of problem."""
    kind = KINDS.get(name.upper().replace("-", "_"))
    if kind is None or kind.name != name:
        raise Problem("NOT_FOUND")
    return html(_page(kind.title, f"<h1>{escape(kind.title)}</h1>{_meaning(kind)}"))


def _meaning(kind: Kind) -> str:
    return f"<p>Status {kind.status}, type <code>{kind.type}</code>.</p><p>{escape(kind.meaning)}</p>"


def _page(title: str, content: str) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{content}</body></html>'


@cache
def _document() -> str:
    return json.dumps(openapi.document(), separators=(",", ":"))


@cache
def _docs() -> str:
    document = openapi.document()
    parts = [f"<h1>{escape(document['info']['title'])}</h1><p>{escape(document['info']['description'])}</p>"]
    for path, verbs in document["paths"].items():
        parts += [_operation(path, verb, operation) for verb, operation in verbs.items()]
    parts += ["<h2>Shapes</h2>"]
    parts += [_shape(name, schema) for name, schema in document["components"]["schemas"].items()]
    return _page(document["info"]["title"], "".join(parts))


def _operation(path: str, verb: str, operation: dict[str, Any]) -> str:
    responses = "".join(
        f"<tr><td><code>{status}</code></td><td>{escape(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
    )
    inputs = "".join(
        f"<li><code>{escape(parameter['name'])}</code> ({parameter['in']}): "
        f"{escape(parameter.get('description', ''))}</li>"
        for parameter in operation.get("parameters", ())
    )
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        inputs += f"<li>body: {_linked(schema['$ref'])}</li>"
    meaning = f"{operation['summary']} {operation.get('description', '')}"
    return (
        f'<h2 id="{operation["operationId"]}"><code><span class="verb">{verb.upper()}</span>{escape(path)}</code></h2>'
        f"<p>{escape(meaning)}</p><ul>{inputs}</ul><table>{responses}</table>"
    )


def _shape(name: str, schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_kind(about)}</td>"
        f"<td>{escape(about.get('description', ''))}</td></tr>"
        for field, about in schema.get("properties", {}).items()
    )
    return f'<h3 id="{name}">{name}</h3><p>{escape(schema.get("description", ""))}</p><table>{rows}</table>'


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _linked(schema["$ref"])
    if "items" in schema:
        return f"list of {_kind(schema['items'])}"
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    return escape(str(schema.get("type", "anything")))


def _linked(reference: str) -> str:
    name = reference.rpartition("/")[2]
    return f'<a href="#{name}">{name}</a>'
