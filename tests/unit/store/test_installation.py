import asyncio

import pytest

from edgeproxy.errors import OperatorError
from edgeproxy.store.installation import claim


async def start(database, partitions, *fingerprints):
    async with database.transaction() as connection:
        await claim(connection, partitions, fingerprints)


async def test_the_same_configuration_starts_again(database):
    await start(database, 16, "one")
    await start(database, 16, "one")


async def test_another_number_of_partitions_is_refused_with_the_right_one(database):
    await start(database, 16, "one")
    with pytest.raises(OperatorError, match=r"stores\.partitions is 8, but .* installed with 16; set it back"):
        await start(database, 8, "one")


async def test_another_pepper_is_refused(database):
    await start(database, 16, "one")
    with pytest.raises(OperatorError, match=r"secrets\.pepper_file"):
        await start(database, 16, "two")


async def test_a_rotation_names_the_pepper_before_and_then_holds(database):
    await start(database, 16, "one")
    await start(database, 16, "two", "one")
    await start(database, 16, "two")
    with pytest.raises(OperatorError):
        await start(database, 16, "one")


async def test_of_two_first_starts_that_disagree_one_is_refused(database):
    results = await asyncio.gather(start(database, 16, "one"), start(database, 16, "two"), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "OperatorError"]
