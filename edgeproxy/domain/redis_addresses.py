"""How a Redis is named: the address of one server, or of some nodes of a cluster, from which the others are found."""

from urllib.parse import SplitResult, urlsplit

_CLUSTER = "+cluster:"
_SCHEMES = ("redis://", "rediss://", "unix://", "redis+cluster://", "rediss+cluster://")


def check_redis(address: str) -> None:
    """Raise ValueError when this names no Redis. Its text follows the name of the setting, and holds no part of it."""
    if not address.startswith(_SCHEMES):
        raise ValueError(f"must be embedded, {', '.join(_SCHEMES)}")
    try:
        nodes = [_parts(each) for each in redis_addresses(address)]
    except ValueError:
        raise ValueError("is not a usable address; write redis://HOST:PORT or unix:///PATH") from None
    if is_cluster(address) and not all(node.hostname and not any(node[2:]) for node in nodes):
        raise ValueError("names nodes of a cluster otherwise than redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT")


def is_cluster(address: str) -> bool:
    """Whether this names nodes of a Redis Cluster."""
    return _CLUSTER in address.partition("//")[0]


def redis_addresses(address: str) -> list[str]:
    """Return what this stands for: an address for each node that a cluster's names, else itself."""
    if not is_cluster(address):
        return [address]
    scheme, _, rest = address.partition(f"{_CLUSTER}//")
    login, found, hosts = rest.rpartition("@")
    return [f"{scheme}://{login}{found}{host}" for host in hosts.split(",")]


def node_address(address: str, host: str, port: int) -> str:
    """Return the address of another node of the same cluster: the login is the same."""
    scheme, _, rest = address.partition("://")
    login, found, _ = rest.rpartition("@")
    return f"{scheme}://{login}{found}{f'[{host}]' if ':' in host else host}:{port}"


def _parts(address: str) -> SplitResult:
    url = urlsplit(address)
    if url.port == 0:  # reading the port checks it
        raise ValueError("no port")
    return url
