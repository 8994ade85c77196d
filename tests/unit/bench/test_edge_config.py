"""The configuration of the measured edge: one instance, no limit that is reached, and one feature off at a time."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from bench.parts.edge import FEATURES, EdgeConfig

Config = dict[str, Any]


@pytest.fixture
def found() -> Config:
    """As Envoy shows the configuration of a stack, with what the measurement changes."""
    bucket = {"max_tokens": 15, "tokens_per_fill": 3, "fill_interval": "0.1s"}
    limit = {"token_bucket": dict(bucket), "descriptors": [{"token_bucket": dict(bucket)}]}
    filters = [
        ("envoy.filters.http.local_ratelimit", {"stat_prefix": "caller", **copy.deepcopy(limit)}),
        ("envoy.filters.http.local_ratelimit", {"stat_prefix": "traces", **limit}),
        ("envoy.filters.http.buffer", {"max_request_bytes": 65536}),
        ("envoy.filters.http.router", {}),
    ]
    read = {"route": {"cluster": "calls", "retry_policy": {"num_retries": 4}}, "typed_per_filter_config": {"x": {}}}
    recorded = {"route": {"cluster": "recorded"}}
    manager = {
        "access_log": [{"name": "file"}],
        "http_filters": [{"name": name, "typed_config": config} for name, config in filters],
        "route_config": {"virtual_hosts": [{"retry_policy": {"num_retries": 4}, "routes": [recorded, read]}]},
    }
    inner = {"access_log": [{"name": "file"}], "tracing": {"provider": {}}}
    address = {"socket_address": {"address": "0.0.0.0", "port_value": 8080}}
    listeners = [
        {"name": "ping", "address": {}},
        {"name": "http", "address": address, "filter_chains": [{"filters": [{"typed_config": manager}]}]},
        {"name": "recorded", "internal_listener": {}, "filter_chains": [{"filters": [{"typed_config": inner}]}]},
    ]
    clusters = [{"name": "calls", "type": "EDS", "eds_cluster_config": {}}, {"name": "telemetry", "type": "STATIC"}]
    resources = {"listeners": listeners, "clusters": clusters}
    return {"node": {"extensions": []}, "admin": {}, "static_resources": resources}


def test_it_listens_on_its_own_port_in_front_of_one_instance(found: Config) -> None:
    config = EdgeConfig(found, 1111, 2222).config
    listener, recorded = config["static_resources"]["listeners"]
    assert recorded["name"] == "recorded"
    assert listener["address"] == {"socket_address": {"address": "127.0.0.1", "port_value": 1111}}
    calls, telemetry = config["static_resources"]["clusters"]
    assert calls["type"] == "STATIC"
    assert "2222" in json.dumps(calls["load_assignment"])
    assert telemetry == {"name": "telemetry", "type": "STATIC"}
    assert "admin" not in config


def test_no_request_of_the_measurement_is_over_a_limit_but_that_of_recorded_traces(found: Config) -> None:
    filters = EdgeConfig(found, 1, 2).manager["http_filters"]
    limits = {each["typed_config"]["stat_prefix"]: each for each in filters if "ratelimit" in each["name"]}
    assert '"max_tokens": 15' not in json.dumps(limits["caller"])
    assert '"max_tokens": 15' in json.dumps(limits["traces"])


WORDS = {
    "limits per client": '"caller"',
    "retries": "retry_policy",
    "buffered bodies": "http.buffer",
    "access log": "access_log",
    "traces": '"cluster": "recorded"',
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_off_and_the_others_are_on(found: Config, feature: str) -> None:
    made = EdgeConfig(found, 1, 2)
    FEATURES[feature](made)
    text = json.dumps(made.config)
    assert [each for each, word in WORDS.items() if word not in text] == [feature]
