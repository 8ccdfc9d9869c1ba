"""`edgeproxy demo` as somebody who tries it out has it: read, paste, Ctrl-C, again."""

import json
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import ANY_PORT, Program, Started


@pytest.fixture
def demo_program(program: Program) -> Program:
    """The program with nothing configured but free ports."""
    program.configure(ANY_PORT)
    return program


def pasted(demo: Started) -> list[str]:
    """What the lines to paste print, run by a shell as they stand."""
    lines = [line for line in demo.lines if line.startswith("curl ")]
    return [subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout for line in lines]


def key_of(demo: Started) -> str:
    (line,) = (line for line in demo.lines if line.startswith("API key"))
    return line.split()[-1]


def test_what_the_very_first_start_prints_works_when_pasted(new_program: Program):
    new_program.configure(ANY_PORT)
    with new_program.started("demo") as demo:
        chat, messages, generate, usage = pasted(demo)
        assert chat.startswith("data: {")
        assert chat.endswith("data: [DONE]\n\n")
        assert messages.startswith("event: message_start")
        assert "event: message_stop" in messages
        assert '"finishReason": "STOP"' in generate
        totals = json.loads(usage)["totals"]
        assert totals["requests"] == 3
        assert totals["output_tokens"] > 0
        assert demo.lines[-1].startswith("ready")
        assert sum("API key" in line for line in demo.lines) == 1
        assert demo.stop(signal.SIGINT) == 0
        assert demo.errors == []


def test_a_second_start_keeps_keys_and_counts(demo_program: Program):
    with demo_program.started("demo") as demo:
        first = key_of(demo)
        pasted(demo)
    with demo_program.started("demo") as demo:
        assert key_of(demo) != first, "a fresh key"
        (usage,) = (line for line in demo.lines if line.startswith("curl") and "/usage" in line)
        old = usage.replace(key_of(demo), first)
        answer = subprocess.run(shlex.split(old), capture_output=True, text=True, check=True).stdout
        assert json.loads(answer)["totals"]["requests"] == 3
    assert [key["name"] for key in demo_program.json("keys", "list")] == ["demo", "demo"]


def test_it_says_where_which_models_go(demo_program: Program):
    with demo_program.started("demo") as demo:
        assert "Models   all of them are answered by the mock provider\n" in demo.lines
    demo_program.environ |= {"ANTHROPIC_API_KEY": "a", "XAI_API_KEY": "x"}
    with demo_program.started("demo") as demo:
        models = [line for line in demo.lines if line.startswith("Models")]
        assert models == [
            "Models   claude-* go to anthropic\n",
            "Models   grok-* go to xai\n",
            "Models   all others are answered by the mock provider\n",
        ]
        chat, messages, *_ = pasted(demo)
        assert "[DONE]" in chat, "the lines to paste are answered by the mock provider all the same"
        assert "message_stop" in messages


def test_a_busy_port_is_one_line_with_the_variable_to_set(demo_program: Program, mock: str):
    refused = demo_program.run("demo", EDGEPROXY_LISTEN_API=mock.removeprefix("http://"))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "EDGEPROXY_LISTEN_API" in refused.stderr


def test_the_first_start_makes_the_data_directory_with_its_parents(demo_program: Program):
    demo_program.environ["EDGEPROXY_DATA_DIR"] = "a/b/data"
    with demo_program.started("demo") as demo:
        assert demo.lines[-1].rstrip().endswith(str(Path("a", "b", "data")))
