"""A gateway of well-known parts with the features of ours: `fastapi_gateway.py PORT ORDER_SERVICE OTLP SHARE KEY`.

FastAPI on uvicorn, grpc.aio with a circuit breaker, OpenTelemetry's own instrumentation of both with a sampled SHARE,
its export of traces, metrics and logs, a JSON access log with the trace, and PyJWT's check of an EdDSA token with the
public KEY (hex). Each part is used as its documentation shows it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import grpc.aio
import jwt
import uvicorn
from bench.peers.fixed_order import as_json
from circuitbreaker import circuit
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
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


@circuit(failure_threshold=20, recovery_timeout=3, expected_exception=grpc.aio.AioRpcError)
async def read_order(user_id: str, order_id: str) -> Any:
    """Calls the Order Service through the circuit breaker."""
    return await app.state.orders.GetOrder(GetOrderRequest(user_id=user_id, order_id=order_id), timeout=3)


@app.get("/v1/orders/{order_id}")
async def get_order(order_id: UUID, user_id: Annotated[str, Depends(user)], response: Response) -> Order:
    """Reads an order."""
    reply = await read_order(user_id, str(order_id))
    response.headers["etag"] = f'"{reply.order.version}"'
    return Order(**as_json(reply.order))


@app.middleware("http")
async def access_log(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Logs each request with its duration and trace."""
    began, status = time.perf_counter(), 500
    try:
        response = await call_next(request)
        status = response.status_code
        return response
    finally:
        context = trace.get_current_span().get_span_context()
        fields = {"method": request.method, "path": request.url.path, "client": request.client and request.client.host,
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
    logs = LoggerProvider()
    logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"http://{otlp}", insecure=True)))
    logging.getLogger().addHandler(LoggingHandler(logger_provider=logs))
    GrpcAioInstrumentorClient().instrument()
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
