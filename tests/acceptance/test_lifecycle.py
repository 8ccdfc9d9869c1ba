"""The life of `edgeproxy serve` under load: kills, reloads, drains, and what systemd hears of it."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from edgeproxy.config import Settings
from edgeproxy.embedded.placement import place
from edgeproxy.embedded.postgres import EmbeddedPostgres
from edgeproxy.embedded.stores import attached
from tests.support.load import Load
from tests.support.processes import (
    ANY_PORT,
    MODELS,
    Program,
    Refused,
    Started,
    children_of,
    fetch,
    is_running,
    question,
    wait_until,
)

STREAMS = 100
REDIS_LOSES_S = 3.0  # appended every second: while the disk is slow, what was written for two more is not there yet
CHILDREN = (" gateway ", " gateway ", " console ", "redis-server", "postgres")  # of a server with two workers


def metric(serving: Started, name: str) -> float:
    """The sum of a metric over its series, 0 while it cannot be asked."""
    try:
        text = fetch(serving.listeners["metrics"]).decode()
    except (Refused, HTTPException, OSError):
        return 0
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def status_of(url: str) -> tuple[int, str]:
    """Status and body, 0 where nobody answers."""
    try:
        return 200, fetch(url).decode()
    except Refused as refused:
        return refused.args[0], refused.args[1].decode()
    except (HTTPException, OSError) as error:
        return 0, type(error).__name__


def is_complete(serving: Started) -> bool:
    """Whether all processes are there, and all stores answer."""
    ready = [status_of(f"{serving.listeners[name]}/readyz")[0] for name in ("api", "web")]
    return ready == [200, 200] and len(serving.children()) == len(CHILDREN)


def kill(serving: Started, part: str, nth: int = 0) -> None:
    """End a child in the hardest way, and return when it is gone."""
    pid = sorted(pid for pid, command in serving.children().items() if part in command)[nth]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))


def rows(url: str) -> dict[str, int]:
    """What PostgreSQL holds of usage: all rows, and those of answers that came whole."""

    async def read() -> dict[str, int]:
        connection = await asyncpg.connect(url)
        try:
            row = await connection.fetchrow(
                "SELECT count(*) AS requests, count(*) FILTER (WHERE status = 200 AND NOT estimated) AS whole,"
                " coalesce(sum(input_uncached + cache_read + cache_write), 0)::bigint AS input_tokens,"
                " coalesce(sum(output), 0)::bigint AS output_tokens FROM edgeproxy.usage_events"
            )
        finally:
            await connection.close()
        return dict(row)

    return asyncio.run(read())


def totals(serving: Started, key: str) -> dict[str, int]:
    """What Redis holds of usage."""
    return json.loads(fetch(f"{serving.listeners['web']}/api/v1/usage", key))["totals"]


def in_both(program: Program, serving: Started, key: str, least: int) -> dict[str, int]:
    """What is counted, once PostgreSQL has all of what Redis has, and so many whole answers at least."""
    counted: dict[str, int] = {}
    url = EmbeddedPostgres(program.data_dir, place(program.data_dir)).url()

    def is_all() -> bool:
        counted.update(rows(url))
        return counted["whole"] >= least and counted.items() >= totals(serving, key).items()

    wait_until(is_all)
    return counted


def served_by(mock: str) -> dict[str, int]:
    served: dict[str, int] = json.loads(fetch(f"{mock}/__count"))
    return served


def configure(program: Program, mock: str, more: str = "", *, workers: int = 2) -> None:
    program.configure(f"workers = {workers}\n{ANY_PORT}{MODELS.format(mock=mock)}{more}")


def create_key(program: Program) -> str:
    key: str = program.json("keys", "create", "--name", "main")["key"]
    return key


def test_each_process_can_be_killed_under_load_and_what_was_served_is_counted(program: Program, mock: str):
    program.environ["EDGEPROXY_JOBS_FLUSH_AFTER_MS"] = "100"
    with program.started("serve") as serving:
        key = create_key(program)
        load = Load(serving.listeners["api"], key)
        with load.running(clients=4):
            for part in (" console ", "postgres"):
                load.wait_for(5)
                kill(serving, part)
                load.wait_for(5, lambda: is_complete(serving))
        assert (load.refused, load.broken) == ([], []), "the gateways have not noticed"
        served = served_by(mock)
        counted = in_both(program, serving, key, least=served["completed"])
        assert counted["whole"] == served["completed"] == len(load.whole)
        assert (counted["input_tokens"], counted["output_tokens"]) == (served["input_tokens"], served["output_tokens"])

        load = Load(serving.listeners["api"], key)
        with load.running(clients=4):
            load.wait_for(5)
            killed_at = time.monotonic()
            kill(serving, "redis-server")
            load.wait_for(5, lambda: is_complete(serving))
        assert set(load.refused) <= {503}
        assert load.broken == [], "answers that were open came to their end"
        at_risk = sum(at > killed_at - REDIS_LOSES_S for at in load.whole)
        completed = served_by(mock)["completed"]
        counted = in_both(program, serving, key, least=completed - at_risk)
        assert counted["whole"] <= completed

        before, load = counted["whole"], Load(serving.listeners["api"], key)
        missing = completed - before
        with load.running(clients=4):
            for nth in (0, 1):
                load.wait_for(5)
                kill(serving, " gateway ", nth)
                load.wait_for(5, lambda: is_complete(serving))
        counted = in_both(program, serving, key, least=before + len(load.whole))  # whoever has all of it was counted
        uncounted = served_by(mock)["completed"] - counted["whole"] - missing
        assert 0 <= uncounted <= len(load.broken), "but for those that the killed workers held"
        events = {json.loads(line)["event"] for line in serving.errors if line.startswith("{")}
        assert events >= {"child_ended", "store_ended"}
        assert serving.stop() == 0


def test_a_connection_that_waits_while_its_worker_is_replaced_is_served(program: Program, mock: str):
    configure(program, mock, workers=1)
    with program.started("serve") as serving:
        load = Load(serving.listeners["api"], create_key(program), "gpt-mock")
        worker = serving.child(" gateway ")
        os.kill(worker, signal.SIGSTOP)
        asking = [threading.Thread(target=load.ask, daemon=True) for _ in range(20)]
        for thread in asking:
            thread.start()
        address = urlsplit(load.api)
        wait_until(lambda: waiting_at(address.port) >= len(asking))
        os.kill(worker, signal.SIGKILL)
        for thread in asking:
            thread.join(60)
        assert len(load.whole) == len(asking)
        assert serving.stop() == 0


def waiting_at(port: int | None) -> int:
    """How many connections to a port of 127.0.0.1 wait to be accepted: the queue of the socket that listens there."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(
        int(line[4].partition(":")[2], 16) for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")
    )


def test_a_killed_supervisor_under_load_leaves_nothing_that_the_next_start_cannot_deal_with(
    program: Program, mock: str
):
    with program.started("serve") as serving:
        key = create_key(program)
        load = Load(serving.listeners["api"], key)
        children = serving.children()
        with load.running(clients=4):
            load.wait_for(5)
            serving.process.kill()
            serving.process.wait()
            ours = [pid for pid, command in children.items() if " -m edgeproxy " in command]
            wait_until(lambda: not any(is_running(pid) for pid in ours))
        assert len(ours) == 3
        assert load.whole
    with program.started("serve") as serving:
        assert not any(is_running(pid) for pid in children), "the stores were stopped and started anew"
        load = Load(serving.listeners["api"], key)
        load.ask()
        assert len(load.whole) == 1
        completed = served_by(mock)["completed"]
        assert in_both(program, serving, key, least=completed)["whole"] == completed, "the workers settled at their end"
        assert serving.stop() == 0


def test_many_open_streams_end_before_the_server_does_and_nothing_is_left(program: Program, tmp_path: Path):
    program.environ |= {"EDGEPROXY_BOUNDS_DRAIN_DELAY_MS": "1500", "EDGEPROXY_JOBS_FLUSH_AFTER_MS": "1"}
    program.environ["TMPDIR"] = str(tmp_path)
    with program.started("serve") as serving:
        key = create_key(program)
        api = serving.listeners["api"]
        load = Load(api, key, "gpt-mock:chunks-50.interval-100")
        asking = [threading.Thread(target=load.ask, daemon=True) for _ in range(STREAMS)]
        for thread in asking:
            thread.start()
        wait_until(lambda: metric(serving, "edgeproxy_open_streams") == STREAMS)
        segments = shared_memory_of(serving)
        children = [*serving.children(), serving.process.pid]
        serving.process.send_signal(signal.SIGTERM)
        wait_until(lambda: status_of(f"{api}/readyz") == (503, "draining\n"))
        assert fetch(f"{api}/v1/chat/completions", key, question()).endswith(b"data: [DONE]\n\n"), "it takes requests"
        assert status_of(f"{api}/healthz")[0] == 200
        assert serving.process.wait(60) == 0
        for thread in asking:
            thread.join(60)
        assert (len(load.whole), load.refused, load.broken) == (STREAMS, [], [])
        assert serving.errors == []
        assert not any(is_running(pid) for pid in children)
        assert not [url for url in serving.listeners.values() if status_of(url)[0]]
        assert not [name for name in segments if Path(name).exists()]
        assert not list(tmp_path.iterdir())
    with attached(Settings(data_dir=program.data_dir)) as settings:
        assert rows(settings.stores.postgres)["whole"] == STREAMS + 1, "written down before the end"


def shared_memory_of(serving: Started) -> set[str]:
    """Files in memory that the processes share."""
    found: set[str] = set()
    for pid in serving.children():
        with suppress(OSError):  # a process that hides its memory
            maps = Path(f"/proc/{pid}/maps").read_text().split()
            found.update(word for word in maps if word.startswith("/dev/shm/"))  # noqa: S108 - looked for, not made
    return found


def test_settings_are_reloaded_under_load_without_a_failed_request(program: Program, mock: str):
    with program.started("serve") as serving:
        key = create_key(program)
        api = serving.listeners["api"]
        loads = [Load(api, key), Load(api, key, keeps_connections=True)]
        workers = [pid for pid, command in serving.children().items() if " gateway " in command]
        with loads[0].running(clients=2), loads[1].running(clients=2):
            for pid in workers:
                os.kill(pid, signal.SIGHUP)  # nothing to them: the supervisor tells
            for number in range(1, 6):
                configure(program, mock, f'[[model]]\nmatch = "new-{number}"\nprovider = "mock"\n')
                reload(serving, "applied")
                assert fetch(f"{api}/v1/chat/completions", key, question(f"new-{number}"))
                for load in loads:
                    load.wait_for(2)
            configure(program, mock, "[[model]]\n")
            reload(serving, "refused")
            configure(program, mock, workers=3)
            reload(serving, "refused")
            assert fetch(f"{api}/v1/chat/completions", key, question("new-5")), "all stayed as it was"
            (program.folder / "edgeproxy.toml").unlink()
            reload(serving, "refused")
            for load in loads:
                load.wait_for(2)
        assert [(load.refused, load.broken) for load in loads] == [([], []), ([], [])]
        assert workers == [pid for pid, command in serving.children().items() if " gateway " in command]
        told = [line for line in serving.errors if not line.startswith("{")]
        assert [line.partition(": not reloaded, ")[0] for line in told] == ["edgeproxy"] * 3
        assert "workers cannot change" in told[1]
        assert serving.stop() == 0


def reload(serving: Started, outcome: str) -> None:
    """Ask for a reload, and return when it has had this outcome."""
    name = f'edgeproxy_reloads_total{{outcome="{outcome}"}}'
    before = metric(serving, name)
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: metric(serving, name) > before)


def test_which_store_is_away_is_said_where_it_matters(program: Program):
    with program.started("serve") as serving:
        key = create_key(program)
        urls = {name: f"{serving.listeners[name]}/readyz" for name in ("api", "web")}
        postgres = serving.child("postgres")
        os.kill(postgres, signal.SIGSTOP)
        backends = children_of(postgres)
        for backend in backends:
            os.kill(backend, signal.SIGSTOP)
        wait_until(lambda: status_of(urls["web"]) == (503, '{"status":"postgresql is away"}'))
        assert status_of(urls["api"]) == (200, "ok\n"), "the gateway does not notice"
        for frozen in (*backends, postgres):
            os.kill(frozen, signal.SIGCONT)
        wait_until(lambda: status_of(urls["web"])[0] == 200)
        redis = serving.child("redis-server")
        os.kill(redis, signal.SIGSTOP)
        load = Load(serving.listeners["api"], key)
        wait_until(lambda: (load.ask(), status_of(urls["api"]))[1] == (503, "redis is away\n"))
        assert status_of(urls["web"]) == (503, '{"status":"redis is away"}')
        assert set(load.refused) <= {503}
        os.kill(redis, signal.SIGCONT)
        wait_until(lambda: status_of(urls["api"])[0] == status_of(urls["web"])[0] == 200)
        assert serving.stop() == 0


def test_systemd_hears_of_it_all(program: Program, tmp_path: Path):
    heard: list[dict[str, str]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))

        def listen() -> None:
            with suppress(OSError):
                while text := sock.recv(4096).decode():
                    heard.append(dict(line.split("=", 1) for line in text.splitlines()))

        threading.Thread(target=listen, daemon=True).start()
        program.environ |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}

        def has(name: str) -> Callable[[], Any]:
            return lambda: any(name in message for message in heard)

        with program.started("serve") as serving:
            wait_until(has("READY"))
            wait_until(has("WATCHDOG"))
            heard.clear()
            serving.process.send_signal(signal.SIGHUP)
            wait_until(has("READY"))
            told = [message for message in heard if "WATCHDOG" not in message]
            assert [next(iter(message)) for message in told] == ["RELOADING", "READY"]
            assert int(told[0]["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            assert serving.stop() == 0
        wait_until(has("STOPPING"))
        sock.shutdown(socket.SHUT_RDWR)
