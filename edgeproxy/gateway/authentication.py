"""Who calls: from the secret in the headers to the record of its key.

The checksum in a secret turns garbage away before any look-up. What could have been issued here costs one round trip to
Redis whether the key is unknown, revoked or expired, and gets the same answer. Records of usable keys are cached; that
needs no time limit, because the reserve script compares versions and a worker that is behind is told so.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from edgeproxy.domain.keys import KeyRecord, digest, is_well_formed
from edgeproxy.errors import INVALID_KEY, GatewayError
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.scripts import Scope, scope_of

_KEY_HEADERS = ("x-api-key", "x-goog-api-key")


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key that may be used, and its name in the scripts. `digest` finds it again; the secret itself is forgotten."""

    record: KeyRecord
    scope: Scope
    digest: str


class Authentication:
    """Knows the keys that were used lately. `peppers`: the current one first; at most two."""

    def __init__(self, hot: HotState, peppers: tuple[bytes, ...], key_prefix: str, cache_size: int) -> None:
        self._hot = hot
        self._peppers = peppers
        self._key_prefix = key_prefix
        self._cache_size = cache_size
        self._cache: OrderedDict[str, KnownKey] = OrderedDict()

    async def authenticate(self, headers: Mapping[str, str], query_key: str = "") -> KnownKey:
        """Return the key whose secret the headers or the query hold. Raises GatewayError (401) or StoreUnavailable."""
        secret = self._secret(headers, query_key)
        if secret is None:
            raise GatewayError(INVALID_KEY)
        digests = [digest(secret, pepper) for pepper in self._peppers]
        for each in digests:
            known = self._cache.get(each)
            if known is not None and known.record.is_usable(self._hot.now_ms()):
                self._cache.move_to_end(each)
                return known
        return await self._look_up(digests)

    def known(self, headers: Mapping[str, str]) -> KnownKey | None:
        """Return what `authenticate` would, where it takes the first header that can hold a secret and need not ask."""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            secret = headers.get("x-api-key") or headers.get("x-goog-api-key", "")
        known = self._cache.get(digest(secret.strip(), self._peppers[0]))
        if known is None:
            return None
        if known.record.expires_ms is not None and not known.record.is_usable(self._hot.now_ms()):
            return None  # it was active when it was remembered, and whether it still is the reserve script tells
        self._cache.move_to_end(known.digest)
        return known

    async def look_again(self, known: KnownKey) -> KnownKey:
        """Return the key as it is now, after the scripts said that it changed. Raises as `authenticate` does."""
        return await self._look_up([known.digest])

    def forget(self, known: KnownKey) -> None:
        """Drop a key that turned out not to be usable any more."""
        self._cache.pop(known.digest, None)

    async def _look_up(self, digests: list[str]) -> KnownKey:
        for each in digests:
            self._cache.pop(each, None)
        found = await self._hot.lookup(digests)
        if found is None or not found[1].is_usable(self._hot.now_ms()):
            raise GatewayError(INVALID_KEY)
        name, record = found
        known = KnownKey(record, scope_of(record), name)
        self._cache[name] = known
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return known

    def _secret(self, headers: Mapping[str, str], query_key: str) -> str | None:
        """Return the first secret in the request that could have been issued here."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        candidates = [bearer.strip()] if scheme.lower() == "bearer" else []
        candidates += [headers.get(name, "").strip() for name in _KEY_HEADERS]
        candidates.append(query_key)
        return next((each for each in candidates if is_well_formed(each, self._key_prefix)), None)
