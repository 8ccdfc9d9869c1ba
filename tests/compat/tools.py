"""The command-line tools: how each is pointed at the gateway, run once for one prompt, and what it prints.

A tool gets an empty home, nothing of the environment that the tests run in, and a proxy that nobody serves for all but
the loopback interface: it cannot reach anything but the gateway.
"""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULES = Path(__file__).parent / "node_modules"
RUN_TIMEOUT_S = 60

_NOWHERE = "http://127.0.0.1:9"
_NO_WAY_OUT = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _NOWHERE) | dict.fromkeys(
    ("no_proxy", "NO_PROXY"), "127.0.0.1"
)

Counts = dict[str, int]  # what one usage event holds, by the names of its counts


@dataclass(frozen=True, slots=True)
class Target:
    """What a user of the gateway is told: its address, a key, a model."""

    url: str
    secret: str
    model: str


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def shown(self) -> str:
        """All that a person sees."""
        return self.stdout + self.stderr


@dataclass(frozen=True, slots=True)
class Answer:
    """What a successful run printed: the answer's text and the usage, in the gateway's terms."""

    text: str
    usage: Counts


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    `prepare` writes its settings into the home and gives arguments and variables; `read` understands what it printed.
    `request_line` is what it asks the gateway for, `directives` make the mock provider fill every count that it prints,
    `shown_when_spent` is how it says that a budget is spent.
    """

    name: str
    model: str
    directives: str
    request_line: str
    shown_when_spent: str
    prepare: Callable[[Path, Target], tuple[list[str], dict[str, str]]]
    read: Callable[[str], Answer]

    async def run(self, folder: Path, target: Target, *more: str, variables: Mapping[str, str] = _NO_WAY_OUT) -> Ran:
        """Run it to its end in a new folder. Raises TimeoutError when it does not end in time."""
        home, workspace, scratch = (folder / name for name in ("home", "workspace", "tmp"))
        for path in (home, workspace, scratch):
            path.mkdir(parents=True)
        arguments, own = self.prepare(home, target)
        # gemini-cli writes a report, conversation included, into the folder for temporary files when a request fails.
        environ = {"HOME": str(home), "TMPDIR": str(scratch), "PATH": search_path(), "TERM": "dumb", **variables, **own}
        process = await asyncio.create_subprocess_exec(
            *arguments,
            *more,
            cwd=workspace,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        overdue = asyncio.get_running_loop().call_later(RUN_TIMEOUT_S, end_group, process.pid)
        stdout, stderr = await process.communicate()
        overdue.cancel()
        end_group(process.pid)  # what it left running, too
        if process.returncode == -signal.SIGKILL:
            raise TimeoutError(f"{self.name} went on for {RUN_TIMEOUT_S} s: {stderr.decode()}")
        return Ran(process.returncode or 0, stdout.decode(), stderr.decode())


def end_group(leader: int) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def search_path() -> str:
    """Return where the tools look for programs: Node, and what every system has."""
    node = shutil.which("node")
    assert node is not None, "node is missing; install Node 20 or later"
    return f"{Path(node).parent}:/usr/bin:/bin"


def installed(path: str) -> str:
    """Return a file of the installed packages."""
    found = MODULES / path
    assert found.exists(), "the tools are not installed; run them with: make compat"
    return str(found)


def _claude_code(home: Path, target: Target) -> tuple[list[str], dict[str, str]]:
    wrapper = installed("@anthropic-ai/claude-code/cli-wrapper.cjs")
    arguments = ["node", wrapper, "-p", "hello", "--model", target.model, "--output-format", "json"]
    return arguments, {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.secret,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_TMPDIR": str(home),
        "DISABLE_AUTOUPDATER": "1",
    }


def _read_claude_code(stdout: str) -> Answer:
    result = json.loads(stdout)
    usage = result["usage"]
    return Answer(
        result.get("result", ""),
        {
            "input_uncached": usage["input_tokens"],
            "cache_read": usage["cache_read_input_tokens"],
            "cache_write": usage["cache_creation_input_tokens"],
            "output": usage["output_tokens"],
        },
    )


CODEX_PROVIDER = """
model_provider = "edge"
[model_providers.edge]
name = "edge"
base_url = "{url}/v1"
env_key = "EDGE_KEY"
wire_api = "responses"
"""


def _codex(home: Path, target: Target) -> tuple[list[str], dict[str, str]]:
    (home / ".codex").mkdir()
    (home / ".codex" / "config.toml").write_text(CODEX_PROVIDER.format(url=target.url))
    return _codex_arguments(target), {"EDGE_KEY": target.secret}


def _codex_built_in(home: Path, target: Target) -> tuple[list[str], dict[str, str]]:
    setting = f'openai_base_url="{target.url}/v1"'
    return [*_codex_arguments(target), "-c", setting], {"CODEX_API_KEY": target.secret}


def _codex_arguments(target: Target) -> list[str]:
    program = ["node", installed("@openai/codex/bin/codex.js")]
    return [*program, "exec", "--json", "--skip-git-repo-check", "-m", target.model, "hello"]


def _read_codex(stdout: str) -> Answer:
    events: list[dict[str, Any]] = [json.loads(line) for line in stdout.splitlines()]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    (usage,) = (event["usage"] for event in events if event["type"] == "turn.completed")
    cache_read, cache_write = usage["cached_input_tokens"], usage["cache_write_input_tokens"]
    return Answer(
        "".join(item["text"] for item in items if item["type"] == "agent_message"),
        {
            "input_uncached": usage["input_tokens"] - cache_read - cache_write,
            "cache_read": cache_read,
            "cache_write": cache_write,
            "output": usage["output_tokens"],
            "reasoning": usage["reasoning_output_tokens"],
        },
    )


def _gemini_cli(home: Path, target: Target) -> tuple[list[str], dict[str, str]]:
    settings = {"security": {"auth": {"selectedType": "gemini-api-key"}}}
    (home / ".gemini").mkdir()
    (home / ".gemini" / "settings.json").write_text(json.dumps(settings))
    arguments = ["node", installed("@google/gemini-cli/bundle/gemini.js"), "-m", target.model]
    return [*arguments, "-p", "hello", "--output-format", "json"], {
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
        "GOOGLE_GEMINI_BASE_URL": target.url,
        "GEMINI_API_KEY": target.secret,
    }


def _read_gemini_cli(stdout: str) -> Answer:
    result = json.loads(stdout)
    tokens = [model["tokens"] for model in result["stats"]["models"].values()]
    total = {name: sum(each[name] for each in tokens) for name in ("input", "cached", "candidates", "thoughts", "tool")}
    return Answer(
        result["response"],
        {
            "input_uncached": total["input"] + total["tool"],
            "cache_read": total["cached"],
            "output": total["candidates"] + total["thoughts"],
            "reasoning": total["thoughts"],
        },
    )


CLAUDE_CODE = Tool(
    name="Claude Code",
    model="claude-mock",
    directives="cached-4.cache-write-2",
    request_line="POST /v1/messages?beta=true",
    shown_when_spent="The limit {limit} of this API key is reached",
    prepare=_claude_code,
    read=_read_claude_code,
)
CODEX = Tool(
    name="Codex",
    model="gpt-mock",
    directives="cached-4.cache-write-2.reasoning-3",
    request_line="POST /v1/responses",
    shown_when_spent="Quota exceeded",
    prepare=_codex,
    read=_read_codex,
)
CODEX_BUILT_IN = Tool(
    name="Codex with its built-in provider",
    model=CODEX.model,
    directives=CODEX.directives,
    request_line=CODEX.request_line,
    shown_when_spent=CODEX.shown_when_spent,
    prepare=_codex_built_in,
    read=_read_codex,
)
GEMINI_CLI = Tool(
    name="gemini-cli",
    model="gemini-mock",
    directives="cached-4.reasoning-3",
    request_line="POST /v1beta/models/{model}:streamGenerateContent?alt=sse",
    shown_when_spent="The limit {limit} of this API key is reached",
    prepare=_gemini_cli,
    read=_read_gemini_cli,
)
