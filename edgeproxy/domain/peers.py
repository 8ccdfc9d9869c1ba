"""Whose word is taken for how a request came here: addresses of this machine, and of the proxies that are named.

A proxy that is trusted may speak plain HTTP to us, because it took https from its client; nobody else may. Pure: what
was said and by whom comes in, a decision goes out.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network


def parse_network(text: str) -> Network:
    """Return the network that is written `10.0.0.0/8`, or one address. Raises ValueError, whose text is a remedy."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("write an address or a network, such as 10.0.0.7 or 10.0.0.0/8") from None
    if not network.prefixlen:
        raise ValueError("it would trust everybody; name the addresses of your proxies")
    if "/" in text and network.network_address != ip_address(text.partition("/")[0]):
        raise ValueError(f"the network is written {network}")  # a slip of one digit can be half the internet
    return network


class Peers:
    """The proxies that are trusted."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted = tuple(parse_network(text) for text in trusted)

    def is_trusted(self, host: str) -> bool:
        """Whether the peer with this address is a proxy that is trusted."""
        address = _address(host)
        return address is not None and any(address in network for network in self._trusted)

    def may_speak_plain(self, host: str) -> bool:
        """Whether plain HTTP may be spoken with the peer with this address."""
        address = _address(host)
        return address is not None and (address.is_loopback or any(address in network for network in self._trusted))

    def came_plain(self, host: str, protocols: Iterable[str]) -> bool:
        """Whether a request crossed some network as plain HTTP: a trusted peer says so in `X-Forwarded-Proto`.

        `protocols` are the header's lines. Each proxy on the way adds its own word, and one that is not https is
        enough. A proxy that says nothing is taken to speak https only; what others say counts for nothing.
        """
        words = [word for line in protocols for word in line.split(",")]
        return any(word.strip().lower() != "https" for word in words) and self.is_trusted(host)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Return an address as networks hold it: one of IPv4 that came in over an IPv6 socket is one of IPv4."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address
