"""`edgeproxy keys ...`: the verbs of `control.keys` at the command line.

They work while the server runs and while it does not, against embedded and named stores. The secret of a key is
printed once, when the key is created.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeproxy.commands.options import config_option, json_option, settings_of
from edgeproxy.domain.keys import Mode, OnLimit, Reserve
from edgeproxy.domain.times import parse_time
from edgeproxy.errors import OperatorError

if TYPE_CHECKING:
    from edgeproxy.control.installation import Control
    from edgeproxy.control.key_list import KeyRow
    from edgeproxy.control.key_rules import KeyChanges

T = TypeVar("T")

_NONE, _NEVER, _ALL = "none", "never", "all"


@click.group()
@config_option
def keys() -> None:
    """Issue, show, change and end API keys."""


def _limit_option(name: str, what: str) -> Callable[..., Any]:
    return click.option(name, multiple=True, metavar="LIMIT", help=what)


def _choices(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name one of a few words; what is not given is None."""
    for name, kind, what in (
        ("--on-limit", OnLimit, "Refuse a request whose answer may be longer than what is left, or shrink the answer."),
        ("--reserve", Reserve, "Hold what a request will probably use, or (strict) the most that it can use."),
        ("--mode", Mode, "Enforce limits, or (observe) only count what they would refuse."),
    ):
        command = click.option(
            name,
            type=click.Choice([each.value for each in kind]),
            callback=lambda _ctx, _option, word, kind=kind: None if word is None else kind(word),
            help=what,
        )(command)
    return command


@keys.command()
@config_option
@json_option
@click.option("--name", required=True, help="What you call it; not secret, and shown to its holder.")
@_limit_option("--limit", "A limit such as requests=60/1m or tokens=200000/5h (units s m h d). May be repeated.")
@click.option("--concurrency", type=int, metavar="N", help="How many requests may be open at once.")
@click.option("--expires", metavar="DATE", help="When it ends: 2027-06-30 (its beginning, UTC) or a full time.")
@click.option("--models", metavar="PATTERNS", help="Which models it may use, such as 'claude-*,gpt-*'.")
@_choices
@click.option("--prepaid", is_flag=True, help="It uses up tokens that keys credit gives it; decided now, for good.")
@click.pass_context
def create(
    ctx: click.Context,
    /,
    *,
    as_json: bool,
    limit: Sequence[str],
    expires: str | None,
    models: str | None,
    **parts: Any,
) -> None:
    """Issue a key and print it, this once."""
    from edgeproxy.control.keys import create_key

    parts = {name: value for name, value in parts.items() if value is not None}
    parts |= {
        "limits": limit,
        "expires_ms": None if expires is None else _time(expires),
        "models": () if models is None else _patterns(models),
    }
    issued = with_control(ctx, lambda control: create_key(control, **parts))
    told = issued.to_json()
    if as_json:
        click.echo(json.dumps(told))
        return
    _echo_facts(told)
    click.echo("Keep the key: it is not shown again.")
    if told["prepaid"]:
        click.echo(f"It has no tokens yet; give it some with: edgeproxy keys credit {told['prefix']} TOKENS")
    if not issued.published:
        click.echo("Redis did not answer: the key can be used once the server's jobs have published it.")


@keys.command("list")
@config_option
@json_option
@click.pass_context
def list_(ctx: click.Context, *, as_json: bool) -> None:
    """List all keys, the oldest first."""
    from edgeproxy.control.key_list import list_keys

    async def verb(control: "Control") -> None:
        page = await list_keys(control)
        begin = "["
        if not as_json and not page.rows:
            click.echo("no keys; make one with: edgeproxy keys create --name NAME")
        while page.rows:
            for row in page.rows:
                click.echo(begin + json.dumps(row.to_json()) if as_json else _line(row), nl=not as_json)
                begin = ",\n "
            if page.next is None:
                break
            page = await list_keys(control, after=page.next)
        if as_json:
            click.echo("]" if begin != "[" else "[]")

    with_control(ctx, verb)


@keys.command()
@config_option
@json_option
@click.argument("ref", metavar="KEY")
@click.pass_context
def show(ctx: click.Context, ref: str, *, as_json: bool) -> None:
    """Show what is known of a key. KEY is its id, its prefix or its name."""
    from edgeproxy.control.key_list import show_key

    told = with_control(ctx, lambda control: show_key(control, ref)).to_json()
    if as_json:
        click.echo(json.dumps(told))
        return
    windows, daily = told.pop("windows"), told.pop("daily")
    _echo_facts(told)
    for window in windows or ():
        click.echo("window    {dimension} {used} of {limit} in {window}, {remaining} left".format(**window))
    for day in daily:
        click.echo("day       {day} {model}: {requests} requests, {input_tokens} in, {output_tokens} out".format(**day))


@keys.command("set")
@config_option
@json_option
@click.argument("ref", metavar="KEY")
@click.option("--name", help="Another name.")
@_limit_option("--limit", f"Replaces all limits; may be repeated. '{_NONE}' takes all away.")
@_limit_option("--add-limit", "Adds a limit, or changes the one of the same dimension and window.")
@_limit_option("--remove-limit", "Takes a limit away: tokens/5h is enough.")
@click.option("--concurrency", metavar="N", help=f"How many requests may be open at once, or '{_NONE}'.")
@click.option("--expires", metavar="DATE", help=f"When it ends, or '{_NEVER}'.")
@click.option("--models", metavar="PATTERNS", help=f"Which models it may use, or '{_ALL}'.")
@_choices
@click.pass_context
def set_(ctx: click.Context, /, ref: str, *, as_json: bool, **changes: Any) -> None:
    """Change a key, from the next request on. What its windows have counted stays."""
    from edgeproxy.control.keys import set_key

    wanted = _changes(**changes)
    _echo_row(with_control(ctx, lambda control: set_key(control, ref, wanted)), as_json=as_json)


@keys.command("credit")
@config_option
@json_option
@click.argument("ref", metavar="KEY")
@click.argument("tokens", type=int)
@click.option("--reference", metavar="TEXT", help="Of the payment, say: the same one is credited once, however often.")
@click.pass_context
def credit_(ctx: click.Context, ref: str, tokens: int, reference: str | None, *, as_json: bool) -> None:
    """Give a prepaid key tokens, and print its balance."""
    from edgeproxy.control.ledger import credit

    done = with_control(ctx, lambda control: credit(control, ref, tokens, reference))
    told = done.to_json()
    if as_json:
        click.echo(json.dumps(told))
        return
    if done.repeated:
        click.echo(f"{done.tokens} tokens were credited under this reference before; nothing was added")
    else:
        click.echo(f"credited {done.tokens} tokens")
    if not done.applied:
        click.echo("Redis did not take it yet: the tokens can be used once the server's jobs have applied it.")
    _echo_facts({"balance": told["balance"]})


@keys.command()
@config_option
@json_option
@click.argument("ref", metavar="KEY")
@click.pass_context
def revoke(ctx: click.Context, ref: str, *, as_json: bool) -> None:
    """End a key for good; its counts stay. When this returns, no request is admitted with it."""
    from edgeproxy.control.keys import revoke_key

    _echo_row(with_control(ctx, lambda control: revoke_key(control, ref)), as_json=as_json)


@keys.command()
@config_option
@json_option
@click.argument("ref", metavar="KEY")
@click.pass_context
def delete(ctx: click.Context, ref: str, *, as_json: bool) -> None:
    """Revoke a key and remove everything that is held of it, its counts included."""
    from edgeproxy.control.keys import delete_key

    row = with_control(ctx, lambda control: delete_key(control, ref))
    if as_json:
        click.echo(json.dumps({"deleted": row.key.id}))
    else:
        click.echo(f"deleted  {row.key.prefix} {row.key.name}")


def with_control(ctx: click.Context, verb: Callable[["Control"], Awaitable[T]]) -> T:
    """Run a verb on the installation that the configuration names, starting embedded stores if nobody serves.

    Raises OperatorError, StoreUnavailable.
    """
    import uvloop

    from edgeproxy.app import open_control
    from edgeproxy.config import EMBEDDED
    from edgeproxy.embedded.stores import attached
    from edgeproxy.store.migrate import check_current, migrate

    given = settings_of(ctx)
    with attached(given) as settings:

        async def carry_out() -> T:
            # A database of our own is brought up to date as needed, somebody's only when it is asked for.
            if given.stores.postgres == EMBEDDED:
                await migrate(settings.stores.postgres)
            else:
                await check_current(settings.stores.postgres)
            async with open_control(settings, without_redis=True) as control:
                return await verb(control)

        return uvloop.run(carry_out())


def _changes(
    *,
    name: str | None,
    limit: Sequence[str],
    add_limit: Sequence[str],
    remove_limit: Sequence[str],
    concurrency: str | None,
    expires: str | None,
    models: str | None,
    **choices: Any,
) -> "KeyChanges":
    """Return the options of `keys set` as changes; what was not given is kept. Raises OperatorError."""
    from edgeproxy.control.key_rules import KEEP, KeyChanges

    return KeyChanges(
        name=KEEP if name is None else name,
        limits=KEEP if not limit else () if list(limit) == [_NONE] else limit,
        add_limits=add_limit,
        remove_limits=remove_limit,
        concurrency=KEEP if concurrency is None else None if concurrency == _NONE else _count(concurrency),
        expires_ms=KEEP if expires is None else None if expires == _NEVER else _time(expires),
        models=KEEP if models is None else () if models == _ALL else _patterns(models),
        **{name: KEEP if word is None else word for name, word in choices.items()},
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise OperatorError(f"--concurrency {text!r} is neither a number nor {_NONE}")
    return int(text)


def _time(text: str) -> int:
    try:
        return parse_time(text)
    except ValueError as error:
        raise OperatorError(f"--expires: {error}") from None


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(pattern.strip() for pattern in text.split(","))


def _echo_row(row: "KeyRow", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(row.to_json()))
    else:
        _echo_facts(row.to_json())


def _echo_facts(facts: dict[str, Any]) -> None:
    """Print one fact per line; what a key does not have is left out."""
    for name, value in facts.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{each} {part}" for part, each in value.items())
        elif isinstance(value, bool):
            shown = "yes" if value else ""
        elif isinstance(value, list):
            shown = ", ".join(value)
        else:
            shown = "" if value is None else str(value)
        if shown:
            click.echo(f"{name.replace('_', ' '):<12} {shown}")


def _line(row: "KeyRow") -> str:
    """Return a key on one line."""
    told = row.to_json()
    used = told["totals"] or {"requests": "?", "input_tokens": "?", "output_tokens": "?"}
    counts = "{requests} requests, {input_tokens} in, {output_tokens} out".format(**used)
    limits = ", ".join(told["limits"]) or "no limits"
    if told["balance"]:
        limits += f"; {told['balance']['left']} tokens left"
    return f"{told['prefix']}  {told['status']:<8} {told['name']}  ({counts}; {limits})"
