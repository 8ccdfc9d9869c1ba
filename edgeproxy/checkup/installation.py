"""Whether stores and settings belong together: what was fixed at the first start is what the settings say.

Nothing is fixed here. Where nothing has been fixed yet, the first start does it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from edgeproxy.checkup.findings import Finding, error, of_error, ok
from edgeproxy.config import EMBEDDED, Settings
from edgeproxy.domain.keys import pepper_fingerprint
from edgeproxy.embedded.secrets import read_pepper
from edgeproxy.errors import OperatorError

Fixed = tuple[int, str]
"""Number of partitions and fingerprint of the pepper."""


def fits(settings: Settings, fixed: Mapping[str, Fixed | None]) -> Iterator[Finding]:
    """Compare partitions and peppers with what each store that answers, by its name, has (None: nothing yet)."""
    files = (settings.secrets.pepper_file, settings.secrets.previous_pepper_file)
    if not files[0]:
        if EMBEDDED not in (settings.stores.redis, settings.stores.postgres):
            yield error("secrets.pepper_file is not set", "name a file with what openssl rand -hex 32 makes")
        return
    try:
        fingerprints = [pepper_fingerprint(read_pepper(Path(file))) for file in files if file]
    except OperatorError as raised:
        yield of_error(raised)
        return
    for store, there in fixed.items():
        yield from _of_store(store, there, settings.stores.partitions, fingerprints)


def of_redis(raw: str | None) -> Fixed | None:
    """Return what is fixed in Redis; for what is not ours, values that fit nothing."""
    if raw is None:
        return None
    try:
        row = orjson.loads(raw)
        return int(row["partitions"]), str(row["pepper"])
    except (KeyError, TypeError, ValueError):
        return 0, ""


def _of_store(store: str, there: Fixed | None, partitions: int, fingerprints: list[str]) -> Iterator[Finding]:
    if there is None:
        yield ok(f"{store} is new: the first start fixes partitions and pepper")
    elif there[0] != partitions:
        yield error(f"{store} was set up with {there[0]} partitions", f"set stores.partitions = {there[0]}")
    elif there[1] not in fingerprints:
        remedy = "set secrets.pepper_file to the one that its keys were issued under"
        yield error(f"{store} was set up with another pepper", remedy)
    else:
        yield ok(f"{store} has these partitions and this pepper")
