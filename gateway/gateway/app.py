"""The routes put together to one app."""

from __future__ import annotations

from gateway.auth.sessions import Backend
from gateway.http import gateway_app
from gateway.http.gateway_app import Edge
from gateway.routes import docs_pages, health, orders, sse, users

BLUEPRINTS = (users.routes, orders.routes, sse.routes, health.routes, docs_pages.routes)


def create(backend: Backend, name: str = "gateway") -> Edge:
    """An app on `backend`; a process has one, a test may have more under names of their own."""
    app = gateway_app.make(name, backend.settings(), backend, lambda: backend.settings().limiter)
    for blueprint in BLUEPRINTS:
        app.blueprint(blueprint)
    return app
