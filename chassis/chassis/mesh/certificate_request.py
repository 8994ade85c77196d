"""Makes a private key and a certificate signing request (CSR) for a service of the mesh.

Both are made in a child process and come through its pipe, so the key is never on disk, and the library for it, which
takes 14 MiB, is not in the memory of the service.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

_SECONDS = 30.0
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from chassis.mesh.certificate_request import main; main()"


async def make(dns_name: str, uri: str) -> tuple[bytes, bytes]:
    """Returns a new P-256 key (PKCS #8) and its CSR for a DNS name and a URI (RFC 5280, 4.2.1.6), both as PEM.

    Raises OSError if the child process fails.
    """
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, *sys.path]
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env={})
    try:
        async with asyncio.timeout(_SECONDS):
            made, problem = await child.communicate(json.dumps([dns_name, uri]).encode())
    except RuntimeError as error:  # uvloop: the child ended before it took its input
        raise OSError(f"no certificate request: {error}") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise OSError(f"no certificate request: {problem.decode(errors='replace').strip()[-300:]}")
    key, request = json.loads(made)
    return key.encode(), request.encode()


def build(dns_name: str, uri: str) -> tuple[str, str]:
    """Does in this process what `make` does in a child; returns text."""
    from cryptography import x509  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName(dns_name), x509.UniformResourceIdentifier(uri)])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    key_text = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    return key_text.decode(), request.sign(key, hashes.SHA256()).public_bytes(encoding).decode()


def main() -> None:
    """Reads the names from standard input and writes key and CSR to standard output."""
    os.nice(5)  # others wait for the processor of the service, nobody for a renewal
    dns_name, uri = json.load(sys.stdin)
    json.dump(build(dns_name, uri), sys.stdout)
