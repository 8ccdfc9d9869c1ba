"""What several commands take: the configuration, `--json`, and what a supervisor hands to its children."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgeproxy.config import Settings, environment, load

CONFIG_VARIABLE = "EDGEPROXY_CONFIG"

_Command = Callable[..., Any]


def config_option(command: _Command) -> _Command:
    """Give a command `--config`, which may stand before or after the command's name."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        expose_value=False,
        callback=_remember,
        help="The configuration, a TOML file. Without one, settings have their defaults.",
    )(command)


def json_option(command: _Command) -> _Command:
    """Give a command `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def child_options(command: _Command) -> _Command:
    """Give a command what a supervisor starts it with: numbers of descriptors that it inherits."""
    for name in ("--inherited-socket", "--control-channel"):
        command = click.option(name, type=int, hidden=True)(command)
    return command


def settings_of(ctx: click.Context) -> Settings:
    """Return the settings that the command line and the environment ask for. Raises OperatorError."""
    return load(configuration_of(ctx), environment())


def configuration_of(ctx: click.Context) -> Path | None:
    """Return the file of the configuration, None when there is none."""
    variable = environment().get(CONFIG_VARIABLE)
    path: Path | None = ctx.find_root().obj
    return path or (Path(variable) if variable else None)


def _remember(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.find_root().obj = value
