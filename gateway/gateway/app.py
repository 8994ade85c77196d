"""The routes put together to one app."""

from __future__ import annotations

from gateway import edge, health, orders, pages, users, watching
from gateway.access import Backend
from gateway.edge import Edge

BLUEPRINTS = (users.routes, orders.routes, watching.routes, health.routes, pages.routes)


def create(backend: Backend, name: str = "gateway") -> Edge:
    """An app on `backend`; a process has one, a test may have more under names of their own."""
    app = edge.make(name, backend.settings(), backend, lambda: backend.settings().limiter)
    for blueprint in BLUEPRINTS:
        app.blueprint(blueprint)
    return app
