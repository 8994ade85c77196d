"""What the edge needs beside it, in one process: the door to Consul and the words of a refusal.

It is run as the folder that the job puts these three files into: `python3 FOLDER SOCKET CONSUL_URL IDENTITY ADDRESS`.
"""

from __future__ import annotations

import signal
import sys
import threading

import consul_auth_proxy
import error_pages


def main() -> None:
    socket, consul, identity, address = sys.argv[1:]
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    with error_pages.listening(address), consul_auth_proxy.opened(socket, consul, identity):
        ending.wait()


if __name__ == "__main__":
    main()
