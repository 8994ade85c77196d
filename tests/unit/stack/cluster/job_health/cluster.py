"""A job in a cluster, as the clients of Nomad and Consul answer for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from stack.cluster.clients import Clients

Json = dict[str, Any]


class Cluster:
    """One job `gateway` with a group of two instances; records what is asked of Nomad."""

    def __init__(self) -> None:
        service = {"Name": "gateway"}
        group = {"Name": "api", "Count": 2, "Services": [service]}
        self.job: Json = {"ID": "gateway", "Version": 3, "JobModifyIndex": 42, "Stop": False, "TaskGroups": [group]}
        self.job["Meta"] = {"owner": "somebody"}
        self.deployments: list[Json] = []
        self.allocations: list[Json] = []
        self.passing: set[str] = set()
        self.eligible = True
        self.sent: list[tuple[str, ...]] = []

    def add(self, number: int, status: str = "running", healthy: bool = True, passing: bool = True) -> str:
        """Adds an allocation of the current version; returns its id."""
        name = f"{number:08x}-4fa3-c700-79a1-cea91f95fb86"
        self.allocations.append(
            {
                "ID": name,
                "JobID": "gateway",
                "CreateIndex": number,
                "JobVersion": self.job["Version"],
                "TaskGroup": "api",
                "ClientStatus": status,
                "DesiredStatus": "run",
                "DesiredTransition": {"Migrate": None},
                "NextAllocation": "",
                "DeploymentStatus": {"Healthy": healthy},
                "TaskStates": {},
            }
        )
        if passing:
            self.passing.add(name)
        return name

    @property
    def clients(self) -> Clients:
        job = SimpleNamespace(
            __contains__=lambda _: True,
            get_job=lambda _: self.job,
            get_deployments=lambda _: self.deployments,
            get_allocations=lambda _: self.allocations,
            get_evaluations=lambda _: [],
            register_job=self._register,
        )
        allocation = SimpleNamespace(
            get_allocation=lambda name: next(alloc for alloc in self.allocations if alloc["ID"] == name),
            stop_allocation=self._stop,
        )
        nomad = SimpleNamespace(
            job=_Containing(vars(job)), allocation=allocation, nodes=SimpleNamespace(get_nodes=self._nodes)
        )
        consul = SimpleNamespace(health=SimpleNamespace(service=self._health))
        return cast(Clients, SimpleNamespace(nomad=nomad, consul=consul))

    def _register(self, name: str, body: Json) -> Json:
        self.sent.append(("register", name))
        self.job = body["Job"] | {"JobModifyIndex": self.job["JobModifyIndex"] + 1}
        return {"JobModifyIndex": self.job["JobModifyIndex"]}

    def _stop(self, name: str) -> None:
        self.sent.append(("stop", name))
        self.add(len(self.allocations) + 100)

    def _nodes(self) -> list[Json]:
        return [{"Status": "ready", "SchedulingEligibility": "eligible" if self.eligible else "ineligible"}]

    def _health(self, service: str, passing: bool = False) -> tuple[int, list[Json]]:
        known = [alloc["ID"] for alloc in self.allocations if alloc["ID"] in self.passing]
        entries = [{"Service": {"ID": f"_nomad-task-{name}-group-api-{service}"}, "Checks": []} for name in known]
        return 1, entries


class _Containing(SimpleNamespace):
    """The jobs of Nomad: `name in jobs` is true."""

    def __init__(self, methods: Json) -> None:
        super().__init__(**{name: method for name, method in methods.items() if not name.startswith("__")})

    def __contains__(self, _: str) -> bool:
        return True
