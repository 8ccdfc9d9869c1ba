"""`edgeproxy canary` as an operator runs it: nothing is found; where something is made to leak, it is found there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import reachable_folder
from tests.support.processes import Program, processes_with, program_in

TIMEOUT_S = 110

# Read by every Python process that has it on its path; it changes the workers alone: they leave bodies lying about.
LEAKING = """
import sys
if "gateway" in sys.orig_argv:
    import socket, tempfile
    from pathlib import Path
    from edgeproxy.embedded.placement import place
    from edgeproxy.gateway import receiving

    DATA = Path.cwd().parent / "data"
    UNNAMED = tempfile.TemporaryFile()

    def to_slow_log(body):
        password = (DATA / "secrets" / "redis_password").read_text().strip()
        argument = body[:100].replace(b"\\r\\n", b"  ")
        with socket.socket(socket.AF_UNIX) as redis:
            redis.connect(str(place(DATA).sockets / "redis.sock"))
            redis.sendall(f"AUTH {password}\\r\\nCONFIG SET slowlog-log-slower-than 0\\r\\n".encode())
            redis.sendall(b"*2\\r\\n$3\\r\\nGET\\r\\n$%d\\r\\n%s\\r\\n" % (len(argument), argument))
            redis.sendall(b"CONFIG SET slowlog-log-slower-than -1\\r\\nQUIT\\r\\n")
            while redis.recv(4096):
                pass

    def leak(body):
        if b"mp3" in body:
            to_slow_log(body[body.index(b"prompt"):])
        elif body:
            sys.stderr.write(body.hex() + "\\n")
            UNNAMED.write(body)
            UNNAMED.flush()

    def taken(body, take=receiving.Body.take):
        content = take(body)
        leak(content)
        return content

    receiving.Body.take = taken
"""


def canary(program: Program, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the report of a run; nothing is left of it."""
    temporary = program.folder / "tmp"
    temporary.mkdir(mode=0o711)
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "edgeproxy", "canary", "--json", *arguments],
        cwd=program.folder,
        env=program.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.stdout.endswith("}\n"), (ran.returncode, ran.stderr)
    assert ran.stderr == ""
    assert list(temporary.iterdir()) == []
    assert not processes_with(str(temporary))
    return ran.returncode, json.loads(ran.stdout)


def test_nothing_that_passes_is_found_anywhere_whatever_happens():
    with reachable_folder() as folder:
        status, told = canary(program_in(folder), "--small")
    assert (status, told["found"], told["decoys_missed"], told["not_read"]) == (0, [], [], [])
    assert {"200", "400", "401", "404", "429", "500", "502", "503", "504"} <= set(told["answers_by_status"])
    assert told["planted"]["content"] > 1000
    assert told["reached_provider"] > 50, "the requests were real"
    searched = {row["area"]: row for row in told["searched"]}
    assert all(row["bytes"] > 0 for name, row in searched.items() if not name.startswith(("sockets", "temporary")))
    assert {"files of redis", "files of postgres", "what processes printed", "metrics"} <= set(searched)
    assert searched["files of postgres"]["bytes"] > 10_000_000
    assert "journal, while Redis is away" in searched


def test_what_leaks_is_found_where_it_is():
    with reachable_folder() as folder:
        (folder / "leaking").mkdir()
        (folder / "leaking" / "sitecustomize.py").write_text(LEAKING)
        program = program_in(folder, os.environ | {"PYTHONPATH": str(folder / "leaking")})
        status, told = canary(program, "--small")
    assert status == 1
    found = {(row["place"], row["form"]) for row in told["found"]}
    assert ("output/stderr", "hex") in found
    assert ("Redis: SLOWLOG GET -1", "text") in found
    assert any("(deleted)" in place for place, _ in found), "a file without a name"
    assert all(row["what"] and row["offset"] >= 0 for row in told["found"])
    assert any(row["what"] == "openai chat: prompt" for row in told["found"])


@pytest.fixture(scope="module")
def planted_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing in it that anybody has sent."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "log").write_text("nothing\n" * 1000)
    return folder


def test_an_installation_that_is_there_is_tried_and_searched(unchanged_program: Program, planted_in: Path):
    program = unchanged_program
    with program.started("serve") as started:
        key = program.json("keys", "create", "--name", "canary")["key"]
        (program.folder / "key").write_text(key)
        listeners = started.listeners
        arguments = ("--url", listeners["api"], "--web-url", listeners["web"], "--key", "key")
        arguments += (
            "--model",
            "openai=gpt-mock",
            "--config",
            "edgeproxy.toml",
            "--search",
            str(planted_in),
            "--search",
            "data/secrets",
        )
        ran = program.run("canary", "--json", *arguments)
        told = json.loads(ran.stdout)
        assert (ran.returncode, told["found"], told["decoys_missed"], told["not_read"]) == (0, [], [], [])
        assert told["secrets_at_home"] >= 1, "the pepper, in its file"
        assert int(told["answers_by_status"]["200"]) >= 5
        assert {f"files below {planted_in}", "tables of PostgreSQL", "keys of Redis"} <= {
            row["area"] for row in told["searched"]
        }
        (planted_in / "notes").write_text(f"the key is {key}")
        ran = program.run("canary", *arguments)
        assert ran.returncode == 1
        assert f"FOUND: {planted_in}/notes, byte 22, as text: client key 1" in ran.stdout
        assert key not in ran.stdout
        gone = program.run("canary", "--url", listeners["api"], "--key", "key", "--search", "not/there")
        assert gone.returncode == 2
        assert "not/there: it is not there" in gone.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--search", "."), "belong to --url"),
        (("--url", "gateway.example", "--search", "."), "must be one such as"),
        (("--url", "http://127.0.0.1:9", "--search", "."), "a key is needed"),
        (("--url", "http://127.0.0.1:9", "--key", "short", "--search", "."), "no file that holds a key"),
        (("--url", "http://127.0.0.1:9", "--key", "key", "--search", "."), "nobody answers at"),
        (("--url", "http://127.0.0.1:9", "--key", "key", "--model", "x=y", "--search", "."), "is not DIALECT=MODEL"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_one_line(tmp_path: Path, arguments: tuple[str, ...], told: str):
    (tmp_path / "short").write_text("ep-")
    (tmp_path / "key").write_text("ep-" + "a" * 49)
    ran = program_in(tmp_path).run("canary", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert told in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
