"""What is told of a run: what was done, planted and searched, what was found where, and whether the search is proven.

Meant to be published: it holds neither a text that was planted nor what stands around one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeproxy.canary.places import Find

_SHOWN = 50  # of each list; JSON has all

CLEAN, LEAKED, UNFINISHED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Report:
    """One run. `missed` are decoys that were not found; `areas` has items and bytes by name."""

    acts: Sequence[str]
    statuses: Mapping[int, int]
    planted: int
    secrets: int
    decoys: int
    reached: int | None  # texts of requests that came through to the provider; None where it is not ours
    areas: Mapping[str, tuple[int, int]]
    leaks: Sequence[Find]
    at_home: int
    missed: Sequence[str]
    not_read: Sequence[str]
    not_understood: Sequence[str]
    seconds: float

    @property
    def exit_status(self) -> int:
        """0 none found, 1 found, 2 when the search did not prove itself or could not read everything."""
        if self.leaks:
            return LEAKED
        return UNFINISHED if self.missed or self.not_read else CLEAN

    @property
    def bytes(self) -> int:
        """How much was searched."""
        return sum(size for _, size in self.areas.values())

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "verdict": _VERDICTS[self.exit_status],
            "acts": list(self.acts),
            "answers_by_status": {str(status): count for status, count in sorted(self.statuses.items())},
            "planted": {"content": self.planted, "secrets": self.secrets, "decoys": self.decoys},
            "reached_provider": self.reached,
            "searched": [{"area": name, "items": n, "bytes": size} for name, (n, size) in self.areas.items()],
            "bytes": self.bytes,
            "found": [
                {"area": f.area, "place": f.place, "offset": f.offset, "form": f.form, "what": _what(f)}
                for f in self.leaks
            ],
            "secrets_at_home": self.at_home,
            "decoys_missed": list(self.missed),
            "not_read": list(self.not_read),
            "not_understood": list(self.not_understood),
            "seconds": round(self.seconds, 1),
        }

    def lines(self) -> Iterator[str]:
        """Yield it for people."""
        yield f"done: {', '.join(self.acts)}"
        yield "answers: " + ", ".join(
            f"{count} with {status}" if status else f"{count} closed without one"
            for status, count in sorted(self.statuses.items())
        )
        yield (
            f"planted: {self.planted} texts in content, {self.decoys} decoys; looked for as well:"
            f" {self.secrets} secrets"
        )
        if self.reached is not None:
            yield f"texts of requests that came through to the provider: {self.reached}"
        yield "searched:"
        for name, (items, size) in self.areas.items():
            yield f"  {size:>14,} bytes  {items:>6} places  {name}"
        yield f"  {self.bytes:>14,} bytes  in all, in {self.seconds:.0f} s"
        yield f"left on purpose and not found: {len(self.missed)}; secrets where they live: {self.at_home}"
        yield from _some("NOT FOUND", self.missed)
        yield from _some("could not be read", self.not_read)
        yield from _some("could not be looked into", self.not_understood)
        yield from _some("FOUND", [f"{f.place}, byte {f.offset}, as {f.form}: {_what(f)}" for f in self.leaks])
        yield f"verdict: {_VERDICTS[self.exit_status]}"


_VERDICTS = {
    CLEAN: "nothing that was planted was found anywhere",
    LEAKED: "something was found that must not be there",
    UNFINISHED: "nothing was found, but the search did not see everything",
}


def _what(find: Find) -> str:
    return find.marker.name if find.marker is not None else "a piece of one of the texts"


def _some(what: str, rows: Sequence[str]) -> Iterable[str]:
    shown = [f"{what}: {row}" for row in rows[:_SHOWN]]
    return shown if len(rows) <= _SHOWN else [*shown, f"{what}: {len(rows) - _SHOWN} more; --json has all"]
