"""Runs on the machine of the stack: sends bytes to a socket and prints the answer, for what no HTTP client would send.

Arguments: `tcp` or `udp`, the port on loopback, and the bytes in hexadecimal; the answer is hexadecimal as well.
"""

from __future__ import annotations

import socket
import sys

if __name__ == "__main__":
    kind, port, sent = sys.argv[1:]
    with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as connection:
        connection.settimeout(10)
        connection.connect(("127.0.0.1", int(port)))
        connection.sendall(bytes.fromhex(sent))
        received = [connection.recv(65536)]
        while kind == "tcp" and received[-1]:
            received.append(connection.recv(65536))
    print(b"".join(received).hex())
