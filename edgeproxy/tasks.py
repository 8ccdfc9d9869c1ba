"""Background tasks that have a name, an owner and a witness. The only place that may start one."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from edgeproxy import logs

T = TypeVar("T")

# The loop keeps weak references only; a task that nobody holds can vanish in the middle of its work.
_running: set[asyncio.Task[Any]] = set()


def spawn(name: str, coroutine: Coroutine[Any, Any, T], *, is_awaited: bool = False) -> asyncio.Task[T]:
    """Start `coroutine` as a named task, keep it alive until it ends, and log its end if it was a failure.

    The caller owns the task: it cancels or awaits it. Only the type of the exception is logged; where the caller awaits
    the outcome (`is_awaited`), telling of a failure is left to the caller.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_ended_quietly if is_awaited else _ended)
    return task


@contextmanager
def running(name: str, coroutine: Coroutine[Any, Any, T]) -> Iterator[asyncio.Task[T]]:
    """Have `coroutine` run as a task while the block runs; then it is cancelled, and not waited for."""
    task = spawn(name, coroutine)
    try:
        yield task
    finally:
        task.cancel()


def _ended_quietly(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled():
        task.exception()  # seen, also when the caller gave up waiting for it


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (failure := task.exception()) is not None:
        logs.event("task_failed", task=task.get_name(), error=type(failure).__name__)


def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what went wrong in a callback: for `loop.set_exception_handler`, whose default prints texts and values."""
    failure = context.get("exception")
    logs.event("callback_failed", error=type(failure).__name__)
