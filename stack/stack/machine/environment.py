"""Separates settings in the user's shell by their purpose: a proxy is for downloads; all servers are on loopback.

The clients of the servers would read a proxy, a certificate file or an address of another cluster from the environment;
some fail on a value before they send anything. These variables get another name here, which subprocesses inherit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_ASIDE = "WAYPOST_DOWNLOAD_"
_OTHER_CLUSTERS = ("NOMAD_", "CONSUL_", "VAULT_", "BAO_")
_FOR_DOWNLOADS = (
    "ALL_PROXY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)


def isolate() -> None:
    """Removes other clusters from the environment of this process, and sets the variables for downloads aside.

    New files are readable for all, because services may run as another user; each secret is created with its own mode.
    """
    os.umask(0o022)
    for name in list(os.environ):
        if name.startswith(_OTHER_CLUSTERS):
            del os.environ[name]
        elif name.upper() in _FOR_DOWNLOADS:
            os.environ[_ASIDE + name] = os.environ.pop(name)


def for_downloads(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a program that downloads: with the user's own proxy and certificates."""
    return {name.removeprefix(_ASIDE): value for name, value in environment.items()}
