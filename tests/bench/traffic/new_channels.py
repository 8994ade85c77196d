"""Opens many gRPC channels at the same moment, in a process of its own: `new_channels.py COUNT`.

The first line of standard input is a `Target` as JSON; the answer is a line once the process is ready. After the next
line it opens the channels, and prints a line with the number of connections once all are ready. They last until
standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc.aio

_SECONDS = 30.0
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True)
class Target:
    """A gRPC server. With a certificate it is called by mutual TLS and has to have the name, without one in plaintext.

    Certificates and key are PEM.
    """

    address: str
    server_name: str = ""
    roots: str = ""
    chain: str = ""
    key: str = field(default="", repr=False)

    def channel(self, *options: tuple[str, int | str]) -> grpc.aio.Channel:
        """Returns a new channel."""
        if not self.chain:
            return grpc.aio.insecure_channel(self.address, options=options)
        credentials = grpc.ssl_channel_credentials(self.roots.encode(), self.key.encode(), self.chain.encode())
        named = (*options, ("grpc.ssl_target_name_override", self.server_name))
        return grpc.aio.secure_channel(self.address, credentials, options=named)

    def as_json(self) -> str:
        """Returns a line for the process."""
        return json.dumps(asdict(self))


async def main(count: int) -> None:
    target = Target(**json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    sys.stdin.readline()
    before = _sockets()
    # Otherwise channels to the same address share one connection.
    channels = [target.channel(("grpc.use_local_subchannel_pool", 1)) for _ in range(count)]
    async with asyncio.timeout(_SECONDS):
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
    print(_sockets() - before, flush=True)
    sys.stdin.read()


def _sockets() -> int:
    """Returns how many sockets this process has."""
    links = (_link(path) for path in list(_DESCRIPTORS.iterdir()))
    return sum(link.startswith("socket:") for link in links)


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except FileNotFoundError:  # that of the folder itself
        return ""


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
