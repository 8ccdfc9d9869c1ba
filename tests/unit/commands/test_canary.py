"""What the command refuses and how it tells of a run; whole runs are in tests/acceptance/test_canaries.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeproxy.__main__ import cli
from edgeproxy.canary import run
from edgeproxy.canary.report import Report
from edgeproxy.errors import OperatorError

KEY = "ep-" + "k" * 49


def report(**changes: object) -> Report:
    told = {"acts": [], "statuses": {}, "planted": 1, "secrets": 1, "decoys": 1, "reached": None, "areas": {}}
    told |= {"leaks": [], "at_home": 0, "missed": [], "not_read": [], "not_understood": [], "seconds": 1.0}
    return Report(**(told | changes))


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "short").write_text("ep-")
    return lambda *arguments: CliRunner().invoke(cli, ["canary", *arguments])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--search", "."), "belong to --url"),
        (("--url", "gateway.example", "--search", "."), "must be one such as"),
        (("--url", "http://a", "--web-url", "ftp://a", "--search", "."), "must be one such as"),
        (("--url", "http://a", "--search", "."), "a key is needed"),
        (("--url", "http://a", "--key", "short", "--search", "."), "no file that holds a key"),
        (("--url", "http://a", "--key", "key"), "nothing to search"),
        (("--url", "http://a", "--key", "key", "--model", "x=y", "--search", "."), "is not DIALECT=MODEL"),
        (("--url", "http://a", "--key", "key", "--model", "openai", "--search", "."), "is not DIALECT=MODEL"),
    ],
)
def test_what_cannot_be_tried_is_refused(invoke: Callable[..., Result], arguments: tuple[str, ...], told: str):
    result = invoke(*arguments)
    assert isinstance(result.exception, OperatorError)
    assert told in str(result.exception)


def test_a_deployment_is_what_was_named(invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    seen = []

    async def against(deployment: run.Deployment, deadline: float) -> Report:
        seen.append(deployment)
        return report(not_read=["a: denied"])

    monkeypatch.setattr(run, "run_against", against)
    result = invoke(
        "--url", "https://a", "--metrics-url", "http://b:1", "--key", "key", "--search", "x", "--model", "gemini=m"
    )
    assert result.exit_code == 2
    assert "could not be read: a: denied" in result.output
    assert seen[0].listeners == {"api": "https://a", "metrics": "http://b:1"}
    assert (seen[0].key, seen[0].paths, seen[0].models.gemini, seen[0].settings) == (KEY, (Path("x"),), "m", None)


def test_a_run_of_its_own_is_in_the_profile_of_the_configuration(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    seen = []

    async def alone(profile: str, *, small: bool, deadline: float) -> Report:
        seen.append((profile, small))
        return report()

    monkeypatch.setattr(run, "run_self_contained", alone)
    result = invoke("--small", "--json")
    assert result.exit_code == 0
    assert json.loads(result.output)["verdict"].startswith("nothing")
    assert seen == [("opusmax", True)]
