"""The edge fits the gateway behind it: texts, timeouts and limits; and it is given no more than it needs."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from gateway.http.problems import KINDS

from ..repository import ROOT, blocks, job_text

EDGE = job_text("edge")
ENVOY = (ROOT / "nomad" / "edge" / "envoy.yaml").read_text()
MEBIBYTE = 2**20
# That of http and that of https are made from one text.
LISTENER = "- name: {{ $name }}\n"
GATEWAYS = 2


def envoy(setting: str) -> float:
    """The number that the configuration of Envoy gives a setting, always the same."""
    (value,) = set(re.findall(rf"\b{setting}: (\d+(?:\.\d+)?)", ENVOY))
    return float(value)


def settings() -> dict[str, Any]:
    """The settings of the gateway."""
    found: dict[str, Any] = json.loads((ROOT / "consul" / "kv" / "config" / "gateway.json").read_text())
    return found


def gateway(name: str) -> float:
    return float(settings()[name])


@cache
def replies() -> list[dict[str, Any]]:
    """The table of the answers that Envoy gives itself."""
    (text,) = re.findall(r"\$replies := parseJSON `(.*?)`", ENVOY, re.DOTALL)
    found: list[dict[str, Any]] = json.loads(text)
    return found


def limits() -> dict[str, int]:
    """The requests in progress that each cluster of Envoy admits."""
    (text,) = re.findall(r"range \$cluster, \$limit := parseJSON `(.*?)`", ENVOY)
    found: dict[str, int] = json.loads(text)
    return found


# --- what the edge answers itself


def test_the_answers_of_the_edge_have_the_texts_of_the_gateway() -> None:
    known = {(kind.name, kind.status, kind.title, kind.meaning) for kind in KINDS.values()}
    assert {(reply["name"], reply["status"], reply["title"], reply["detail"]) for reply in replies()} <= known


def test_every_status_of_the_edge_is_a_problem_and_none_is_404() -> None:
    lowest = min(reply["than"] for reply in replies() if reply.get("op") == "GE")
    assert lowest == 400
    assert "404" not in re.sub(r"#.*", "", ENVOY)


def test_a_request_that_was_sent_and_not_answered_is_an_answer_lost() -> None:
    (lost,) = [reply for reply in replies() if reply["name"] == "answer-lost"]
    assert set(lost["flags"].split(", ")) >= {"UC", "UR"}


def test_every_answer_that_a_caller_may_repeat_says_when() -> None:
    named = set(re.findall(r'eq \$reply\.name "([\w-]+)"', ENVOY))
    assert named == {reply["name"] for reply in replies() if reply["status"] in {502, 503}}


# --- timeouts and limits


def test_the_edge_closes_an_idle_connection_before_the_gateway_does() -> None:
    upstream = ENVOY.partition("\n  clusters:")[2]
    (seconds,) = re.findall(r"\bidle_timeout: (\d+)s", upstream)
    assert int(seconds) < gateway("keep_alive_seconds") / 1.5


def test_too_many_requests_of_one_address_are_answered_as_an_overload() -> None:
    """Envoy sets no response flag for them, so their status has to tell them from other replies of 503."""
    assert re.findall(r"status: \{ code: (\w+) \}", ENVOY) == ["TooManyRequests"]
    (position,) = [number for number, reply in enumerate(replies()) if reply.get("than") == 429]
    reply, later = replies()[position], replies()[position + 1 :]
    assert (reply["op"], reply["status"], reply["name"]) == ("EQ", 503, "overloaded")
    assert {each["than"] for each in later if each["op"] == "GE"} == {400, 500}


def test_the_edge_waits_for_an_answer_longer_than_the_gateway_may_take() -> None:
    found = re.findall(r"\bcluster: (?:passwords|\{\{ \$cluster \}\}), timeout: (\d+)s|\}\}\n +timeout: (\d+)s", ENVOY)
    assert len(found) == 3
    assert {int(one or other) > gateway("response_seconds") for one, other in found} == {True}


def test_a_watch_outlasts_the_silence_between_two_heartbeats() -> None:
    ((total, idle),) = re.findall(r"cluster: watches, timeout: (\d+)s, idle_timeout: (\d+)s", ENVOY)
    assert (int(total), int(idle) > 2 * gateway("watch_heartbeat_seconds")) == (0, True)


def test_the_edge_takes_the_bodies_that_the_gateway_takes() -> None:
    assert envoy("max_request_bytes") == gateway("body_limit_bytes")


def test_each_kind_of_request_has_a_limit_of_its_own() -> None:
    (chosen,) = re.findall(r"range \$cluster := parseJSON `(.*?)`", ENVOY)
    named = set(re.findall(r"\bcluster: (\w+)", ENVOY)) - {"edge", "recorded"}
    assert named | set(json.loads(chosen)) == set(limits()) == {"calls", "surplus", "passwords", "watches"}


def test_a_call_that_the_edge_admits_is_admitted_by_each_gateway() -> None:
    assert sum(limits().values()) - limits()["watches"] <= settings()["limiter"]["calls_at_least"]


def test_what_one_client_may_have_in_progress_leaves_places_for_others() -> None:
    clients = settings()["clients"]
    assert clients["calls_per_user"] < settings()["orders"]["calls_at_once"]
    assert clients["passwords_per_address"] < settings()["users"]["calls_at_once"]
    assert clients["sign_ins_per_account"] * 2 < clients["passwords_per_address"]
    assert clients["watches_per_user"] < clients["watches_per_address"]
    assert GATEWAYS * clients["passwords_per_address"] < limits()["passwords"]
    assert GATEWAYS * clients["watches_per_address"] < limits()["watches"]


def test_a_caller_cannot_choose_the_mark_of_what_is_beyond_its_share() -> None:
    assert "{ remove: x-beyond-share }" in ENVOY
    assert limits()["surplus"] < limits()["calls"]


def test_only_a_read_is_sent_again_after_it_was_sent() -> None:
    policies = re.findall(r"retry_on: (\S+)", ENVOY)
    assert [policy for policy in policies if "reset" in policy.split(",")] == policies[1:]
    assert len(policies) == 2
    read_route = ENVOY.partition('name: ":method"')[2]
    assert 'regex: "GET|HEAD"' in read_route.partition("retry_on")[0]


def full_request() -> float:
    """The bytes of the largest head and body."""
    return envoy("max_request_bytes") + envoy("max_request_headers_kb") * 1024


def test_a_full_request_on_every_connection_fits_into_the_bound_of_the_heap_and_that_into_the_job() -> None:
    (memory,) = re.findall(r"^\s*memory\s*=\s*(\d+)", EDGE, re.MULTILINE)
    heap = envoy("max_heap_size_bytes")
    assert envoy("max_active_downstream_connections") * full_request() < heap < (int(memory) - 100) * MEBIBYTE


def test_it_takes_hundreds_of_http2_connections_full_of_requests_until_no_request_is_accepted() -> None:
    """All connections together could send more than the heap has: its threshold is the bound."""
    (threshold,) = re.findall(r"stop_accepting_requests\n.*threshold: \{ value: ([\d.]+) \}", ENVOY)
    connection = envoy("max_concurrent_streams") * full_request()
    assert 300 * connection < float(threshold) * envoy("max_heap_size_bytes")
    assert envoy("initial_stream_window_size") == envoy("initial_connection_window_size") == envoy("max_request_bytes")


def test_an_edge_that_hangs_is_started_again() -> None:
    (check,) = [body for _, body in blocks(EDGE, "check")]
    assert [body for _, body in blocks(check, "check_restart")]
    ping = ENVOY.partition("- name: ping")[2].partition(LISTENER)[0]
    assert "ignore_global_conn_limit: true" in ping
    assert "bypass_overload_manager: true" in ping


def test_the_edge_is_killed_only_after_it_could_drain() -> None:
    (drain,) = re.findall(r'"secrets/admin.sock", "(\d+)"', EDGE)
    (kill_timeout,) = re.findall(r'\bkill_timeout\s*=\s*"(\d+)s"', EDGE)
    assert re.search(r'kill_signal\s*=\s*"SIGTERM"', EDGE)
    assert int(kill_timeout) >= int(drain) + 5


# --- what it records


def test_the_log_of_the_edge_has_neither_queries_nor_tokens() -> None:
    (fields,) = re.findall(r"json_format:\n +timestamp((?:.*\n)*?) +traceresponse:", ENVOY)
    assert "PATH(NQ:PATH)" in fields
    assert not re.search(r"authorization|cookie|%REQ\(:PATH\)", fields, re.IGNORECASE)


def test_the_edge_records_as_many_traces_a_second_as_a_gateway() -> None:
    limit = ENVOY.partition("stat_prefix: traces\n")[2]
    most, fill = re.findall(r"max_tokens: (\d+), tokens_per_fill: (\d+), fill_interval: 0.1s", limit)[0]
    assert float(most) == 10 * float(fill) == settings()["traces_per_second"]


@pytest.mark.parametrize("mark", ["x-edge-recorded", "x-beyond-traces"])
def test_a_caller_cannot_choose_what_is_recorded(mark: str) -> None:
    assert f"{{ remove: {mark} }}" in ENVOY
    assert "samplers.always_on" in ENVOY


def test_a_drain_leaves_the_listener_that_records() -> None:
    assert "inboundonly" in (ROOT / "nomad" / "edge" / "drained_envoy.py").read_text()
    assert ENVOY.partition(LISTENER)[2].lstrip().startswith("traffic_direction: INBOUND")


# --- what it is given


def test_nomad_logs_in_for_the_templates_of_the_edge_and_puts_the_token_into_no_environment() -> None:
    (identity,) = [body for _, body in blocks(EDGE, "identity")]
    assert re.search(r'^\s*name\s*=\s*"consul_default"', identity, re.MULTILINE)
    assert not re.search(r"^\s*(file|env)\s*=", identity, re.MULTILINE)
    assert [head for head in ("consul", "env") for _ in blocks(EDGE, head)] == []
    assert re.search(r'command = "/usr/bin/env"\n\s*args = \[\n\s*"-i",', EDGE)


def test_only_the_edge_gets_a_consul_token_for_templates() -> None:
    method = json.loads((ROOT / "consul" / "auth" / "nomad-templates.json").read_text())
    (rule,) = method["BindingRules"]
    assert (rule["BindType"], rule["BindName"]) == ("role", "edge")
    assert 'value.nomad_job_id == "edge"' in rule["Selector"]


@pytest.mark.parametrize("server", ["consul", "vault"])
def test_an_outage_of_a_server_never_fails_a_task_with_templates(server: str) -> None:
    agent = (ROOT / "nomad" / "agent.hcl").read_text()
    (retry,) = [body for _, body in blocks(agent, f"{server}_retry")]
    assert re.search(r"^\s*attempts\s*=\s*0\b", retry, re.MULTILINE)


def test_the_edge_finds_the_gateway_and_nothing_else() -> None:
    assert set(re.findall(r'\bservice "(\w+)', (ROOT / "nomad" / "edge" / "gateway.json").read_text())) == {"gateway"}
    found = [labels for labels, _ in blocks((ROOT / "consul" / "policies" / "edge.hcl").read_text(), r'(\w+) "(\w*)"')]
    assert found == [("service", "gateway"), ("node_prefix", "")]


def test_nobody_but_the_user_of_the_job_reaches_the_administration_of_envoy() -> None:
    assert re.findall(r"^admin: .*", ENVOY, re.MULTILINE) == [
        "admin: { address: { pipe: { path: secrets/admin.sock, mode: 384 } } } # 0600"
    ]


@pytest.mark.parametrize("header", ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "x-request-id"])
def test_the_edge_trusts_no_forwarded_header_of_a_caller(header: str) -> None:
    assert f"{{ remove: {header} }}" in ENVOY
    assert "use_remote_address: true" in ENVOY
    assert "xff_num_trusted_hops" not in ENVOY


# --- in the mesh


def test_a_gateway_must_have_its_certificate_and_the_edge_shows_its_own() -> None:
    upstream = ENVOY.partition("\n  clusters:")[2]
    gateways = upstream.partition("range $cluster, $limit")[2]
    assert 'exact: "spiffe://{{ env "NOMAD_META_trust_domain" }}/ns/default/dc/dc1/svc/gateway"' in gateways
    assert gateways.count("UpstreamTlsContext") == ENVOY.count("UpstreamTlsContext") == 1
    assert "tls_certificate_sds_secret_configs: [{{ $leaf }}]" in gateways
    assert 'validation_context_sds_secret_config: {{ printf $secret "roots" }}' in gateways


def test_certificates_are_read_where_nomad_writes_them() -> None:
    (folder,) = set(re.findall(r"path: (secrets/mesh)\b", ENVOY))
    assert f'destination = "{folder}/${{template.key}}.json"' in EDGE
    for name in ("leaf", "roots"):
        assert f'"name": "{name}"' in (ROOT / "nomad" / "edge" / f"{name}.json").read_text()
        assert f'printf $secret "{name}"' in ENVOY
        assert f"{name} = var.envoy_{name}" in EDGE


def test_callers_may_speak_http2_by_https_alone() -> None:
    assert "alpn_protocols: [h2, http/1.1]" in ENVOY
    assert re.search(r'\{\{- if eq \$name "https" \}\}\n\s*codec_type: AUTO', ENVOY)
