"""The sides that are held against each other: the upstream asked directly, through nginx, and through the gateway."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

from loadtests.bench.machine import BenchError, descendants, free_port, listens, loopback, pin, wait_until

ROOT = Path(__file__).parents[2]
# All of them wide enough for the bench: it measures what they cost, not what they refuse.
LIMITS = ("requests=1000000000/1m", "tokens=1000000000000/1h", "tokens=10000000000000/1d")

_NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/unused;
    uwsgi_temp_path {folder}/unused;
    scgi_temp_path {folder}/unused;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    {servers}
}}
"""
_PROXY = """
    upstream {name} {{ server {address}:{upstream}; keepalive 2048; keepalive_requests 1000000000; }}
    server {{ listen {address}:{port} {listen}; location / {{ proxy_pass {scheme}://{name}; {settings} }} }}
"""
# TLS 1.3 as the gateway speaks it: older versions of nginx do not offer it unasked.
_VERIFIED = """proxy_ssl_protocols TLSv1.3; proxy_ssl_name localhost; proxy_ssl_server_name on;
    proxy_ssl_verify on; proxy_ssl_trusted_certificate {};"""
_GATEWAY = """
data_dir = "{folder}/data"
workers = {workers}
[listen]
api = "{address}:{api}"
web = "{address}:{web}"
metrics = "{address}:{metrics}"
[[provider]]
name = "tls"
dialect = "openai"
base_url = "https://localhost:{tls}"
ca_file = "{certificate}"
secret_env = "BENCH_UPSTREAM_SECRET"
max_connections = 8000
[[provider]]
name = "plain"
dialect = "openai"
base_url = "http://{address}:{upstream}"
secret_env = "BENCH_UPSTREAM_SECRET"
max_connections = 8000
[[model]]
match = "bench-tls*"
provider = "tls"
[[model]]
match = "*"
provider = "plain"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything runs: the address, ports of the upstream without and with TLS, and the cores."""

    address: str
    upstream: int
    tls: int
    certificate: Path
    measured_cores: list[int]
    other_cores: list[int]


@dataclass(frozen=True, slots=True)
class Side:
    """Something to ask: `workers` are measured and alone on their core, `redis` and `others` run beside the load."""

    name: str
    port: int
    streams: int  # the port for streams
    tls: int  # the port for what goes to the upstream over TLS, 0 where there is none
    key: str = "none"
    workers: list[int] = field(default_factory=list)
    redis: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    usage_url: str = ""
    redis_socket: Path = Path()
    redis_password: str = ""

    def port_for(self, model: str) -> int:
        """Return the port that serves this kind of request."""
        if "-tls" in model:
            return self.tls
        return self.streams if "-c" in model else self.port

    def counted(self) -> dict[str, int]:
        """Return the gateway's own totals of the bench's key."""
        request = Request(self.usage_url, headers={"authorization": f"Bearer {self.key}"})  # noqa: S310 - loopback
        with urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
            return dict(json.load(answer)["totals"])


def direct(place: Place) -> Side:
    """Return the upstream itself."""
    return Side("direct", place.upstream, place.upstream, 0)


@contextmanager
def _folder() -> Iterator[Path]:
    """Have a folder; servers that root starts run as somebody else, who has to pass through."""
    path = Path(tempfile.mkdtemp(prefix="edgeproxy-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _nginx(servers: list[dict[str, object]]) -> Iterator[list[int]]:
    """Run nginx with these servers and give the process id of its worker."""
    with _folder() as folder:
        configuration = folder / "nginx.conf"
        files = os.sysconf("SC_OPEN_MAX")
        text = "".join(_PROXY.format(**server) for server in servers)
        configuration.write_text(_NGINX.format(folder=folder, files=files, servers=text), encoding="utf-8")
        command = [nginx_program(), "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
        with subprocess.Popen(command) as process:  # noqa: S603 - our own arguments
            try:
                for server in servers:
                    address, port = loopback(str(server["address"])), int(str(server["port"]))
                    wait_until(lambda address=address, port=port: listens(address, port), "that nginx listens")  # type: ignore[misc]  # the defaults bind the loop's values
                yield [pid for pid, command in descendants(process.pid).items() if "worker process" in command]
            finally:
                process.terminate()


def nginx_program() -> str:
    """Return nginx, or nothing where it is not installed; Debian keeps it where only root looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or ""


@contextmanager
def nginx(place: Place) -> Iterator[Side]:
    """Run nginx before the upstream: what a proxy costs that does nothing but pass on."""
    unary, streams, tls = (free_port(place.address) for _ in range(3))
    plain = {"address": place.address, "upstream": place.upstream, "scheme": "http", "listen": ""}
    over_tls = plain | {"upstream": place.tls, "scheme": "https"}
    verified = _VERIFIED.format(place.certificate)
    servers: list[dict[str, object]] = [
        plain | {"name": "unary", "port": unary, "settings": ""},
        plain | {"name": "streams", "port": streams, "settings": "proxy_buffering off;"},
        over_tls | {"name": "tls", "port": tls, "settings": "proxy_buffering off; " + verified},
    ]
    with _nginx(servers) as workers:
        pin(workers, place.measured_cores)
        yield Side("nginx", unary, streams, tls, workers=workers)


@contextmanager
def tls_end(address: str, upstream: int, certificate: Path, key: Path) -> Iterator[int]:
    """Have the upstream behind TLS while the block runs: another nginx, which is not measured. Gives its port."""
    port = free_port(address)
    listen = f"ssl; ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3"
    server: dict[str, object] = {"name": "plain", "address": address, "upstream": upstream, "scheme": "http"}
    with _nginx([server | {"port": port, "listen": listen, "settings": "proxy_buffering off;"}]):
        yield port


@contextmanager
def gateway(place: Place, workers: int = 1) -> Iterator[Side]:
    """Run the whole gateway as it is released, stores included, with a key that has limits."""
    with _folder() as folder:
        api, web, metrics = (free_port(place.address) for _ in range(3))
        values = {"folder": folder, "workers": workers, "api": api, "web": web, "metrics": metrics}
        values |= {name: getattr(place, name) for name in ("address", "upstream", "tls", "certificate")}
        configuration = folder / "edgeproxy.toml"
        configuration.write_text(_GATEWAY.format(**values), encoding="utf-8")
        with _serving(configuration) as process:
            found = descendants(process.pid)
            measured = [pid for pid, command in found.items() if " gateway " in command]
            redis = [pid for pid, command in found.items() if "redis-server" in command]
            others = [process.pid, *(pid for pid in found if pid not in {*measured, *redis})]
            if len(measured) != workers or len(redis) != 1:
                raise BenchError(f"the gateway has {len(measured)} workers and {len(redis)} Redis servers")
            pin(measured, place.measured_cores)
            usage = f"http://{place.address}:{web}/api/v1/usage"
            key = _create_key(configuration)
            path = Path(found[redis[0]].partition("unixsocket:")[2].strip())
            password = (folder / "data" / "secrets" / "redis_password").read_text(encoding="utf-8").strip()
            yield Side("gateway", api, api, api, key, measured, redis, others, usage, path, password)


@contextmanager
def _serving(configuration: Path) -> Iterator[subprocess.Popen[str]]:
    log = configuration.with_name("log")
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(  # noqa: S603 - our own program
            _command("serve", configuration), env=_environ(), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            if not any(line.startswith("ready") for line in process.stdout or ()):
                raise BenchError(f"the gateway did not start: {log.read_text(encoding='utf-8')[-2000:]}")
            yield process
        finally:
            process.terminate()
            process.wait(60)


def _create_key(configuration: Path) -> str:
    limits = (word for limit in LIMITS for word in ("--limit", limit))
    command = [*_command("keys", "create", configuration), "--name", "bench", *limits, "--json"]
    ran = subprocess.run(command, env=_environ(), capture_output=True, text=True, check=True)  # noqa: S603 - our own program
    return str(json.loads(ran.stdout)["key"])


def _command(*words: str | Path) -> list[str]:
    *command, configuration = words
    return [sys.executable, "-m", "edgeproxy", *map(str, command), "--config", str(configuration)]


def _environ() -> dict[str, str]:
    """Return the environment of the gateway: nothing of the operator's own configuration gets in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEPROXY_")}
    return kept | {"BENCH_UPSTREAM_SECRET": "sk-bench"}
