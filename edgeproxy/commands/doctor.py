"""`edgeproxy doctor`: what an operator wants to know of an installation before it runs, and while it does.

Embedded stores are used where they run, and started for as long as it takes where they do not, as other commands do.
But none are made: before the first start there is nothing to look at, and who looks should not own what is made.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edgeproxy.commands.options import config_option, configuration_of, json_option, settings_of
from edgeproxy.config import EMBEDDED, Settings, environment
from edgeproxy.errors import OperatorError

if TYPE_CHECKING:
    from edgeproxy.checkup.findings import Finding


@click.command()
@config_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, as_json: bool) -> None:
    """Look at the whole installation, and say what to do about what is found.

    The exit status is 0 when nothing is an error, 1 when something is, 2 when the configuration cannot be read.
    """
    import uvloop

    from edgeproxy.checkup.examination import Subject, examine
    from edgeproxy.checkup.findings import Level

    given = settings_of(ctx)
    stores = {"redis": given.stores.redis, "postgresql": given.stores.postgres}
    embedded = frozenset(name for name, address in stores.items() if address == EMBEDDED)
    with _attached(given) as (settings, attaching):
        subject = Subject(settings, embedded, environment(), configuration_of(ctx))
        found = [*attaching, *uvloop.run(examine(subject))]
    levels = [finding.level for _, finding in found]
    errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    if as_json:
        rows = [
            {"check": check, "level": finding.level, "found": finding.found, "remedy": finding.remedy}
            for check, finding in found
        ]
        click.echo(json.dumps({"findings": rows, "errors": errors, "warnings": warnings}))
    else:
        for check, finding in found:
            click.echo(_line(check, finding))
        click.echo(f"errors: {errors}, warnings: {warnings}")
    ctx.exit(1 if errors else 0)


def _line(check: str, finding: "Finding") -> str:
    told = f"{finding.found}; {finding.remedy}" if finding.remedy else finding.found
    return f"{finding.level:<8} {check:<22} {' '.join(told.split())}"


@contextmanager
def _attached(given: Settings) -> Iterator[tuple[Settings, list[tuple[str, "Finding"]]]]:
    """Yield settings in which the stores that run have addresses, and what was found on the way there."""
    from edgeproxy.checkup.findings import of_error, ok
    from edgeproxy.embedded.stores import EmbeddedStores

    if EMBEDDED not in (given.stores.redis, given.stores.postgres):
        yield given, []
        return
    if not _is_made(given):
        yield given, [("embedded stores", ok("there are none yet: the first start makes them"))]
        return
    stores = EmbeddedStores(given)
    try:
        try:
            settings, finding = stores.attach(), ok("they run, or can be started")
        except OperatorError as raised:
            settings, finding = given, of_error(raised)
        yield settings, [("embedded stores", finding)]
    finally:
        stores.close()


def _is_made(given: Settings) -> bool:
    """Whether embedded stores have been started here before: from then on there are secrets of theirs."""
    try:
        (given.data_dir / "secrets").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # somebody else's: attaching tells of it
    return True
