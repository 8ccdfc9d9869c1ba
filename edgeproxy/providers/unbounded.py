"""Finds in a request what gives it no upper bound: what may be billed for more tokens than the request has bytes.

Only what is known to be bounded passes, members and parts by their names, in closed lists: so whatever a provider
invents next does not. Text is bounded: a token is at least one byte of what is sent. A picture is not, nor is what the
provider reads by itself (tools of its own, files, addresses, stored conversations), or writes beside its answer.

It is done for those only who reserve strictly, and looks at so many parts at most.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from edgeproxy.providers.base import NOT_EXAMINED, Incoming
from edgeproxy.providers.body import refuse_repeated_members

# What can be found, as it follows "there is no such bound with" in the error.
TOOL = "a tool of the provider's own"
IMAGE = "an image"
SOUND = "sound"
VIDEO = "a video"
DOCUMENT = "a document or a file"
MEDIA = "an image, sound or a document"
STORED = "context that is stored at the provider"
BACKGROUND = "an answer in the background"
PREDICTION = "a predicted output"
OTHER_MODELS = "other models to fall back to"
COMPACTION = "a compaction of the context"
UNREAD = "an operation that is passed on unread"
FIELD = "a field that this gateway does not know"
PART = "a part of a kind that this gateway does not know"
TOO_MANY = "so many parts"

_MAX_PARTS = 50_000  # far more than any conversation has, and a small part of a second


def names(*words: str) -> frozenset[str]:
    """Return the names in some strings, which are separated by blanks."""
    return frozenset(" ".join(words).split())


def examined(incoming: Incoming, found: Iterable[str]) -> str:
    """Return the first of what is found in a request, "" when nothing is; NOT_EXAMINED where that was not asked.

    Raises GatewayError for a member that stands twice, however deep: the provider may read the other one.
    """
    if not incoming.strict:
        return NOT_EXAMINED
    refuse_repeated_members(incoming.body)
    for number, name in enumerate(found):
        if name:
            return name
        if number >= _MAX_PARTS:
            return TOO_MANY
    return ""


@dataclass(frozen=True, slots=True)
class Members:
    """What an object may have: `plain` members are bounded by their bytes, `telling` ones are known not to be."""

    plain: frozenset[str]
    telling: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = FIELD
    needs: str = ""  # without this member, an object may stand for one that is stored

    def first(self, value: Mapping[str, object]) -> str:
        """Return what gives the object no bound. What is null, false or an empty list is not there."""
        if not self.plain.issuperset(value):
            for name, member in value.items():
                if name not in self.plain and member is not None and member is not False and member != []:
                    return self.telling.get(name, self.otherwise)
        return STORED if self.needs and value.get(self.needs) is None else ""


@dataclass(frozen=True, slots=True)
class Kinds:
    """What objects with a `type` may be. `default` is the type of those that do not say it."""

    known: Mapping[str, Members]
    telling: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = PART
    default: str = ""

    def first(self, value: object) -> str:
        """Return what gives a value no bound, which may also be a text."""
        if not isinstance(value, dict):
            return "" if isinstance(value, str) else self.otherwise
        kind = value.get("type")
        kind = self.default if kind is None else kind
        if not isinstance(kind, str):
            return self.otherwise
        members = self.known.get(kind)
        return self.telling.get(kind, self.otherwise) if members is None else members.first(value)

    def each(self, value: object) -> Iterator[str]:
        """Yield it for each of a list of values, or for a single one; none is nothing."""
        if isinstance(value, list):
            yield from map(self.first, value)
        elif value is not None:
            yield self.first(value)


def rows(value: object) -> Iterator[dict[str, object] | None]:
    """Yield the objects of a list, or a single one, and None for anything else that is there."""
    for row in value if isinstance(value, list) else () if value is None else (value,):
        yield row if isinstance(row, dict) else None


def texts(value: object) -> Iterator[str]:
    """Yield what gives texts, or texts in tokens, no bound: a list that holds anything else."""
    for row in value if isinstance(value, list) else (value,):
        is_tokens = isinstance(row, list) and all(isinstance(token, int) for token in row)
        yield "" if is_tokens or row is None or isinstance(row, str | int) else PART


def only(value: object, allowed: str, found: str) -> str:
    """Return `found` if a list of names holds another than `allowed`."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return "" if all(isinstance(name, str) and name.lower() == allowed for name in listed) else found
