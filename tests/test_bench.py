"""The bench of loadtests/bench: it stays on loopback, checks what it is answered, and reports what was measured."""

import shutil
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.bench import __main__ as bench
from loadtests.bench import report
from loadtests.bench.load import Client, Load, compiled, upstream
from loadtests.bench.machine import BenchError, cpu_us, loopback, memory_kb

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("0.0.0.0", "10.0.0.1", "192.168.1.1", "example.com", "localhost", "::1", "", "127.0.0.1.example.com")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="load.c has to be compiled")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def port(program: Path) -> Iterator[int]:
    with upstream(program, "127.0.0.1") as (_, port):
        yield port


# --- addresses


@pytest.mark.parametrize("address", ELSEWHERE)
def test_what_is_not_loopback_is_refused(address: str) -> None:
    with pytest.raises(BenchError, match="not a loopback address"):
        loopback(address)
    with pytest.raises(BenchError):
        Client(Path("unused"), address)
    with pytest.raises(BenchError), upstream(Path("unused"), address):
        pass
    assert loopback("127.0.0.2") == "127.0.0.2"


def test_the_command_ends_before_it_starts_anything_elsewhere() -> None:
    command = [sys.executable, "-m", "loadtests.bench", "--dry", "--address", "10.0.0.1"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "10.0.0.1 is not a loopback address" in ran.stderr


@needs_compiler
@pytest.mark.parametrize("address", ELSEWHERE)
@pytest.mark.parametrize("words", ["serve {} 1", "ask {} 1 key bench 1 1 0 1 even"])
def test_its_program_refuses_other_addresses_by_itself(program: Path, address: str, words: str) -> None:
    command = [str(program), *(word.format(address) for word in words.split())]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert ran.returncode == 2
    assert "not loopback" in ran.stderr


# --- upstream and client


@needs_compiler
def test_unary_answers_are_counted(program: Path, port: int) -> None:
    answers = Client(program, "127.0.0.1").ask(port, "key", Load(connections=3, most=50))
    assert (answers.good, answers.bad, answers.reconnected, answers.events) == (50, 0, 0, 0)
    assert 0 < answers.first_p50_us <= answers.answer_p50_us <= answers.answer_p99_us


@needs_compiler
@pytest.mark.parametrize("arrivals", ["even", "random"])
def test_streams_come_whole_at_their_rate(program: Path, port: int, arrivals: str) -> None:
    load = Load("bench-c5-i2000", connections=4, most=20, rate=200, arrivals=arrivals)
    answers = Client(program, "127.0.0.1").ask(port, "key", load)
    assert (answers.good, answers.events) == (20, 100)
    assert answers.answer_p50_us > 4 * 2000


EVENT = 'data: {{"number":{},"sent_ns":1}}\n\n'
END = 'data: {"usage":{}}\n\ndata: [DONE]\n\n'


def framed(*events: str) -> str:
    return "".join(f"{len(event):x}\r\n{event}\r\n" for event in events) + "0\r\n\r\n"


def stream(*events: str) -> str:
    return "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + framed(*events)


WHOLE = stream(EVENT.format(0), EVENT.format(1), END)
WRONG = {
    "status": WHOLE.replace("200 OK", "500 No"),
    "an event is missing": stream(EVENT.format(0), END),
    "order": stream(EVENT.format(1), EVENT.format(0), END),
    "no usage": stream(EVENT.format(0), EVENT.format(1), "data: [DONE]\n\n"),
    "no end": stream(EVENT.format(0), EVENT.format(1), 'data: {"usage":{}}\n\n'),
    "framing": WHOLE.replace("\r\n0\r\n", "x\r\n0\r\n"),
    "nothing": "",
    "cut": WHOLE[:-2],
}


def answered(program: Path, answer: str, pieces: int = 1) -> subprocess.CompletedProcess[str] | object:
    """Return what the client makes of an answer that comes in so many pieces, before the connection ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(65536)
            size = -(-len(answer) // pieces) or 1
            for at in range(0, len(answer), size):
                connection.sendall(answer[at : at + size].encode())
            connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        load = Load("bench-c2-i1000", connections=1, most=1, seconds=5)
        return Client(program, "127.0.0.1").ask(listener.getsockname()[1], "key", load)


@needs_compiler
@pytest.mark.parametrize("pieces", [1, 2, 7, len(WHOLE)])
def test_a_whole_stream_is_good_however_it_comes(program: Path, pieces: int) -> None:
    assert answered(program, WHOLE, pieces)


@needs_compiler
@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_answer_ends_the_bench(program: Path, answer: str) -> None:
    with pytest.raises(BenchError, match="1 wrong answers, 0 right ones"):
        answered(program, answer)


def test_cpu_and_memory_of_a_process_are_read() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                busy.wait(0.5)
            assert cpu_us([busy.pid]) > 0
            assert memory_kb([busy.pid]) > 1000
        finally:
            busy.kill()


# --- the report


def test_ratios_are_taken_round_by_round() -> None:
    values: report.Values = defaultdict(lambda: defaultdict(list))
    values["unary_cpu"] |= {"nginx": [10.0, 20.0, 40.0], "gateway": [30.0, 40.0, 60.0]}
    values["first_byte"] |= {"direct": [5.0, 5.0], "nginx": [10.0, 4.0], "gateway": [20.0, 9.0]}
    values["redis_cpu"]["gateway"] = [5.0, 5.0, 80.0]
    table = "\n".join(report.table(values))
    assert "| - | 10.0 / 20.0 / 40.0 | 30.0 / 40.0 / 60.0 | 1.50 / 2.00 / 3.00 | <= 3.0 x |" in table
    # nginx was faster than asking directly in a round: there is no ratio of what it added.
    assert "| 5.0 / 5.0 / 5.0 | -1.0 / 2.0 / 5.0 | 4.0 / 9.5 / 15.0 | 3.00 (1 without) | <= 2 x |" in table
    assert "| 5.0 / 5.0 / 80.0 | 0.25 / 0.50 / 2.00 | <= 1.7 x |" in table
    assert "two workers" not in table


def test_a_new_section_replaces_the_old_one_and_nothing_else() -> None:
    first, second = (f"{report.BEGIN}\n{text}\n{report.END}" for text in ("one", "two"))
    written = report.put("# Above\n\ntext\n", first)
    assert written == f"# Above\n\ntext\n\n{first}\n"
    assert report.put(written + "\n# Below\n", second) == f"# Above\n\ntext\n\n{second}\n\n# Below\n"


def test_a_quick_run_measures_less_than_a_usual_one_and_a_long_one_more_requests() -> None:
    usual, quick, long = (bench.extent(bench.arguments(words)) for words in ([], ["--quick"], ["--long"]))
    assert quick.rounds < usual.rounds
    assert quick.seconds < usual.seconds
    assert long.memory_requests == 1_000_000
    assert long.memory_seconds > usual.memory_seconds
