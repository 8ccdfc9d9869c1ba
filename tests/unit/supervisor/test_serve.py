"""The supervisor's parts; the whole of it is shown where it is run."""

import socket
from contextlib import closing
from pathlib import Path

import pytest

from edgeproxy.config import Listen, Provider, Settings
from edgeproxy.errors import OperatorError
from edgeproxy.supervisor.roles import Role
from edgeproxy.supervisor.serve import Serving, _Listeners, child_environment, listener_lines, serve
from tests.support.certificates import make_pair

ENVIRONMENT = {
    "PATH": "/bin",
    "A_SECRET": "a",
    "EDGEPROXY_STORES_POSTGRES": "postgresql://u:p@h/d",
    "EDGEPROXY_CONFIG": "edgeproxy.toml",
    "PGPASSWORD": "p",
    "DATABASE_URL": "postgresql://u:p@h/d",
    "NOTIFY_SOCKET": "/run/notify",
    "WATCHDOG_USEC": "1000000",
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    provider = Provider("a", base_url="https://a.example", secret_env="A_SECRET")
    return Settings(provider=(provider,), workers=2, listen=Listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"))


@pytest.mark.parametrize("role", list(Role))
def test_no_child_gets_our_settings_or_a_database_in_its_environment(settings: Settings, role: Role):
    environ = child_environment(settings, role)
    assert environ["PATH"] == "/bin"
    assert not environ.keys() & (ENVIRONMENT.keys() - {"PATH", "A_SECRET"})


def test_the_providers_secrets_are_for_gateways_alone(settings: Settings):
    having = {role for role in Role if "A_SECRET" in child_environment(settings, role)}
    assert having == {Role.GATEWAY}


def test_there_is_a_line_for_each_listener():
    lines = listener_lines(Serving(Settings(), "http://a", "http://w", "http://m"))
    assert [line.split() for line in lines] == [
        ["api", "http://a"],
        ["web", "http://w"],
        ["metrics", "http://m/metrics"],
    ]


def test_there_is_a_socket_for_each_worker_and_all_are_closed_at_the_end(settings: Settings):
    listeners = _Listeners(settings)
    assert len(listeners.api) == 2
    assert len(set(listeners.urls())) == 3
    listeners.close_api()
    listeners.close()
    assert [sock.fileno() for sock in (*listeners.api, listeners.web, listeners.metrics)] == [-1] * 4


def test_what_speaks_tls_is_shown_so_and_a_bad_certificate_is_known_before_anything_starts(tmp_path: Path):
    pair = make_pair(tmp_path)
    listen = Listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", **pair.settings())
    with closing(_Listeners(Settings(listen=listen))) as listeners:
        assert [url.partition(":")[0] for url in listeners.urls()] == ["https", "http", "http"]
    pair.key.write_bytes(b"nonsense")
    with pytest.raises(OperatorError, match="api_certificate"):
        _Listeners(Settings(listen=listen))


def test_a_busy_port_leaves_no_other_socket_open(settings: Settings):
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as free:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        api = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        with pytest.raises(OperatorError, match="EDGEPROXY_LISTEN_METRICS"):
            _Listeners(Settings(listen=Listen(api, "127.0.0.1:0", taken)))
        socket.create_server(("127.0.0.1", int(api.rpartition(":")[2]))).close()


async def test_a_data_directory_that_cannot_be_used_is_one_line(settings: Settings, tmp_path):
    (tmp_path / "file").write_text("")

    async def announce(_: Serving) -> None:
        pytest.fail("nothing serves")

    with pytest.raises(OperatorError, match="cannot use data_dir"):
        await serve(settings := Settings(data_dir=tmp_path / "file" / "data"), lambda: settings, announce)


async def test_a_profile_that_this_version_cannot_keep_is_refused_before_anything_is_made(tmp_path: Path):
    async def announce(_: Serving) -> None:
        pytest.fail("nothing serves")

    settings = Settings(data_dir=tmp_path / "data", profile="ominigate")
    with pytest.raises(OperatorError, match=r"set profile to opuslive or opusmax\. Missing: OI-1a"):
        await serve(settings, lambda: settings, announce)
    assert not settings.data_dir.exists()
