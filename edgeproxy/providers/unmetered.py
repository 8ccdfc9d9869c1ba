"""What hides its bill: operations that are refused unless the operator allows their feature at a provider.

They are passed on unread, so nothing here knows their bodies. Only what creates something is charged what the operator
says; looking at it, ending it or taking it away is free at every provider.
"""

import re
from dataclasses import dataclass

from edgeproxy.domain.features import Feature
from edgeproxy.providers import unbounded
from edgeproxy.providers.base import Body, Call, Endpoint, Incoming, RequestFacts, UsageReader
from edgeproxy.providers.readers import OpaqueReader

IDS = r"(?:/[A-Za-z0-9_-]+){1,3}"  # what may follow a collection's path: ids and verbs; no dots, so no way out of it


class Unmetered(Endpoint):
    """An operation of a feature."""

    body = Body.ANY
    methods = ("GET", "POST", "DELETE", "PATCH")

    def __init__(self, feature: Feature, *, creates: bool) -> None:
        self.name = feature.value
        self._feature = feature
        self._creates = creates

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts: the feature stands where others have their model."""
        return RequestFacts(
            model=self.name,
            stream=False,
            input_estimate=0,
            output_max=0,
            is_free=incoming.method != "POST" or not self._creates,
            features=(self._feature,),
            unbounded=unbounded.UNREAD,
        )

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader that reads nothing."""
        return OpaqueReader()


@dataclass(frozen=True, slots=True)
class Row:
    """Paths of a feature; `creates` says that a POST there makes something that costs."""

    pattern: str
    feature: Feature
    creates: bool = True


class Paths:
    """The paths of a dialect that belong to features; the first row that fits wins."""

    def __init__(self, *rows: Row) -> None:
        self._rows = tuple((re.compile(row.pattern), Unmetered(row.feature, creates=row.creates)) for row in rows)

    def find(self, path: str) -> Call | None:
        """Return what the path asks for, None when it belongs to no feature."""
        return next((Call(endpoint, path) for pattern, endpoint in self._rows if pattern.fullmatch(path)), None)
