"""Compares responses with an OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .generated_requests import GeneratedRequest
from .json_schema import Schemas

# Of HTTP itself. OpenAPI ignores a Content-Type among the documented headers.
_OF_HTTP = {
    "connection",
    "content-length",
    "content-type",
    "date",
    "keep-alive",
    "server",
    "transfer-encoding",
}


def deviations(
    document: Mapping[str, Any], request: GeneratedRequest, status: int, headers: Mapping[str, str], body: bytes
) -> list[str]:
    """Returns in what a response differs from the document; an event stream is compared without its body."""
    found = []
    if status >= 500 or (request.is_invalid and not 400 <= status < 500):
        found.append(f"status {status}")
    if request.method == "options":
        return found + ([] if (status, "allow" in headers) == (204, True) else [f"status {status} or no Allow"])
    response = document["paths"][request.path][request.verb]["responses"].get(str(status))
    if response is None:
        return [*found, f"status {status} is not documented"]
    documented = {name.lower() for name in response.get("headers", {})} | _OF_HTTP
    found += [f"header {name} is not documented" for name in headers if name.lower() not in documented]
    if request.method != "head":
        found += _content(document, response.get("content", {}), headers.get("content-type", ""), body)
    return found


def _content(document: Mapping[str, Any], documented: Mapping[str, Any], kind: str, body: bytes) -> list[str]:
    media = kind.partition(";")[0]
    if media not in documented:
        return [f"content {kind!r} is not documented"] if body or documented else []
    if not media.endswith("json"):
        return []
    value = json.loads(body)
    return [] if Schemas(document).is_valid(documented[media]["schema"], value) else [f"body {value} is not valid"]
