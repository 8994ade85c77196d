"""Who reaches a gateway in the mesh: the attack table, on real TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs
from support.waiting import until

from chassis.mesh.names import spiffe_id
from chassis.telemetry import metrics
from gateway.auth import caller_authorization

from ...chassis.mesh.authority import DOMAIN, Authority
from .mesh_gateway import SERVER, MeshGateway, allowing

OK, UNAUTHENTICATED, FORBIDDEN = httpx.codes.OK, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN
ME = "/v1/users/me"
METRIC = "mesh.calls.denied"


@pytest.fixture
async def gateway(spans: InMemorySpanExporter) -> AsyncIterator[MeshGateway]:
    async with MeshGateway().running() as made:
        yield made


def denials(caller: str, method: str = "GET") -> int:
    """The requests that were denied, from the exported metric."""
    points: list[Any] = [point for each in metrics.collect(0) if each.name == METRIC for point in each.data.data_points]
    labels = {"mesh.caller": caller, "http.request.method": method, "error.type": "CALLER_NOT_ALLOWED"}
    wanted = {**labels, "mesh.enforced": "true"}
    return sum(point.value for point in points if dict(point.attributes) == wanted)


async def test_a_caller_with_an_intention_is_answered(gateway: MeshGateway) -> None:
    assert (await gateway.get("/livez", gateway.leaf())).status_code == OK
    assert (await gateway.get(ME, gateway.leaf())).status_code == UNAUTHENTICATED


@pytest.mark.parametrize(
    "how", ["plaintext", "no certificate", "certificate of another authority", "certificate ended"]
)
@pytest.mark.parametrize("enforced", [True, False])
async def test_without_a_valid_certificate_nothing_is_answered(gateway: MeshGateway, how: str, enforced: bool) -> None:
    if not enforced:
        gateway.let_everything_through()
    leaves = {
        "certificate of another authority": Authority("foreign").leaf("edge"),
        "certificate ended": gateway.leaf(seconds=-60),
    }
    with pytest.raises(httpx.TransportError):
        await (gateway.get_in_plaintext("/livez") if how == "plaintext" else gateway.get("/livez", leaves.get(how)))


@pytest.mark.parametrize("path", ["/livez", ME, "/nowhere", "/docs"])
async def test_a_caller_without_an_intention_gets_a_problem_and_is_counted_and_logged(
    gateway: MeshGateway, path: str
) -> None:
    before = denials("order-service")
    with capture_logs() as logged:
        reply = await gateway.get(path, gateway.leaf("order-service"))
    problem = reply.json()
    assert (reply.status_code, reply.headers["content-type"]) == (FORBIDDEN, "application/problem+json")
    assert (problem["type"], problem["status"], problem["instance"]) == ("/problems/forbidden", 403, path)
    assert problem["trace_id"] == reply.headers["traceresponse"].split("-")[1]
    assert "order-service" not in reply.text
    assert denials("order-service") == before + 1
    (line,) = [each for each in logged if each["event"] == "no intention allows the call"]
    assert (line["caller"], line["method"], line["denied"]) == ("order-service", "GET requests", True)


async def test_with_the_check_switched_off_the_same_request_gets_through(gateway: MeshGateway) -> None:
    gateway.let_everything_through()
    assert (await gateway.get("/livez", gateway.leaf("order-service"))).status_code == OK


async def test_the_span_of_a_request_names_the_caller(gateway: MeshGateway, spans: InMemorySpanExporter) -> None:
    spans.clear()
    for service in ("edge", "order-service"):
        await gateway.get(ME, gateway.leaf(service))
    found = [dict(span.attributes or {}) for span in spans.get_finished_spans()]
    assert [(each["mesh.caller"], each["http.response.status_code"]) for each in found] == [
        ("edge", UNAUTHENTICATED),
        ("order-service", FORBIDDEN),
    ]


async def test_permissions_hold_by_path_and_by_method(gateway: MeshGateway) -> None:
    gateway.consul.intend(
        "gateway",
        allowing("edge", {"Action": "allow", "HTTP": {"PathPrefix": "/v1/", "Methods": ["GET"]}}),
    )
    async with gateway.client(gateway.leaf()) as http:

        async def is_denied() -> bool:
            return (await http.get("/livez", extensions=SERVER)).status_code == FORBIDDEN

        await until("the permissions are applied", is_denied)
        statuses = {
            (method, path): (await http.request(method, path, extensions=SERVER)).status_code
            for method, path in (("GET", ME), ("GET", f"{ME}?a=/livez"), ("POST", "/v1/orders"), ("BREW", ME))
        }
    assert list(statuses.values()) == [UNAUTHENTICATED, UNAUTHENTICATED, FORBIDDEN, FORBIDDEN]


@pytest.mark.parametrize("path", ["/livez", "/livez/", "/livez//"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_denied_route_is_denied_however_it_is_spelled(gateway: MeshGateway, method: str, path: str) -> None:
    denied = {"Action": "deny", "HTTP": {"PathExact": "/livez", "Methods": ["GET"]}}
    other = {"Action": "allow", "HTTP": {"PathPrefix": "/"}}
    gateway.consul.intend("gateway", {"SourceName": "edge", "Precedence": 9, "Permissions": [denied, other]})
    async with gateway.client(gateway.leaf()) as http:

        async def is_denied() -> bool:
            return (await http.request(method, path, extensions=SERVER)).status_code == FORBIDDEN

        await until("the permissions are applied", is_denied)
        assert (await http.get("/readyz", extensions=SERVER)).status_code != FORBIDDEN, "the control"


async def test_an_invented_method_creates_no_series(gateway: MeshGateway) -> None:
    async with gateway.client(gateway.leaf("order-service")) as http:
        for method in ("BREW", "STEAM"):
            assert (await http.request(method, "/livez", extensions=SERVER)).status_code == FORBIDDEN
    assert denials("order-service", "BREW") == 0
    assert denials("order-service", "_OTHER") >= 2


async def test_what_a_caller_claims_in_headers_changes_nothing(gateway: MeshGateway) -> None:
    claims = {
        "x-forwarded-client-cert": f"URI={spiffe_id('edge', DOMAIN)}",
        "peer_spiffe_id": spiffe_id("edge", DOMAIN),
        "mesh-caller": "edge",
    }
    reply = await gateway.get("/livez", gateway.leaf("order-service"), headers=claims)
    assert reply.status_code == FORBIDDEN


async def test_a_certificate_without_the_name_of_a_service_is_nobody_also_where_anybody_may_call(
    gateway: MeshGateway,
) -> None:
    gateway.consul.intend("gateway", {"SourceName": "*", "Precedence": 8, "Action": "allow"})

    async def is_allowed() -> bool:
        return (await gateway.get("/livez", gateway.leaf("order-service"))).status_code == OK

    await until("anybody may call, as a control", is_allowed)
    stranger = gateway.leaf("edge", domain="elsewhere.consul")
    assert (await gateway.get("/livez", stranger)).status_code == FORBIDDEN


async def test_a_revoked_intention_holds_for_the_next_request_on_the_same_connection(gateway: MeshGateway) -> None:
    async with gateway.client(gateway.leaf()) as http:

        async def has_status(status: int) -> bool:
            return (await http.get("/livez", extensions=SERVER)).status_code == status

        assert await has_status(OK)
        gateway.consul.intend("gateway")
        await until("it is denied", lambda: has_status(FORBIDDEN))
        gateway.consul.intend("gateway", allowing("edge"))
        await until("it is allowed again", lambda: has_status(OK))


async def test_before_consul_has_named_the_intentions_nobody_is_let_in(spans: InMemorySpanExporter) -> None:
    made = MeshGateway()
    made.consul._intentions.clear()
    async with made.running() as gateway:
        assert (await gateway.get("/livez", gateway.leaf())).status_code == FORBIDDEN
        assert (await gateway.process.readiness())["intentions"] == "no intentions from Consul yet"


async def test_a_server_that_is_not_the_gateway_is_not_accepted_under_its_name(gateway: MeshGateway) -> None:
    async with gateway.client(gateway.leaf()) as http:
        with pytest.raises(httpx.ConnectError, match="mismatch"):
            await http.get("/livez", extensions={"sni_hostname": "user-service.mesh"})


async def test_the_health_is_open_without_a_certificate_and_nothing_else_is_there(gateway: MeshGateway) -> None:
    url, context = f"https://{gateway.health}", gateway.context(None)
    async with httpx.AsyncClient(base_url=url, verify=context, trust_env=False) as http:
        assert (await http.get("/livez", extensions=SERVER)).json() == {"status": "alive"}
        assert (await http.get("/readyz", extensions=SERVER)).json()["status"] == "degraded"
        for path in (ME, "/v1/orders", "/docs", "/openapi.json", "/problems/forbidden"):
            assert (await http.get(path, extensions=SERVER)).status_code == httpx.codes.NOT_FOUND
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://{gateway.health}/livez")


async def test_a_connection_that_is_older_than_a_certificate_may_be_ends_with_its_next_response(
    gateway: MeshGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = await gateway.get("/livez", gateway.leaf())
    assert reply.headers["connection"] == "keep-alive"
    monkeypatch.setattr(caller_authorization, "_CONNECTION_SECONDS", 0.0)
    reply = await gateway.get("/livez", gateway.leaf())
    assert (reply.status_code, reply.headers["connection"]) == (OK, "close")
