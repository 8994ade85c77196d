"""Creates the Sanic app with all routes."""

from __future__ import annotations

from gateway.backend import Backend
from gateway.http import gateway_app
from gateway.http.gateway_app import GatewayApp
from gateway.routes import docs_pages, health, orders, sse, users

BLUEPRINTS = (users.routes, orders.routes, sse.routes, health.routes, docs_pages.routes)


def create(backend: Backend, name: str = "gateway") -> GatewayApp:
    """Returns an app on `backend`. Each app of a process needs its own name, which matters to tests only."""
    app = gateway_app.make(name, backend.settings, backend)
    for blueprint in BLUEPRINTS:
        app.blueprint(blueprint)
    return app
