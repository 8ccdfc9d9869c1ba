"""`edgeproxy serve` as its operator has it: start, work, accidents, stop."""

import json
import signal
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.support.processes import (
    Program,
    Started,
    fetch,
    processes_with,
    question,
    wait_until,
)


def ask(serving: Started, key: str, model: str = "gpt-mock") -> bytes:
    return fetch(f"{serving.listeners['api']}/v1/chat/completions", key, question(model))


def usage(serving: Started, key: str) -> dict[str, dict[str, int]]:
    return json.loads(fetch(f"{serving.listeners['web']}/api/v1/usage", key))


def metric(serving: Started, name: str) -> float:
    text = fetch(serving.listeners["metrics"]).decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith((name + " ", name + "{")))


def test_the_main_job_from_the_very_first_start(new_program: Program, mock: str):
    program = new_program
    with program.started("serve") as serving:
        assert [line.split()[0] for line in serving.lines] == ["api", "web", "metrics", "ready"]
        assert fetch(f"{serving.listeners['api']}/healthz")
        assert fetch(f"{serving.listeners['api']}/readyz")
        created = program.json("keys", "create", "--name", "main", "--limit", "tokens=100000/1m")
        key = created["key"]
        assert ask(serving, key).endswith(b"data: [DONE]\n\n")
        assert fetch(f"{serving.listeners['api']}/v1/messages", key, question("claude-mock"))
        served = json.loads(fetch(f"{mock}/__count"))
        totals = usage(serving, key)["totals"]
        assert totals["requests"] == served["completed"] == 2
        assert totals["input_tokens"] == served["input_tokens"] > 0
        assert totals["output_tokens"] == served["output_tokens"] > 0
        assert metric(serving, "edgeproxy_requests_total") == 2, "one sum over all workers"
        assert serving.stop() == 0
        assert serving.errors == []
    with program.started("serve") as serving:
        assert usage(serving, key)["totals"] == totals, "a second start keeps keys and counts"
        wait_until(lambda: len(usage(serving, key)["recent"]) == 2)
        ask(serving, key)
        assert serving.stop(signal.SIGINT) == 0


@pytest.mark.claims("OL-8b")
def test_no_secret_is_in_a_command_line_and_no_database_in_a_gateways_environment(program: Program):
    program.environ |= {"PGPASSWORD": "canary", "DATABASE_URL": "canary", "EDGEPROXY_BOUNDS_DRAIN_MS": "5000"}
    with program.started("serve") as serving:
        secrets = [path.read_text().strip() for path in (program.data_dir / "secrets").iterdir()]
        assert len(secrets) == 3
        assert not [pid for secret in secrets for pid in processes_with(secret)]
        gateways = [pid for pid, command in serving.children().items() if " gateway " in command]
        assert len(gateways) == 2
        with suppress(PermissionError):  # to an ordinary user, our own processes are closed
            for pid in gateways:
                environ = Path(f"/proc/{pid}/environ").read_text()
                assert "MOCK_SECRET" in environ
                assert not [word for word in ("canary", "postgres", "EDGEPROXY_", *secrets) if word in environ]
            console = Path(f"/proc/{serving.child(' console ')}/environ").read_text()
            assert "MOCK_SECRET" not in console, "a provider's secret is for gateways alone"


def test_no_process_leaves_an_image_of_its_memory_and_all_descriptors_can_be_used(program: Program):
    with program.started("serve") as serving:
        children = serving.children()
        ours = [pid for pid, command in children.items() if " -m edgeproxy " in command]
        for pid in (serving.process.pid, *children):
            lines = [line.split() for line in Path(f"/proc/{pid}/limits").read_text().splitlines()]
            (core,) = (line[4:6] for line in lines if line[:2] == ["Max", "core"])
            (files,) = (line[3:5] for line in lines if line[:2] == ["Max", "open"])
            assert core == ["0", "0"]
            assert files[0] == files[1]
        for pid in (serving.process.pid, *ours):
            assert "Umask:\t0077" in Path(f"/proc/{pid}/status").read_text()
        assert serving.stop() == 0


def test_a_command_after_a_killed_supervisor_cleans_up_too(program: Program):
    with program.started("serve") as serving:
        program.json("keys", "create", "--name", "main")
        serving.process.kill()
        serving.process.wait()
    assert [key["name"] for key in program.json("keys", "list")] == ["main"]


def test_a_second_ctrl_c_does_not_wait_for_streams_and_is_quiet(program: Program):
    with program.started("serve") as serving:
        key = program.json("keys", "create", "--name", "main")["key"]

        def asking() -> None:
            with pytest.raises((HTTPException, OSError)):
                ask(serving, key, "gpt-mock:chunks-600.interval-100")

        thread = threading.Thread(target=asking, daemon=True)
        thread.start()
        wait_until(lambda: metric(serving, "edgeproxy_open_streams") == 1)
        serving.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        began = time.monotonic()
        assert serving.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 10
        assert serving.errors == []
        thread.join(10)
    (listed,) = program.json("keys", "list")
    told = program.json("keys", "show", listed["id"])
    assert told["totals"]["requests"] == 1
    assert told["totals"]["output_tokens"] > 0, "what passed was settled all the same"


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 1.2])
def test_a_stop_while_it_is_starting_is_a_clean_stop(new_program: Program, after_s: float):
    program = new_program
    serving = program.begin("serve")
    wait_until((program.data_dir / "lock").exists, serving)
    time.sleep(after_s)
    assert serving.stop() == 0
    assert serving.errors == []


def test_a_second_server_is_refused_in_one_line_that_names_the_first(program: Program):
    with program.started("serve") as serving:
        second = program.run("serve")
        assert second.returncode == 2
        assert second.stdout == ""
        first = f"process {serving.process.pid} already serves from {program.data_dir}"
        assert second.stderr == f"edgeproxy: {first}; stop it, or set data_dir\n"


def test_a_busy_port_is_one_line_and_nothing_is_started(new_program: Program, mock: str):
    program = new_program
    address = mock.removeprefix("http://")
    refused = program.run("serve", EDGEPROXY_LISTEN_WEB=address)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "EDGEPROXY_LISTEN_WEB" in refused.stderr
    assert not (program.data_dir / "postgres").exists()


def test_what_nobody_declared_is_one_line_and_nothing_is_left_running(program: Program):
    (program.data_dir / "prompts.txt").write_text("x")
    ran = program.run("serve")
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith("edgeproxy: something is kept that the inventory does not declare: ")
    assert line.endswith(": file in data_dir prompts.txt (move it to another folder)")


def test_a_provider_without_its_secret_is_one_line(program: Program):
    del program.environ["MOCK_SECRET"]
    refused = program.run("serve")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "MOCK_SECRET" in refused.stderr


def test_a_role_alone_works_beside_a_server_with_embedded_stores(program: Program):
    with program.started("serve") as serving:
        key = program.json("keys", "create", "--name", "main")["key"]
        for role, listener in (("gateway", "api"), ("console", "web"), ("jobs", "metrics")):
            with program.started(role) as alone:
                assert alone.lines[-1].startswith("ready")
                assert set(alone.listeners) == {listener, "metrics"}
                assert b"edgeproxy_" in fetch(alone.listeners["metrics"])
                if role == "gateway":
                    ask(alone, key)
                elif role == "console":
                    assert usage(alone, key)["totals"]["requests"] == 1
                assert alone.stop(signal.SIGINT) == 0
                assert alone.errors == []
        ask(serving, key)


@pytest.mark.parametrize("role", ["gateway", "console", "jobs"])
def test_a_role_alone_says_that_it_needs_stores(program: Program, role: str):
    refused = program.run(role)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "start edgeproxy serve, or name the stores" in refused.stderr


def test_named_stores(new_program: Program, redis_url: str, postgres_url: str, data_dir: Path):
    program = new_program
    pepper = data_dir / "pepper"
    pepper.write_text("ab" * 32)
    pepper.chmod(0o600)
    program.environ |= {"EDGEPROXY_STORES_REDIS": redis_url, "EDGEPROXY_STORES_POSTGRES": postgres_url}
    refused = program.run("serve")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "secrets.pepper_file" in refused.stderr
    program.environ["EDGEPROXY_SECRETS_PEPPER_FILE"] = str(pepper)
    early = program.run("keys", "create", "--name", "early")
    assert (early.returncode, early.stderr.count("\n")) == (2, 1)
    assert "edgeproxy migrate" in early.stderr
    assert program.json("migrate")["applied"]
    assert program.json("migrate")["applied"] == []
    with program.started("serve") as serving:
        key = program.json("keys", "create", "--name", "main")["key"]
        ask(serving, key)
        assert usage(serving, key)["totals"]["requests"] == 1
        assert not any("redis" in command or "postgres" in command for command in serving.children().values())
        assert serving.stop() == 0
    for role in ("gateway", "console", "jobs"):
        with program.started(role) as alone:
            assert alone.stop() == 0
            assert alone.errors == []
    assert not program.data_dir.exists(), "a data directory is for embedded stores"
