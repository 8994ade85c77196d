"""A gateway of well-known parts with the features of ours: `fastapi_gateway.py PORT ORDER_SERVICE OTLP SHARE KEY`.

FastAPI on uvicorn, grpc.aio, OpenTelemetry's own instrumentation of both with a sampled SHARE, a JSON access log with
the trace, and PyJWT's check of an EdDSA token with the public KEY (hex).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import grpc.aio
import jwt
import uvicorn
from bench.peers.fixed_order import as_json
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from pydantic import BaseModel
from pythonjsonlogger.json import JsonFormatter

from shop.order.v1.order_pb2 import GetOrderRequest
from shop.order.v1.order_pb2_grpc import OrderServiceStub
from shop_contract.access_tokens import ALGORITHM, AUDIENCE, ISSUER

Scope = MutableMapping[str, Any]
log = logging.getLogger("access")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connects to the Order Service."""
    async with grpc.aio.insecure_channel(app.state.order_service) as channel:
        app.state.orders = OrderServiceStub(channel)  # type: ignore[no-untyped-call]
        yield


app = FastAPI(lifespan=lifespan)


class Line(BaseModel):
    """A line of an order."""

    sku: str
    quantity: int
    unit_price: int


class Order(BaseModel):
    """An order as the REST contract has it."""

    id: str
    user_id: str
    status: str
    currency: str
    lines: list[Line]
    total: int
    version: int
    placed_at: str


def signed_in(bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Returns the user of a valid token."""
    required = {"require": ["sub", "iat", "exp", "iss", "aud"]}
    try:
        claims = jwt.decode(bearer.credentials, app.state.key, algorithms=[ALGORITHM], issuer=ISSUER,
                            audience=AUDIENCE, options=required)  # fmt: skip
    except jwt.PyJWTError:
        raise HTTPException(401) from None
    return str(claims["sub"])


async def user(bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """As a coroutine, so that FastAPI calls it in the event loop and not in a thread."""
    return signed_in(bearer)


@app.get("/v1/orders/{order_id}")
async def get_order(order_id: str, user_id: Annotated[str, Depends(user)], response: Response) -> Order:
    """Reads an order."""
    call = GetOrderRequest(user_id=user_id, order_id=order_id)
    reply: Any = await app.state.orders.GetOrder(call, timeout=3)
    response.headers["etag"] = f'"{reply.order.version}"'
    return Order(**as_json(reply.order))


class AccessLog:
    """Logs each request with its duration and trace; ASGI, because Starlette's own middleware class costs more."""

    def __init__(self, inner: Callable[..., Awaitable[None]]) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.inner(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def sent(message: Scope) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.inner(scope, receive, sent)
        finally:
            context = trace.get_current_span().get_span_context()
            fields = {"method": scope["method"], "path": scope["path"], "client": scope["client"][0],
                      "status": status, "milliseconds": round((time.perf_counter() - began) * 1000, 1),
                      "trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}  # fmt: skip
            log.info("request", extra=fields)


def instrument(otlp: str, share: float) -> None:
    """Starts OpenTelemetry as its documentation shows."""
    provider = TracerProvider(ParentBasedTraceIdRatio(share))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"http://{otlp}", insecure=True)))
    trace.set_tracer_provider(provider)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"http://{otlp}", insecure=True), 30_000)
    metrics.set_meter_provider(MeterProvider([reader]))
    GrpcAioInstrumentorClient().instrument()
    app.add_middleware(AccessLog)  # inside of the instrumentation, so that it sees the span
    FastAPIInstrumentor.instrument_app(app)


def log_as_json() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def main(port: int, order_service: str, otlp: str, share: float, key: str) -> None:
    log_as_json()
    instrument(otlp, share)
    app.state.key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    app.state.order_service = order_service
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False, loop="uvloop", http="httptools")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5])
