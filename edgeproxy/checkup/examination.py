"""The whole examination: one table of checks, and the facts that they judge.

Facts are gathered first, all at once; each source of them bounds its own time. Where a store does not answer, the one
check of it says so, and the checks that would need its facts find nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeproxy.checkup import configuration, host, installation, postgres, redis, secret_files
from edgeproxy.checkup.certificates import certificates
from edgeproxy.checkup.findings import Finding, ok
from edgeproxy.checkup.postgres import PostgresFacts, read_postgres
from edgeproxy.checkup.providers import probe
from edgeproxy.checkup.redis import RedisFacts, read_servers
from edgeproxy.config import EMBEDDED, Settings

_LEAST_TIMEOUT_MS = 2000  # a person waits longer than a request does: a slow store is to be told from one that is away


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined. `settings` have the addresses of stores that run; what is still EMBEDDED there does not run.

    `embedded` are the names of stores that are ours (redis, postgresql); `configuration` is the file, if there is one.
    """

    settings: Settings
    embedded: frozenset[str]
    environ: Mapping[str, str]
    configuration: Path | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the stores and providers said; a finding in place of a store's facts says why there are none.

    `redis` has every server of a cluster by its name, one that is no cluster by "".
    """

    redis: Mapping[str, RedisFacts | Finding]
    postgres: PostgresFacts | Finding | None
    providers: tuple[Finding, ...]


Check = Callable[[Subject, Facts], Iterable[Finding]]


async def examine(subject: Subject) -> list[tuple[str, Finding]]:
    """Return what was found, each with the name of its check, in the order of the table."""
    facts = await _gather(subject)
    return [(name, finding) for name, check in CHECKS.items() for finding in check(subject, facts)]


async def _gather(subject: Subject) -> Facts:
    stores = subject.settings.stores
    served = {model.provider for model in subject.settings.model}
    timeout_ms = max(stores.redis_timeout_ms, _LEAST_TIMEOUT_MS)

    async def of_redis() -> dict[str, RedisFacts | Finding]:
        if stores.redis == EMBEDDED:
            return {}
        return await read_servers(stores.redis, timeout_ms, is_embedded="redis" in subject.embedded)

    async def of_postgres() -> PostgresFacts | Finding | None:
        if stores.postgres == EMBEDDED:
            return None
        return await read_postgres(stores.postgres, is_embedded="postgresql" in subject.embedded)

    async def of_providers() -> list[Finding]:
        used = [provider for provider in subject.settings.provider if provider.name in served]
        return await asyncio.gather(*(probe(provider) for provider in used))

    found_redis, found_postgres, providers = await asyncio.gather(of_redis(), of_postgres(), of_providers())
    return Facts(found_redis, found_postgres, tuple(providers))


def _of_redis(check: Callable[[RedisFacts], Iterable[Finding]]) -> Check:
    def checked(_: Subject, facts: Facts) -> Iterator[Finding]:
        for name, of in facts.redis.items():
            if isinstance(of, RedisFacts):
                yield from _named(name, check(of))

    return checked


def _named(server: str, found: Iterable[Finding]) -> Iterable[Finding]:
    return [replace(each, found=f"{server}: {each.found}") for each in found] if server else found


def _of_postgres(check: Callable[[PostgresFacts], Iterable[Finding]]) -> Check:
    return lambda _, facts: check(facts.postgres) if isinstance(facts.postgres, PostgresFacts) else ()


def _redis_reachable(_: Subject, facts: Facts) -> Iterator[Finding]:
    for name, of in facts.redis.items():
        yield from _named(name, [of] if isinstance(of, Finding) else redis.reachable(of))


def _postgres_reachable(_: Subject, facts: Facts) -> Iterable[Finding]:
    if isinstance(facts.postgres, Finding):
        return [facts.postgres]
    return [ok("it answers")] if facts.postgres is not None else ()


def _clocks(_: Subject, facts: Facts) -> Iterator[Finding]:
    stores = {f"Redis {name}".strip(): of for name, of in facts.redis.items()} | {"PostgreSQL": facts.postgres}
    return host.clocks({name: of.clock for name, of in stores.items() if isinstance(of, RedisFacts | PostgresFacts)})


def _installation(subject: Subject, facts: Facts) -> Iterator[Finding]:
    fixed = {}
    told = [of.install for of in facts.redis.values() if isinstance(of, RedisFacts)]
    if told:
        fixed["Redis"] = installation.of_redis(next(filter(None, told), None))
    if isinstance(facts.postgres, PostgresFacts):
        fixed["PostgreSQL"] = facts.postgres.install
    return installation.fits(subject.settings, fixed)


CHECKS: Mapping[str, Check] = {
    "configuration": lambda subject, _: configuration.configured(subject.settings),
    "secret files": lambda subject, _: secret_files.modes(subject.settings, subject.configuration),
    "open files": lambda subject, _: host.open_files(subject.settings),
    "certificates": lambda subject, _: certificates(subject.settings.listen),
    "redis": _redis_reachable,
    "redis version": _of_redis(redis.version),
    "redis memory": _of_redis(redis.memory),
    "redis persistence": _of_redis(redis.persistence),
    "redis topology": _of_redis(redis.topology),
    "redis access": _of_redis(redis.access),
    "redis encryption": _of_redis(redis.encryption),
    "redis slow log": _of_redis(redis.slow_log),
    "postgresql": _postgres_reachable,
    "postgresql version": _of_postgres(postgres.version),
    "postgresql schema": _of_postgres(postgres.schema),
    "postgresql durability": _of_postgres(postgres.durability),
    "postgresql log": _of_postgres(postgres.parameter_log),
    "postgresql rights": _of_postgres(postgres.rights),
    "postgresql encryption": _of_postgres(postgres.encryption),
    "installation": _installation,
    "clocks": _clocks,
    "provider secrets": lambda subject, _: secret_files.provider_secrets(subject.settings, subject.environ),
    "providers": lambda _, facts: facts.providers,
}
