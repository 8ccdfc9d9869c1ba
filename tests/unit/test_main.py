"""What the command line makes of errors: one line, an exit status, and never a text that is not ours."""

import logging
import signal
from collections.abc import Iterator

import click
import pytest

from edgeproxy import __main__
from edgeproxy.__main__ import _check, cli, run
from edgeproxy.config import Model, Provider, Settings, Stores
from edgeproxy.errors import OperatorError, StoreUnavailable


@pytest.fixture(autouse=True)
def _signals_and_logs_as_before() -> Iterator[None]:
    terminate, root = signal.getsignal(signal.SIGTERM), logging.getLogger()
    handlers = list(root.handlers)
    yield
    signal.signal(signal.SIGTERM, terminate)
    root.handlers = handlers


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Make `edgeproxy migrate` raise this."""

    def fail(error: BaseException) -> None:
        def raise_it(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(cli.commands["migrate"], "callback", raise_it)

    return fail


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OperatorError("this is wrong; do that"), 2, "edgeproxy: this is wrong; do that\n"),
        (OperatorError("two\nlines  here"), 2, "edgeproxy: two lines here\n"),
        (
            StoreUnavailable("redis"),
            2,
            "edgeproxy: redis cannot be reached or does not answer; check stores.redis, and that it runs\n",
        ),
        (
            StoreUnavailable("postgresql"),
            2,
            "edgeproxy: postgresql cannot be reached or does not answer; check stores.postgres, and that it runs\n",
        ),
        (click.UsageError("no"), 2, "edgeproxy: no See edgeproxy migrate --help\n"),
        (click.ClickException("no"), 2, "edgeproxy: no\n"),
        (click.Abort(), 130, ""),
    ],
)
def test_an_error_is_one_line_and_a_status(
    failing, capsys: pytest.CaptureFixture[str], error: Exception, status: int, line: str
):
    failing(error)
    assert run(["migrate"]) == status
    assert capsys.readouterr() == ("", line)


def test_a_mistake_of_ours_is_one_line_without_its_text(failing, capsys: pytest.CaptureFixture[str]):
    failing(KeyError("canary"))
    assert run(["migrate"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "KeyError in test_main.py line" in told
    assert "canary" not in told


def test_a_status_is_handed_on(failing):
    failing(click.exceptions.Exit(3))
    assert run(["migrate"]) == 3


def test_termination_ends_a_command_the_way_an_exception_does(failing):
    run(["--version"])
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_what_a_library_logs_is_shown_without_its_text(capsys: pytest.CaptureFixture[str]):
    run(["--version"])
    logging.getLogger("asyncio").error("canary %s", "canary", exc_info=ValueError("canary"))
    logging.getLogger("asyncpg").info("canary")
    logging.getLogger("asyncpg").warning("canary")
    told = capsys.readouterr().err
    assert "canary" not in told
    assert told.count("library_warning") == 2
    assert '"library": "asyncio", "error": "ValueError"' in told


def test_a_provider_that_models_use_needs_its_secret(monkeypatch: pytest.MonkeyPatch):
    provider = Provider("p", base_url="https://p.example", secret_env="P_SECRET")
    monkeypatch.delenv("P_SECRET", raising=False)
    assert _check(Settings(provider=(provider,))) == [
        "no [[model]] is configured, so every request for a model gets 404",
        "no [[model]] uses provider 'p'",
    ]
    used = Settings(provider=(provider,), model=(Model("gpt-*", "p"),))
    with pytest.raises(OperatorError, match="P_SECRET"):
        _check(used)
    monkeypatch.setenv("P_SECRET", "x")
    assert _check(used) == []


@pytest.mark.parametrize("stores", [Stores("redis://h"), Stores(postgres="postgresql://h")])
def test_a_named_store_needs_a_named_pepper(stores: Stores):
    with pytest.raises(OperatorError, match="pepper_file"):
        _check(Settings(stores=stores))


def test_main_ends_the_process_with_the_status(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["edgeproxy", "--version"])
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        assert ended.value.code == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, interrupt)
