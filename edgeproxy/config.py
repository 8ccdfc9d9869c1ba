"""Every setting, documented for the operator; loaded whole and frozen.

One TOML file, overridden by environment variables (`EDGEPROXY_LISTEN_API` for `listen.api`). A field that nobody knows
is an error with a suggestion, so that a typing mistake never runs as a default. Nothing here opens a connection.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints
from urllib.parse import SplitResult, urlsplit

from edgeproxy.domain.features import Feature
from edgeproxy.errors import OperatorError

EMBEDDED = "embedded"
DIALECTS = ("openai", "anthropic", "gemini")
PROFILES = ("opusmax",)  # the one whose promises this version keeps
ENVIRONMENT_PREFIX = "EDGEPROXY_"

# Environment variables with our prefix that are no settings.
_CONFIG_VARIABLE = "EDGEPROXY_CONFIG"
_TEST_PREFIX = "EDGEPROXY_TEST_"

_MOST = 10**12  # of any bound: a terabyte, or thirty years in ms
# Visible ASCII, because it is put into a request; no query, and no secret before an @.
_BASE_URL = re.compile(r"https?://(?:(?![?#@])[!-~])+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

T = TypeVar("T")


def _setting(default: Any, doc: str) -> Any:
    """A field with its default and what an operator has to know of it."""
    return field(default=default, metadata={"doc": doc})


def _table(kind: type[Any], doc: str) -> Any:
    return field(default_factory=kind, metadata={"doc": doc})


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the three listeners are, as HOST:PORT."""

    api: str = _setting("127.0.0.1:8080", "Data plane: what clients call. Plain HTTP, so loopback only.")
    web: str = _setting("127.0.0.1:8081", "JSON API of the usage of a key. Plain HTTP, so loopback only.")
    metrics: str = _setting("127.0.0.1:9464", "Prometheus metrics: no key, no content, but keep it internal.")


@dataclass(frozen=True, slots=True)
class Stores:
    """The two stores. `embedded` starts a server of our own under the data directory."""

    redis: str = _setting(EMBEDDED, "`embedded`, or redis://, rediss:// or unix:// with what a request touches.")
    postgres: str = _setting(EMBEDDED, "`embedded`, or postgresql:// with what must last.")
    partitions: int = _setting(16, "Over how many partitions keys are spread, 1 to 64. Fixed at the first start.")
    redis_timeout_ms: int = _setting(
        1000, "How long a request waits for Redis before it is answered 503. A frozen Redis counts as away."
    )
    redis_waiting: int = _setting(
        10_000, "How many commands may wait for Redis in one worker; beyond, requests are answered 503."
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
    max_header_bytes: int = _setting(16 * 2**10, "Longest request line and longest single header; beyond, 400.")
    max_metered_bytes: int = _setting(
        16 * 2**20,
        "How much of one unary answer, or of one event of a stream, is held to read its usage; beyond, an estimate is"
        " charged.",
    )
    body_timeout_ms: int = _setting(60_000, "How long a request body may take to arrive; then 408.")
    keepalive_ms: int = _setting(75_000, "How long an idle client connection is kept.")
    drain_ms: int = _setting(30_000, "How long open streams may go on after a stop was asked for.")
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
class Provider:
    """One upstream: an address we call, the dialect it speaks, and our own secret there."""

    name: str = _setting("", "A name of your choice; models refer to it.")
    dialect: str = _setting("openai", "`openai` (OpenAI, DeepSeek, xAI and all compatible), `anthropic` or `gemini`.")
    base_url: str = _setting(
        "", "Address as the dialect's own SDK takes it, such as https://api.openai.com; plain http on loopback only."
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
    on_hang_up: str = _setting(
        "drain",
        "When a client hangs up: `drain` reads the answer to its end for an exact count, `close` stops it and charges"
        " an estimate.",
    )
    drain_ms: int = _setting(30_000, "How long an answer is read on after its client hung up.")
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
    profile: str = _setting("opusmax", "Privacy profile: which promises hold. This version knows `opusmax`.")
    workers: int = _setting(1, "Gateway processes of `serve`, 1 to 64. About one per core.")
    key_prefix: str = _setting("ep-", "What issued keys begin with: letters, digits, - and _, at most 16.")
    listen: Listen = _table(Listen, "Listeners.")
    stores: Stores = _table(Stores, "Redis and PostgreSQL.")
    secrets: Secrets = _table(Secrets, "Our own secrets.")
    bounds: Bounds = _table(Bounds, "Bounds of the data plane.")
    jobs: Jobs = _table(Jobs, "Background work.")
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
            raise OperatorError(f"cannot read {_shown(str(path))}; check --config") from None
        except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number or a nesting beyond measure
            raise OperatorError(f"{_shown(str(path))} is not valid TOML: {error}") from None
    return from_tables(_with_environment(tables, environ))


def from_tables(tables: dict[str, Any]) -> Settings:
    """Return settings, checked as a whole, from tables as TOML or JSON has them. Raises OperatorError."""
    settings = _build(Settings, tables, "")
    check(settings)
    return settings


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


def provider_secret(provider: Provider, environ: Mapping[str, str]) -> str:
    """Return our secret at a provider, read from where the configuration says. Raises OperatorError."""
    if provider.secret_env:
        secret = environ.get(provider.secret_env, "")
        where = f"the environment variable {provider.secret_env}"
    else:
        where = _shown(provider.secret_file)
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
        _one_of(f"provider {provider.name!r}: unmetered", name, Feature)
        if name in allowed:
            raise OperatorError(f"provider {provider.name!r}: unmetered names {name} twice; keep one")
        if not re.fullmatch("[0-9]{1,12}", tokens):
            raise OperatorError(f"provider {provider.name!r}: unmetered = {row!r} is not NAME=TOKENS, as in batches=0")
        allowed[Feature(name)] = int(tokens)
    return allowed


def check(settings: Settings) -> None:
    """Refuse what contradicts itself or what nothing would enforce. Raises OperatorError, one line."""
    _one_of("profile", settings.profile, PROFILES)
    _between("workers", settings.workers, 1, 64)
    _between("stores.partitions", settings.stores.partitions, 1, 64)
    prefix = settings.key_prefix
    if not 1 <= len(prefix) <= 16 or not prefix.isascii() or not prefix.replace("-", "").replace("_", "").isalnum():
        raise OperatorError("key_prefix must be 1 to 16 letters, digits, - or _, for example ep-")
    for name in ("api", "web", "metrics"):
        host, _ = split_address(getattr(settings.listen, name), f"listen.{name}")
        if name != "metrics" and not is_loopback(host):
            raise OperatorError(f"listen.{name}: plain HTTP is served on loopback only; use 127.0.0.1 and a TLS proxy")
    for table, section in (("stores", settings.stores), ("bounds", settings.bounds), ("jobs", settings.jobs)):
        _positive(table, section)
    _check_stores(settings)
    _check_providers(settings.provider)
    _check_models(settings)


def _check_stores(settings: Settings) -> None:
    stores = settings.stores
    if stores.redis != EMBEDDED and not stores.redis.startswith(("redis://", "rediss://", "unix://")):
        raise OperatorError("stores.redis must be embedded, redis://, rediss:// or unix://")
    if stores.redis != EMBEDDED and _parts(stores.redis) is None:
        raise OperatorError("stores.redis is not a usable address; write redis://HOST:PORT or unix:///PATH")
    if stores.postgres != EMBEDDED and not stores.postgres.startswith("postgresql://"):
        raise OperatorError("stores.postgres must be embedded or postgresql://")


def _check_providers(providers: Iterable[Provider]) -> None:
    seen = set()
    for provider in providers:
        where = f"provider {provider.name!r}"
        if not provider.name or provider.name in seen:
            raise OperatorError(f"{where}: every provider needs a name of its own")
        seen.add(provider.name)
        _one_of(f"{where}: dialect", provider.dialect, DIALECTS)
        _one_of(f"{where}: on_hang_up", provider.on_hang_up, ("drain", "close"))
        url = _parts(provider.base_url)
        if url is None or not url.hostname or not _BASE_URL.fullmatch(provider.base_url):
            raise OperatorError(f"{where}: base_url must be an address such as https://api.example.com")
        if url.scheme == "http" and not is_loopback(url.hostname):
            raise OperatorError(f"{where}: base_url must be https; plain http is for loopback only")
        if bool(provider.secret_env) == bool(provider.secret_file):
            raise OperatorError(f"{where}: give either secret_env or secret_file")
        if provider.secret_env and not _VARIABLE.fullmatch(provider.secret_env):
            raise OperatorError(f"{where}: secret_env must be the name of an environment variable, not the secret")
        allowed_features(provider)
        _positive(where, provider)


def _check_models(settings: Settings) -> None:
    names = [provider.name for provider in settings.provider]
    for model in settings.model:
        if not model.match:
            raise OperatorError("a [[model]] has no match; give a pattern such as claude-*")
        _one_of(f"model {model.match!r}: provider", model.provider, names)
        for name in model.list:
            if not fnmatchcase(name, model.match):
                raise OperatorError(f"model {model.match!r}: list has {name!r}, which the pattern does not match")
        if model.max_output_tokens < 0:
            raise OperatorError(f"model {model.match!r}: max_output_tokens must not be negative")


def _parts(address: str) -> SplitResult | None:
    """Return the parts of an address, None when it has none, or its port is no port."""
    try:
        url = urlsplit(address)
        has_port_zero = url.port == 0  # reading the port checks it
    except ValueError:
        return None
    return None if has_port_zero else url


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in (known := list(known)):
        raise OperatorError(f"{name} = {value!r} is not known{_suggestion(value, known)}")


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OperatorError(f"{name} must be {low} to {high}")


def _positive(table: str, section: Any) -> None:
    for each in fields(section):
        value = getattr(section, each.name)
        if type(value) is int and not 0 < value <= _MOST:
            raise OperatorError(f"{table}.{each.name} must be greater than 0, and at most {_MOST}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if known else "; none is configured"


def _shown(name: str) -> str:
    """Return a name that somebody chose, fit for one line."""
    return name if name.isprintable() else ascii(name)


def _with_environment(tables: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the tables with every EDGEPROXY_ variable laid over them."""
    known = {variable: path for path, variable in environment_names()}
    for variable, text in environ.items():
        is_ours = variable.startswith(ENVIRONMENT_PREFIX) and variable != _CONFIG_VARIABLE
        if not is_ours or variable.startswith(_TEST_PREFIX):
            continue
        if variable not in known:
            raise OperatorError(f"environment variable {_shown(variable)} is no setting{_suggestion(variable, known)}")
        *tops, name = known[variable]
        table = tables
        for top in tops:
            table = table.setdefault(top, {})
            if not isinstance(table, dict):
                raise OperatorError(f"{top} must be a table")
        table[name] = _Text(text)
    return tables


def environment_names() -> Iterable[tuple[tuple[str, ...], str]]:
    """Yield the path of each setting that the environment can override, and the variable's name."""
    hints = get_type_hints(Settings)
    for top in fields(Settings):
        if is_dataclass(kind := hints[top.name]):
            paths: list[tuple[str, ...]] = [(top.name, inner.name) for inner in fields(kind)]
        elif get_args(kind):
            continue  # lists of providers and models: in the file only
        else:
            paths = [(top.name,)]
        for path in paths:
            yield path, ENVIRONMENT_PREFIX + "_".join(path).upper()


class _Text(str):
    """A value from the environment: always text, to be read as the type of its setting."""

    __slots__ = ()


def _build(kind: type[T], table: Any, where: str) -> T:
    """Return an instance of a settings dataclass from a TOML table. Raises OperatorError."""
    if not isinstance(table, dict):
        raise OperatorError(f"{where.rstrip('.')} must be a table")
    known: dict[str, Field[Any]] = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values = {}
    for name, value in table.items():
        if name not in known:
            raise OperatorError(f"unknown setting {where}{_shown(name)}{_suggestion(name, known)}")
        values[name] = _value(hints[name], value, f"{where}{name}")
    return kind(**values)


def _value(kind: Any, value: Any, name: str) -> Any:
    """Return `value` as the type of the setting `name`. Raises OperatorError."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _build(kind, value, f"{name}.")
    if get_args(kind):  # tuple[X, ...]
        if not isinstance(value, list):
            raise OperatorError(f"{name} must be a list")
        return tuple(_value(get_args(kind)[0], each, f"{name}[{i}]") for i, each in enumerate(value))
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if isinstance(value, _Text):
        return _from_text(kind, value, name)
    if type(value) is not kind:
        raise OperatorError(f"{name} must be {_TYPE_NAMES[kind]}")
    return value


def _from_text(kind: Any, value: str, name: str) -> Any:
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if kind is int and re.fullmatch("[0-9]{1,18}", value):
        return int(value)
    if kind is str:
        return str(value)
    raise OperatorError(f"{name} must be {_TYPE_NAMES[kind]}")


_TYPE_NAMES = {int: "a whole number", str: "a string", bool: "true or false", Path: "a path"}


def environment() -> Mapping[str, str]:
    """Return the process environment: the one place that a role reads it from."""
    return os.environ
