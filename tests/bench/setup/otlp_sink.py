"""An OTLP receiver that accepts everything and keeps nothing: `otlp_sink.py PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio


class _Everything(grpc.GenericRpcHandler):
    """Answers each method with an empty message, which is a success of every OTLP service."""

    def service(self, handler_call_details: Any) -> Any:
        async def accept(_request: bytes, _context: Any) -> bytes:
            return b""

        return grpc.unary_unary_rpc_method_handler(accept)


async def main(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Everything(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
