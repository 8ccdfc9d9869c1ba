"""The stores that the settings name: embedded ones are started, watched and stopped here, named ones left alone.

`EmbeddedStores` is for whoever serves. `attached` is for a command: it uses the servers of a running `edgeproxy serve`,
and when there is none, starts them for as long as the command takes. `shared` is for a role that runs alone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgeproxy.config import EMBEDDED, Settings
from edgeproxy.embedded.lock import DataDirLock
from edgeproxy.embedded.placement import Placement, make_data_dir, place
from edgeproxy.embedded.postgres import EmbeddedPostgres
from edgeproxy.embedded.redis import EmbeddedRedis
from edgeproxy.embedded.secrets import PEPPER, own_secret, read_pepper
from edgeproxy.errors import OperatorError

# How long to wait for a command that has the servers for itself: commands take seconds.
_PATIENCE_S = 60.0


class EmbeddedStores:
    """Those of Redis and PostgreSQL that the settings call `embedded`: maybe none, then nothing is touched.

    All methods block. Whoever makes one closes it, also after a method that raised.
    """

    def __init__(self, settings: Settings) -> None:
        self._given = settings
        self._lock: DataDirLock | None = None
        self._placement: Placement | None = None
        self._servers: dict[str, EmbeddedRedis | EmbeddedPostgres] = {}
        self._owned = False
        self._changing = threading.Lock()  # a server may be revived in one thread while another closes

    def claim(self) -> None:
        """Take the data directory for as long as we serve.

        Raises OperatorError, also when another process serves from it.
        """
        if lock := self._prepare():
            lock.take_to_serve(_PATIENCE_S)

    def serve(self) -> Settings:
        """Start the servers in the directory that was claimed, and return the settings with their addresses.

        Raises OperatorError.
        """
        self._start()
        return self._settings()

    def share(self) -> None:
        """From now on commands may use the servers."""
        if self._lock is not None:
            self._lock.tell(serving=True, ready=True)

    def attach(self) -> Settings:
        """Use the servers of whoever serves; if nobody does, start them. Raises OperatorError."""
        lock = self._prepare()
        if lock and lock.take_or_share(_PATIENCE_S):
            self._start()
        return self._settings()

    def share_only(self) -> Settings:
        """Use the servers of whoever serves. Raises OperatorError, also when nobody does."""
        lock = self._prepare()
        if lock and lock.take_or_share(_PATIENCE_S):
            raise OperatorError(
                "no embedded stores run; start edgeproxy serve, or name the stores (stores.redis, stores.postgres)"
            )
        return self._settings()

    def dead(self) -> list[str]:
        """Return the names of servers that have ended."""
        return [name for name, server in self._servers.items() if not server.is_alive()] if self._owned else []

    def revive(self, name: str) -> None:
        """Start a server that has ended once more; its address stays. Raises OperatorError."""
        with self._changing:
            if self._owned:
                self._servers[name].start()

    def close(self) -> None:
        """Stop what was started and give the data directory back."""
        with self._changing:
            if self._owned and self._lock is not None and self._placement is not None:
                self._lock.tell(serving=True, ready=False)  # who comes now waits for the end
                for server in self._servers.values():
                    server.stop()
                self._placement.remove_runtime()
            self._owned = False
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _prepare(self) -> DataDirLock | None:
        """Build what the settings ask for; return the lock to take, None when no server is embedded."""
        if EMBEDDED not in (self._given.stores.redis, self._given.stores.postgres):
            return None
        data_dir = make_data_dir(self._given.data_dir)
        self._lock = DataDirLock(data_dir)
        self._placement = place(data_dir)
        if self._given.stores.redis == EMBEDDED:
            self._servers["redis"] = EmbeddedRedis(data_dir, self._placement)
        if self._given.stores.postgres == EMBEDDED:
            self._servers["postgresql"] = EmbeddedPostgres(data_dir, self._placement)
        return self._lock

    def _start(self) -> None:
        if self._placement is not None:
            self._owned = True
            self._placement.make_runtime()
            for server in self._servers.values():
                server.start()

    def _settings(self) -> Settings:
        """Return the settings with the addresses of both stores and the file of the pepper. Raises OperatorError."""
        stores = self._given.stores
        if redis := self._servers.get("redis"):
            stores = replace(stores, redis=redis.url())
        if postgres := self._servers.get("postgresql"):
            stores = replace(stores, postgres=postgres.url())
        secrets = replace(self._given.secrets, pepper_file=str(self._pepper_file()))
        return replace(self._given, stores=stores, secrets=secrets)

    def _pepper_file(self) -> Path:
        """Return the file of the pepper, made with the embedded stores. Raises OperatorError."""
        if self._given.secrets.pepper_file:
            path = Path(self._given.secrets.pepper_file).resolve()
            read_pepper(path)
            return path
        if len(self._servers) < 2:
            # Stores that outlive the data directory need a pepper that does, too.
            raise OperatorError("stores are named, so name the pepper as well: set secrets.pepper_file")
        return own_secret(self._given.data_dir.resolve(), PEPPER)


@contextmanager
def attached(settings: Settings) -> Iterator[Settings]:
    """Yield settings whose stores run for the duration of a command. Raises OperatorError."""
    stores = EmbeddedStores(settings)
    try:
        yield stores.attach()
    finally:
        stores.close()


def shared(settings: Settings) -> Settings:
    """Return settings with the stores of whoever serves, or with named ones. Raises OperatorError."""
    stores = EmbeddedStores(settings)
    try:
        return stores.share_only()
    finally:
        stores.close()
