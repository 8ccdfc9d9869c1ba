"""This machine: its clock against those of the stores, and how much a process may open."""

import resource
from collections.abc import Iterator, Mapping

from edgeproxy.checkup.findings import Clock, Finding, error, ok, warning
from edgeproxy.config import Settings

# Windows and ids follow the clock of Redis; what people are told, and when a key ends, follows ours as well.
_SKEW_WARNING_MS = 1_000
_SKEW_ERROR_MS = 60_000

_OTHER_FILES = 100  # listeners, stores, pipes, what libraries keep open


def clocks(found: Mapping[str, Clock]) -> Iterator[Finding]:
    """The clocks of the stores, by the stores' names, agree with ours."""
    for name, clock in found.items():
        far_ms = max(0, abs(clock.ahead_ms) - clock.uncertain_ms)
        apart = f"{name} is {far_ms / 1000:.1f} s {'ahead of' if clock.ahead_ms > 0 else 'behind'} this machine"
        remedy = "let both follow time servers (chrony, systemd-timesyncd)"
        if far_ms >= _SKEW_ERROR_MS:
            yield error(apart, remedy)
        elif far_ms >= _SKEW_WARNING_MS:
            yield warning(apart, remedy)
        else:
            yield ok(f"{name} agrees with this machine")


def open_files(settings: Settings) -> Iterator[Finding]:
    """A gateway may hold all connections that the settings allow; `serve` raises its limit to the hard one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = needed_files(settings)
    if most == resource.RLIM_INFINITY or most >= needed:
        yield ok(f"{needed} are enough for a gateway, and it may open {'any' if most < 0 else most}")
    else:
        remedy = f"LimitNOFILE={needed} in the systemd unit, or lower bounds.max_client_connections"
        yield warning(f"a gateway may need {needed}, and what is started from here may open {most}", remedy)


def needed_files(settings: Settings) -> int:
    """Return how many descriptors one gateway process may need: for clients, for providers, and for itself."""
    served = {model.provider for model in settings.model}
    upstream = sum(provider.max_connections for provider in settings.provider if provider.name in served)
    return settings.bounds.max_client_connections + upstream + _OTHER_FILES
