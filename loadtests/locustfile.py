"""Users as they are: short questions, streams, long contexts, people who hang up, keys at their limit.

Run by locust (see README.md). Addresses come from `--host`, keys and models from the environment:

EDGEPROXY_LOAD_KEY           a key without limits, for most users
EDGEPROXY_LOAD_LIMITED_KEY   a key with a small limit of requests; without it nobody plays the user at the limit
EDGEPROXY_LOAD_CHAT_MODEL    model of the OpenAI dialect; directives of the mock provider set the pace
EDGEPROXY_LOAD_CLAUDE_MODEL  model of the Anthropic dialect

A stream is reported three times: `POST` until the head of the answer, `TTFB` until the first byte of its body and
`STREAM` until its last one. A stream that ends without its last event is a failure, however well HTTP ended.
"""

import os
import random
import time
from collections.abc import Mapping
from typing import Any

from locust import HttpUser, between, events, task
from locust.clients import ResponseContextManager
from locust.env import Environment

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
CHAT_MODEL = "gpt-mock:chunks-40.interval-20"
CLAUDE_MODEL = "claude-mock:chunks-60.interval-20"
LAST_EVENTS = (b"data: [DONE]", b"event: message_stop")
KEPT_BYTES = 256  # of the end of a stream: more than the longest last event
WORDS = ("ledger", "window", "river", "seven", "green", "because", "often", "light", "paper", "north")
LONG_CONTEXT_WORDS = 20_000  # an agent's context: about 130 kB of body
HANG_UP_AFTER = 5  # pieces of the answer
TIMEOUT_S = 120.0  # without a byte


@events.init.add_listener  # type: ignore[untyped-decorator]  # locust leaves it untyped
def check_environment(environment: Environment, **_: Any) -> None:
    """Stop before the first request when there is no key."""
    if not os.environ.get("EDGEPROXY_LOAD_KEY"):
        raise SystemExit("set EDGEPROXY_LOAD_KEY to a key without limits (edgeproxy keys create --name load --json)")
    if not os.environ.get("EDGEPROXY_LOAD_LIMITED_KEY"):
        environment.user_classes = [each for each in environment.user_classes if each is not UserAtLimit]


class Asking(HttpUser):
    """What all users share: their key, and how a request is sent and judged."""

    abstract = True
    wait_time = between(0.2, 1.0)
    key_variable = "EDGEPROXY_LOAD_KEY"

    def ask(
        self, path: str, model: str, words: int, *, stream: bool = False, name: str = "", **fields: object
    ) -> ResponseContextManager:
        """Send a question of so many words. Returns locust's response, to be used as a context manager."""
        content = " ".join(random.choices(WORDS, k=words))
        body: Mapping[str, object] = {
            "model": model,
            "stream": stream,
            "messages": [{"role": "user", "content": content}],
            **fields,
        }
        response: ResponseContextManager = self.client.post(
            path,
            json=body,
            headers={"authorization": f"Bearer {os.environ[self.key_variable]}"},
            stream=stream,
            timeout=TIMEOUT_S,
            catch_response=True,
            name=name or path,
        )
        return response

    def read_stream(self, response: ResponseContextManager, started: float, name: str) -> None:
        """Read a stream to its end, report both times, and fail it when its last event is missing."""
        if response.status_code != 200:
            response.failure(f"status {response.status_code}")  # type: ignore[no-untyped-call]
            return
        tail, size = b"", 0
        for piece in response.iter_content(chunk_size=None):
            if not size:
                self.report("TTFB", name, started, len(piece))
            size += len(piece)
            tail = (tail + piece)[-KEPT_BYTES:]
        if any(last in tail for last in LAST_EVENTS):
            self.report("STREAM", name, started, size)
        else:
            response.failure("the stream ended without its last event")  # type: ignore[no-untyped-call]

    def report(self, kind: str, name: str, started: float, size: int) -> None:
        """Add a row to locust's statistics: milliseconds since `started` (of time.perf_counter)."""
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=(time.perf_counter() - started) * 1000,
            response_length=size,
            exception=None,
            context={},
        )


class ShortChat(Asking):
    """Asks something short and waits for the whole answer."""

    weight = 5

    @task
    def ask_briefly(self) -> None:
        with self.ask(CHAT, chat_model(), words=20, name="chat, unary") as response:
            if response.status_code != 200 or "usage" not in response.json():
                response.failure(f"status {response.status_code}, or no usage")


class ChatStream(Asking):
    """Reads along while the answer comes; every second client asks for the usage, as SDKs do."""

    weight = 5

    @task
    def read_along(self) -> None:
        options = {"stream_options": {"include_usage": True}} if random.random() < 0.5 else {}
        started = time.perf_counter()
        with self.ask(CHAT, chat_model(), words=60, stream=True, name="chat, streamed", **options) as response:
            self.read_stream(response, started, "chat, streamed")


class AgentWithLongContext(Asking):
    """Sends its whole history each time, as coding agents do, and streams the answer."""

    weight = 3

    @task
    def continue_work(self) -> None:
        started = time.perf_counter()
        with self.ask(
            MESSAGES, claude_model(), words=LONG_CONTEXT_WORDS, stream=True, name="agent, streamed", max_tokens=64_000
        ) as response:
            self.read_stream(response, started, "agent, streamed")


class HangsUp(Asking):
    """Has seen enough after a few pieces: closes the connection in the middle of the stream."""

    weight = 1

    @task
    def leave_early(self) -> None:
        with self.ask(CHAT, chat_model(), words=20, stream=True, name="chat, hung up") as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
            for number, _ in enumerate(response.iter_content(chunk_size=None), 1):
                if number >= HANG_UP_AFTER:
                    break
            response.close()


class UserAtLimit(Asking):
    """Keeps asking with a key that is at its limit: a refusal that says when to come back is what is right."""

    weight = 1
    key_variable = "EDGEPROXY_LOAD_LIMITED_KEY"

    @task
    def ask_again(self) -> None:
        with self.ask(CHAT, chat_model(), words=5, name="chat, at its limit") as response:
            wait = response.headers.get("retry-after", "")
            if response.status_code == 429 and wait.isdigit() and int(wait) > 0:
                response.success()
            elif response.status_code != 200:
                response.failure(f"status {response.status_code}, retry-after {wait!r}")


def chat_model() -> str:
    """Return the model of the OpenAI dialect."""
    return os.environ.get("EDGEPROXY_LOAD_CHAT_MODEL", CHAT_MODEL)


def claude_model() -> str:
    """Return the model of the Anthropic dialect."""
    return os.environ.get("EDGEPROXY_LOAD_CLAUDE_MODEL", CLAUDE_MODEL)
