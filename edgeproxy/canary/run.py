"""The two kinds of run: in an installation that is made for it, and against one that is there.

The first does what would hurt (processes are killed, stores are frozen); the second sends requests, and reads.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from urllib.parse import urlsplit

from edgeproxy.canary import decoys, installation, upstream
from edgeproxy.canary.installation import Installation
from edgeproxy.canary.markers import Kind, Marker, Markers
from edgeproxy.canary.places import Search
from edgeproxy.canary.playing import Play
from edgeproxy.canary.report import Report
from edgeproxy.canary.requests import Models, Writer
from edgeproxy.canary.sending import Sending
from edgeproxy.canary.stores import REDIS_KEYS, TABLES, search_postgres, search_redis
from edgeproxy.config import Settings, environment, provider_secret
from edgeproxy.embedded.secrets import read_pepper
from edgeproxy.errors import OperatorError

_SHOWN_OF_A_KEY = 8  # characters behind the prefix that may be stored and shown
_KEY_LENGTH = 49  # without its prefix
_SHORTEST_SECRET = 12
_SETTLING_S = 5.0  # in an installation whose settings are not ours
_REDIS_FILES, _POSTGRES_FILES = "files of redis", "files of postgres"
_FLUSH_S = 1.5  # until what was counted is in PostgreSQL, and Redis has written to its file
_ROUNDS = 3
_SYSTEM_FOLDERS = ("/var/tmp", "/dev/shm")  # noqa: S108 - searched, not written


@dataclass(frozen=True, slots=True)
class Deployment:
    """An installation that is there, and what of it is to be searched. `listeners`: addresses by api, web, metrics."""

    listeners: dict[str, str]
    key: str
    models: Models
    paths: tuple[Path, ...]
    settings: Settings | None  # with the addresses of stores that run


async def run_self_contained(profile: str, *, small: bool, deadline: float) -> Report:
    """Make an installation, let everything happen in it, search it, and remove it. Raises OperatorError."""
    began, markers = time.monotonic(), Markers()
    async with upstream.running(markers) as provider, installation.running(markers, provider.url, profile) as there:
        keys = await asyncio.gather(
            there.create_key("--name", "rich"), there.create_key("--name", "poor", "--limit", "requests=2/1d")
        )
        search = Search(markers, [_key(key, at) for at, key in enumerate(keys, 1)], deadline)
        files = decoys.write(there.folder / "decoys", markers)
        sending, in_redis = Sending(there.listeners), markers.decoy(decoys.REDIS)
        play = Play(there, provider, Writer(markers, keys[0]), Writer(markers, keys[1]), sending, search, in_redis)
        acts: list[str] = []
        for _ in range(1 if small else _ROUNDS):
            acts = await play.all()
            await asyncio.sleep(_FLUSH_S)
            search.text("metrics", "/metrics", await sending.text("metrics", "/metrics"))
        await search_redis(search, there.stores.redis, in_redis, keeps_decoy=True)
        await search_postgres(search, there.stores.postgres, markers.decoy(decoys.POSTGRES), keeps_decoy=True)
        await play.look_at_open_files()
        await asyncio.sleep(_FLUSH_S)
        await there.stop()
        await asyncio.to_thread(_search_folders, search, there)
        if not small:
            since = time.time() - (time.monotonic() - began)
            await asyncio.to_thread(_search_system_folders, search, since, there.folder)
    missed = _missed(search, files, markers)
    return _report(search, markers, began, acts, sending, len(provider.reached), missed)


def _search_folders(search: Search, there: Installation) -> None:
    """Search everything that processes of the installation could write to."""
    stores, data = there.placement.stores, there.data_dir
    servers = [stores / "redis", stores / "postgres"]
    search.folder(_REDIS_FILES, servers[0], shown="redis/")
    search.folder(_POSTGRES_FILES, servers[1], shown="postgres/")
    search.folder("data directory, logs, journal", data, shown="data/", skip=servers)
    if stores != data:
        search.folder("data directory, logs, journal", stores, shown="stores/", skip=servers)
    search.folder("sockets and locks", there.placement.runtime, shown="runtime/")
    search.folder("what processes printed", there.folder / "output", shown="output/")
    search.folder("temporary folder", there.folder / "temporary", shown="temporary/")
    search.folder("working folder, core files", there.folder / "work", shown="work/")
    search.folder(decoys.AREA, there.folder / "decoys", shown="decoys/")


def _search_system_folders(search: Search, since: float, skip: Path) -> None:
    """Search what was written since then where programs leave things, whoever wrote it."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text(encoding="utf-8").strip()
    folders = {Path(gettempdir()), *map(Path, _SYSTEM_FOLDERS)}
    if pattern.startswith("/"):
        folders.add(Path(pattern).parent)
    elif pattern.startswith("|"):
        search.not_understood.append("core files of this machine: the kernel hands them to a program")
    for folder in sorted(folders):
        search.folder("temporary folders of the machine, since the start", folder, skip=[skip], since=since)


def _missed(search: Search, files: frozenset[str], markers: Markers) -> list[str]:
    """Return what was left on purpose and has not been found wherever it has to be."""
    wanted_in = [
        *((name, decoys.AREA) for name in sorted(files)),
        (decoys.REDIS, REDIS_KEYS),
        (decoys.REDIS, _REDIS_FILES),
        (decoys.POSTGRES, TABLES),
        (decoys.POSTGRES, _POSTGRES_FILES),
    ]
    missed = [f"{name}, in {area}" for name, area in wanted_in if name not in search.decoys(area)]
    at_home = {find.marker.name for find in search.finds if find.is_at_home and find.marker is not None}
    secrets = (marker.name for marker in markers.planted if marker.kind is Kind.SECRET)
    return missed + [f"{name}, where it lives" for name in secrets if name not in at_home]


async def run_against(deployment: Deployment, deadline: float) -> Report:
    """Send requests to an installation that is there, and search what was named of it. Raises OperatorError."""
    began, markers, settings = time.monotonic(), Markers(), deployment.settings
    secrets = [_key(deployment.key, 1), *(_secrets_of(settings) if settings is not None else ())]
    search = Search(markers, secrets, deadline)
    sending = Sending(deployment.listeners)
    host = urlsplit(deployment.listeners["api"]).netloc
    acts = await _send(Writer(markers, deployment.key, host), deployment.models, sending)
    await asyncio.sleep(_SETTLING_S)
    if "metrics" in deployment.listeners:
        search.text("metrics", "/metrics", await sending.text("metrics", "/metrics"))
    missed: list[str] = []
    if settings is not None:
        await search_redis(search, settings.stores.redis, markers.decoy(decoys.REDIS), keeps_decoy=False)
        await search_postgres(search, settings.stores.postgres, markers.decoy(decoys.POSTGRES), keeps_decoy=False)
        rows = ((decoys.REDIS, REDIS_KEYS), (decoys.POSTGRES, TABLES))
        missed = [f"{name}, in {area}" for name, area in rows if name not in search.decoys(area)]
    with TemporaryDirectory(prefix="edgeproxy-canary-") as folder:
        names = decoys.write(Path(folder), markers)
        for path in (each.absolute() for each in deployment.paths):
            if not path.exists():
                search.not_read.append(f"{path}: it is not there")
            await asyncio.to_thread(search.folder, f"files below {path}", path)
        await asyncio.to_thread(search.folder, decoys.AREA, Path(folder))
    missed += sorted(names - search.decoys(decoys.AREA))
    return _report(search, markers, began, acts, sending, None, missed)


async def _send(writer: Writer, models: Models, sending: Sending) -> list[str]:
    """Send what can be sent without harm, and return the names of it."""
    await sending.all(writer.everything(models))
    if not sum(count for status, count in sending.statuses.items() if status):
        raise OperatorError(f"nobody answers at {sending.listeners['api']}; check --url")
    await sending.all(writer.conversations(models, stream=True))
    await sending.all(writer.refused(models))
    await sending.all(writer.malformed())
    await sending.all(writer.elsewhere())
    leaving = writer.conversations(models, stream=True)
    await asyncio.gather(*(sending.one(each, leaves_after=1) for each in leaving))
    return ["every operation in every dialect", "refusals", "bytes that are no request", "clients that hang up"]


def _key(key: str, number: int) -> tuple[Marker, bytes]:
    """Return what to look for of a client's key: all of it that may not be shown."""
    prefix_length = len(key) - _KEY_LENGTH
    return Marker(Kind.SECRET, f"client key {number}", ""), key[max(prefix_length, 0) + _SHOWN_OF_A_KEY :].encode()


def _secrets_of(settings: Settings) -> list[tuple[Marker, bytes]]:
    """Return the pepper, as digits and as bytes, and our secrets at the providers. Raises OperatorError."""
    found = []
    for name in filter(None, (settings.secrets.pepper_file, settings.secrets.previous_pepper_file)):
        marker = Marker(Kind.SECRET, "pepper", "", (str(Path(name).absolute()),))
        pepper = read_pepper(Path(name))
        found += [(marker, pepper), (marker, pepper.hex().encode())]
    for provider in settings.provider:
        secret = provider_secret(provider, environment())
        homes = (str(Path(provider.secret_file).absolute()),) if provider.secret_file else ()
        if len(secret) >= _SHORTEST_SECRET:  # less says nothing where it is found
            found.append((Marker(Kind.SECRET, f"secret at {provider.name}", "", homes), secret.encode()))
    return found


def _report(
    search: Search,
    markers: Markers,
    began: float,
    acts: Sequence[str],
    sending: Sending,
    reached: int | None,
    missed: Sequence[str],
) -> Report:
    return Report(
        acts=acts,
        statuses=dict(sending.statuses),
        planted=markers.count(Kind.CONTENT),
        secrets=markers.count(Kind.SECRET) + len(search.others),
        decoys=markers.count(Kind.DECOY),
        reached=reached,
        areas={name: (area.items, area.bytes) for name, area in search.areas.items()},
        leaks=search.leaks(),
        at_home=sum(find.is_at_home for find in search.finds),
        missed=missed,
        not_read=search.not_read,
        not_understood=search.not_understood,
        seconds=time.monotonic() - began,
    )
