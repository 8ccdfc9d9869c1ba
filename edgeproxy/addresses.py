"""Addresses as settings have them: taken apart, and told apart. Nothing here opens a connection."""

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from edgeproxy.errors import OperatorError


def split_address(address: str, name: str = "address") -> tuple[str, int]:
    """Return host and port of `HOST:PORT` (IPv6 in brackets). Raises OperatorError naming the setting."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise OperatorError(f"{name} = {address!r} is not HOST:PORT, for example 127.0.0.1:8080")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether an address never leaves this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def url_parts(address: str) -> SplitResult | None:
    """Return the parts of an address, None when it has none, or its port is no port."""
    try:
        url = urlsplit(address)
        has_port_zero = url.port == 0  # reading the port checks it
    except ValueError:
        return None
    return None if has_port_zero else url
