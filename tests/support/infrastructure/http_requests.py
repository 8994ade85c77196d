"""Runs on the machine of the stack: sends the requests of its argument in turn and prints the replies as JSON.

`<file PATH>` in a value is replaced by the content of that file, `<reply N KEY KEY>` by a value of an earlier reply:
so no secret appears on a command line. Only the standard library is imported, because any Python must run it.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PLACEHOLDER = re.compile(r"<(file|reply) ([^>]+)>")


def send(request: dict[str, Any], replies: list[dict[str, Any]]) -> dict[str, Any]:
    body = filled(request["body"], replies).encode() if request["body"] is not None else None
    headers = {name: filled(value, replies) for name, value in request["headers"].items()}
    sent = urllib.request.Request(filled(request["url"], replies), body, headers, method=request["method"])
    try:
        with urllib.request.urlopen(sent, timeout=20) as reply:
            return received(reply.status, reply.headers, reply.read())
    except urllib.error.HTTPError as error:
        return received(error.code, error.headers, error.read())


def received(status: int, headers: Any, body: bytes) -> dict[str, Any]:
    lowered = {name.lower(): value for name, value in headers.items()}
    return {"status": status, "headers": lowered, "text": body.decode(errors="replace")}


def filled(text: str, replies: list[dict[str, Any]]) -> str:
    def value(match: re.Match[str]) -> str:
        kind, argument = match.groups()
        if kind == "file":
            return Path(argument).read_text().strip()
        number, *keys = argument.split()
        found = json.loads(replies[int(number)]["text"])
        for key in keys:
            found = found[key]
        return str(found)

    return PLACEHOLDER.sub(value, text)


if __name__ == "__main__":
    replies: list[dict[str, Any]] = []
    for request in json.loads(sys.argv[1]):
        replies.append(send(request, replies))
    print(json.dumps(replies))
