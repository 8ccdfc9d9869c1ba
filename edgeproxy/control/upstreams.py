"""Publishes the limits of our own accounts at the providers, as the configuration has them: keys share them.

They are counted as a key's are, in Redis alone: nobody is billed by them, and the provider knows what was really used.
After Redis has forgotten everything they begin with nothing used.
"""

from collections.abc import Sequence
from dataclasses import replace

from edgeproxy.config import Provider
from edgeproxy.control.installation import Control
from edgeproxy.domain.keys import KeyRecord, KeyStatus, partition_of, provider_holder
from edgeproxy.domain.limits import parse_limits


async def publish_limits(control: Control, providers: Sequence[Provider]) -> int:
    """Make the configured limits hold, and return how many providers had others. Raises StoreUnavailable."""
    changed = 0
    for provider in providers:
        if not provider.limits:
            continue
        holder = provider_holder(provider.name)
        limits = parse_limits(provider.limits)
        partition = partition_of(holder, control.partitions)
        record = KeyRecord(holder, 1, KeyStatus.ACTIVE, partition, limits, None, None, ())
        there = await control.publishing.inspect(record)
        if there is None or tuple(window.limit for window in there.windows) != limits:
            version = 1 if there is None else there.version + 1
            await control.publishing.publish_state(replace(record, version=version))
            changed += 1
    return changed
