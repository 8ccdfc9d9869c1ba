"""Claude Code, Codex and gemini-cli as their users run them: what they print was counted, and they stop in time.

For one prompt each makes one request. They run as processes of their own; gateway and mock provider are in the test's
loop.
"""

import time
from pathlib import Path

import pytest

from tests.compat.tools import CLAUDE_CODE, CODEX, CODEX_BUILT_IN, GEMINI_CLI, Counts, Target, Tool
from tests.support.gateway import Gateway, chat

ANSWER = "Hello from the mock provider"
BUDGET = 200_000
WINDOW_S = 10  # longer than any of the tools takes to start

TOOLS = [CLAUDE_CODE, CODEX, CODEX_BUILT_IN, GEMINI_CLI]
each_tool = pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)


def target(gateway: Gateway, secret: str, tool: Tool, directives: str = "") -> Target:
    return Target(gateway.url, secret, f"{tool.model}:{directives}" if directives else tool.model)


def requests_of(tool: Tool, asked: list[str]) -> list[str]:
    """What was asked of the gateway after what a tool asks once before its first prompt."""
    preludes = {CLAUDE_CODE: "HEAD /", CODEX_BUILT_IN: "GET /v1/responses"}
    return [line for line in asked if line != preludes.get(tool)]


async def counted(gateway: Gateway, secret: str) -> Counts:
    """The sum of the usage events, of which each count has to be exact."""
    events = [event.usage for event in await gateway.events(secret)]
    assert not any(usage.estimated for usage in events)
    names = ("input_uncached", "cache_read", "cache_write", "output", "reasoning")
    return {name: sum(getattr(usage, name) for usage in events) for name in names}


def refusals(gateway: Gateway, reason: str) -> float:
    line = f'edgeproxy_refusals_total{{reason="{reason}"}} '
    found = [row for row in gateway.metrics.render().decode().splitlines() if row.startswith(line)]
    return float(found[0].removeprefix(line)) if found else 0


@each_tool
async def test_what_a_tool_prints_is_what_was_counted(
    asked: list[str], gateway: Gateway, tool: Tool, tmp_path: Path
) -> None:
    secret = await gateway.issue("tokens=1000000/7d")
    spoken = target(gateway, secret, tool, tool.directives)
    ran = await tool.run(tmp_path / "tool", spoken)
    assert ran.status == 0, ran.shown
    answer = tool.read(ran.stdout)
    assert answer.text.startswith(ANSWER)
    found = await counted(gateway, secret)
    assert {name: found[name] for name in answer.usage} == answer.usage
    assert min(answer.usage.values()) > 0, "the mock provider left out what was to be compared"
    served, totals = gateway.mock.counts.total, (await gateway.usage(secret)).totals
    assert (totals.input_tokens, totals.output_tokens) == (served.input_tokens, served.output_tokens)
    assert (totals.requests, served.requests) == (1, 1)
    assert requests_of(tool, asked) == [tool.request_line.format(model=spoken.model)]


@each_tool
async def test_a_tool_tries_a_spent_budget_once(asked: list[str], gateway: Gateway, tool: Tool, tmp_path: Path) -> None:
    secret = await gateway.issue(f"tokens={BUDGET}/7d")
    async with gateway.post("/v1/chat/completions", secret, chat(f"gpt-mock:output-{BUDGET}")) as spending:
        await spending.read()
    asked.clear()
    started = time.monotonic()
    ran = await tool.run(tmp_path / "tool", target(gateway, secret, tool))
    assert time.monotonic() - started < 20
    assert ran.status != 0
    assert refusals(gateway, "budget_exhausted") == len(requests_of(tool, asked)) == 1, asked
    assert tool.shown_when_spent.format(limit=f"tokens={BUDGET}/7d") in ran.shown
    assert gateway.mock.counts.total.requests == 1


@each_tool
async def test_a_tool_tries_what_can_never_fit_once(
    asked: list[str], gateway: Gateway, tool: Tool, tmp_path: Path
) -> None:
    secret = await gateway.issue("tokens=10/1h")
    ran = await tool.run(tmp_path / "tool", target(gateway, secret, tool))
    assert ran.status != 0
    assert refusals(gateway, "request_exceeds_limit") == len(requests_of(tool, asked)) == 1, asked
    assert gateway.mock.counts.total.requests == 0


@each_tool
async def test_a_tool_waits_out_a_short_limit_and_then_answers(
    asked: list[str], gateway: Gateway, tool: Tool, tmp_path: Path
) -> None:
    secret = await gateway.issue(f"requests=1/{WINDOW_S}s")
    async with gateway.post("/v1/chat/completions", secret, chat()) as first:
        assert first.status == 200
    asked.clear()
    ran = await tool.run(tmp_path / "tool", target(gateway, secret, tool))
    assert ran.status == 0, ran.shown
    assert tool.read(ran.stdout).text.startswith(ANSWER)
    assert 1 <= refusals(gateway, "rate_limited") == len(requests_of(tool, asked)) - 1 <= 3


async def test_claude_code_without_a_proxy_asks_whether_the_gateway_is_there(
    asked: list[str], gateway: Gateway, tmp_path: Path
) -> None:
    # It opens its connection with this request, but not where a proxy is set; with its variables as they are here it
    # asks nobody else.
    secret = await gateway.issue()
    ran = await CLAUDE_CODE.run(tmp_path / "tool", target(gateway, secret, CLAUDE_CODE), variables={})
    assert ran.status == 0, ran.shown
    assert asked == ["HEAD /", CLAUDE_CODE.request_line]


async def test_claude_code_prints_the_sum_of_all_its_requests(
    asked: list[str], gateway: Gateway, tmp_path: Path
) -> None:
    secret = await gateway.issue()
    spoken = target(gateway, secret, CLAUDE_CODE, f"tool.{CLAUDE_CODE.directives}")
    ran = await CLAUDE_CODE.run(tmp_path / "tool", spoken, "--max-turns", "3")
    answer = CLAUDE_CODE.read(ran.stdout)
    assert len(asked) == gateway.mock.counts.total.requests == 3
    found = await counted(gateway, secret)
    assert {name: found[name] for name in answer.usage} == answer.usage


async def test_codex_falls_back_at_once_when_its_websocket_is_refused(
    asked: list[str], gateway: Gateway, tmp_path: Path
) -> None:
    secret = await gateway.issue()
    started = time.monotonic()
    ran = await CODEX_BUILT_IN.run(tmp_path / "tool", target(gateway, secret, CODEX_BUILT_IN))
    assert time.monotonic() - started < 5  # it would try for six seconds
    assert ran.status == 0, ran.shown
    assert asked == ["GET /v1/responses", CODEX.request_line]


@each_tool
async def test_a_tool_shows_what_is_wrong_with_its_key(gateway: Gateway, tool: Tool, tmp_path: Path) -> None:
    # How often it tries is its own choice: Codex makes six attempts, whatever the answer to a wrong key says.
    ran = await tool.run(tmp_path / "tool", target(gateway, "ep-wrong", tool))
    assert ran.status != 0
    assert "The API key is missing or not valid." in ran.shown
    assert gateway.mock.counts.total.requests == 0
