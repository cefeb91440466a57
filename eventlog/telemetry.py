"""Logging and counters: one structlog logger, the table of its event names, and plain counters.

A log line never carries an event's content, only identities and numbers, and control characters in
values are escaped by the renderers. Tracebacks are rendered without local variables: those hold
prompts and keys.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, cast

import msgspec
import structlog

LOG_EVENTS: Final[dict[str, str]] = {
    "append.refused": "Postgres refused one command as a whole; the caller got the error",
    "append.outcome_unknown": "a cancelled append may be stored or not; its id would tell",
    "append.will_retry": "a commit could not be settled yet; it is tried again with the same ids",
    "feed.publish_failed": "Redis did not take rows; appends go on, the relay repairs the feed",
    "feed.repaired": "rows missing in a feed were copied from Postgres",
    "feed.epoch_raised": "Postgres was found behind its copies in Redis; they are left behind",
    "hub.redis_lost": "live subscriptions read Postgres until Redis is back",
    "hub.redis_back": "live subscriptions read the feeds again",
    "reply.fenced": "a reply was taken over by another writer",
    "reply.interrupted": "a reply ended early; what was seen is stored",
    "reply.reaped": "a reply whose writer was silent for too long was closed",
    "snapshot.ignored": "a snapshot was damaged or of another fold version; the log was read",
    "snapshot.not_saved": "a snapshot could not be saved; only speed is lost",
    "cache.failed": "a cache in Redis could not be read or written; Postgres was used",
    "relay.swept": "a sweep of the relay copied rows that feeds lacked",
    "projector.leases_taken": "this process now projects these shards",
    "projector.lease_lost": "another process projects the shard now",
    "projector.batch_failed": "a batch could not be projected; it is tried again",
    "projector.session_parked": "a session's events could not be projected; it was set aside",
    "projector.leases_released": "this process left shards to others, who have fewer",
    "worker.started": "a worker began",
    "worker.stopped": "a worker ended",
    "worker.failed": "a worker's step failed; it is tried again after a pause",
}


class Metrics(msgspec.Struct):
    """Counters of this process since it started."""

    commits: int = 0
    commands: int = 0
    append_retries: int = 0
    duplicates: int = 0
    published_rows: int = 0
    publish_failures: int = 0
    dropped_rows: int = 0
    """Rows that were not published by their appender because Redis was slow; the relay does it."""
    repaired_rows: int = 0
    projected_rows: int = 0
    hub_rows: int = 0
    fell_behind: int = 0
    snapshots_saved: int = 0
    snapshots_used: int = 0
    cache_hits: int = 0
    cache_misses: int = 0


metrics: Final = Metrics()


class _LibraryLogger:
    """Logs as the application configured structlog; without that, warnings to stderr."""

    def __getattr__(self, name: str) -> Any:
        if structlog.is_configured():
            return getattr(structlog.get_logger("eventlog"), name)
        quiet = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.dev.ConsoleRenderer(colors=False),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        )
        return getattr(quiet, name)


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The library's logger. Applications configure structlog as they like."""
    return cast("structlog.typing.FilteringBoundLogger", _LibraryLogger())


def configure_logging(level: str, *, json: bool | None = None) -> None:
    """Set structlog up for the command line: JSON lines, or colours when stderr is a terminal."""
    as_json = not sys.stderr.isatty() if json is None else json
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            exception_formatter=structlog.dev.plain_traceback, pad_event_to=28
        )
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        processors.append(
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            )
        )
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


# asyncpg's pool prints a traceback for every connection it can't open while a server is down.
logging.getLogger("asyncpg").setLevel(logging.CRITICAL)
