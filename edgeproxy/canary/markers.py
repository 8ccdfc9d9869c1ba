"""The random texts of one run, and what each of them stands for.

All texts of a run begin with one random tag, so that a search for the tag finds all of them, and five characters behind
it say which one it is: random ones, because what compresses strings would shorten a number. 16 characters out of 36 are
more than 80 bits: no find is an accident.
"""

import secrets
import string
from dataclasses import dataclass, field
from enum import StrEnum

_ALPHABET = string.ascii_lowercase + string.digits
TAG_LENGTH = 16
_NAME_LENGTH = 5
TEXT_LENGTH = TAG_LENGTH + _NAME_LENGTH


class Kind(StrEnum):
    """What a find of a text means."""

    CONTENT = "content"  # what somebody sent or was answered: nowhere
    SECRET = "secret"  # noqa: S105 - one of the installation: where it lives, and nowhere else
    DECOY = "decoy"  # left on purpose: has to be found


@dataclass(frozen=True, slots=True)
class Marker:
    """One random text: what it stands for, and where it may be (ends of paths, for a secret)."""

    kind: Kind
    name: str
    text: str
    lives_in: tuple[str, ...] = ()


@dataclass(slots=True)
class Markers:
    """All texts of one run."""

    tag: str = field(default_factory=lambda: _random(TAG_LENGTH))
    _by_name: dict[str, Marker] = field(default_factory=dict)

    @property
    def planted(self) -> list[Marker]:
        """Return all of them, in order."""
        return list(self._by_name.values())

    def content(self, name: str) -> str:
        """Return a new text for a place that holds content, named as in `openai chat: system`."""
        return self._plant(Kind.CONTENT, name)

    def decoy(self, name: str) -> str:
        """Return a new text that is left on purpose."""
        return self._plant(Kind.DECOY, name)

    def secret(self, name: str, lives_in: tuple[str, ...]) -> str:
        """Return a new text for a secret of the installation."""
        return self._plant(Kind.SECRET, name, lives_in)

    def hex_secret(self, name: str, lives_in: tuple[str, ...]) -> str:
        """Return the 64 hexadecimal digits of 32 bytes that begin with a new text."""
        text = self._plant(Kind.SECRET, name, lives_in).encode()
        return (text + secrets.token_bytes(32 - len(text))).hex()

    def of(self, text: str) -> Marker | None:
        """Return the marker whose text is in this, whatever its case."""
        _, _, behind = text.lower().partition(self.tag)
        return self._by_name.get(behind[:_NAME_LENGTH])

    def count(self, kind: Kind) -> int:
        """Return how many there are of one kind."""
        return sum(marker.kind is kind for marker in self._by_name.values())

    def _plant(self, kind: Kind, name: str, lives_in: tuple[str, ...] = ()) -> str:
        while (name_of := _random(_NAME_LENGTH)) in self._by_name:
            pass  # so many are never planted, but two that are alike would be one
        marker = self._by_name[name_of] = Marker(kind, name, self.tag + name_of, lives_in)
        return marker.text


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
