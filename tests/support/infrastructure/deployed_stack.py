"""A deployed stack on any machine that testinfra reaches: everything is read by `host`, nothing from this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.infrastructure import http_requests, socket_exchanges

from stack.config import Stack

HTTP_CLIENT = Path(str(http_requests.__file__)).read_text()
SOCKET_CLIENT = Path(str(socket_exchanges.__file__)).read_text()


@dataclass(frozen=True)
class Request:
    """A request that the machine of the stack sends; see http_requests for `<file …>` and `<reply …>` in its values."""

    url: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to a request; header names are in lower case."""

    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        """The body, which must be the JSON of a successful reply."""
        assert self.status < 300, f"{self.status}: {self.text[:300]}"
        return json.loads(self.text) if self.text else None


@dataclass(frozen=True)
class Process:
    """One process of the machine, as `ps` and /proc show it."""

    pid: int
    parent: int
    user: str
    terminal: str
    name: str
    command: str
    folder: str


class DeployedStack:
    """The stack in a checkout on the machine of `host`, seen by the user who deployed it."""

    def __init__(self, host: Any, checkout: str, stack: Stack) -> None:
        self.host, self.checkout, self.stack = host, checkout, stack
        self.state = f"{checkout}/.waypost/{stack.name}"

    def url(self, part: str) -> str:
        return self.stack.url(part)

    def run(self, command: str, *arguments: str) -> str:
        """The output of a command, which must succeed."""
        return str(self.host.check_output(command, *arguments))

    def content(self, path: str) -> str:
        """A file of the checkout."""
        return str(self.host.file(f"{self.checkout}/{path}").content_string)

    def names(self, folder: str, suffix: str) -> set[str]:
        """The names of the files of a folder of the checkout, without their suffix."""
        listed = self.host.file(f"{self.checkout}/{folder}").listdir()
        return {name.removesuffix(suffix) for name in listed if name.endswith(suffix)}

    # --- requests

    def ask(self, *requests: Request) -> list[Reply]:
        """Sends requests from the machine itself, in turn."""
        sent = json.dumps([vars(request) for request in requests])
        return [Reply(**reply) for reply in json.loads(self._python(HTTP_CLIENT, sent))]

    def exchange(self, kind: str, port: int, content: bytes) -> bytes:
        """Sends bytes to a port of the machine; returns the answer."""
        return bytes.fromhex(self._python(SOCKET_CLIENT, kind, str(port), content.hex()))

    def _python(self, source: str, *arguments: str) -> str:
        words = " ".join(["%s -c %s", *["%s" for _ in arguments]])
        return self.run(words, f"{self.checkout}/.venv/bin/python", source, *arguments).strip()

    def anonymous(self, part: str, path: str, method: str = "GET", body: str | None = None) -> Reply:
        """A request without any credential."""
        return self.ask(Request(self.url(part) + path, method, body=body))[0]

    def nomad(self, path: str, method: str = "GET", body: Any = None) -> Any:
        return self.ask(self._request("nomad", path, method, body, self.credential("nomad-management")))[0].json()

    def consul(self, path: str, method: str = "GET", body: Any = None, token: str = "") -> Any:
        credential = token or self.credential("consul-management")
        return self.ask(self._request("consul", path, method, body, credential))[0].json()

    def vault(self, *paths: str) -> list[Any]:
        """What the operator reads at some paths of Vault; `LIST path` lists."""
        requests = [self._vault_request(path, "GET", None) for path in paths]
        return [reply.json()["data"] for reply in self._as_operator(requests)]

    def change_vault(self, path: str, body: Any, method: str = "POST") -> Any:
        return self._as_operator([self._vault_request(path, method, body)])[0].json()

    def _as_operator(self, requests: list[Request]) -> list[Reply]:
        body = json.dumps({"password": self.credential("operator-password")})
        login = Request(self.url("vault") + "/v1/auth/userpass/login/operator", "POST", body=body)
        return self.ask(login, *requests, self._vault_request("auth/token/revoke-self", "POST", {}))[1:-1]

    def _vault_request(self, path: str, method: str, body: Any) -> Request:
        if path.startswith("LIST "):
            path, method = path.removeprefix("LIST "), "LIST"
        return self._request("vault", f"/v1/{path}", method, body, "<reply 0 auth client_token>")

    def _request(self, part: str, path: str, method: str, body: Any, token: str) -> Request:
        name = {"nomad": "X-Nomad-Token", "consul": "X-Consul-Token", "vault": "X-Vault-Token"}[part]
        return Request(self.url(part) + path, method, {name: token}, None if body is None else json.dumps(body))

    def credential(self, name: str) -> str:
        """A credential of the operator, as a value of a request."""
        return f"<file {self.state}/secrets/{name}>"

    def vault_as(self, job: str, role: str, *requests: tuple[str, str]) -> list[Reply]:
        """Logs in to Vault with the workload identity of a job, then sends (method, path) pairs; all replies."""
        body = json.dumps({"role": role, "jwt": f"<file {self.task_folder(job)}/secrets/nomad_vault.jwt>"})
        login = Request(self.url("vault") + "/v1/auth/jwt-nomad/login", "POST", body=body)
        sent = [self._vault_request(path, method, {} if method == "POST" else None) for method, path in requests]
        ended = [self._vault_request("auth/token/revoke-self", "POST", {})] if requests else []
        return self.ask(login, *sent, *ended)[: len(requests) + 1]

    def consul_as(self, job: str, *paths: str, task: str = "") -> list[Reply]:
        """What the workload identity of a task is answered by Consul."""
        identity = f"<file {self.task_folder(job, task)}/secrets/nomad_consul.jwt>"
        body = json.dumps({"AuthMethod": "nomad-workloads", "BearerToken": identity})
        login, token = Request(self.url("consul") + "/v1/acl/login", "POST", body=body), "<reply 0 SecretID>"
        asked = [self._request("consul", path, "GET", None, token) for path in paths]
        return self.ask(login, *asked, self._request("consul", "/v1/acl/logout", "POST", None, token))[1:-1]

    # --- what Nomad and Consul run

    def allocations(self, job: str) -> list[dict[str, Any]]:
        """The running allocations of a job."""
        return [alloc for alloc in self.nomad(f"/v1/job/{job}/allocations") if alloc["ClientStatus"] == "running"]

    def task_folder(self, job: str, task: str = "") -> str:
        """The folder of a task of a job, in its first running allocation."""
        return self.task_folders(job, task)[0]

    def task_folders(self, job: str, task: str = "") -> list[str]:
        return [f"{self.state}/nomad/data/alloc/{alloc['ID']}/{task or job}" for alloc in self.allocations(job)]

    def instances(self, service: str) -> list[dict[str, Any]]:
        """Every instance of a service that Consul has, passing or not."""
        found: list[dict[str, Any]] = self.consul(f"/v1/health/service/{service}")
        return found

    def passing(self, service: str) -> int:
        """How many instances of a service pass all their checks."""
        return len(self.consul(f"/v1/health/service/{service}?passing"))

    def log(self, alloc: str, task: str, stream: str) -> str:
        """The end of what a task wrote to `stdout` or `stderr`, as Nomad returns it."""
        query = f"task={task}&type={stream}&plain=true&origin=end&offset=20000"
        request = self._request(
            "nomad", f"/v1/client/fs/logs/{alloc}?{query}", "GET", None, self.credential("nomad-management")
        )
        (reply,) = self.ask(request)
        assert reply.status == 200, reply.text
        return reply.text

    def tokens_of_vault(self) -> list[dict[str, Any]]:
        """Every token of Vault but those that end meanwhile."""
        (listed,) = self.vault("LIST auth/token/accessors")
        path = "auth/token/lookup-accessor"
        replies = self._as_operator([self._vault_request(path, "POST", {"accessor": key}) for key in listed["keys"]])
        assert {reply.status for reply in replies} <= {200, 400, 403}
        return [reply.json()["data"] for reply in replies if reply.status == 200]

    # --- processes

    def processes(self) -> list[Process]:
        """Every background process of the stack: it works below the state folder or names it, or descends from one."""
        every = self._every_process()
        within = f"{self.state}/"
        found = {
            process.pid
            for process in every
            if process.terminal == "?" and (within in process.command or f"{process.folder}/".startswith(within))
        }
        while more := {process.pid for process in every if process.parent in found} - found:
            found |= more
        return [process for process in every if process.pid in found]

    def pids(self, job: str) -> list[int]:
        """The processes of a job's own task, without Nomad's executors."""
        folders = self.task_folders(job)
        return sorted(process.pid for process in self._every_process() if process.folder in folders)

    def _every_process(self) -> list[Process]:
        links = self.run("find /proc -maxdepth 2 -path '/proc/[0-9]*/cwd' -printf '%h %l\\n' 2>/dev/null || true")
        folders = dict(line.removeprefix("/proc/").split(" ", 1) for line in links.splitlines())
        rows = [
            line.split(None, 5) for line in self.run("ps -Aww -o pid=,ppid=,user:32=,tty=,comm:32=,args=").splitlines()
        ]
        return [
            Process(int(pid), int(parent), user, terminal, name, command, folders.get(pid, ""))
            for pid, parent, user, terminal, name, command in rows
        ]
