"""The sidecar of the edge: the authenticating proxy to Consul, and the error pages, in one process.

The job writes these three files into a folder and runs it: `python3 FOLDER SOCKET CONSUL_URL IDENTITY ADDRESS`.
"""

from __future__ import annotations

import signal
import sys
import threading

import consul_auth_proxy
import error_pages


def main() -> None:
    socket, consul, identity, address = sys.argv[1:]
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with error_pages.serving(address), consul_auth_proxy.serving(socket, consul, identity):
        stopping.wait()


if __name__ == "__main__":
    main()
