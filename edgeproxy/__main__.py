"""The command line. Every mistake gets one line that says what is wrong and what to do, and exit status 2.

A command imports what it needs when it runs, so that `edgeproxy --help` is quick. What it prints for people goes to
standard output; `--json` prints the same for programs.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from edgeproxy import logs
from edgeproxy.commands.canary import canary
from edgeproxy.commands.doctor import doctor
from edgeproxy.commands.keys import keys
from edgeproxy.commands.options import child_options, config_option, json_option, settings_of
from edgeproxy.commands.policy import policy
from edgeproxy.commands.reconcile import reconcile
from edgeproxy.config import EMBEDDED, Settings, environment, provider_secret
from edgeproxy.errors import OperatorError, StoreUnavailable, operator_line


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgeproxy", message="edgeproxy %(version)s")
@config_option
def cli() -> None:
    """Serve AI models through keys, limits and counts of your own, without keeping any content."""


@cli.command()
@config_option
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Try it out: everything that serve starts, a mock provider, a key, and lines to paste."""
    import uvloop

    from edgeproxy.demo import run_demo

    uvloop.run(run_demo(settings_of(ctx), lambda: settings_of(ctx)))


@cli.command()
@config_option
@click.pass_context
def serve(ctx: click.Context) -> None:
    """Run everything on this machine: gateway workers, console, jobs, and the stores that are not named."""
    import uvloop

    from edgeproxy.supervisor.serve import Serving, listener_lines
    from edgeproxy.supervisor.serve import serve as run

    async def announce(serving: Serving) -> None:
        for line in listener_lines(serving):
            click.echo(line)
        click.echo("ready    Ctrl-C stops it")

    uvloop.run(run(settings_of(ctx), lambda: settings_of(ctx), announce))


@cli.command()
@config_option
@child_options
@click.pass_context
def gateway(ctx: click.Context, inherited_socket: int | None, control_channel: int | None) -> None:
    """Run one gateway process alone: the data plane."""
    _run_role(ctx, ["gateway"], inherited_socket, control_channel)


@cli.command()
@config_option
@child_options
@click.option("--with-jobs", is_flag=True, hidden=True)
@click.pass_context
def console(ctx: click.Context, inherited_socket: int | None, control_channel: int | None, *, with_jobs: bool) -> None:
    """Run the console alone: the JSON API of usage."""
    _run_role(ctx, ["console", "jobs"] if with_jobs else ["console"], inherited_socket, control_channel)


@cli.command()
@config_option
@child_options
@click.pass_context
def jobs(ctx: click.Context, inherited_socket: int | None, control_channel: int | None) -> None:
    """Run the background work alone: it writes down what was used."""
    _run_role(ctx, ["jobs"], inherited_socket, control_channel)


def _run_role(ctx: click.Context, names: Sequence[str], listener: int | None, channel: int | None) -> None:
    import uvloop

    from edgeproxy.embedded.stores import shared
    from edgeproxy.supervisor.reloading import Reloading
    from edgeproxy.supervisor.roles import Role, run_alone, run_child

    roles = [Role(name) for name in names]
    if channel is not None:
        ctx.exit(uvloop.run(run_child(roles, listener, channel)))
    given = settings_of(ctx)
    uvloop.run(run_alone(roles[0], Reloading(given, shared(given), lambda: settings_of(ctx))))


@cli.command()
@config_option
@json_option
@click.pass_context
def migrate(ctx: click.Context, *, as_json: bool) -> None:
    """Bring the database up to date; nothing happens when it is."""
    import uvloop

    from edgeproxy.embedded.stores import attached
    from edgeproxy.store.migrate import migrate as apply

    with attached(settings_of(ctx)) as settings:
        applied = uvloop.run(apply(settings.stores.postgres))
    if as_json:
        click.echo(json.dumps({"applied": applied}))
    else:
        click.echo(f"applied {', '.join(applied)}" if applied else "the database is up to date")


@cli.command("check-config")
@config_option
@json_option
@click.pass_context
def check_config(ctx: click.Context, *, as_json: bool) -> None:
    """Say whether the configuration can be used, secrets of providers included."""
    try:
        notes = _check(settings_of(ctx))
    except OperatorError as error:
        if as_json:
            click.echo(json.dumps({"valid": False, "error": operator_line(error), "notes": []}))
        raise
    if as_json:
        click.echo(json.dumps({"valid": True, "error": None, "notes": notes}))
    else:
        for line in ("the configuration is valid", *(f"note: {note}" for note in notes)):
            click.echo(line)


def _check(settings: Settings) -> list[str]:
    """Return what is worth knowing of settings that are valid. Raises OperatorError when they are not."""
    from edgeproxy.checkup.configuration import notes
    from edgeproxy.policy.claims import refuse_unkept

    refuse_unkept(settings.profile)
    served = {model.provider for model in settings.model}
    for provider in settings.provider:
        if provider.name in served:
            provider_secret(provider, environment())
    embedded = settings.stores.redis == settings.stores.postgres == EMBEDDED
    if not embedded and not settings.secrets.pepper_file:
        raise OperatorError("stores are named, so name the pepper as well: set secrets.pepper_file")
    return [note.found for note in notes(settings)]


@cli.command("mock-provider")
@click.option("--listen", default="127.0.0.1:8090", show_default=True, help="HOST:PORT to listen on.")
@click.option("--recordings", type=click.Path(path_type=Path), help="Folder of recorded answers.")
@click.option("--interval-ms", type=click.IntRange(min=0), default=0, help="Pause between the events of a stream.")
@child_options
@click.pass_context
def mock_provider(
    ctx: click.Context,
    listen: str,
    recordings: Path | None,
    interval_ms: int,
    inherited_socket: int | None,
    control_channel: int | None,
) -> None:
    """Answer like the providers do, for trials and tests. GET /__count says what was served."""
    if control_channel is not None:
        _run_role(ctx, ["mock-provider"], inherited_socket, control_channel)
    import uvloop

    from edgeproxy.mock_provider.server import Options, running
    from edgeproxy.supervisor.signals import Signals

    async def answer() -> None:
        signals = Signals()
        async with running(listen, Options(interval_ms=interval_ms, recordings=recordings)) as mock:
            click.echo(f"mock     {mock.url}")
            click.echo("ready    Ctrl-C stops it")
            await signals.stop.wait()

    uvloop.run(answer())


cli.add_command(canary)
cli.add_command(doctor)
cli.add_command(keys)
cli.add_command(policy)
cli.add_command(reconcile)


def main() -> NoReturn:
    """Run the command line and end the process."""
    status = run(sys.argv[1:])
    # Whoever presses Ctrl-C once more now wants what is happening anyway.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status: 0, or 2 after one line on standard error."""
    signal.signal(signal.SIGTERM, _terminated)
    logs.take_over_libraries()
    try:
        status = cli.main(list(arguments), prog_name="edgeproxy", standalone_mode=False)
    except (OperatorError, StoreUnavailable, click.ClickException) as error:
        click.echo(_told(error), err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last place that can keep a traceback, with values in it, away
        click.echo(f"edgeproxy: internal error, {_where(error)}; please report this mistake of edgeproxy", err=True)
        return 1
    return status if isinstance(status, int) else 0


def _terminated(number: int, _: object) -> NoReturn:
    """End a command on SIGTERM the way an exception does: what it started is stopped on the way out."""
    raise SystemExit(128 + number)


def _told(error: OperatorError | StoreUnavailable | click.ClickException) -> str:
    """Return what to say about a mistake: one line, or the help where no command was given."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message()
    if not isinstance(error, click.ClickException):
        line = operator_line(error)
    elif isinstance(error, click.UsageError) and error.ctx is not None:
        line = f"{error.format_message()} See {error.ctx.command_path} --help"
    else:
        line = error.format_message()
    return f"edgeproxy: {' '.join(line.split())}"


def _where(error: Exception) -> str:
    """Return the kind and place of an error, without its text: that may quote what a client or provider sent."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return type(error).__name__
    return f"{type(error).__name__} in {Path(place.tb_frame.f_code.co_filename).name} line {place.tb_lineno}"


if __name__ == "__main__":
    main()
