"""The claims of each service: what they say, what shows that they hold, and what this version still lacks for them.

The table is `claims.toml`. A profile whose claims cannot be kept is not served: that is refused with the list.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from edgeproxy.domain.inventory import GROUPS, Whose, places
from edgeproxy.domain.retention import LIFE_OF_KEY
from edgeproxy.errors import OperatorError
from edgeproxy.policy.profiles import Profile, load_profile


class ClaimKind(StrEnum):
    """Who makes it true: the program while it runs, a page that says so, or somebody who can do it."""

    ENFORCE = "enforce"
    PAGE = "page"
    WORKFLOW = "workflow"


# What this version lacks.
NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "accounts": "accounts of users",
        "analytics": "counting visits with consent",
        "key_by_prefix": "records of requests that name the key by its prefix alone",
        "mail": "sending mail",
        "pages": "pages for holders of keys; the JSON API is there",
        "payments": "payments",
        "prices": "prices in money",
        "sealed_credentials": "credentials that are kept encrypted",
        "sealed_keys": "keys that are kept encrypted",
        "sweeps": "removal by age",
        "technical_log": "a technical log",
    }
)
# Nothing is kept or done otherwise for their lack, so that a service may begin without them.
BEARABLE = {"pages"}


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim. `tests` are names as pytest has them, those of the claims that say the same included."""

    id: str
    of: str
    kind: ClaimKind
    text: str
    tests: tuple[str, ...]
    needs: tuple[str, ...]


@cache
def all_claims() -> Mapping[str, Claim]:
    """Return every claim by its id; read at the first use."""
    table = _table()["claim"]
    own = {row["id"]: tuple(row.get("tests", ())) for row in table}
    claims = {}
    for row in table:
        tests = dict.fromkeys((*own[row["id"]], *(test for same in row.get("same_as", ()) for test in own[same])))
        needs = tuple(row.get("needs", ()))
        claims[row["id"]] = Claim(row["id"], row["of"], ClaimKind(row["kind"]), row["text"], tuple(tests), needs)
    return MappingProxyType(claims)


def claims_of(name: str) -> list[Claim]:
    """Return what the service with this name claims, what it takes over from another one first."""
    taken_over = [all_claims()[each] for each in _table()["inherits"].get(name, ())]
    return [*taken_over, *(claim for claim in all_claims().values() if claim.of == name)]


def claims_json(profile: Profile) -> dict[str, object]:
    """Return the claims of a profile as JSON.

    Shape: `profile, can_be_served, lacking [text], claims [{id, of, kind, text, tests, needs}]`.
    """
    lacking = list(unkept(profile))
    claims = [asdict(claim) for claim in claims_of(profile.name)]
    return {"profile": profile.name, "can_be_served": not lacking, "lacking": lacking, "claims": claims}


def unkept(profile: Profile) -> Iterator[str]:
    """Yield what this version of the program cannot keep of what a profile promises, a few words each."""
    for claim in claims_of(profile.name):
        if missing := [NEEDS[need] for need in claim.needs if need not in BEARABLE]:
            yield f"{claim.id} ({', '.join(missing)})"
    kept = profile.kept()
    written = {place.group for place in places(whose=Whose.HOLDER)} - {"log"}
    for group in GROUPS:
        if group in kept and not GROUPS[group].is_built:
            yield f"keep.{group} (not collected by this version)"
        if group in written and group not in kept:
            yield f"keep.{group} (always collected by this version)"
        if group in written and kept.get(group, LIFE_OF_KEY) != LIFE_OF_KEY:
            yield f"keep.{group} (kept for the life of the key by this version)"


def refuse_unkept(setting: str) -> None:
    """Refuse to serve a profile, as the setting names it, that this version cannot keep. Raises OperatorError."""
    profile = load_profile(setting)
    if lacking := list(unkept(profile)):
        raise OperatorError(
            f"this version does not keep what profile {profile.name} promises, so it is not served: set profile to"
            f" opuslive or opusmax. Missing: {'; '.join(lacking)}"
        )


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("edgeproxy.policy").joinpath("claims.toml").read_text(encoding="utf-8"))
