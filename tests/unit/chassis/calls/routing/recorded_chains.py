"""Discovery chains as a real Consul compiled them.

`tests/integration/chassis/traffic_rules/test_rule_files.py` compares them with what it compiles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("discovery_chains.json")
RECORDED: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
CHAINS: dict[str, dict[str, Any]] = {name: recorded["chain"] for name, recorded in RECORDED.items()}
SERVICE = "user-service"
V1, V2 = 'Service.Meta.version == "1"', '"version=2" in Service.Tags'
