"""Clients that ask one thing after another until they are told to stop, and remember how each of them ended."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from tests.support.processes import question, wait_until

END = b"data: [DONE]\n\n"
_PAUSE_S = 0.05  # after a failure, as clients do


@dataclass
class Load:
    """How streams through a gateway ended: whole, refused with a status, or broken off."""

    api: str
    key: str
    model: str = "gpt-mock:chunks-5.interval-20"
    keeps_connections: bool = False
    whole: list[float] = field(default_factory=list)  # when each was here, in monotonic seconds
    refused: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        """Have so many clients ask while the block runs; each gets its last answer before the block ends."""
        threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()

    def wait_for(self, more: int, condition: Callable[[], bool] = lambda: True) -> None:
        """Return when the condition holds, and then so many more answers were whole."""
        wait_until(condition)
        before = len(self.whole)
        wait_until(lambda: len(self.whole) >= before + more)

    def ask(self, connection: HTTPConnection | None = None) -> None:
        """Ask once."""
        address = urlsplit(self.api)
        connection = connection or HTTPConnection(str(address.hostname), address.port, timeout=60)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(question(self.model)), headers)
            answer = connection.getresponse()
            content = answer.read()
        except (HTTPException, OSError) as error:
            self.broken.append(repr(error))
            connection.close()
            return
        if answer.status != 200:
            self.refused.append(answer.status)
        elif content.endswith(END):
            self.whole.append(time.monotonic())
        else:
            self.broken.append("the end is missing")
        if not self.keeps_connections:
            connection.close()

    def _ask_on(self) -> None:
        address = urlsplit(self.api)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=60)
        while not self._over.is_set():
            failures = len(self.refused) + len(self.broken)
            self.ask(connection)
            if len(self.refused) + len(self.broken) > failures:
                time.sleep(_PAUSE_S)
        connection.close()
