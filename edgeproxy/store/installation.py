"""What is fixed at the first start: the number of partitions and the pepper. A start that disagrees is refused."""

from edgeproxy.errors import OperatorError
from edgeproxy.store.database import Connection
from edgeproxy.store.statements import statements


async def claim(connection: Connection, partitions: int, fingerprints: tuple[str, ...]) -> None:
    """Fix the installation at the first start; later, raise OperatorError unless the configuration agrees with it.

    `fingerprints` are those of the configured peppers, the current one first. During a rotation the stored one may be
    that of the previous pepper; from then on the current one is expected.
    """
    sql = statements("installation")
    current = fingerprints[0]
    await connection.execute(sql["claim"], partitions, current)
    stored = await connection.fetchrow(sql["read"])
    if stored["partitions"] != partitions:
        raise OperatorError(
            f"stores.partitions is {partitions}, but this database was installed with {stored['partitions']};"
            " set it back"
        )
    if stored["pepper_fingerprint"] not in fingerprints:
        raise OperatorError(
            "the pepper is not the one that this database's keys were issued under; set secrets.pepper_file to that"
            " one, or for a rotation secrets.previous_pepper_file"
        )
    if stored["pepper_fingerprint"] != current:
        await connection.execute(sql["rotate"], current)


async def columns(connection: Connection) -> list[str]:
    """Return every column of the schema as `table.column`."""
    return [row["name"] for row in await connection.fetch(statements("installation")["columns"])]
