from importlib import resources

import pytest

from edgeproxy.store.statements import statements

ROOMS = sorted(
    entry.name.removesuffix(".sql")
    for entry in resources.files("edgeproxy.store").iterdir()
    if entry.name.endswith(".sql")
)


def test_every_room_of_the_store_has_its_statements():
    assert ROOMS == ["installation", "keys", "ledger", "outbox", "partitions", "reconciliation", "refusals", "usage"]


@pytest.mark.parametrize("room", ROOMS)
async def test_every_statement_fits_the_schema(room, database):
    async with database.transaction() as connection:
        for statement in statements(room).values():
            await connection.prepare(statement)


@pytest.mark.parametrize("room", ROOMS)
def test_every_statement_says_what_it_is_for_and_is_used_by_its_module(room):
    module = resources.files("edgeproxy.store").joinpath(f"{room}.py").read_text()
    for name, statement in statements(room).items():
        assert statement.startswith("-- "), name
        assert f'["{name}"]' in module


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(KeyError):
        statements("keys")["drop_everything"]
