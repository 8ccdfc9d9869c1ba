"""The command line: what it does, with and without a server, and what it says to mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.processes import ANY_PORT, MODELS, Program, fetch, question, wait_until

COMMANDS = (
    *("demo", "serve", "gateway", "console", "jobs", "migrate", "check-config", "mock-provider", "keys", "doctor"),
    *("reconcile", "policy"),
)
KEY_COMMANDS = ("create", "list", "show", "set", "credit", "revoke", "delete")


def test_help_names_every_command_and_is_quick(unchanged_program: Program):
    program = unchanged_program
    began = time.monotonic()
    told = program.run("--help")
    assert time.monotonic() - began < 3
    assert told.returncode == 0
    assert not [command for command in COMMANDS if f"\n  {command} " not in told.stdout]
    told = program.run("keys", "--help")
    assert not [command for command in KEY_COMMANDS if f"\n  {command} " not in told.stdout]
    assert program.run("--version").stdout.startswith("edgeproxy 0.")


@pytest.mark.claims("OL-5a", "OL-10c")
def test_the_life_of_a_key_without_a_server(program: Program):
    limits = ("--limit", "requests=60/1m", "--limit", "tokens=200000/5h", "--limit", "tokens=1000000/7d")
    options = ("--concurrency", "8", "--expires", "2127-06-30", "--models", "claude-*,gpt-*")
    created = program.json("keys", "create", "--name", "ann", *limits, *options)
    assert created["key"].startswith(created["prefix"])
    assert created["limits"] == ["requests=60/1m", "tokens=200000/5h", "tokens=1000000/7d"]
    assert (created["concurrency"], created["models"]) == (8, ["claude-*", "gpt-*"])
    assert created["expires"].startswith("2127-06-30T00:00:00")
    plain = program.run("keys", "create", "--name", "bob").stdout
    assert "ep-" in plain
    assert "not shown again" in plain

    listed = program.json("keys", "list")
    assert [key["name"] for key in listed] == ["ann", "bob"]
    assert created["key"] not in json.dumps(listed)
    assert len(program.run("keys", "list").stdout.splitlines()) == 2

    shown = program.json("keys", "show", created["id"])
    assert [window["limit"] for window in shown["windows"]] == [60, 200000, 1000000]
    for ref in ("ann", created["prefix"]):
        assert "requests 0 of 60 in 1m, 60 left" in program.run("keys", "show", ref).stdout

    changes = ("--remove-limit", "tokens/7d", "--add-limit", "requests=5/1m", "--concurrency", "none")
    changed = program.json("keys", "set", "ann", *changes, "--expires", "never", "--models", "all", "--name", "anna")
    assert changed["limits"] == ["requests=5/1m", "tokens=200000/5h"]
    assert (changed["name"], changed["concurrency"], changed["expires"], changed["models"]) == ("anna", None, None, [])
    assert program.json("keys", "set", "anna", "--limit", "none")["limits"] == []

    assert program.json("keys", "revoke", "anna")["status"] == "revoked"
    assert program.json("keys", "delete", "anna") == {"deleted": created["id"]}
    assert [key["name"] for key in program.json("keys", "list")] == ["bob"]


def test_a_prepaid_key_is_credited_each_payment_once(program: Program):
    told = program.run("keys", "create", "--name", "bob", "--prepaid", "--reserve", "strict", "--on-limit", "shrink")
    assert "It has no tokens yet; give it some with: edgeproxy keys credit ep-" in told.stdout
    for repeated in (False, True):
        credited = program.json("keys", "credit", "bob", "500", "--reference", "invoice 7")
        assert (credited["repeated"], credited["applied"]) == (repeated, True)
        assert credited["balance"] == {"left": 500, "held": 0}
    plain = program.run("keys", "credit", "bob", "500", "--reference", "invoice 7").stdout
    assert plain.splitlines() == [
        "500 tokens were credited under this reference before; nothing was added",
        "balance      500 left, 0 held",
    ]
    assert "credited 7 tokens" in program.run("keys", "credit", "bob", "7").stdout
    assert "507 tokens left" in program.run("keys", "list").stdout
    shown = program.json("keys", "show", "bob")
    assert (shown["mode"], shown["reserve"], shown["on_limit"]) == ("enforce", "strict", "shrink")
    assert shown["prepaid"] is True
    assert shown["balance"] == {"left": 507, "held": 0}
    assert program.json("keys", "set", "bob", "--mode", "observe", "--on-limit", "refuse")["mode"] == "observe"


def test_keys_before_the_very_first_start(new_program: Program):
    assert new_program.run("keys", "list").stdout.startswith("no keys; make one with")
    assert new_program.json("keys", "list") == []


def test_the_same_commands_while_a_server_runs_take_effect_at_once(program: Program):
    with program.started("serve") as serving:
        created = program.json("keys", "create", "--name", "ann", "--limit", "requests=100/1m")
        url = f"{serving.listeners['api']}/v1/chat/completions"
        fetch(url, created["key"], question())
        assert program.json("keys", "show", "ann")["windows"][0]["used"] == 1
        program.json("keys", "set", "ann", "--limit", "requests=1/1m")
        with pytest.raises(Exception, match="429"):
            fetch(url, created["key"], question())
        program.json("keys", "revoke", "ann")
        with pytest.raises(Exception, match="401"):
            fetch(url, created["key"], question())


def test_commands_at_once_wait_for_one_another(program: Program):
    with ThreadPoolExecutor(3) as pool:
        names = ["a", "b", "c"]
        keys = list(pool.map(lambda name: program.json("keys", "create", "--name", name)["key"], names))
    assert len(set(keys)) == 3
    assert sorted(key["name"] for key in program.json("keys", "list")) == names


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("kyes", "list"), "No such command 'kyes'. Did you mean 'keys'? See edgeproxy --help"),
        (("keys", "crate"), "No such command 'crate'. Did you mean 'create'? See edgeproxy keys --help"),
        (("serve", "--confg", "x"), "No such option '--confg'. Did you mean '--config'? See edgeproxy serve --help"),
        (("keys", "create"), "Missing option '--name'. See edgeproxy keys create --help"),
        (("serve", "now"), "unexpected extra argument"),
        (("serve", "--config", "missing.toml"), "cannot read missing.toml; check --config"),
        (("--config", "missing.toml", "serve"), "cannot read missing.toml; check --config"),
        (("keys", "create", "--name", "a", "--limit", "tokens=many/1m"), "tokens=many/1m"),
        (("keys", "create", "--name", "a", "--limit", "token=1/1m"), "token"),
        (("keys", "create", "--name", "a", "--expires", "soon"), "--expires: a time is written 2027-06-30"),
        (("keys", "create", "--name", "a", "--expires", "2001-01-01"), "expires in the future"),
        (("keys", "create", "--name", "a", "--concurrency", "0"), "concurrency is 1 to"),
        (("keys", "set", "a", "--concurrency", "many"), "neither a number nor none"),
        (("keys", "create", "--name", "a", "--mode", "watch"), "'watch' is not one of 'enforce', 'observe'"),
        (("keys", "create", "--name", "a", "--reserve", "strict"), "reserve strict needs a limit of tokens"),
        (("keys", "set", "a", "--prepaid"), "No such option"),
        (("keys", "credit", "a", "many"), "many"),
        (("keys", "credit", "nobody", "0"), "a credit has 1 to"),
        (("keys", "credit", "nobody", "5"), "no key has this id"),
        (("keys", "show", "nobody"), "no key has this id"),
        (("keys", "delete", "nobody"), "no key has this id"),
        (("mock-provider", "--listen", "nowhere"), "HOST:PORT"),
        (("mock-provider", "--recordings", "missing"), "missing is not a folder"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(unchanged_program: Program, arguments: tuple[str, ...], line: str):
    refused = unchanged_program.run(*arguments)
    assert refused.returncode == 2, refused
    assert refused.stdout == ""
    assert refused.stderr.startswith("edgeproxy: ")
    assert refused.stderr.count("\n") == 1
    assert line in refused.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("workres = 2", "unknown setting workres; did you mean workers?"),
        ("[listen]\napi = 8080", "listen.api must be a string"),
        ("[listen]\napi = '0.0.0.0:8080'", "loopback only"),
        ("workers = [", "is not valid TOML"),
        (MODELS.format(mock="https://a.example").replace("MOCK_SECRET", "NOT_SET"), "NOT_SET"),
        ("[stores]\nredis = 'redis://h'\npostgres = 'postgresql://h'", "set secrets.pepper_file"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(new_program: Program, text: str, line: str):
    program = new_program
    program.configure(text)
    refused = program.run("check-config", "--json")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert line in refused.stderr
    told = json.loads(refused.stdout)
    assert (told["valid"], line in told["error"]) == (False, True)
    assert program.run("serve").returncode == 2


def test_a_usable_configuration_is_said_to_be_one(new_program: Program):
    program = new_program
    assert program.json("check-config") == {"valid": True, "error": None, "notes": []}
    program.configure(ANY_PORT)
    assert "note: no [[model]] is configured" in program.run("check-config").stdout


def test_a_mistyped_variable_is_one_line(unchanged_program: Program):
    program = unchanged_program
    refused = program.run("check-config", EDGEPROXY_WORKRES="2")
    assert refused.stderr.count("\n") == 1
    assert "did you mean EDGEPROXY_WORKERS?" in refused.stderr


def test_no_command_at_all_shows_the_help(unchanged_program: Program):
    program = unchanged_program
    told = program.run()
    assert told.returncode == 2
    assert told.stderr.startswith("Usage: edgeproxy")


def test_a_reader_that_goes_away_is_no_error(unchanged_program: Program):
    program = unchanged_program
    command = [sys.executable, "-P", "-m", "edgeproxy", "keys", "list", "--json"]
    read, write = os.pipe()
    process = subprocess.Popen(command, cwd=program.folder, env=program.environ, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    os.close(read)
    _, errors = process.communicate(timeout=60)
    assert errors == b""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_interrupted_stops_what_it_started(program: Program, number: signal.Signals, status: int):
    running = program.begin("keys", "list")
    wait_until((program.data_dir / "redis.log").exists, running)
    wait_until(running.children, running)
    assert running.stop(number) == status
    assert "".join(running.errors).strip() == ""
