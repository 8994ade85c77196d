"""An ordinary gRPC client, which knows no TLS: `plain_caller.py ADDRESS METHOD...`.

It calls each method with a request that none can decode, and prints status and details of each call as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc

_UNDECODABLE = b"\x0a\x7f\xff"


def main(address: str, *methods: str) -> None:
    with grpc.insecure_channel(address) as channel:
        print(json.dumps({method: _call(channel, method) for method in methods}))


def _call(channel: grpc.Channel, path: str) -> tuple[str, str]:
    method: Any = channel.unary_unary(path)
    try:
        method(_UNDECODABLE, timeout=10)
    except grpc.RpcError as error:
        ended: Any = error
        return ended.code().name, ended.details()
    return "OK", ""


if __name__ == "__main__":
    main(*sys.argv[1:])
