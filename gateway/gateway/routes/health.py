"""Routes that report the health of the process."""

from __future__ import annotations

from sanic import Blueprint, HTTPResponse, Request

from gateway.backend import backend_of
from gateway.http.serializers import Readiness, json_response

routes = Blueprint("health")

_ACCEPTING_REQUESTS = {"ready", "degraded"}


@routes.get("/livez")
async def livez(_: Request) -> HTTPResponse:
    """Report that the process responds."""
    return json_response({"status": "alive"})


@routes.get("/readyz")
async def readyz(request: Request) -> HTTPResponse:
    """Report whether to send requests here, and the state of each dependency."""
    health = backend_of(request).health
    body: Readiness = {
        "status": "ready",
        "dependencies": dict(health.dependencies()),
        "breakers": dict(health.breakers()),
    }
    if set(body["dependencies"].values()) != {"ok"} or set(body["breakers"].values()) != {"closed"}:
        body["status"] = "degraded"
    if not await health.started():
        body["status"] = "starting"
    if health.draining:
        body["status"] = "draining"
    return json_response(body, 200 if body["status"] in _ACCEPTING_REQUESTS else 503)
