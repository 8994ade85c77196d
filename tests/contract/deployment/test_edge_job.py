"""The job of the edge fits the gateway behind it: timeouts, error pages, the routes that it shows."""

from __future__ import annotations

import json
import re
import runpy

from gateway.http.problems import KINDS
from stack.cluster import nomad

from ..repository import ROOT, blocks, job_text

EDGE = job_text("edge")


def edge(setting: str) -> str:
    """The value of a setting that the job of the edge names once."""
    (value,) = re.findall(rf"\b{setting}\s*[=:]\s*(\w+)", EDGE)
    return str(value)


def seconds(setting: str) -> float:
    return float(edge(setting).removesuffix("s"))


def gateway(name: str) -> float:
    return float(json.loads((ROOT / "consul" / "kv" / "config" / "gateway.json").read_text())[name])


def test_the_edge_gets_its_identity_as_a_file_and_no_token_from_nomad() -> None:
    (identity,) = [body for _, body in blocks(EDGE, "identity")]
    assert re.search(r"^\s*file\s*=\s*true", identity, re.MULTILINE)
    assert [head for head in ("consul", "vault", "env") for _ in blocks(EDGE, head)] == []


def test_the_edge_closes_an_idle_connection_before_the_gateway_does() -> None:
    assert seconds("idleConnTimeout") < gateway("keep_alive_seconds") / 1.5


def test_the_edge_waits_for_an_answer_longer_than_the_gateway_may_take() -> None:
    assert seconds("responseHeaderTimeout") > gateway("response_seconds")


def test_the_error_pages_of_the_edge_have_the_texts_of_the_gateway() -> None:
    pages = runpy.run_path(str(ROOT / "nomad" / "sidecars" / "edge" / "error_pages.py"))["KINDS"]
    known = {(kind.status, kind.name, kind.title, kind.meaning) for kind in KINDS.values()}
    assert set(pages) == {502, 503}
    assert {(status, *texts) for status, texts in pages.items()} <= known


def test_the_edge_replaces_no_answer_of_a_gateway() -> None:
    (middlewares,) = re.findall(r"middlewares=([^\"]+)", job_text("gateway"))
    replaced = {
        status
        for name in middlewares.replace("@file", "").split(",")
        for found in re.findall(rf"^ *{name}:\n *errors: {{ status: \[([^]]*)\]", EDGE, re.MULTILINE)
        for status in re.findall(r"\d+", found)
    }
    assert replaced == {"502"}
    # Only the edge uses this status: nothing that a service or the gateway does ends with it.
    assert [kind.reason for kind in KINDS.values() if str(kind.status) in replaced] == ["ANSWER_LOST"]


def test_the_edge_shows_only_what_is_marked_for_it_and_only_the_gateway_is() -> None:
    assert edge("exposedByDefault") == "false"
    assert [job for job in nomad.names() if "traefik.enable=true" in job_text(job)] == ["gateway"]


def test_the_edge_trusts_no_forwarded_header_of_a_caller_and_has_no_dashboard() -> None:
    assert not re.search(r"trustedIPs|insecure|dashboard:|^\s*api:", EDGE, re.MULTILINE)
