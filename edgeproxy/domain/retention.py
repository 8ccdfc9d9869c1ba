"""How long something is kept: the few answers that there are, in words that a profile may use and people can read.

Pure: what the time is, and what is too old, is told by the caller.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

DAY_S = 86_400
MONTH_S = 30 * DAY_S  # of a rule that counts months: accounts are told apart by days, not by hours

_RULE = re.compile(r"(?:(?P<account>account) \+ )?(?P<count>[1-9][0-9]{0,3}|0) (?P<unit>days?|months?)")


class Until(StrEnum):
    """What ends the keeping."""

    KEY = "life of key"  # the key is deleted
    ACCOUNT = "account"  # so much time after the account was closed
    AGE = "age"  # so much time after it was written
    REQUEST = "open request"  # the request is over, or its worker is taken for dead
    FLUSHED = "passed on"  # it has arrived where it is kept
    PROCESS = "life of process"
    INSTALLATION = "life of installation"
    OUTSIDE = "outside"  # it has left us: who reads standard error decides


@dataclass(frozen=True, slots=True)
class Keep:
    """How long one thing is kept. `seconds` counts with AGE and ACCOUNT alone, and is 0 else."""

    until: Until
    seconds: int = 0

    @property
    def told(self) -> str:
        """The answer to `how long`, as a part of a sentence."""
        match self.until:
            case Until.AGE:
                return "not at all" if not self.seconds else span(self.seconds)
            case Until.ACCOUNT:
                return f"as long as the account is open, and {span(self.seconds)} after"
            case _:
                return _TOLD[self.until]


_TOLD = {
    Until.KEY: "until the key is deleted",
    Until.REQUEST: "while the request is open, and at most two minutes after",
    Until.FLUSHED: "until it has been passed on, which takes seconds while everything runs",
    Until.PROCESS: "until the process ends",
    Until.INSTALLATION: "as long as the installation",
    Until.OUTSIDE: "as long as whoever collects the log keeps it",
}

LIFE_OF_KEY = Keep(Until.KEY)
OPEN_REQUEST = Keep(Until.REQUEST)
UNTIL_FLUSHED = Keep(Until.FLUSHED)
LIFE_OF_PROCESS = Keep(Until.PROCESS)
INSTALLATION = Keep(Until.INSTALLATION)
OUTSIDE = Keep(Until.OUTSIDE)


def days(count: int) -> Keep:
    """Keep each row for so many days."""
    return Keep(Until.AGE, count * DAY_S)


def short(seconds: int) -> Keep:
    """Keep for seconds or minutes: leases, and what says that something was done already."""
    return Keep(Until.AGE, seconds)


def after_account(seconds: int) -> Keep:
    """Keep while the account is open, and so long after."""
    return Keep(Until.ACCOUNT, seconds)


def parse_keep(text: str) -> Keep:
    """Return the rule that a profile names: `life of key`, `30 days`, `24 months` or `account + 24 months`.

    Raises ValueError, which says what can be written.
    """
    if text == Until.KEY:
        return LIFE_OF_KEY
    match = _RULE.fullmatch(text)
    if match is None:
        raise ValueError("is no rule: write 'life of key', '30 days', '24 months' or 'account + 24 months'")
    seconds = int(match["count"]) * (DAY_S if match["unit"].startswith("day") else MONTH_S)
    return after_account(seconds) if match["account"] else short(seconds)


def span(seconds: int) -> str:
    """Return a length of time in the largest unit that fits evenly: `30 days`, `2 minutes`, `24 months`."""
    for name, size in (("month", MONTH_S), ("day", DAY_S), ("hour", 3600), ("minute", 60)):
        if seconds and seconds % size == 0 and (name != "month" or seconds > 3 * MONTH_S):
            count = seconds // size
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{seconds} second{'' if seconds == 1 else 's'}"
