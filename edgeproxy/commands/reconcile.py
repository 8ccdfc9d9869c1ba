"""`edgeproxy reconcile`: whether Redis holds of each key what PostgreSQL knows, and how to make it so.

It works while the server runs: what is on its way between the two is no difference.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edgeproxy.commands.keys import with_control
from edgeproxy.commands.options import config_option, json_option

if TYPE_CHECKING:
    from edgeproxy.control.reconciliation import Drift


@click.command()
@config_option
@json_option
@click.option("--repair", is_flag=True, help="Let Redis have what PostgreSQL knows, where they differ.")
@click.argument("refs", metavar="[KEY]...", nargs=-1)
@click.pass_context
def reconcile(ctx: click.Context, refs: Sequence[str], *, repair: bool, as_json: bool) -> None:
    """Compare what Redis and PostgreSQL have counted, of all keys or of some.

    The exit status is 0 when nothing differs (any more), 1 when something does, 2 when that could not be found out.
    """
    from edgeproxy.control.reconciliation import reconcile as verb

    done = with_control(ctx, lambda control: verb(control, refs, repair=repair))
    if as_json:
        click.echo(json.dumps(done.to_json()))
    else:
        for drift in done.found:
            click.echo(_line(drift))
        differ, left = ({drift.key_id for drift in each} for each in (done.found, done.left))
        repaired = f", {len(differ) - len(left)} of them repaired" if repair and differ else ""
        click.echo(f"keys compared: {done.compared}, different: {len(differ)}{repaired}")
    ctx.exit(1 if done.left else 0)


def _line(drift: "Drift") -> str:
    redis, postgresql = ("nothing" if each is None else each for each in (drift.redis, drift.postgresql))
    return f"{drift.key_id}  {drift.what:<13} {redis} in Redis, {postgresql} by PostgreSQL"
