"""The files that an operator begins with: checked by reading them, and by whatever engine the machine happens to have.

Rules that need no engine are in tests/packaging, one module for each kind of file; here they meet the real file, and a
bad example each. nginx, HAProxy, promtool and systemd-analyze are asked as well where they are installed.
"""

import asyncio
import copy
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio as redis_asyncio
import yaml
from redis.exceptions import NoPermissionError

from edgeproxy import config
from edgeproxy.__main__ import cli
from edgeproxy.commands.options import CONFIG_VARIABLE
from edgeproxy.config import Bounds, Provider, Stores
from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limits
from edgeproxy.domain.reservations import HeartbeatStatus, Outcome, ReserveStatus, SettleStatus
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.events import EventStreams
from edgeproxy.hotstate.publishing import Publishing
from edgeproxy.metrics import Metrics
from tests.packaging import compose, image, proxies, units, watching
from tests.packaging.proxy_runs import BINARIES, CHECK, COMMAND, free_port, proxy_running, upstream_running
from tests.support.certificates import make_pair
from tests.support.gateway import open_partitions

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"
COMMANDS = set(cli.commands)
VARIABLES = {variable for _, variable in config.environment_names()} | {CONFIG_VARIABLE}
STOP_S = (Bounds().drain_delay_ms + Bounds().drain_ms) / 1000 + 10  # and what it takes to settle and write down
TOOL_TIMEOUT_S = 60


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tool(name: str) -> str:
    """The path of a program; a test that needs one that is not there is skipped."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


# --- Dockerfile -----------------------------------------------------------------------------------------------------

DOCKERFILE, IGNORED = read("Dockerfile"), read(".dockerignore")


def test_the_image_is_built_as_it_should_be() -> None:
    assert not list(image.wrong(DOCKERFILE, IGNORED, ROOT))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FROM python:3.12-slim-bookworm", "FROM python:latest"),
        ("FROM python:3.12-slim-bookworm", "FROM python"),
        ("COPY config ./config", "COPY config/none ./config"),
        ("COPY config ./config", "COPY tests ./tests"),
        ("COPY config ./config", "ADD https://example.com/x ./config"),
        ("USER 10001", "USER edgeproxy"),
        ("USER 10001", "USER 0"),
        ("COPY --from=build /opt/edgeproxy /opt/edgeproxy", "COPY edgeproxy /opt/edgeproxy"),
        ("RUN useradd", "RUN pip install x && useradd"),
        ('ENTRYPOINT ["edgeproxy"]', "ENTRYPOINT edgeproxy"),
        ('CMD ["serve"]', 'CMD ["sh", "-c", "edgeproxy serve"]'),
        ('CMD ["python", "-I"', 'CMD curl localhost || ["python", "-I"'),
        ("STOPSIGNAL SIGTERM", ""),
    ],
)
def test_an_image_that_is_not_is_found(old: str, new: str) -> None:
    assert old in DOCKERFILE
    assert len(list(image.wrong(DOCKERFILE.replace(old, new), IGNORED, ROOT))) == 1


def test_the_image_says_its_version_and_takes_pinned_packages_only() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert f'image.version="{version}"' in DOCKERFILE
    assert "--constraint constraints.txt" in DOCKERFILE


def test_secrets_beside_the_examples_do_not_go_to_the_builder() -> None:
    for name in (
        "config/tls/own.pem",
        "config/own.key",
        "data/secrets/pepper",
        ".git/config",
        "edgeproxy/__pycache__/x",
    ):
        assert not image.is_sent(name, IGNORED), name


# --- compose.yaml ---------------------------------------------------------------------------------------------------

COMPOSE = read("config/compose.yaml")
STACK: dict[str, Any] = yaml.safe_load(COMPOSE)


def wrong_stack(document: dict[str, Any]) -> list[str]:
    return list(compose.wrong(document, CONFIG, VARIABLES, COMMANDS))


def test_the_stack_is_as_it_should_be() -> None:
    assert not wrong_stack(STACK)


@pytest.mark.parametrize(
    ("service", "changed"),
    [
        ("redis", {"read_only": False}),
        ("redis", {"cap_add": ["SYS_ADMIN"]}),
        ("redis", {"security_opt": []}),
        ("grafana", {"privileged": True}),
        ("gateway", {"network_mode": "host"}),
        ("nginx", {"user": "root"}),
        ("nginx", {"image": "nginx:latest"}),
        ("jobs", {"mem_limit": None}),
        ("jobs", {"ulimits": {"nofile": 65536}}),
        ("jobs", {"restart": None}),
        ("jobs", {"healthcheck": None}),
        ("redis", {"healthcheck": {"test": ["CMD-SHELL", "redis-cli ping"]}}),
        ("jobs", {"secrets": ["control.toml", "salt"]}),
        ("jobs", {"networks": ["hot", "internet"]}),
        ("nginx", {"volumes": ["./nginx/nginx.conf:/etc/nginx/nginx.conf"]}),
        ("nginx", {"volumes": ["./nginx/other.conf:/etc/nginx/nginx.conf:ro"]}),
        ("nginx", {"depends_on": {"gateway": {"condition": "service_started"}}}),
        ("gateway", {"environment": {"EDGEPROXY_LISTEN_APY": "0.0.0.0:8080"}}),
        ("postgres", {"environment": {"POSTGRES_PASSWORD": "x"}}),
        ("gateway", {"environment": {"EDGEPROXY_STORES_REDIS": "redis://gateway:x@redis"}}),
        ("console", {"command": ["proxy"]}),
        ("gateway", {"networks": ["front", "hot", "durable"]}),
        ("gateway", {"secrets": ["gateway.toml", "control.toml", "anthropic_api_key"]}),
        ("redis", {"ports": ["6379:6379"]}),
    ],
)
def test_a_stack_that_is_not_is_found(service: str, changed: dict[str, Any]) -> None:
    document = copy.deepcopy(STACK)
    document["services"][service].update(changed)
    for key in [key for key, value in changed.items() if value is None]:
        del document["services"][service][key]
    assert len(wrong_stack(document)) == 1


def test_every_container_of_ours_has_time_for_an_orderly_stop() -> None:
    for name in ("gateway", "console", "jobs", "nginx"):
        assert compose.seconds(STACK["services"][name]["stop_grace_period"]) >= STOP_S, name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the lines in the head of compose.yaml make, but for the owners."""
    tool("openssl")
    folder = tmp_path_factory.mktemp("stack")
    (folder / "config").mkdir()
    shutil.copytree(CONFIG / "redis", folder / "config" / "redis")
    lines = [line.removeprefix("# $ ") for line in COMPOSE.splitlines() if line.startswith("# $ ")]
    script = "\n".join(["set -eu", "chown() { :; }", *lines])
    run("sh", "-c", script, cwd=folder / "config", env={**os.environ, "ANTHROPIC_API_KEY": "sk-ant"})
    return folder / "data" / "compose"


def test_the_lines_in_its_head_make_every_secret_and_nothing_else(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == set(STACK["secrets"])
    for name, where in STACK["secrets"].items():
        assert where["file"] == f"${{SECRETS_DIR:-../data/compose}}/{name}"
        assert (made / name).stat().st_mode & 0o777 == 0o600
    owned = re.findall(r"chown (\d+) ([^;\n]+)", COMPOSE)
    assert {owner for owner, _ in owned} == {"10001", "999", "101", "472"}
    assert f"USER {owned[0][0]}" in DOCKERFILE


@pytest.mark.parametrize(("role", "name"), [("gateway", "gateway.toml"), ("console", "control.toml")])
def test_what_they_configure_is_accepted(made: Path, role: str, name: str) -> None:
    service = STACK["services"][role]
    environ = {key: value for key, value in service["environment"].items() if key != CONFIG_VARIABLE}
    assert service["environment"][CONFIG_VARIABLE] == f"/run/secrets/{name}"
    settings = config.load(made / name, environ)
    assert settings.listen.trusted_proxies == (STACK["services"]["nginx"]["networks"]["front"]["ipv4_address"],)
    assert Path(settings.secrets.pepper_file).name in service["secrets"]
    for provider in settings.provider:
        assert Path(provider.secret_file).name in service["secrets"]
    user, password = urlsplit(settings.stores.redis).username, urlsplit(settings.stores.redis).password
    digest = sha256(str(password).encode()).hexdigest()
    assert f"user {user} on #{digest} " in (made / "redis_users.conf").read_text()


def test_the_gateway_is_told_nothing_of_the_database(made: Path) -> None:
    password = (made / "database_password").read_text().strip()
    assert len(password) == 64
    assert password in (made / "control.toml").read_text()
    assert password not in (made / "gateway.toml").read_text()
    assert STACK["services"]["gateway"]["environment"]["EDGEPROXY_STORES_POSTGRES"].endswith(".invalid")


# --- Redis ----------------------------------------------------------------------------------------------------------


def test_redis_forgets_nothing_and_quotes_nothing() -> None:
    text = read("config/redis/redis.conf")
    for line in ("appendonly yes", "maxmemory-policy noeviction", "slowlog-log-slower-than -1", "crash-log-enabled no"):
        assert f"\n{line}\n" in text


@pytest.fixture
async def users(redis: redis_asyncio.Redis, redis_url: str) -> AsyncIterator[Callable[[str], str]]:
    """The users of config/redis/users.conf; gives the address with which each comes in."""
    password = "a" * 64
    rules = {
        line.split()[1]: line.split()[2:]
        for line in read("config/redis/users.conf").splitlines()
        if line.startswith("user ") and "default" not in line
    }
    is_old = int((await redis.info("server"))["redis_version"].split(".")[0]) < 7
    for name, words in rules.items():
        known = [f">{password}" if word.startswith("#") else word for word in words]
        known = [word.replace("%R~", "~") for word in known] if is_old else known
        await redis.execute_command("ACL", "SETUSER", name, "reset", *known)
    yield lambda name: re.sub(r"://[^@]*@", f"://{name}:{password}@", redis_url)
    await redis.execute_command("ACL", "DELUSER", *rules)


async def test_the_users_of_redis_may_do_what_their_role_does(
    users: Callable[[str], str], redis: redis_asyncio.Redis
) -> None:
    record = KeyRecord(KeyId("k"), 1, KeyStatus.ACTIVE, 3, parse_limits(["requests=5/1m"]), 2, None, ())
    stores = Stores(redis=users("gateway"), partitions=4)
    hot = HotState(stores, Metrics().redis_seconds)
    async with redis_asyncio.Redis.from_url(users("control")) as client:
        publishing, streams = Publishing(Caller(client)), EventStreams(Caller(client), 4)
        await publishing.install(4, "f")
        await publishing.publish(record, "d")
        await open_partitions(redis, 4)
        await hot.start()
        await hot.watch.until_open(10)
        try:
            assert await hot.lookup(["d"]) == ("d", record)
            scope, amounts = scripts.scope_of(record), Amounts(1, 10, 0)
            assert (await hot.reserve(3, "r", scope, amounts, b"{}")).status is ReserveStatus.ADMITTED
            arguments = scripts.settle_args(3, "r", [scope], Outcome.POST, amounts, b"e")
            assert await hot.heartbeat(3, [scripts.Beat("r", 10, 1)]) == [HeartbeatStatus.RENEWED]
            assert scripts.decode_settle(await hot.settle(3, arguments)[0]).status is SettleStatus.RESOLVED
            hot.count_refusal(3, record.id, 429)
            await redis.script_flush()  # where Redis has lost the scripts, a gateway sends them along
            assert (await hot.settle_again(3, arguments)).status is SettleStatus.DUPLICATE
        finally:
            await hot.close()
        (entry,) = await streams.read(3, await streams.now_ms() + 1000, 10)
        assert await streams.oldest_ms() is not None
        await streams.remove(3, [entry.id])
        await streams.remove_refusals(3, list(await streams.refusals(3)))
        assert await publishing.inspect(record) is not None
        await publishing.publish(replace(record, version=2), "d")
        await publishing.erase(record.id, 3, "d")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *(("gateway", command) for command in ("KEYS *", "SCAN 0", "CONFIG GET save", "FLUSHALL", "ACL LIST")),
        ("gateway", f"XRANGE {keyspace.events(1)} - +"),
        ("gateway", "SET other 1"),
        ("gateway", "DEL key:d"),
        *(("control", command) for command in ("KEYS *", "CONFIG SET save x", "FLUSHALL", "ACL LIST", "GET other")),
        *(("health", command) for command in ("GET key:d", "INFO", "CONFIG GET save")),
    ],
)
async def test_and_nothing_else(users: Callable[[str], str], name: str, command: str) -> None:
    async with redis_asyncio.Redis.from_url(users(name)) as client:
        assert await client.ping()
        with pytest.raises(NoPermissionError):
            await client.execute_command(*command.split())


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


async def test_the_settings_of_postgresql_are_known_and_its_log_quotes_nothing(postgres_url: str) -> None:
    lines = re.findall(r"^(\w+) = '?([^'#\n]*?)'?(?:\s*#.*)?$", read("config/postgres/postgresql.conf"), re.MULTILINE)
    given = dict(lines)
    connection = await asyncpg.connect(postgres_url)
    try:
        known = {row["name"].lower() for row in await connection.fetch("SELECT name FROM pg_settings")}
    finally:
        await connection.close()
    assert set(given) <= known | {"hba_file"}
    assert given["log_parameter_max_length"] == given["log_parameter_max_length_on_error"] == "0"
    assert given["log_min_error_statement"] == "panic"


def test_the_role_of_postgresql_has_no_power_and_its_password_is_written_nowhere() -> None:
    text = read("config/postgres/init.sql")
    for power in ("SUPERUSER", "CREATEDB", "CREATEROLE", "REPLICATION"):
        assert f"NO{power}" in text
    assert "`cat /run/secrets/database_password`" in text
    assert "REVOKE ALL ON DATABASE edgeproxy FROM PUBLIC" in text
    rules = [line.split() for line in read("config/postgres/pg_hba.conf").splitlines() if line[:1] not in ("", "#")]
    assert not [rule for rule in rules if rule[-1] in ("trust", "password", "md5") or "0.0.0.0/0" in rule]


# --- nginx and HAProxy ----------------------------------------------------------------------------------------------

NGINX, HAPROXY = read("config/nginx/nginx.conf"), read("config/haproxy/haproxy.cfg")


def test_the_proxies_keep_nothing_back_and_write_nothing_down() -> None:
    assert not list(proxies.nginx(NGINX))
    assert not list(proxies.haproxy(HAPROXY))


@pytest.mark.parametrize(
    ("check", "text", "old", "new"),
    [
        *(
            (proxies.nginx, NGINX, old, new)
            for old, new in (
                ("proxy_buffering off;", "# proxy_buffering off;"),
                ('proxy_set_header Connection "";', ""),
                ("X-Forwarded-For $remote_addr", "X-Forwarded-For $proxy_add_x_forwarded_for"),
                ('"$request_method"', '"$request_uri"'),
                ('"$request_method"', '"$http_authorization"'),
                ('"$request_method"', '"$remote_addr"'),
                ("proxy_next_upstream error;", "proxy_next_upstream error non_idempotent;"),
                ("listen 8443 ssl;", "listen 8443 ssl; listen 80;"),
            )
        ),
        *(
            (proxies.haproxy, HAPROXY, old, new)
            for old, new in (
                ("option http-no-delay", "# option http-no-delay"),
                ("X-Forwarded-For %[src]", "X-Forwarded-For %[req.fhdr(x)]"),
                ("mode http\n", "mode http\n    option httplog\n"),
                ('"%HM"', '"%HU"'),
                ('"%HM"', '"%ci"'),
                ("mode http\n", "mode http\n    option http-buffer-request\n"),
                ("GET /readyz", "GET /healthz"),
                ("bind :8443", "bind :80\n    bind :8443"),
            )
        ),
    ],
)
def test_a_proxy_that_does_is_found(check: Callable[[str], Any], text: str, old: str, new: str) -> None:
    assert old in text
    assert list(check(text.replace(old, new)))


def test_the_bounds_of_the_proxies_leave_the_answer_to_edgeproxy() -> None:
    bounds, provider = Bounds(), Provider()
    assert bounds.max_body_bytes < proxies.number(NGINX, "client_max_body_size ") < 2 * bounds.max_body_bytes
    assert bounds.max_header_bytes < proxies.number(NGINX, r"large_client_header_buffers \d+ ")
    assert bounds.max_header_bytes < proxies.number(HAPROXY, r"tune\.bufsize ")
    longest_s = max(provider.first_byte_timeout_ms, provider.silence_timeout_ms) / 1000
    assert longest_s < proxies.number(NGINX, "proxy_read_timeout ")
    assert longest_s < proxies.number(HAPROXY, "timeout server ")
    assert longest_s < proxies.number(HAPROXY, "timeout client ")
    assert bounds.keepalive_ms / 1000 > proxies.number(NGINX, r"\d+;\s+keepalive_timeout ")
    assert bounds.client_slow_ms / 1000 < proxies.number(NGINX, "send_timeout ")
    assert bounds.body_silence_ms / 1000 < proxies.number(NGINX, "client_body_timeout ")


@pytest.mark.parametrize(("name", "text"), [("nginx", NGINX), ("haproxy", HAPROXY)])
class TestWithTheProxyItself:
    @pytest.fixture(autouse=True)
    def _installed(self, name: str) -> None:
        if BINARIES[name] is None:
            pytest.skip(f"{name} is not installed")

    def test_it_takes_the_example(self, name: str, text: str, tmp_path: Path) -> None:
        run(*COMMAND[name](text, tmp_path, 8443, 8080, make_pair(tmp_path)), *CHECK[name])

    async def test_each_piece_passes_when_it_comes(self, name: str, text: str, tmp_path: Path) -> None:
        port, pair = free_port(), make_pair(tmp_path)
        async with upstream_running() as upstream, asyncio.timeout(TOOL_TIMEOUT_S):
            command = COMMAND[name](text, tmp_path, port, upstream.port, pair)
            async with proxy_running(name, command, tmp_path, port):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=pair.client_context(), server_hostname="localhost"
                )
                writer.write(
                    b"POST /v1beta/models/secret-model:x?key=secret-key HTTP/1.1\r\nhost: localhost\r\n"
                    b"authorization: Bearer secret-bearer\r\nx-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: http\r\n"
                    b"content-length: 21\r\n\r\nfirst half"
                )
                await upstream.arrived.wait()  # before the rest was sent
                writer.write(b"second half")
                answer = await reader.readuntil(b"data: one\n\n")  # before the rest was answered
                upstream.may_end.set()
                answer += await reader.readuntil(b"data: two\n\n")
                await reader.readuntil(b"0\r\n\r\n")
                writer.close()
        head = upstream.head.decode().lower()
        assert answer.startswith(b"HTTP/1.1 200")
        assert "?key=secret-key " in head
        assert re.findall(r"x-forwarded-for: (.*)\r", head) == ["127.0.0.1"]
        assert re.findall(r"x-forwarded-proto: (.*)\r", head) == ["https"]
        logged = "".join(path.read_text() for path in tmp_path.iterdir() if path.name in ("log", "errors"))
        assert '"id":"the-id"' in logged
        assert "secret" not in logged
        assert not [line for line in logged.splitlines() if line.startswith("{") and "127.0.0.1" in line]


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_proxy_protocol_is_shown_as_far_as_the_setting_goes(name: str) -> None:
    text = {"nginx": NGINX, "haproxy": HAPROXY}[name]
    for table, setting in re.findall(r"\b(listen|bounds|provider)\.([a-z_]+)\b", text):
        kind = {"listen": config.Listen, "bounds": Bounds, "provider": Provider}[table]
        assert setting in kind.__dataclass_fields__, f"{table}.{setting}"


# --- systemd --------------------------------------------------------------------------------------------------------

UNITS = {path.name: path.read_text(encoding="utf-8") for path in sorted((CONFIG / "systemd").glob("*.service"))}


@pytest.mark.parametrize(("name", "instance"), [("edgeproxy.service", "serve"), ("edgeproxy@.service", "gateway")])
class TestUnit:
    def test_it_is_as_it_should_be(self, name: str, instance: str) -> None:
        assert not list(units.wrong(UNITS[name].replace("%i", instance), STOP_S, COMMANDS))

    def test_systemd_takes_it(self, name: str, instance: str, tmp_path: Path) -> None:
        unit = tmp_path / name.replace("@", f"@{instance}")
        # The account and the program are those of another machine.
        text = UNITS[name].replace("User=edgeproxy\n", "").replace("/opt/edgeproxy/bin/edgeproxy", tool("true"))
        unit.write_text(text)
        result = run(tool("systemd-analyze"), "verify", "--man=no", unit)
        assert unit.name not in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Type=notify", "Type=simple"),
        ("LimitCORE=0", "LimitCore=0"),
        ("TimeoutStopSec=90", "TimeoutStopSec=20"),
        ("ProtectSystem=strict", "ProtectSystem=full"),
        ("edgeproxy serve", "edgeproxy run"),
        ("LimitNOFILE=65536", "LimitNOFILE=1024"),
    ],
)
def test_a_unit_that_is_not_is_found(old: str, new: str) -> None:
    text = UNITS["edgeproxy.service"]
    assert old in text
    assert list(units.wrong(text.replace(old, new), STOP_S, COMMANDS))


# --- Prometheus and Grafana -----------------------------------------------------------------------------------------

ALERTS = yaml.safe_load(read("config/prometheus/alerts.yaml"))
DASHBOARD = json.loads(read("config/grafana/edgeproxy.json"))


def test_every_alert_looks_at_what_there_is_and_has_a_remedy() -> None:
    assert not list(watching.wrong_rules(ALERTS))


def test_the_dashboard_draws_what_there_is_and_all_of_it() -> None:
    assert not list(watching.wrong_dashboard(DASHBOARD))
    known = watching.series()
    missing = {
        name
        for name in known
        if not name.endswith(("_sum", "_count")) and not watching.drawn(DASHBOARD) & {name, f"{name}_bucket"}
    }
    assert not missing, f"draw in config/grafana/edgeproxy.json: {', '.join(sorted(missing))}"


@pytest.mark.parametrize(
    "expression",
    [
        "rate(edgeproxy_requests[5m])",
        'edgeproxy_requests_total{state="200"}',
        "sum by (model) (edgeproxy_requests_total)",
        'edgeproxy_refusals_total{reason="rate_limited|no_such_code"}',
        "vector(1)",
    ],
)
def test_an_expression_that_looks_at_nothing_is_found(expression: str) -> None:
    assert len(list(watching.wrong_expression(expression, watching.series()))) == 1


def test_an_alert_without_a_remedy_and_a_panel_without_a_unit_are_found() -> None:
    rules = copy.deepcopy(ALERTS)
    del rules["groups"][0]["rules"][0]["annotations"]["remedy"]
    del rules["groups"][0]["rules"][1]["labels"]
    assert len(list(watching.wrong_rules(rules))) == 2
    dashboard = copy.deepcopy(DASHBOARD)
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    panels[0]["fieldConfig"]["defaults"]["unit"] = ""
    panels[1]["title"] = ""
    panels[2]["description"] = "see https://example.com"
    assert len(list(watching.wrong_dashboard(dashboard))) == 3


def test_prometheus_asks_every_role_and_the_alerts_know_its_jobs() -> None:
    scraped = yaml.safe_load(read("config/prometheus/prometheus.yaml"))
    jobs = {each["job_name"]: each for each in scraped["scrape_configs"]}
    port = config.split_address(STACK["services"]["gateway"]["environment"]["EDGEPROXY_LISTEN_METRICS"])[1]
    for role in ("gateway", "console", "jobs"):
        text = str(jobs[f"edgeproxy-{role}"])
        assert f"'{role}'" in text or f"'{role}:{port}'" in text
        assert str(port) in text
        assert "watch" in STACK["services"][role]["networks"]
    assert scraped["rule_files"] == ["alerts.yaml"]


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    mounted = dict(volume.split(":")[:2] for volume in STACK["services"]["grafana"]["volumes"])
    (source,) = yaml.safe_load(read("config/grafana/datasources.yaml"))["datasources"]
    assert urlsplit(source["url"]).hostname in STACK["services"]
    (provider,) = yaml.safe_load(read("config/grafana/dashboards.yaml"))["providers"]
    assert mounted["./grafana/edgeproxy.json"].startswith(f"{provider['options']['path']}/")


def test_promtool_takes_the_alerts_and_what_is_scraped_and_they_fire() -> None:
    promtool = tool("promtool")
    run(promtool, "check", "config", CONFIG / "prometheus" / "prometheus.yaml")
    run(promtool, "test", "rules", ROOT / "tests" / "packaging" / "alerts_test.yaml")


def test_promtool_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    promtool = tool("promtool")
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    rules = [
        {"record": f"r{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", path)
