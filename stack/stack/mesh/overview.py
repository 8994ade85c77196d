"""`mesh show`: who may call what and who has, the certificates that instances present, and the roots of the mesh.

Permissions are evaluated by the code that decides in the services, on the intentions that Consul has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import grpc
import httpx
from cryptography import x509
from cryptography.x509.oid import NameOID
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from hvac.exceptions import VaultError

from chassis.mesh.intentions import ANYBODY, Intentions
from chassis.mesh.names import server_name
from stack.build.zipapps import SERVICES
from stack.cluster import agents
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError, say, table
from stack.mesh import dial, gateway_instance, operator_leaf, recent_calls
from stack.mesh.dial import Address
from stack.mesh.gateway_instance import GATEWAY
from stack.mesh.operator_leaf import Leaf

Row = dict[str, Any]
EDGE = "edge"
_SECONDS = 5
# Reflection lists it too, but in the mesh it is served at a port of its own.
_HEALTH = "grpc.health.v1.Health"


def show(stack: Stack, as_json: bool = False) -> None:
    """Prints the overview, as text or as JSON."""
    agents.require_running(stack)
    found = Overview(Clients(stack)).read()
    found["recent"] = recent_calls.read(stack) if any(found["mesh"].values()) else None
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        for line in lines(found):
            say(line)


class Overview:
    """Reads the state of the mesh from Consul, Nomad and the healthy instances, with the rights of the operator."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def read(self) -> Row:
        """Returns the document of `mesh show --json`; raises StackError if the operator gets no certificate."""
        mesh = {name: self._is_on(name) for name in (EDGE, *SERVICES)}
        found = {name: dial.instances(self._clients, name) for name in sorted(SERVICES) if mesh[name] is not None}
        callable_ = sorted({*SERVICES, *self._destinations()})
        presented = [(name, address) for name in found if mesh[name] for address in found[name]]
        if mesh[EDGE]:
            presented.insert(0, (EDGE, (dial.HOST, self._clients.stack.port("gateway_https"))))
        roots = self._clients.consul.connect.certificates.list()
        return {
            "trust_domain": roots["TrustDomain"],
            "mesh": mesh,
            "services": [self._service(name, found.get(name, ()), bool(mesh.get(name))) for name in callable_],
            "certificates": [self._certificate(name, address) for name, address in presented],
            "roots": [
                {"id": root["ID"], "active": root["Active"], "ends": root["NotAfter"]} for root in roots["Roots"]
            ],
        }

    @cached_property
    def _leaf(self) -> Leaf:
        try:
            return operator_leaf.issue(self._clients)
        except VaultError as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            next_step = "./justw plan: it shows whether OpenBao is as in vault/"
            raise StackError("the operator gets no certificate of the mesh", why, next_step) from error

    def _is_on(self, service: str) -> bool | None:
        """Returns whether the job of a service is in the mesh; None if it is not deployed."""
        return dial.is_on(self._clients, service) if service in self._clients.nomad.job else None

    def _destinations(self) -> set[str]:
        entries = self._clients.consul.config.list("service-intentions") or ()
        return {entry["Name"] for entry in entries} - {ANYBODY}

    def _service(self, name: str, instances: Sequence[Address], in_mesh: bool) -> Row:
        found = self._clients.consul.connect.intentions.list_match("destination", name).get(name) or ()
        intentions = Intentions(name)
        intentions.replace(found)
        callers = sorted({each["SourceName"] for each in found}, key=lambda caller: (caller == ANYBODY, caller))
        methods, problem = self._methods(name, instances, in_mesh)
        return {
            "name": name,
            "enforced": in_mesh and self._enforces(name),
            "callers": callers,
            "methods": [
                {"path": path, "allowed": [caller for caller in callers if _allows(intentions, caller, path)]}
                for path in methods or _named_paths(found)
            ],
            "problem": problem,
        }

    def _enforces(self, service: str) -> bool:
        value = self._clients.consul.kv.get(f"config/{service}")[1]
        try:
            return json.loads(value["Value"])["mesh"]["enforce"] is not False
        except (KeyError, TypeError, ValueError):
            return True  # a service does not apply such settings

    def _methods(self, service: str, instances: Sequence[Address], in_mesh: bool) -> tuple[list[str], str | None]:
        """Returns what a service serves, as an instance lists it, or nothing and the reason."""
        problem = "it has no healthy instance"
        for address in instances:
            target = "{}:{}".format(*address)
            try:
                if service == GATEWAY:
                    return self._requests(address, in_mesh), None
                with self._channel(service, target) if in_mesh else grpc.insecure_channel(target) as channel:
                    return _reflected(channel), None
            except grpc.RpcError as error:
                problem = f"{target} does not list them: {error.code().name}"
            except httpx.HTTPError as error:
                problem = f"{target} does not list them: {error}"
        return [], problem

    def _requests(self, address: Address, in_mesh: bool) -> list[str]:
        """Returns each request of the OpenAPI document: "GET /livez"."""
        with gateway_instance.client(address, self._leaf if in_mesh else None) as http:
            paths = http.get("/openapi.json").raise_for_status().json()["paths"]
        return [f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs]

    def _channel(self, service: str, target: str) -> grpc.Channel:
        leaf, name = self._leaf, server_name(service)
        credentials = grpc.ssl_channel_credentials(leaf.roots, leaf.key, leaf.chain)
        return grpc.secure_channel(target, credentials, (("grpc.ssl_target_name_override", name),))

    def _certificate(self, service: str, address: Address) -> Row:
        row: Row = {"service": service, "address": "{}:{}".format(*address)}
        try:
            found = operator_leaf.presented(operator_leaf.tls_context(self._leaf), service, address)
        except OSError as error:
            return row | {"error": str(error) or type(error).__name__}
        return row | _described(found) | {"error": None}


def _allows(intentions: Intentions, caller: str, path: str) -> bool:
    """Returns whether a caller may call a method of gRPC, or send a request of HTTP, which begins with its method."""
    method, _, rest = path.rpartition(" ")
    return intentions.allow(caller, rest, method) if method else intentions.allow(caller, rest)


def _named_paths(intentions: Sequence[Row]) -> list[str]:
    """Returns the methods that the permissions name; another kind of condition names none."""
    permissions = (each for intention in intentions for each in intention.get("Permissions") or ())
    return sorted({each["HTTP"]["PathExact"] for each in permissions if (each.get("HTTP") or {}).get("PathExact")})


def _reflected(channel: grpc.Channel) -> list[str]:
    found: list[str] = []
    for listed in _ask(channel, ServerReflectionRequest(list_services="")).list_services_response.service:
        if listed.name != _HEALTH:
            answer = _ask(channel, ServerReflectionRequest(file_containing_symbol=listed.name))
            for file in answer.file_descriptor_response.file_descriptor_proto:
                found += [f"/{listed.name}/{method}" for method in _declared(file, listed.name)]
    # Contracts of this system first.
    return sorted(found, key=lambda path: path.startswith("/grpc."))


def _ask(channel: grpc.Channel, question: ServerReflectionRequest) -> Any:
    stub: Any = ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([question]), timeout=_SECONDS)
    return answer


def _declared(serialized: bytes, service: str) -> list[str]:
    """Returns the names of the methods of a service, if the file declares it."""
    file = FileDescriptorProto.FromString(serialized)
    services = (each for each in file.service if f"{file.package}.{each.name}" == service)
    return [method.name for each in services for method in each.method]


def _described(certificate: x509.Certificate) -> Row:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    number = certificate.serial_number
    issuer = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    left = certificate.not_valid_after_utc.timestamp() - time.time()
    return {
        "names": [
            *names.get_values_for_type(x509.DNSName),
            *names.get_values_for_type(x509.UniformResourceIdentifier),
        ],
        # As OpenBao writes it.
        "serial": number.to_bytes((number.bit_length() + 7) // 8, "big").hex(":"),
        "issuer": str(issuer[0].value) if issuer else certificate.issuer.rfc4514_string(),
        "minutes_left": round(left / 60, 1),
    }


def lines(found: Row) -> Iterator[str]:
    """Yields the overview as text."""
    yield f"trust domain {found['trust_domain']}"
    for name, is_on in found["mesh"].items():
        if is_on is None:
            yield f"! {name} is not deployed"
        elif not is_on:
            yield f"! the mesh is off for {name}: it speaks plaintext, without certificates and intentions"
    for service in found["services"]:
        yield ""
        yield from _service_lines(service, bool(found["mesh"].get(service["name"])))
    if any(found["mesh"].values()):
        yield ""
        yield from recent_calls.lines(found["recent"])
    yield ""
    yield from _certificate_lines(found["certificates"])
    yield f"\n{'root':<61} {'active':<7} ends"
    for root in found["roots"]:
        yield f"{root['id']:<61} {'yes' if root['active'] else '-':<7} {root['ends']}"


def _service_lines(service: Row, in_mesh: bool) -> Iterator[str]:
    callers: Sequence[str] = service["callers"]
    columns = [_caller(each) for each in callers] or ["nobody"]
    rows = [
        (method["path"].removeprefix("/"), *(["yes" if each in method["allowed"] else "-" for each in callers] or [""]))
        for method in service["methods"]
    ]
    yield from table((f"{service['name']} may be called by", *columns), rows)
    if service["problem"]:
        yield f"! only methods that intentions name are listed: {service['problem']}"
    if in_mesh and not service["enforced"]:
        yield "! other calls are counted and go through: mesh.enforce is false in its settings"


def _caller(name: str) -> str:
    return "others" if name == ANYBODY else name


def _certificate_lines(certificates: Sequence[Row]) -> Iterator[str]:
    yield f"{'certificate':<22} {'address':<22} {'minutes left':<13} serial and issuer"
    for row in certificates:
        if row["error"]:
            yield f"! {row['service']} at {row['address']} presents none that is valid: {row['error']}"
            continue
        yield f"{row['names'][0]:<22} {row['address']:<22} {row['minutes_left']:<13.0f} {row['serial']}"
        yield f"{'':<59} {row['issuer']}"
    if not certificates:
        yield "none: no instance in the mesh is healthy"
