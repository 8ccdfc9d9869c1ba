from dataclasses import replace

import pytest

from edgeproxy.control.installation import claim, stores_away
from edgeproxy.errors import OperatorError, StoreUnavailable

OLD, NEW = bytes(32), bytes([1]) * 32


async def test_the_same_configuration_starts_again_and_another_is_refused(control):
    await claim(control)
    await claim(control)
    with pytest.raises(OperatorError, match=r"stores\.partitions"):
        await claim(replace(control, partitions=control.partitions + 1))
    with pytest.raises(OperatorError, match=r"secrets\.pepper_file"):
        await claim(replace(control, peppers=(NEW,)))


async def test_both_stores_follow_a_rotation_of_the_pepper(control):
    await claim(replace(control, peppers=(OLD,)))
    await claim(replace(control, peppers=(NEW, OLD)))
    await claim(replace(control, peppers=(NEW,)))
    with pytest.raises(OperatorError):
        await claim(replace(control, peppers=(OLD,)))


async def test_a_redis_of_another_installation_is_refused(control, rows):
    await claim(replace(control, peppers=(OLD,)))
    await rows("DELETE FROM install")
    with pytest.raises(OperatorError, match="Redis"):
        await claim(replace(control, peppers=(NEW,)))


async def test_a_store_that_is_away_is_named(control_without_redis):
    with pytest.raises(StoreUnavailable, match=r"^redis$"):
        await claim(control_without_redis)


async def test_the_stores_that_do_not_answer_are_named(control, control_without_redis):
    assert await stores_away(control) == []
    assert await stores_away(control_without_redis) == ["redis"]
    await control.database.close()
    assert await stores_away(control_without_redis) == ["redis", "postgresql"]


async def test_the_clock_is_unix_time_in_milliseconds(control):
    assert 1_700_000_000_000 < control.now_ms() < 5_000_000_000_000
