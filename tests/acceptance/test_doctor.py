"""`edgeproxy doctor` as an operator runs it: before the first start, while nothing serves, and while something does."""

import json
import re
from typing import Any

import pytest

from tests.support.processes import MODELS, Program

LEVELS = ("ok", "warning", "error")


def examined(program: Program, *arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and what was found."""
    ran = program.run("doctor", "--json", *arguments, **variables)
    assert ran.stderr == ""
    told = json.loads(ran.stdout)
    levels = [row["level"] for row in told["findings"]]
    assert all(row["level"] in LEVELS and row["found"] for row in told["findings"])
    assert all(row["remedy"] or row["level"] == "ok" for row in told["findings"])
    assert (told["errors"], told["warnings"]) == (levels.count("error"), levels.count("warning"))
    assert ran.returncode == (1 if told["errors"] else 0)
    return ran.returncode, told


def of(told: dict[str, Any], check: str) -> list[str]:
    return [row["level"] for row in told["findings"] if row["check"] == check]


def secrets_of(program: Program) -> list[str]:
    return [path.read_text().strip() for path in (program.data_dir / "secrets").iterdir()]


def test_before_the_first_start_nothing_is_made(new_program: Program):
    status, told = examined(new_program)
    assert status == 0
    assert of(told, "embedded stores") == ["ok"]
    assert of(told, "redis") == of(told, "installation") == []
    assert not new_program.data_dir.exists()


def test_an_installation_is_well_whether_it_serves_or_not(program: Program):
    status, idle = examined(program)
    assert (status, idle["errors"], idle["warnings"]) == (0, 0, 0), idle
    with program.started("serve"):
        status, serving = examined(program)
        plain = program.run("doctor")
    assert (status, serving["warnings"]) == (0, 0)
    assert [row["check"] for row in serving["findings"]] == [row["check"] for row in idle["findings"]]
    lines = plain.stdout.splitlines()
    assert len(lines) == len(serving["findings"]) + 1
    assert lines[-1] == "errors: 0, warnings: 0"
    assert all(re.match(r"ok {7}[a-z][a-z ]{21} \S", line) for line in lines[:-1]), plain.stdout
    for secret in secrets_of(program):
        assert secret not in json.dumps(idle) + plain.stdout


def test_what_is_wrong_is_told_with_its_remedy_and_an_exit_status(program: Program):
    pepper = program.data_dir / "secrets" / "pepper"
    pepper.chmod(0o644)
    status, told = examined(program)
    assert status == 1
    assert of(told, "embedded stores") == of(told, "secret files") == ["error"]
    told_remedy = next(row["remedy"] for row in told["findings"] if row["check"] == "secret files")
    assert told_remedy == f"chmod 600 '{pepper}'"

    pepper.chmod(0o600)
    assert program.json("keys", "list") == []  # the first command fixes what there is
    pepper.write_text("ab" * 32)
    status, told = examined(program)
    assert (status, of(told, "installation")) == (1, ["error", "error"])
    assert "abab" not in json.dumps(told)


def test_a_provider_that_cannot_be_used_is_told(program: Program):
    program.configure(MODELS.format(mock="http://127.0.0.1:1").replace("MOCK_SECRET", "NOT_SET"))
    status, told = examined(program, NOT_SET="")
    assert (status, of(told, "providers"), of(told, "provider secrets")) == (1, ["error"] * 2, ["error"] * 2)


def test_named_stores_that_are_away_are_told_without_their_passwords(new_program: Program):
    stores = {
        "EDGEPROXY_STORES_REDIS": "redis://u:Zq7@127.0.0.1:1",
        "EDGEPROXY_STORES_POSTGRES": "postgresql://u:Zq7@127.0.0.1:1/d",
    }
    status, told = examined(new_program, **stores)
    assert (status, of(told, "redis"), of(told, "postgresql")) == (1, ["error"], ["error"])
    assert of(told, "installation") == ["error"]
    assert "Zq7" not in json.dumps(told)


@pytest.mark.parametrize("text", ["workres = 2", "workers = ["])
def test_a_configuration_that_cannot_be_read_is_one_line_and_status_2(new_program: Program, text: str):
    new_program.configure(text)
    refused = new_program.run("doctor", "--json")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
