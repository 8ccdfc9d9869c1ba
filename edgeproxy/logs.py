"""One JSON line per event on standard error: an event name and fields from a closed list.

What is not on the list cannot be logged, so no body, header, key, address or exception text can slip in.
"""

import logging
import sys

import structlog

# Field -> what it holds. Values are numbers, our own names, or type names of exceptions.
FIELDS: dict[str, str] = {
    "attempt": "how many times something was tried",
    "count": "how many",
    "error": "type name of an exception, or a code of our own",
    "exit_status": "exit status of a process of ours",
    "lag_ms": "age of the oldest entry that waits",
    "library": "name of a library's logger",
    "listener": "api, web or metrics",
    "partition": "number of a partition",
    "pid": "process id of a process of ours",
    "provider": "name of a provider from the configuration",
    "request_id": "id of a request, which is the id of its usage event",
    "role": "gateway, console, jobs, supervisor",
    "store": "redis or postgresql",
    "task": "name of a background task",
    "wait_ms": "how long until the next try",
}


def event(name: str, **fields: int | str) -> None:
    """Write one line. Raises ValueError for a field that is not on the list: that is a mistake in the program."""
    unknown = fields.keys() - FIELDS.keys()
    if unknown:
        raise ValueError(f"log fields that are not declared: {', '.join(sorted(unknown))}")
    # Made anew each time: events are rare, and standard error may have been replaced since the last one.
    # WriteLogger writes a line at once, so that those of several processes do not run into each other.
    log = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()],
        wrapper_class=structlog.BoundLogger,
    )
    log.info(name, **fields)


def take_over_libraries() -> None:
    """From now on show what libraries log as events, without their texts: those quote what a library was handling."""
    logging.basicConfig(level=logging.WARNING, handlers=[_NamesOnly()], force=True)
    logging.captureWarnings(capture=True)


class _NamesOnly(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        event("library_warning", library=record.name, error=record.levelname if kind is None else kind.__name__)
