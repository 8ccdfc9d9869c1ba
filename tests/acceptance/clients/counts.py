"""What the gateway counted, for comparing it with what a client reports."""

import re
from typing import Any

from edgeproxy.domain.usage import Usage
from tests.support.gateway import Gateway

TEXT = "Hello from the mock provider"
PROMPT = "one two three"
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]


async def counted(gateway: Gateway, secret: str) -> tuple[int, int]:
    """Return the input and output tokens of all requests of a key, which its usage events have to add up to."""
    totals = (await gateway.usage(secret)).totals
    usages = [event.usage for event in await gateway.events(secret)]
    both = (totals.input_tokens, totals.output_tokens)
    assert (sum(usage.input_total for usage in usages), sum(usage.output for usage in usages)) == both
    assert totals.requests == len(usages)
    return both


async def last_usage(gateway: Gateway, secret: str) -> Usage:
    """Return what the last request of a key used."""
    return (await gateway.events(secret))[-1].usage


def refusals(gateway: Gateway) -> dict[str, int]:
    """Return how many requests were refused, by reason: a client's every try is one."""
    rows = re.findall(
        r'^edgeproxy_refusals_total\{reason="(\w+)"\} (\d+)', gateway.metrics.render().decode(), re.MULTILINE
    )
    return {reason: int(number) for reason, number in rows if int(number)}
