"""What is kept, compared with what may be: a start that finds anything undeclared is refused, and says what it is.

It is meant to be cheap: one query, some looks at the names in Redis (all of them where there are few, else a sample),
one listing of the data directory. It reads names, never values, and changes nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from edgeproxy import logs
from edgeproxy.config import Settings
from edgeproxy.domain.inventory import Kind, undeclared
from edgeproxy.domain.redis_addresses import is_cluster
from edgeproxy.errors import OperatorError
from edgeproxy.hotstate.calling import Caller, open_client
from edgeproxy.hotstate.names import sample
from edgeproxy.metrics import Metrics
from edgeproxy.store.database import connect
from edgeproxy.store.installation import columns
from edgeproxy.tables import shown

Found = Mapping[Kind, Iterable[str]]

_LOOKS = 20  # at a thousand names of Redis each: about 10 ms
_ENTRIES = 1000  # of one folder
_NAMED = 5  # of each kind, in the line that refuses
_NAME_LENGTH = 60  # shown of a name: whoever wrote it may have put into it what is not ours to print

_ALWAYS_IN_LINES = ("event", "timestamp")
_OF_THE_FILE_SYSTEM = {"lost+found"}

_CALLED = {
    Kind.COLUMN: ("column", "drop it, or run the version of edgeproxy that made it"),
    Kind.REDIS: ("Redis key", "delete it, or give edgeproxy a Redis database of its own"),
    Kind.LOG_FIELD: ("log field", "declare it in domain/inventory.py"),
    Kind.METRIC_LABEL: ("metric label", "declare it in domain/inventory.py"),
    Kind.COOKIE: ("cookie", "declare it in domain/inventory.py"),
    Kind.FILE: ("file in data_dir", "move it to another folder"),
}


async def check_inventory(settings: Settings, cookies: Iterable[str]) -> None:
    """Refuse to go on where anything is kept that the inventory does not name.

    The settings name running stores with the current schema; `cookies` are those that pages may set. Raises
    OperatorError, StoreUnavailable.
    """
    refuse_undeclared(
        {
            Kind.COLUMN: await _columns(settings),
            Kind.REDIS: await _redis_names(settings),
            Kind.LOG_FIELD: (*logs.FIELDS, *_ALWAYS_IN_LINES),
            Kind.METRIC_LABEL: metric_labels(Metrics()),
            Kind.COOKIE: cookies,
            Kind.FILE: files(settings.data_dir, named_files(settings)),
        }
    )


def refuse_undeclared(found: Found) -> None:
    """Raise OperatorError, which names what of this is undeclared and what to do about each kind."""
    parts = []
    for kind, names in found.items():
        if unknown := undeclared(kind, names):
            called, remedy = _CALLED[kind]
            texts = [shown(name[:_NAME_LENGTH]) for name in unknown[:_NAMED]]
            more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
            parts.append(f"{called} {', '.join(texts)}{more} ({remedy})")
    if parts:
        raise OperatorError(f"something is kept that the inventory does not declare: {'; '.join(parts)}")


def metric_labels(metrics: Metrics) -> set[str]:
    """Return what tells series apart, of all metrics."""
    declared = (metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase))
    return {label for metric in declared for label in metric._labelnames}  # noqa: SLF001 - the library tells it nowhere else


def files(data_dir: Path, named: set[Path]) -> Iterator[str]:
    """Yield what lies in the data directory, two levels deep, but for files that the settings name.

    A path from there with slashes; a folder that is empty or closed to us ends in one. What lies deeper belongs to whom
    the folder belongs to.
    """
    for entry in _listed(data_dir):
        if entry.name in _OF_THE_FILE_SYSTEM:
            continue
        inside = _listed(entry) if entry.is_dir() else []
        if inside:
            yield from (f"{entry.name}/{each.name}" for each in inside if each.resolve() not in named)
        elif entry.resolve() not in named:
            yield f"{entry.name}/" if entry.is_dir() else entry.name


def named_files(settings: Settings) -> set[Path]:
    """Return the files that the settings name: they may lie in the data directory, and are the operator's own."""
    listen, secrets = settings.listen, settings.secrets
    texts = [listen.api_certificate, listen.api_private_key, listen.web_certificate, listen.web_private_key]
    texts += [secrets.pepper_file, secrets.previous_pepper_file]
    texts += [text for provider in settings.provider for text in (provider.secret_file, provider.ca_file)]
    return {Path(text).resolve() for text in texts if text}


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(islice(folder.iterdir(), _ENTRIES))
    except OSError:  # it is not there, or another account's: what lies in it is not ours to see
        return []


async def _columns(settings: Settings) -> list[str]:
    database = await connect(settings.stores.postgres)
    try:
        async with database.transaction() as connection:
            return await columns(connection)
    finally:
        await database.close()


async def _redis_names(settings: Settings) -> list[str]:
    """Return names from every server that has a partition; one that is no cluster has them all."""
    stores = settings.stores
    asked = range(stores.partitions) if is_cluster(stores.redis) else range(1)
    async with open_client(stores.redis, stores.redis_timeout_ms / 1000) as client:
        looks = max(1, _LOOKS // len(asked))
        found = [await sample(Caller(client), partition, looks) for partition in asked]
    return [name for names in found for name in names]
