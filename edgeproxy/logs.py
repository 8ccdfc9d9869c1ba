"""One JSON line per event on standard error: an event name and fields from a closed list.

What is not on the list cannot be logged, so no body, header, key, address or exception text can slip in.
"""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import orjson
import structlog

# Field -> what it holds. Values are numbers, our own names, or type names of exceptions.
FIELDS: dict[str, str] = {
    "attempt": "how many times something was tried",
    "cache_read": "input tokens that were read from a provider's cache",
    "cache_write": "input tokens that were written to a provider's cache",
    "count": "how many",
    "dialect": "openai, anthropic or gemini",
    "error": "type name of an exception, or a code of our own",
    "estimated": "whether the tokens are not the provider's own final figures",
    "exit_status": "exit status of a process of ours",
    "input_uncached": "input tokens that no cache held",
    "key_id": "id of a key, which is not the key",
    "lag_ms": "age of the oldest entry that waits",
    "latency_ms": "from sending a request to a provider to the end of the answer",
    "library": "name of a library's logger",
    "listener": "api, web or metrics",
    "model": "name of a model as usage events have it: as requested once a provider took it, else a pattern of ours",
    "operation": "name of an operation of a dialect, as the errors and documents have it",
    "output": "output tokens, reasoning included",
    "partition": "number of a partition",
    "pid": "process id of a process of ours",
    "provider": "name of a provider from the configuration",
    "reasoning": "output tokens that were spent on thinking",
    "request_id": "id of a request, which is the id of its usage event",
    "role": "gateway, console, jobs, supervisor",
    "status": "HTTP status that a client got",
    "store": "redis or postgresql",
    "task": "name of a background task",
    "wait_ms": "how long until the next try",
}


def event(name: str, **fields: int | str) -> None:
    """Write one line. Raises ValueError for a field that is not on the list: that is a mistake in the program."""
    _refuse_unknown(fields)
    # Made anew each time: events are rare, and standard error may have been replaced since the last one.
    # WriteLogger writes a line at once, so that those of several processes do not run into each other.
    log = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()],
        wrapper_class=structlog.BoundLogger,
    )
    log.info(name, **fields)


def line(name: str, fields: Mapping[str, int | str]) -> None:
    """Write one line as `event` does, at a tenth of its cost: for what happens once per request.

    The values are numbers and names that cannot hold a line break. Raises ValueError as `event` does.
    """
    _refuse_unknown(fields)
    row = {**fields, "event": name, "timestamp": datetime.now(UTC)}
    text = orjson.dumps(row, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE).decode()
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        return  # nobody reads it any more, which is no reason to fail a request


def _refuse_unknown(fields: Mapping[str, int | str]) -> None:
    unknown = fields.keys() - FIELDS.keys()
    if unknown:
        raise ValueError(f"log fields that are not declared: {', '.join(sorted(unknown))}")


def silent() -> logging.Logger:
    """Return a logger that says nothing, to be given to aiohttp: what it would log is made of requests' own bytes.

    Its own would be shown by `take_over_libraries` without its texts; but a broken request is no event of ours either.
    """
    logger = logging.Logger("edgeproxy.silent")  # noqa: LOG001 - outside the hierarchy on purpose: it has no handler
    logger.disabled = True
    return logger


def take_over_libraries() -> None:
    """From now on show what libraries log as events, without their texts: those quote what a library was handling."""
    logging.basicConfig(level=logging.WARNING, handlers=[_NamesOnly()], force=True)
    logging.captureWarnings(capture=True)


class _NamesOnly(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        event("library_warning", library=record.name, error=record.levelname if kind is None else kind.__name__)
