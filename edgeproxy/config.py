"""Every setting, documented for the operator; loaded whole and frozen.

One TOML file, overridden by environment variables (`EDGEPROXY_LISTEN_API` for `listen.api`). A field that nobody knows
is an error with a suggestion, so that a typing mistake never runs as a default. Nothing here opens a connection.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edgeproxy.addresses import is_loopback, split_address, url_parts
from edgeproxy.domain.features import Feature
from edgeproxy.domain.limits import parse_limits
from edgeproxy.domain.peers import parse_network
from edgeproxy.domain.redis_addresses import check_redis
from edgeproxy.errors import OperatorError
from edgeproxy.policy.profiles import load_profile
from edgeproxy.tables import between, build, one_of, overlay, positive, shown, variables

EMBEDDED = "embedded"
DIALECTS = ("openai", "anthropic", "gemini")
ENVIRONMENT_PREFIX = "EDGEPROXY_"

# Environment variables with our prefix that are no settings.
_CONFIG_VARIABLE = "EDGEPROXY_CONFIG"
_TEST_PREFIX = "EDGEPROXY_TEST_"

_MAY_BE_NOTHING = ("drain_delay_ms",)
# Visible ASCII, because it is put into a request; no query, and no secret before an @.
_BASE_URL = re.compile(r"https?://(?:(?![?#@])[!-~])+")
# As browsers send it: lower case, without a path, and without the port that the scheme has anyway.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _setting(default: Any, doc: str) -> Any:
    """A field with its default and what an operator has to know of it."""
    return field(default=default, metadata={"doc": doc})


def _table(kind: type[Any], doc: str) -> Any:
    return field(default_factory=kind, metadata={"doc": doc})


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the three listeners are, as HOST:PORT."""

    api: str = _setting(
        "127.0.0.1:8080",
        "Data plane: what clients call. Other addresses than loopback need a certificate or `trusted_proxies`.",
    )
    web: str = _setting("127.0.0.1:8081", "JSON API of the usage of a key. What holds for `api` holds here.")
    metrics: str = _setting("127.0.0.1:9464", "Prometheus metrics: no key, no content, but keep it internal.")
    api_certificate: str = _setting("", "PEM file with the certificate of `api` and its chain. Empty: plain HTTP.")
    api_private_key: str = _setting("", "PEM file with its key, which nobody else on the machine may read.")
    web_certificate: str = _setting("", "PEM file with the certificate of `web` and its chain. Empty: plain HTTP.")
    web_private_key: str = _setting("", "PEM file with its key.")
    trusted_proxies: tuple[str, ...] = _setting(
        (),
        "Addresses or networks of proxies that speak TLS with clients and plain HTTP with us. Whoever can send from"
        " there is believed: name nothing wider than your proxies. Without certificates all others are turned away.",
    )
    cors_origins: tuple[str, ...] = _setting(
        (),
        "Web pages that may call `api` from a browser, as origins such as https://app.example. Empty: none. A key in a"
        " page is everybody's who opens the page.",
    )
    proxy_protocol: bool = _setting(
        False, "Every connection to `api` begins with a PROXY header (version 1 or 2), as HAProxy's send-proxy has it."
    )


@dataclass(frozen=True, slots=True)
class Stores:
    """The two stores. `embedded` starts a server of our own under the data directory."""

    redis: str = _setting(
        EMBEDDED,
        "`embedded`, or what a request touches: redis://, rediss:// or unix://, or some nodes of a Redis Cluster as in"
        " redis+cluster://HOST:PORT,HOST:PORT or rediss+cluster://.",
    )
    postgres: str = _setting(EMBEDDED, "`embedded`, or postgresql:// with what must last.")
    partitions: int = _setting(16, "Over how many partitions keys are spread, 1 to 64. Fixed at the first start.")
    redis_timeout_ms: int = _setting(
        1000, "How long a request waits for Redis before it is answered 503. A frozen Redis counts as away."
    )
    redis_waiting: int = _setting(
        10_000, "How many commands may wait for Redis in one worker; beyond, requests are answered 503."
    )
    lease_ms: int = _setting(
        30_000,
        "How long a request that nothing is heard of stays open: then its worker is taken for dead, and what had passed"
        " is charged. Workers tell of it three times as often. The same for all processes.",
    )
    key_cache: int = _setting(10_000, "How many key records a worker keeps; the one used longest ago leaves first.")


@dataclass(frozen=True, slots=True)
class Secrets:
    """Our own secrets. With embedded stores they are made at the first start, in `data_dir/secrets`."""

    pepper_file: str = _setting(
        "",
        "File with the 64 hex digits that key digests are computed with. Needed with named stores. Lose it, and no key"
        " works any more.",
    )
    previous_pepper_file: str = _setting("", "The pepper before a rotation: keys issued under it go on working.")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the gateway holds at most, and for how long it waits."""

    max_body_bytes: int = _setting(32 * 2**20, "Largest request body; a larger one gets 413.")
    max_buffered_bytes: int = _setting(
        512 * 2**20, "Request bodies that one worker holds at once, all together; beyond, 503."
    )
    max_header_bytes: int = _setting(32 * 2**10, "Request line and headers of a request together; beyond, 431.")
    max_headers: int = _setting(100, "Headers of a request; beyond, 431.")
    max_client_connections: int = _setting(
        10_000,
        "Client connections that one worker has open; beyond, a new one is answered 503 and closed. How many requests"
        " one key may have open is a setting of the key (`concurrency`); addresses are not counted.",
    )
    max_metered_bytes: int = _setting(
        16 * 2**20,
        "How much of one unary answer, or of one event of a stream, is held to read its usage; beyond, an estimate is"
        " charged.",
    )
    max_drained: int = _setting(
        50,
        "Answers that one worker reads on at once for clients that hung up; what is beyond is stopped and charged an"
        " estimate. A reload begins a new count.",
    )
    head_timeout_ms: int = _setting(
        10_000, "How long the headers of a request may take, from their first byte to their last; then 408."
    )
    body_timeout_ms: int = _setting(
        300_000, "How long a request body may take to arrive, without the time that a provider takes for it; then 408."
    )
    body_silence_ms: int = _setting(30_000, "How long nothing may come in the middle of a request body; then 408.")
    min_bytes_per_s: int = _setting(
        1000,
        "The slowest client: how many bytes of a request body have to come each second after the first 10; and how many"
        " of a waiting answer have to be taken, on average over `client_slow_ms`.",
    )
    client_slow_ms: int = _setting(
        30_000, "How long a client may be too slow in taking an answer that waits for it; then it is disconnected."
    )
    handshake_timeout_ms: int = _setting(
        10_000, "How long a TLS handshake, or a PROXY header, may take; then the connection is closed."
    )
    keepalive_ms: int = _setting(75_000, "How long an idle client connection is kept.")
    drain_ms: int = _setting(30_000, "How long open streams may go on after a stop was asked for.")
    drain_delay_ms: int = _setting(
        0,
        "How long after a stop was asked for new requests are still taken, while /readyz says 503: a little longer than"
        " a load balancer needs to notice. 0 without one.",
    )
    reserve_output_tokens: int = _setting(
        4096, "Output tokens reserved for a request at most; what an answer uses beyond is charged when it is known."
    )


@dataclass(frozen=True, slots=True)
class Jobs:
    """What happens behind the scenes."""

    flush_interval_ms: int = _setting(500, "How often waiting usage events are looked for.")
    flush_after_ms: int = _setting(2000, "How old a usage event is when it is written to PostgreSQL.")
    flush_batch: int = _setting(1000, "Usage events written in one transaction at most.")


@dataclass(frozen=True, slots=True)
class Logs:
    """What is told on standard error, beside what goes wrong."""

    access: bool = _setting(
        False,
        "A line for each finished or refused request of a known key: its id, the key's id, dialect, operation, model,"
        " status, tokens, ms. Never content, a path, a header or an address. What reads standard error has to keep up.",
    )


@dataclass(frozen=True, slots=True)
class Provider:
    """One upstream: an address we call, the dialect it speaks, and our own secret there."""

    name: str = _setting("", "A name of your choice; models refer to it.")
    dialect: str = _setting("openai", "`openai` (OpenAI, DeepSeek, xAI and all compatible), `anthropic` or `gemini`.")
    base_url: str = _setting(
        "", "Address as the dialect's own SDK takes it, such as https://api.openai.com; plain http on loopback only."
    )
    ca_file: str = _setting(
        "", "PEM file with the authorities to trust there in place of the system's: for servers of your own."
    )
    secret_env: str = _setting("", "Environment variable that holds our secret there.")
    secret_file: str = _setting("", "File that holds our secret there.")
    include_usage: bool = _setting(
        True, "Ask for usage in streams that do not ask themselves (`openai`). Turn off for a server that refuses it."
    )
    unmetered: tuple[str, ...] = _setting(
        (),
        "What hides its bill and is allowed here all the same: `batches`, `files`, `background` or `stored_context`,"
        " each with the input tokens that a request is taken to use, such as `batches=50000`. What is kept at the"
        " provider (files, batches, conversations) is then open to every key of this gateway.",
    )
    limits: tuple[str, ...] = _setting(
        (),
        "What your own account there may use over all keys, such as `tokens=2000000/1m`. Reserved after the key's own"
        " limits; where it does not fit, the request gets 503 and nothing is charged to the key.",
    )
    on_hang_up: str = _setting(
        "drain",
        "When a client hangs up: `drain` reads the answer to its end for an exact count, `close` stops it and charges"
        " an estimate.",
    )
    drain_ms: int = _setting(30_000, "How long an answer is read on after its client hung up.")
    drain_bytes: int = _setting(
        2 * 2**20,
        "How much of an answer is read on after its client hung up; then it is stopped and charged an estimate.",
    )
    connect_timeout_ms: int = _setting(5_000, "How long connecting may take.")
    first_byte_timeout_ms: int = _setting(300_000, "How long the first byte of an answer may take.")
    silence_timeout_ms: int = _setting(120_000, "How long nothing may come in the middle of an answer.")
    total_timeout_ms: int = _setting(1_800_000, "How long one request may take altogether.")
    idle_ms: int = _setting(20_000, "How long an idle connection is kept; less than the provider keeps it.")
    max_connections: int = _setting(1000, "Connections of one worker to this provider; beyond, requests get 503.")


@dataclass(frozen=True, slots=True)
class Model:
    """Which provider serves which models. The first row that matches and speaks the path's dialect wins."""

    match: str = _setting("", "Shell-style pattern of model names, such as claude-*.")
    provider: str = _setting("", "Name of the provider.")
    list: tuple[str, ...] = _setting((), "Names to show to clients that ask which models there are.")
    upstream_model: str = _setting("", "The name to send to the provider instead of the requested one.")
    max_output_tokens: int = _setting(0, "The most that the model can answer; bounds the reservation. 0 if unknown.")


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration."""

    data_dir: Path = _setting(Path("./data"), "Where embedded stores, their secrets and their lock lie.")
    profile: str = _setting(
        "opusmax",
        "Privacy profile, which says what is kept and for how long: a name, or a file such as `./my-profile.toml`. This"
        " version serves `opuslive` and `opusmax`; `edgeproxy policy claims` tells of all.",
    )
    workers: int = _setting(1, "Gateway processes of `serve`, 1 to 64. About one per core.")
    key_prefix: str = _setting("ep-", "What issued keys begin with: letters, digits, - and _, at most 16.")
    listen: Listen = _table(Listen, "Listeners.")
    stores: Stores = _table(Stores, "Redis and PostgreSQL.")
    secrets: Secrets = _table(Secrets, "Our own secrets.")
    bounds: Bounds = _table(Bounds, "Bounds of the data plane.")
    jobs: Jobs = _table(Jobs, "Background work.")
    logs: Logs = _table(Logs, "Logs.")
    provider: tuple[Provider, ...] = _setting((), "Providers.")
    model: tuple[Model, ...] = _setting((), "Models.")


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Return the settings of the file (none: defaults) with the environment's overrides, checked as a whole.

    Raises OperatorError, one line that names the field and the remedy.
    """
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise OperatorError(f"cannot read {shown(str(path))}; check --config") from None
        except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number or a nesting beyond measure
            raise OperatorError(f"{shown(str(path))} is not valid TOML: {error}") from None
    return from_tables(_with_environment(tables, environ))


def from_tables(tables: dict[str, Any]) -> Settings:
    """Return settings, checked as a whole, from tables as TOML or JSON has them. Raises OperatorError."""
    settings = build(Settings, tables, "")
    check(settings)
    return settings


def certificate_files(listen: Listen, name: str) -> tuple[str, str]:
    """Return the files of the certificate and the private key of `api` or `web`, both empty for plain HTTP."""
    return getattr(listen, f"{name}_certificate"), getattr(listen, f"{name}_private_key")


def provider_secret(provider: Provider, environ: Mapping[str, str]) -> str:
    """Return our secret at a provider, read from where the configuration says. Raises OperatorError."""
    if provider.secret_env:
        secret = environ.get(provider.secret_env, "")
        where = f"the environment variable {provider.secret_env}"
    else:
        where = shown(provider.secret_file)
        try:
            secret = Path(provider.secret_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            raise OperatorError(f"provider {provider.name!r}: cannot read secret_file {where}") from None
    if not secret or not secret.isascii() or not secret.isprintable():
        raise OperatorError(f"provider {provider.name!r}: no usable secret in {where}; set it")
    return secret


def allowed_features(provider: Provider) -> dict[Feature, int]:
    """Return what a provider's setting `unmetered` allows, with the tokens it is taken to use. Raises OperatorError."""
    allowed = {}
    for row in provider.unmetered:
        name, _, tokens = row.partition("=")
        one_of(f"provider {provider.name!r}: unmetered", name, Feature)
        if name in allowed:
            raise OperatorError(f"provider {provider.name!r}: unmetered names {name} twice; keep one")
        if not re.fullmatch("[0-9]{1,12}", tokens):
            raise OperatorError(f"provider {provider.name!r}: unmetered = {row!r} is not NAME=TOKENS, as in batches=0")
        allowed[Feature(name)] = int(tokens)
    return allowed


def check(settings: Settings) -> None:
    """Refuse what contradicts itself or what nothing would enforce. Raises OperatorError, one line."""
    load_profile(settings.profile)
    between("workers", settings.workers, 1, 64)
    between("stores.partitions", settings.stores.partitions, 1, 64)
    prefix = settings.key_prefix
    if not 1 <= len(prefix) <= 16 or not prefix.isascii() or not prefix.replace("-", "").replace("_", "").isalnum():
        raise OperatorError("key_prefix must be 1 to 16 letters, digits, - or _, for example ep-")
    _check_listen(settings.listen)
    for table, section in (("stores", settings.stores), ("bounds", settings.bounds), ("jobs", settings.jobs)):
        positive(table, section, may_be_zero=_MAY_BE_NOTHING)
    _check_stores(settings)
    _check_providers(settings.provider)
    _check_models(settings)


def _check_listen(listen: Listen) -> None:
    split_address(listen.metrics, "listen.metrics")
    for name in ("api", "web"):
        host, _ = split_address(getattr(listen, name), f"listen.{name}")
        certificate, key = certificate_files(listen, name)
        if bool(certificate) != bool(key):
            raise OperatorError(f"listen.{name}_certificate and listen.{name}_private_key belong together: give both")
        if not (certificate or listen.trusted_proxies or is_loopback(host)):
            raise OperatorError(
                f"listen.{name}: plain HTTP is served on loopback only; use 127.0.0.1, give listen.{name}_certificate,"
                " or name the TLS proxy before it in listen.trusted_proxies"
            )
    for origin in listen.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            raise OperatorError(f"listen.cors_origins = {origin!r} is no origin; write it as in https://app.example")
    for network in listen.trusted_proxies:
        try:
            parse_network(network)
        except ValueError as error:
            raise OperatorError(f"listen.trusted_proxies = {network!r}: {error}") from None
    if listen.proxy_protocol and listen.api_certificate:
        raise OperatorError(
            "listen.proxy_protocol needs a proxy that ends TLS itself: its header comes in clear, before any handshake;"
            " remove listen.api_certificate"
        )


def _check_stores(settings: Settings) -> None:
    stores = settings.stores
    if stores.redis != EMBEDDED:
        try:
            check_redis(stores.redis)
        except ValueError as error:
            raise OperatorError(f"stores.redis {error}") from None
    if stores.postgres != EMBEDDED and not stores.postgres.startswith("postgresql://"):
        raise OperatorError("stores.postgres must be embedded or postgresql://")


def _check_providers(providers: Iterable[Provider]) -> None:
    seen = set()
    for provider in providers:
        where = f"provider {provider.name!r}"
        if not provider.name or provider.name in seen:
            raise OperatorError(f"{where}: every provider needs a name of its own")
        seen.add(provider.name)
        one_of(f"{where}: dialect", provider.dialect, DIALECTS)
        one_of(f"{where}: on_hang_up", provider.on_hang_up, ("drain", "close"))
        url = url_parts(provider.base_url)
        if url is None or not url.hostname or not _BASE_URL.fullmatch(provider.base_url):
            raise OperatorError(f"{where}: base_url must be an address such as https://api.example.com")
        if url.scheme == "http" and not is_loopback(url.hostname):
            raise OperatorError(f"{where}: base_url must be https; plain http is for loopback only")
        if url.scheme == "http" and provider.ca_file:
            raise OperatorError(f"{where}: ca_file has no use with plain http; remove it, or use https")
        if bool(provider.secret_env) == bool(provider.secret_file):
            raise OperatorError(f"{where}: give either secret_env or secret_file")
        if provider.secret_env and not _VARIABLE.fullmatch(provider.secret_env):
            raise OperatorError(f"{where}: secret_env must be the name of an environment variable, not the secret")
        allowed_features(provider)
        positive(where, provider)
        try:
            parse_limits(provider.limits)
        except ValueError as error:
            raise OperatorError(f"{where}: {error}") from None


def _check_models(settings: Settings) -> None:
    names = [provider.name for provider in settings.provider]
    for model in settings.model:
        if not model.match:
            raise OperatorError("a [[model]] has no match; give a pattern such as claude-*")
        one_of(f"model {model.match!r}: provider", model.provider, names)
        for name in model.list:
            if not fnmatchcase(name, model.match):
                raise OperatorError(f"model {model.match!r}: list has {name!r}, which the pattern does not match")
        if model.max_output_tokens < 0:
            raise OperatorError(f"model {model.match!r}: max_output_tokens must not be negative")


def _with_environment(tables: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the tables with every EDGEPROXY_ variable laid over them."""
    ours = {
        name: text
        for name, text in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name != _CONFIG_VARIABLE and not name.startswith(_TEST_PREFIX)
    }
    return overlay(tables, ours, {variable: path for path, variable in environment_names()})


def environment_names() -> Iterable[tuple[tuple[str, ...], str]]:
    """Yield the path of each setting that the environment can override, and the variable's name."""
    return variables(Settings, ENVIRONMENT_PREFIX)


def environment() -> Mapping[str, str]:
    """Return the process environment: the one place that a role reads it from."""
    return os.environ
