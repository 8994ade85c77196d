"""The fields of Consul's traffic rules that calls follow. A field outside of this list is reported, by name.

Config entries in files and the compiled discovery chain have the same fields for routes and splits; a resolver is
compiled into another form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Fields = Mapping[str, "Fields | None"]
"""Each name with the fields inside of it, None for a value; `*` is any key of a map. A list has those of its items."""

_ENTRY: Fields = {"Kind": None, "Name": None, "Meta": None}
_DESTINATION: Fields = {"Service": None, "ServiceSubset": None}
ROUTE: Fields = {
    "Match": {"HTTP": {"PathExact": None, "PathPrefix": None}},
    "Destination": {**_DESTINATION, "RequestTimeout": None, "NumRetries": None, "RetryOnConnectFailure": None},
}
SPLIT: Fields = {**_DESTINATION, "Weight": None}
ENTRIES: Mapping[str, Fields] = {
    "service-resolver": {
        **_ENTRY,
        "DefaultSubset": None,
        "Subsets": {"*": {"Filter": None, "OnlyPassing": None}},
        "Redirect": _DESTINATION,
        "Failover": {"*": {**_DESTINATION, "Targets": _DESTINATION}},
        "RequestTimeout": None,
    },
    "service-splitter": {**_ENTRY, "Splits": SPLIT},
    "service-router": {**_ENTRY, "Routes": ROUTE},
}
"""The fields of each kind of config entry with traffic rules."""

# There is one namespace and one partition, which Consul writes into entries.
_ONLY = {"Namespace": "default", "Partition": "default"}


def not_followed(value: Any, fields: Fields | None, where: str = "") -> Iterator[str]:
    """Yields each field with a value that is not among `fields`, as `Routes[0].Match.HTTP.Header`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            path = f"{where}.{key}" if where else str(key)
            if fields is None or not inner or _ONLY.get(key) == inner:
                continue
            if key in fields or "*" in fields:
                yield from not_followed(inner, fields[key] if key in fields else fields["*"], path)
            else:
                yield path
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from not_followed(inner, fields, f"{where}[{number}]")
