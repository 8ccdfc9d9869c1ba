"""`edgeproxy policy`: what a service claims and what shows it, and what is kept where. Nothing has to run for it."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgeproxy.commands.options import config_option, json_option, settings_of

if TYPE_CHECKING:
    from edgeproxy.policy.profiles import Profile


@click.group()
def policy() -> None:
    """Tell what is promised, what shows that it holds, and what is kept."""


@policy.command()
@config_option
@json_option
@click.option("--profile", metavar="NAME", help="A known profile or a file. Default: the configured one.")
@click.pass_context
def claims(ctx: click.Context, profile: str | None, *, as_json: bool) -> None:
    """List what a service claims, with the tests that show it, and what this version lacks for it."""
    from edgeproxy.policy.claims import NEEDS, claims_json, claims_of

    chosen = _profile(ctx, profile)
    told = claims_json(chosen)
    if as_json:
        click.echo(json.dumps(told))
        return
    for claim in claims_of(chosen.name):
        click.echo(f"{claim.id:<7} {claim.kind:<9} {claim.text}")
        for test in claim.tests:
            click.echo(f"{'':<17} shown by {test}")
        for need in claim.needs:
            click.echo(f"{'':<17} still missing: {NEEDS[need]}")
        if not claim.tests and not claim.needs:
            click.echo(f"{'':<17} no test shows it")
    lacking = told["lacking"]
    can = "can be served by this version" if told["can_be_served"] else "cannot be served by this version; it lacks:"
    for line in (f"{chosen.name} {can}", *(f"  {each}" for each in (lacking if isinstance(lacking, list) else ()))):
        click.echo(line)


@policy.command()
@config_option
@json_option
@click.option("--profile", metavar="NAME", help="Only what this profile has: a known one or a file.")
@click.pass_context
def inventory(ctx: click.Context, profile: str | None, *, as_json: bool) -> None:
    """List every place where anything is kept: what, why, whose, and how long."""
    from edgeproxy.domain.inventory import PLACES
    from edgeproxy.domain.retention import LIFE_OF_KEY

    chosen = None if profile is None else _profile(ctx, profile)
    kept = {} if chosen is None else chosen.kept()
    rows = []
    for place in PLACES:
        if chosen is None or chosen.name in place.profiles:
            keep = kept.get(place.group, place.keep) if place.keep == LIFE_OF_KEY else place.keep
            rows.append({**asdict(place), "keep": keep.told})
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(f"{row['kind']:<12} {row['name']:<28} {row['what']}; {row['why']}; {row['whose']}; {row['keep']}")


def _profile(ctx: click.Context, named: str | None) -> "Profile":
    from edgeproxy.policy.profiles import load_profile

    return load_profile(settings_of(ctx).profile if named is None else named)
