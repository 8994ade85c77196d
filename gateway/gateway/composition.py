"""Creates the Sanic apps with their routes."""

from __future__ import annotations

from chassis.serving.limiter import Limiter
from gateway.auth.caller_authorization import CallerAuthorization
from gateway.backend import Backend
from gateway.http import gateway_app
from gateway.http.gateway_app import GatewayApp
from gateway.routes import docs_pages, health, orders, sse, users

BLUEPRINTS = (users.routes, orders.routes, sse.routes, health.routes, docs_pages.routes)


def create(backend: Backend, name: str = "gateway", callers: CallerAuthorization | None = None) -> GatewayApp:
    """Returns an app on `backend`, for anybody or for the allowed `callers` of a mesh.

    Each app of a process needs its own name, which matters to tests only.
    """
    limiter = Limiter("gateway", backend.settings.section(lambda now: now.limiter))
    app = gateway_app.make(name, backend.settings, backend, limiter, callers.check if callers else None)
    for blueprint in BLUEPRINTS:
        app.blueprint(blueprint)
    return app


def create_health(app: GatewayApp) -> GatewayApp:
    """Returns another app for the health of the first one, and nothing else; anybody may ask it."""
    backend: Backend = app.ctx
    made = gateway_app.make(f"{app.name}-health", backend.settings, backend, app.limiter)
    made.config.TOUCHUP = False  # it rewrites Sanic's own code, which works once in a process
    made.blueprint(health.routes)
    return made
