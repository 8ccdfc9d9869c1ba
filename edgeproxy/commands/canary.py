"""`edgeproxy canary`: plants random texts in everything that passes, and looks for them in everything that is kept.

Alone, it makes an installation for the run and lets everything go wrong there. With `--url` it sends requests to an
installation that is there, and searches what is named of it.
"""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from edgeproxy.addresses import url_parts
from edgeproxy.commands.options import config_option, configuration_of, json_option, settings_of
from edgeproxy.config import DIALECTS, Settings
from edgeproxy.errors import OperatorError
from edgeproxy.tables import shown

if TYPE_CHECKING:
    from edgeproxy.canary.report import Report
    from edgeproxy.canary.run import Deployment

_LONGEST_KEY = 200
_SHORTEST_KEY = 50  # what is issued is longer


@click.command()
@config_option
@json_option
@click.option(
    "--small", is_flag=True, help="One round, and no folders but those of the run: seconds in place of a minute."
)
@click.option("--url", metavar="URL", help="Address of `api` of an installation that is there.")
@click.option("--web-url", metavar="URL", help="Address of its `web`.")
@click.option("--metrics-url", metavar="URL", help="Address of its `metrics`.")
@click.option("--key", type=click.File("r"), metavar="FILE", help="File that holds a key of it; - for standard input.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="DIALECT=MODEL",
    help="What to ask for there, such as openai=gpt-5-mini; real requests, which cost what they cost.",
)
@click.option(
    "--search",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="File or folder of it to search: stores, logs, backups. May be repeated.",
)
@click.option(
    "--timeout", type=click.IntRange(min=10), default=3600, show_default=True, help="Seconds to search at most."
)
@click.pass_context
def canary(  # noqa: PLR0913, PLR0917 - one parameter for each option
    ctx: click.Context,
    url: str | None,
    web_url: str | None,
    metrics_url: str | None,
    key: IO[str] | None,
    models: tuple[str, ...],
    search: tuple[Path, ...],
    timeout: int,
    *,
    small: bool,
    as_json: bool,
) -> None:
    """Plant random texts in all that passes, and look for them in all that is kept.

    The exit status is 0 when none is found, 1 when one is, 2 when that could not be found out.
    """
    import uvloop

    from edgeproxy.canary.run import run_against, run_self_contained
    from edgeproxy.embedded.stores import attached

    deadline = time.monotonic() + timeout
    if url is None:
        if key or search or models or web_url or metrics_url:
            raise OperatorError("--key, --search, --model and the other addresses belong to --url; give it as well")
        report = uvloop.run(run_self_contained(settings_of(ctx).profile, small=small, deadline=deadline))
    else:
        listeners = {"api": url, "web": web_url, "metrics": metrics_url}
        with ExitStack() as stack:
            named = configuration_of(ctx) is not None
            settings = stack.enter_context(attached(settings_of(ctx))) if named else None
            deployment = _deployment(listeners, key, models, search, settings)
            report = uvloop.run(run_against(deployment, deadline))
    _tell(report, as_json=as_json)
    ctx.exit(report.exit_status)


def _tell(report: "Report", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        for line in report.lines():
            click.echo(line)


def _deployment(
    addresses: dict[str, str | None],
    key: IO[str] | None,
    models: tuple[str, ...],
    paths: tuple[Path, ...],
    settings: Settings | None,
) -> "Deployment":
    """Return what is to be tried and searched. Raises OperatorError."""
    from edgeproxy.canary.requests import Models
    from edgeproxy.canary.run import Deployment

    listeners = {name: address for name, address in addresses.items() if address is not None}
    for name, address in listeners.items():
        parts = url_parts(address)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise OperatorError(f"the address of {name} must be one such as https://gateway.example")
    if key is None:
        raise OperatorError("a key is needed: --key FILE, or --key - and the key on standard input")
    secret = key.read(_LONGEST_KEY).strip()
    if len(secret) < _SHORTEST_KEY or not secret.isascii() or not secret.isprintable():
        raise OperatorError("--key names no file that holds a key")
    if settings is None and not paths:
        raise OperatorError("nothing to search; give --search PATH, or --config for the stores")
    named = dict.fromkeys(DIALECTS, "canary")
    for model in models:
        dialect, equals, name = model.partition("=")
        if dialect not in DIALECTS or not equals or not name:
            raise OperatorError(f"--model {shown(model)} is not DIALECT=MODEL, as in openai=gpt-5-mini")
        named[dialect] = name
    return Deployment(listeners, secret, Models(**named), paths, settings)
