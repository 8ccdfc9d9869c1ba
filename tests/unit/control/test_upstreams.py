"""The limits that all keys share at a provider: published from the configuration, and again when they change."""

from dataclasses import replace

import pytest

from edgeproxy.config import Provider
from edgeproxy.control.upstreams import publish_limits
from edgeproxy.domain.keys import KeyRecord, KeyStatus, partition_of, provider_holder
from edgeproxy.domain.limits import format_limit
from edgeproxy.errors import StoreUnavailable

PROVIDER = Provider(name="openai", limits=("requests=10/1m", "tokens=1000/1h"))


@pytest.fixture
def published(control):
    async def published(name):
        holder = provider_holder(name)
        partition = partition_of(holder, control.partitions)
        found = await control.publishing.inspect(KeyRecord(holder, 1, KeyStatus.ACTIVE, partition, (), None, None, ()))
        return None if found is None else (found.version, [format_limit(window.limit) for window in found.windows])

    return published


async def test_they_are_published_once(control, published):
    assert await publish_limits(control, [PROVIDER, Provider(name="without")]) == 1
    assert await publish_limits(control, [PROVIDER]) == 0
    assert await published("openai") == (1, list(PROVIDER.limits))
    assert await published("without") is None


async def test_other_limits_hold_from_then_on(control, published):
    await publish_limits(control, [PROVIDER])
    changed = replace(PROVIDER, limits=("requests=5/1m",))
    assert await publish_limits(control, [changed]) == 1
    assert await published("openai") == (2, ["requests=5/1m"])


async def test_without_redis_it_says_so(control_without_redis):
    with pytest.raises(StoreUnavailable):
        await publish_limits(control_without_redis, [PROVIDER])
