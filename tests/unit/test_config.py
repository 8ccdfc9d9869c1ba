from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy import config
from edgeproxy.config import (
    Bounds,
    Jobs,
    Listen,
    Model,
    Provider,
    Settings,
    allowed_features,
    environment_names,
    from_tables,
    load,
    provider_secret,
)
from edgeproxy.domain.features import Feature
from edgeproxy.errors import OperatorError

SECRET = "sk-Zq7operator"
PROVIDER = {"name": "mock", "dialect": "openai", "base_url": "https://api.example.com", "secret_env": "MOCK_KEY"}
MODEL = {"match": "gpt-*", "provider": "mock"}


@pytest.fixture
def written(tmp_path):
    """Write a configuration and load it."""

    def run(text, environ=None):
        path = tmp_path / "edgeproxy.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, environ or {})

    return run


def refusal(function, *arguments):
    """The one line that the operator gets."""
    with pytest.raises(OperatorError) as caught:
        function(*arguments)
    line = str(caught.value)
    assert line.isprintable()  # no line break either
    assert SECRET not in line
    return line


def with_provider(**changes):
    return {"provider": [{name: value for name, value in {**PROVIDER, **changes}.items() if value is not None}]}


# --- what is right


def test_without_a_file_everything_has_its_default():
    settings = load(None, {})
    assert settings == Settings()
    assert settings.listen == Listen(api="127.0.0.1:8080", web="127.0.0.1:8081", metrics="127.0.0.1:9464")
    assert (settings.data_dir, settings.workers, settings.key_prefix) == (Path("data"), 1, "ep-")
    assert (settings.provider, settings.model) == ((), ())


def test_every_setting_is_documented():
    for kind in (
        Settings,
        *(hint for hint in get_type_hints(Settings).values() if is_dataclass(hint)),
        Provider,
        Model,
    ):
        for each in fields(kind):
            assert each.metadata["doc"].endswith("."), f"{kind.__name__}.{each.name}"


def test_a_file_sets_what_it_names(written):
    settings = written(
        """
        data_dir = "/var/lib/edgeproxy"
        workers = 4
        [listen]
        api = "[::1]:9000"
        metrics = "0.0.0.0:9464"
        [stores]
        redis = "unix:///run/redis.sock?db=1"
        postgres = "postgresql://user:password@one:5432,two:5433/name"
        [bounds]
        max_body_bytes = 1000
        [[provider]]
        name = "mock"
        dialect = "anthropic"
        base_url = "http://127.0.0.1:9100/base"
        secret_file = "secrets/mock"
        include_usage = false
        [[model]]
        match = "claude-*"
        provider = "mock"
        list = ["claude-a", "claude-b"]
        """
    )
    assert settings.data_dir == Path("/var/lib/edgeproxy")
    assert settings.workers == 4
    assert settings.listen == Listen(api="[::1]:9000", metrics="0.0.0.0:9464")
    assert settings.bounds == Bounds(max_body_bytes=1000)
    assert settings.jobs == Jobs()
    assert settings.provider == (
        Provider(
            name="mock",
            dialect="anthropic",
            base_url="http://127.0.0.1:9100/base",
            secret_file="secrets/mock",
            include_usage=False,
        ),
    )
    assert settings.model == (Model(match="claude-*", provider="mock", list=("claude-a", "claude-b")),)


@pytest.mark.parametrize(
    "tables",
    [
        {"workers": 64},
        {"stores": {"partitions": 1}},
        {"stores": {"partitions": 64}},
        {"key_prefix": "k"},
        {"key_prefix": "a_b-" * 4},
        {"bounds": {"max_body_bytes": 1}},
        {"bounds": {"max_body_bytes": 10**12}},
        {**with_provider(secret_env="_K9"), "model": [{**MODEL, "max_output_tokens": 0}]},
        {**with_provider(), "model": [{**MODEL, "list": ["gpt-", "gpt-4o", "gpt-x/y:z"]}]},
        {**with_provider(), "model": [{**MODEL, "match": "*", "list": ["any"]}]},
        with_provider(unmetered=[f"{feature}={10**12 - 1}" for feature in Feature]),
    ],
)
def test_the_edges_of_what_is_allowed_are_allowed(tables):
    from_tables(tables)


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        load(None, {}).workers = 2


# --- the file


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "line\nbreak.toml"):
        line = refusal(load, path, {})
        assert tmp_path.name in line
        assert "--config" in line


@pytest.mark.parametrize(
    "text",
    [
        "workers",
        "workers = ",
        "workers = 1 2",
        "[listen",
        "workers = 1\nworkers = 2",
        "[listen]\n[listen]",
        "data_dir = 'a\nb'",
        f"[[provider]]\nsecret_env = {SECRET}",
        b"\xff\xfe",
        "workers = " + "9" * 5000,
        "workers = " + "[" * 5000 + "]" * 5000,
        "\0",
    ],
)
def test_what_is_no_toml_is_refused_with_the_place(written, text):
    assert "edgeproxy.toml is not valid TOML" in refusal(written, text)


# --- names


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"worker": 2}, ["unknown setting worker;", "did you mean workers?"]),
        ({"listen": {"ap": "127.0.0.1:1"}}, ["unknown setting listen.ap;", "did you mean api?"]),
        ({"bounds": {"max_body_byte": 1}}, ["bounds.max_body_byte", "did you mean max_body_bytes?"]),
        ({"providers": []}, ["unknown setting providers;", "did you mean provider?"]),
        (with_provider(base_ur1="x"), ["provider[0].base_ur1", "did you mean base_url?"]),
        ({"model": [MODEL, {**MODEL, "mach": "x"}]}, ["model[1].mach", "did you mean match?"]),
        ({"jobs": {"zzz": 1}}, ["jobs.zzz", "known: flush_interval_ms, flush_after_ms, flush_batch"]),
        ({"a\nb": 1}, [r"unknown setting 'a\nb'"]),
        ({"": 1}, ["unknown setting ;"]),
    ],
)
def test_a_field_that_nobody_knows_is_refused_with_a_suggestion(tables, words):
    line = refusal(from_tables, tables)
    for word in words:
        assert word in line


# --- types


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"workers": "2"}, "workers must be a whole number"),
        ({"workers": 2.0}, "workers must be a whole number"),
        ({"workers": True}, "workers must be a whole number"),
        ({"workers": [1]}, "workers must be a whole number"),
        ({"data_dir": 1}, "data_dir must be a path"),
        ({"data_dir": ""}, "data_dir must be a path"),
        ({"profile": 1}, "profile must be a string"),
        ({"listen": "127.0.0.1:1"}, "listen must be a table"),
        ({"listen": []}, "listen must be a table"),
        ({"listen": {"api": 8080}}, "listen.api must be a string"),
        ({"stores": {"partitions": "16"}}, "stores.partitions must be a whole number"),
        ({"provider": PROVIDER}, "provider must be a list"),
        ({"provider": "mock"}, "provider must be a list"),
        ({"provider": [1]}, "provider[0] must be a table"),
        (with_provider(include_usage="yes"), "provider[0].include_usage must be true or false"),
        (with_provider(include_usage=1), "provider[0].include_usage must be true or false"),
        (with_provider(drain_ms="1"), "provider[0].drain_ms must be a whole number"),
        (with_provider(name=7), "provider[0].name must be a string"),
        ({"model": [{**MODEL, "list": "gpt-4o"}]}, "model[0].list must be a list"),
        ({"model": [{**MODEL, "list": ["a", 1]}]}, "model[0].list[1] must be a string"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(tables, line):
    assert refusal(from_tables, tables) == line


# --- values


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"profile": "opusmaks"}, ["profile = 'opusmaks'", "did you mean opusmax?"]),
        ({"profile": ""}, ["profile = ''", "known: opusgate, opuslive, opusmax"]),
        ({"profile": "./none.toml"}, ["cannot read profile none.toml", "check the setting profile"]),
        ({"workers": 0}, ["workers must be 1 to 64"]),
        ({"workers": 65}, ["workers must be 1 to 64"]),
        ({"workers": -1}, ["workers must be 1 to 64"]),
        ({"stores": {"partitions": 0}}, ["stores.partitions must be 1 to 64"]),
        ({"stores": {"partitions": 65}}, ["stores.partitions must be 1 to 64"]),
        *(
            ({"key_prefix": prefix}, ["key_prefix must be 1 to 16 letters"])
            for prefix in ("", "a" * 17, "é-", "a b", "--", "sk.", "a\n")
        ),
        ({"bounds": {"max_body_bytes": 0}}, ["bounds.max_body_bytes must be greater than 0"]),
        ({"bounds": {"drain_ms": -5}}, ["bounds.drain_ms must be greater than 0"]),
        ({"bounds": {"drain_delay_ms": -1}}, ["bounds.drain_delay_ms must be 0 or more"]),
        ({"jobs": {"flush_batch": 10**13}}, ["jobs.flush_batch", "at most 1000000000000"]),
        ({"stores": {"redis_timeout_ms": 0}}, ["stores.redis_timeout_ms must be greater than 0"]),
        ({"stores": {"redis": "http://localhost"}}, ["stores.redis must be embedded, redis://"]),
        ({"stores": {"redis": ""}}, ["stores.redis must be"]),
        ({"stores": {"redis": f"redis://:{SECRET}@host:port"}}, ["stores.redis is not a usable address"]),
        ({"stores": {"redis": "redis://[::1"}}, ["stores.redis is not a usable address"]),
        ({"stores": {"redis": f"redis+cluster://:{SECRET}@a:1,"}}, ["stores.redis names nodes of a cluster otherwise"]),
        ({"stores": {"postgres": f"mysql://u:{SECRET}@h"}}, ["stores.postgres must be embedded or postgresql://"]),
        (with_provider(dialect="opanai"), ["provider 'mock'", "dialect = 'opanai'", "did you mean openai?"]),
        (with_provider(on_hang_up="ignore"), ["provider 'mock'", "on_hang_up = 'ignore'", "drain, close"]),
        (with_provider(name=""), ["provider ''", "a name of its own"]),
        (with_provider(name="two\nlines", base_url=""), [r"provider 'two\nlines'"]),
        ({"provider": [PROVIDER, PROVIDER]}, ["provider 'mock'", "a name of its own"]),
        (with_provider(total_timeout_ms=0), ["provider 'mock'.total_timeout_ms must be greater than 0"]),
        (with_provider(max_connections=-1), ["max_connections must be greater than 0"]),
        (with_provider(secret_env=None), ["provider 'mock'", "either secret_env or secret_file"]),
        (with_provider(secret_file="x"), ["provider 'mock'", "either secret_env or secret_file"]),
        (
            with_provider(secret_env=SECRET),
            ["provider 'mock'", "secret_env must be the name of an environment variable"],
        ),
        ({"model": [{"provider": "mock"}]}, ["[[model]]", "match"]),
        ({"model": [MODEL]}, ["model 'gpt-*': provider = 'mock' is not known", "none is configured"]),
        ({**with_provider(), "model": [{**MODEL, "provider": "mok"}]}, ["model 'gpt-*'", "did you mean mock?"]),
        ({**with_provider(), "model": [{**MODEL, "max_output_tokens": -1}]}, ["model 'gpt-*'", "max_output_tokens"]),
        *(
            ({**with_provider(), "model": [{**MODEL, "list": ["gpt-4o", name]}]}, ["model 'gpt-*'", repr(name)])
            for name in ("claude-a", "GPT-4o", "", "gpt", " gpt-4o", "x\ngpt-4o")
        ),
        (with_provider(unmetered=["batches=0", "batches=5"]), ["unmetered names batches twice"]),
        (with_provider(unmetered=["batchs=0"]), ["provider 'mock': unmetered = 'batchs'", "did you mean batches?"]),
        *(
            (with_provider(unmetered=["files=0", row]), ["provider 'mock': unmetered", "is not known"])
            for row in ("", "=", "=0", "Batches=0", " batches=0", "batches\n=0", "batches,files=0")
        ),
        *(
            (with_provider(unmetered=[row]), ["provider 'mock'", repr(row), "is not NAME=TOKENS, as in batches=0"])
            for row in (
                *("batches", "batches=", "batches=-1", "batches=+1", "batches=1.5", "batches=0x1", "batches=1e3"),
                *(
                    "batches= 0",
                    "batches=0 ",
                    "batches=0\n",
                    "batches=1_000",
                    "batches=0=0",
                    "batches=٣",
                    "batches=free",
                ),
                f"batches={10**12}",
            )
        ),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(tables, words):
    line = refusal(from_tables, tables)
    for word in words:
        assert word in line


def test_what_hides_its_bill_is_allowed_by_name_with_what_it_is_taken_to_use():
    (provider,) = from_tables(with_provider(unmetered=["batches=50000", "files=0"])).provider
    assert allowed_features(provider) == {Feature.BATCHES: 50_000, Feature.FILES: 0}


def test_what_hides_its_bill_is_refused_unless_it_is_allowed():
    assert allowed_features(Provider()) == {}


def test_the_setting_names_everything_that_it_can_allow():
    (doc,) = (each.metadata["doc"] for each in fields(Provider) if each.name == "unmetered")
    assert all(f"`{feature}`" in doc for feature in Feature)


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.example.com", "ftp://api.example.com", "https://", "https:///v1", "https://:443", "//host"),
        *(
            "https://host?key=x",
            "https://host/#x",
            "https://host?",
            "https://[::1",
            "https://host:abc",
            "https://host:0",
        ),
        *("https://host:70000", "https://a b", "https://host/a b", "https://host/a\r\nx-evil: 1", "https://höst"),
        *(f"https://u:{SECRET}@host", f"https://:{SECRET}@host", f"https://{SECRET}@host", "https://host/\x7f"),
    ],
)
def test_an_address_that_cannot_be_called_is_refused(url):
    line = refusal(from_tables, with_provider(base_url=url))
    assert "provider 'mock': base_url must be an address such as https://" in line


@pytest.mark.parametrize(
    "host", ["api.example.com", "10.0.0.1", "0.0.0.0", "192.168.1.1", "127.0.0.1.example.com", "[fe80::1]"]
)
def test_plain_http_beyond_this_machine_is_refused(host):
    line = refusal(from_tables, with_provider(base_url=f"http://{host}:80"))
    assert "provider 'mock': base_url must be https" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.9.10", "[::1]"])
def test_plain_http_on_this_machine_is_fine(host):
    assert from_tables(with_provider(base_url=f"http://{host}:80/v1")).provider[0].base_url.endswith("/v1")


@pytest.mark.parametrize("name", ["api", "web"])
@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "example.com", "[::]", "localhost.example.com"])
def test_clients_are_served_on_this_machine_only(name, host):
    line = refusal(from_tables, {"listen": {name: f"{host}:8080"}})
    assert f"listen.{name}" in line
    assert "loopback" in line


@pytest.mark.parametrize("name", ["api", "web"])
def test_with_a_certificate_or_a_proxy_that_is_trusted_they_are_served_elsewhere(name):
    secure = {f"{name}_certificate": "a.pem", f"{name}_private_key": "a.key"}
    for more in (secure, {"trusted_proxies": ["10.0.0.0/8"]}):
        assert getattr(from_tables({"listen": {name: "0.0.0.0:8080", **more}}).listen, name) == "0.0.0.0:8080"


def test_the_certificate_of_one_listener_does_not_serve_for_the_other():
    table = {"web": "0.0.0.0:8081", "api_certificate": "a.pem", "api_private_key": "a.key"}
    assert "listen.web_certificate" in refusal(from_tables, {"listen": table})


@pytest.mark.parametrize("name", ["api", "web"])
@pytest.mark.parametrize("part", ["certificate", "private_key"])
def test_a_certificate_needs_its_key_and_a_key_its_certificate(name, part):
    assert "belong together" in refusal(from_tables, {"listen": {f"{name}_{part}": "a.pem"}})


@pytest.mark.parametrize("network", ["", "proxy.example.com", "10.0.0.7/8", "0.0.0.0/0", "10.0.0.0/33"])
def test_a_proxy_that_cannot_be_meant_is_refused_by_name(network):
    table = {"trusted_proxies": ["10.0.0.0/8", network]}
    assert refusal(from_tables, {"listen": table}).startswith(f"listen.trusted_proxies = {network!r}: ")


def test_a_proxy_header_cannot_come_before_a_handshake():
    table = {"proxy_protocol": True, "api_certificate": "a.pem", "api_private_key": "a.key"}
    assert "in clear, before any handshake" in refusal(from_tables, {"listen": table})
    from_tables({"listen": {"proxy_protocol": True, "web_certificate": "a.pem", "web_private_key": "a.key"}})


@pytest.mark.parametrize(
    "origin", ["https://app.example", "http://localhost:3000", "http://[::1]:80", "https://a-b.c_d.e"]
)
def test_an_origin_is_written_as_browsers_send_it(origin):
    assert from_tables({"listen": {"cors_origins": [origin]}}).listen.cors_origins == (origin,)


@pytest.mark.parametrize("scheme", ["", "ftp://", "https:", "HTTPS://"])
def test_an_origin_without_the_scheme_of_a_page_is_refused(scheme):
    assert "listen.cors_origins = " in refusal(from_tables, {"listen": {"cors_origins": [f"{scheme}app.example"]}})


@pytest.mark.parametrize(
    "rest", ["", "App.example", "*.example", "a/", "a/b", "a@b", "a b", "a:", "a,https://b", "a\n"]
)
def test_what_is_no_origin_is_refused(rest):
    for origin in (f"https://{rest}", "*", "null"):
        assert "listen.cors_origins = " in refusal(from_tables, {"listen": {"cors_origins": [origin]}})


def test_authorities_for_a_provider_in_clear_are_refused():
    provider = {**PROVIDER, "base_url": "http://127.0.0.1:9", "ca_file": "a.pem"}
    assert "ca_file" in refusal(from_tables, {"provider": [provider]})


def test_metrics_may_be_read_from_elsewhere():
    assert from_tables({"listen": {"metrics": "0.0.0.0:9464"}}).listen.metrics == "0.0.0.0:9464"


@pytest.mark.parametrize("name", ["api", "web", "metrics"])
def test_every_listener_needs_an_address(name):
    assert refusal(from_tables, {"listen": {name: "8080"}}).startswith(f"listen.{name} = '8080' is not HOST:PORT")


# --- the environment


def scalar_settings():
    """Every setting that the environment can override: where it lies, its variable, and its type."""
    for path, variable in environment_names():
        kind = Settings
        for name in path:
            kind = get_type_hints(kind)[name]
        yield pytest.param(path, variable, kind, id=variable)


GOOD = {
    "EDGEPROXY_PROFILE": "opusmax",
    "EDGEPROXY_KEY_PREFIX": "k_",
    "EDGEPROXY_LISTEN_API": "127.0.0.1:1",
    "EDGEPROXY_LISTEN_WEB": "[::1]:2",
    "EDGEPROXY_LISTEN_METRICS": "0.0.0.0:3",
    "EDGEPROXY_LISTEN_TRUSTED_PROXIES": "10.0.0.0/8,192.0.2.7",
    "EDGEPROXY_LISTEN_CORS_ORIGINS": "https://app.example,http://localhost:3000",
    "EDGEPROXY_LISTEN_PROXY_PROTOCOL": "true",
    "EDGEPROXY_STORES_REDIS": "redis://host:6379/0",
    "EDGEPROXY_STORES_POSTGRES": "postgresql://host/name",
    "EDGEPROXY_LOGS_ACCESS": "true",
}


# Settings that are given together or not at all.
PAIRS = [
    ("EDGEPROXY_LISTEN_API_CERTIFICATE", "EDGEPROXY_LISTEN_API_PRIVATE_KEY"),
    ("EDGEPROXY_LISTEN_WEB_CERTIFICATE", "EDGEPROXY_LISTEN_WEB_PRIVATE_KEY"),
]


@pytest.mark.parametrize(("path", "variable", "kind"), list(scalar_settings()))
def test_the_environment_overrides_a_setting_and_no_other(written, path, variable, kind):
    text = GOOD.get(variable, "7")
    others = {name: "8" for pair in PAIRS if variable in pair for name in pair}
    settings = written("workers = 3\n[bounds]\ndrain_ms = 99\n", {**others, variable: text})
    value = settings
    for name in path:
        value = getattr(value, name)
    assert value == (tuple(text.split(",")) if get_args(kind) else kind(text))
    assert type(value) is (get_origin(kind) or kind) or kind is Path
    if variable != "EDGEPROXY_WORKERS":
        assert settings.workers == 3
    if variable != "EDGEPROXY_BOUNDS_DRAIN_MS":
        assert settings.bounds.drain_ms == 99


@pytest.mark.parametrize(("path", "variable", "kind"), list(scalar_settings()))
def test_a_bad_value_in_the_environment_is_refused_by_the_setting(path, variable, kind):
    bad = {int: ["", "x", "1.5", "-1", "+1", " 1", "1 ", "1_0", "\u0661", "0x1", "true", "9" * 5000, "0"], Path: [""]}
    bad[tuple[str, ...]] = ["?!", "a\nb", ",", "10.0.0.0/8,"]
    checked = GOOD.keys()
    for text in bad.get(kind, ["", "?!", "a\nb"] if variable in checked else []):
        if text == "0" and path[-1] in config._MAY_BE_NOTHING:
            continue
        assert ".".join(path) in refusal(load, None, {variable: text})


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [
        ("EDGEPROXY_WORKER", "EDGEPROXY_WORKERS"),
        ("EDGEPROXY_LISTEN_APP", "EDGEPROXY_LISTEN_API"),
        ("EDGEPROXY_CONFIGURATION", "EDGEPROXY_"),
        ("EDGEPROXY_", ""),
        ("EDGEPROXY_PROVIDER", "EDGEPROXY_"),
        ("EDGEPROXY_workers", ""),
    ],
)
def test_a_variable_of_ours_that_is_no_setting_is_refused(variable, suggestion):
    line = refusal(load, None, {variable: SECRET})
    assert f"environment variable {variable} is no setting" in line
    assert suggestion in line


def test_other_variables_are_none_of_our_business():
    environ = {
        "PATH": "x",
        "OPENAI_API_KEY": "y",
        "EDGEPROXY_CONFIG": "z",
        "EDGEPROXY_TEST_REDIS": "w",
        "edgeproxy_x": "",
    }
    assert load(None, environ) == Settings()


@pytest.mark.parametrize("table", ["5", '"x"', "[]", "[1]", "true"])
def test_the_environment_over_something_that_is_no_table_is_refused(written, table):
    assert refusal(written, f"listen = {table}", {"EDGEPROXY_LISTEN_API": "127.0.0.1:1"}) == "listen must be a table"


def test_the_environment_is_checked_together_with_the_file(written):
    line = refusal(written, '[listen]\nweb = "127.0.0.1:1"', {"EDGEPROXY_LISTEN_API": "0.0.0.0:80"})
    assert line.startswith("listen.api: plain HTTP")


def test_a_role_reads_the_environment_of_its_process(monkeypatch):
    monkeypatch.setenv("EDGEPROXY_WORKERS", "5")
    assert load(None, config.environment()).workers == 5


# --- secrets of providers


def test_a_secret_comes_from_the_environment():
    provider = Provider(name="mock", secret_env="MOCK_KEY")
    assert provider_secret(provider, {"MOCK_KEY": SECRET}) == SECRET


def test_a_secret_comes_from_a_file(tmp_path):
    path = tmp_path / "secret"
    path.write_text(f"  {SECRET}\n")
    assert provider_secret(Provider(name="mock", secret_file=str(path)), {}) == SECRET


BAD_SECRETS = ["", " \n", f"{SECRET}\nand more", f"{SECRET}\r\nx-evil: 1", f"{SECRET}é", f"{SECRET}\0", f"{SECRET}\t7"]


@pytest.mark.parametrize("content", BAD_SECRETS)
def test_a_secret_that_cannot_stand_in_a_header_is_refused_and_not_shown(tmp_path, content):
    path = tmp_path / "secret"
    path.write_text(content, newline="")
    line = refusal(provider_secret, Provider(name="mock", secret_file=str(path)), {})
    assert "provider 'mock'" in line
    assert str(path) in line
    if content.strip():
        line = refusal(provider_secret, Provider(name="mock", secret_env="MOCK_KEY"), {"MOCK_KEY": content})
        assert "MOCK_KEY" in line


def test_a_secret_that_is_not_there_is_told_with_its_place(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + SECRET.encode())
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary", f"{tmp_path}/nul\0", f"{tmp_path}/line\nbreak"):
        line = refusal(provider_secret, Provider(name="mock", secret_file=str(path)), {})
        assert "provider 'mock': cannot read secret_file" in line
        assert tmp_path.name in line
    assert "MOCK_KEY" in refusal(provider_secret, Provider(name="mock", secret_env="MOCK_KEY"), {})


# --- anything


TABLES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [*(each.name for each in fields(Settings)), "api", "redis", "name", "base_url", "match", "x"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([each.name for each in fields(Settings)]), TABLES, max_size=4))
def test_any_tables_are_settings_or_are_refused_in_one_line(tables):
    try:
        settings = from_tables(tables)
    except OperatorError as error:
        line = str(error)
        settings = None
    else:
        line = ""
    assert line.isprintable()
    assert settings is None or from_tables(tables) == settings
