"""Whether providers can be reached: a connection and the TLS handshake, as the gateway makes them. Nothing is sent."""

import asyncio
import socket
import ssl
import time
from urllib.parse import urlsplit

from edgeproxy.checkup.findings import Finding, error, of_error, ok
from edgeproxy.config import Provider
from edgeproxy.errors import OperatorError
from edgeproxy.tls import for_provider

_LONGEST_S = 10.0  # however long the provider's own limit is


async def probe(provider: Provider) -> Finding:
    """Connect to a provider and close again, within its `connect_timeout_ms`."""
    url = urlsplit(provider.base_url)
    host, port = str(url.hostname), url.port or (443 if url.scheme == "https" else 80)
    where = f"{provider.name}: {host}:{port}"
    try:
        tls = for_provider(provider) if url.scheme == "https" else None
    except OperatorError as raised:
        return of_error(raised)
    limit_s = min(provider.connect_timeout_ms / 1000, _LONGEST_S)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(limit_s):
            _, writer = await asyncio.open_connection(host, port, ssl=tls)
    except TimeoutError:
        return error(f"{where}: no answer in {limit_s:g} s", "check the way out: firewall, routing, DNS")
    except OSError as raised:
        return _unreachable(where, raised)
    took_ms = round((time.perf_counter() - began) * 1000)
    session = writer.get_extra_info("ssl_object")
    writer.transport.abort()
    return ok(f"{where} over {session.version() if session else 'plain TCP'} in {took_ms} ms")


def _unreachable(where: str, raised: OSError) -> Finding:
    """Return what stopped us, in words of ours or of the certificate check, which quotes the address only."""
    if isinstance(raised, ssl.SSLCertVerificationError):
        remedy = "correct base_url, or name the authority in its ca_file"
        return error(f"{where}: its certificate is not accepted: {raised.verify_message}", remedy)
    if isinstance(raised, ssl.SSLError):
        return error(f"{where}: no TLS there", "check scheme and port of base_url")
    if isinstance(raised, socket.gaierror):
        return error(f"{where}: no such host", "check base_url, and this machine's DNS")
    if isinstance(raised, ConnectionRefusedError):
        return error(f"{where}: nothing listens there", "check base_url, and that it runs")
    return error(f"{where}: cannot be reached", "check the way out: firewall, routing, proxy")
