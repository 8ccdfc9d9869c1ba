"""What several commands take."""

from pathlib import Path

import click
import pytest

from edgeproxy.commands.options import child_options, config_option, json_option, settings_of
from edgeproxy.config import Settings
from edgeproxy.errors import OperatorError


@click.group()
@config_option
def group() -> None:
    pass


@group.command()
@config_option
@json_option
@child_options
@click.pass_context
def command(ctx: click.Context, inherited_socket: int | None, control_channel: int | None, *, as_json: bool):
    return settings_of(ctx), as_json, inherited_socket, control_channel


def run(*arguments: str) -> tuple[Settings, bool, int | None, int | None]:
    return group.main(list(arguments), standalone_mode=False)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configurations named after their number of workers."""
    for workers in (2, 3):
        (tmp_path / f"{workers}.toml").write_text(f"workers = {workers}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", [("--config", "2.toml", "command"), ("command", "--config", "2.toml")])
def test_the_configuration_may_stand_before_or_after_the_command(files: Path, arguments: tuple[str, ...]):
    assert run(*arguments)[0].workers == 2


def test_the_one_after_the_command_wins_and_an_argument_wins_over_the_variable(
    files: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run("--config", "2.toml", "command", "--config", "3.toml")[0].workers == 3
    monkeypatch.setenv("EDGEPROXY_CONFIG", "3.toml")
    assert run("command")[0].workers == 3
    assert run("--config", "2.toml", "command")[0].workers == 2


def test_a_variable_overrides_the_file(files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDGEPROXY_WORKERS", "7")
    assert run("--config", "2.toml", "command")[0].workers == 7


def test_without_a_configuration_there_are_defaults(files: Path):
    assert run("command") == (Settings(), False, None, None)


def test_a_missing_configuration_is_one_line(files: Path):
    with pytest.raises(OperatorError, match="cannot read 4"):
        run("command", "--config", "4.toml")


def test_json_and_what_a_supervisor_hands_over(files: Path):
    assert run("command", "--json", "--inherited-socket", "5", "--control-channel", "6")[1:] == (True, 5, 6)
    told = click.Context(command, info_name="command").get_help()
    assert "--json" in told
    assert "--control-channel" not in told
