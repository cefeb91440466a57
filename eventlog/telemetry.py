"""Logging and counters: one structlog logger, the table of its event names, and plain counters.

A counter is a field of `Metrics` and a line in `METRIC_HELP`; that is all it takes to be served to
Prometheus, too. Durations are kept in `Histogram`s with a fixed number of buckets.

A log line never carries an event's content, only identities and numbers, and control characters in
values are escaped by the renderers. Tracebacks are rendered without local variables: those hold
prompts and keys.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from typing import Any, Final, Literal, cast

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
    "session.expired": "a session whose time was over was deleted",
    "session.erased": "the content of a session was removed",
    "erasure.feed_not_replaced": "Redis could not drop its copies of what was erased; tried again",
    "snapshot.ignored": "a snapshot was damaged or of another fold version; the log was read",
    "snapshot.not_saved": "a snapshot could not be saved; only speed is lost",
    "cache.failed": "a cache in Redis could not be read or written; Postgres was used",
    "relay.swept": "a sweep of the relay copied rows that feeds lacked",
    "projector.leases_taken": "this process now projects these shards",
    "projector.lease_lost": "another process projects the shard now",
    "projector.batch_failed": "a batch could not be projected; it is tried again",
    "projector.session_parked": "a session's events could not be projected; it was set aside",
    "projector.leases_released": "this process left shards to others, who have fewer",
    "projector.views_are_old": "views were made by older code, or lack events: rebuild them",
    "rebuild.lease_lost": "another process works on this shard of the rebuild now",
    "rebuild.switch_waits": "rebuilt tables could not be switched just now; it is tried again",
    "rebuild.switched": "rebuilt views are in service",
    "compactor.started": "a compact-worker began: which model it asks, where, or that it asks none",
    "compactor.redis_lost": "due sessions are found in Postgres alone until Redis is back",
    "compactor.redis_back": "due sessions are shared out through Redis again",
    "compaction.completed": "a summary was appended",
    "compaction.failed": "no summary came about; when it is tried again is in the session's events",
    "compaction.superseded": "the context was changed while it was summarised; the summary is void",
    "compaction.nothing_to_do": "a session was due, and nothing in it can be summarised",
    "compaction.postponed": "no model may be asked now; the session waits, and nothing is appended",
    "compaction.taken_over": "a worker fell silent; another goes on with its session",
    "compaction.claim_lost": "this worker was silent for too long; its session is another's now",
    "metrics.listening": "this process serves its metrics at this address",
    "metrics.failed": "a server could not be asked for what the metrics say of it",
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
    view_cache_hits: int = 0
    view_cache_misses: int = 0
    scratchpad_cache_hits: int = 0
    scratchpad_cache_misses: int = 0
    context_cache_hits: int = 0
    context_cache_misses: int = 0
    compaction_input_tokens: int = 0
    compaction_output_tokens: int = 0
    compactions_superseded: int = 0
    compactions_postponed: int = 0
    compaction_claims_taken_over: int = 0


METRIC_HELP: Final[dict[str, str]] = {
    "commits": "Calls that were committed, each a batch of appends",
    "commands": "Appends that were answered",
    "append_retries": "Commits that were tried again because their outcome was not known",
    "duplicates": "Appends whose event was stored before, by an earlier try",
    "published_rows": "Rows that this process copied into the feeds in Redis",
    "publish_failures": "Calls to publish rows that Redis did not take",
    "dropped_rows": "Rows not published by their appender, and left to a repair",
    "repaired_rows": "Rows copied into the feeds later, from Postgres",
    "projected_rows": "Rows whose changes were written to the views",
    "hub_rows": "Rows read from the feeds for live subscriptions",
    "fell_behind": "Tails that lost rows to their bound, and filled the hole from Postgres",
    "snapshots_saved": "Folded states that were saved",
    "snapshots_used": "Folds that began at a snapshot instead of the first event",
    "cache_hits": "Reads answered by a cache in Redis",
    "cache_misses": "Reads that a cache in Redis could not answer",
    "view_cache_hits": "Views and metadata read from Redis",
    "view_cache_misses": "Views and metadata that Redis did not have, or not as new as demanded",
    "scratchpad_cache_hits": "Scratchpads read from Redis",
    "scratchpad_cache_misses": "Scratchpads that Redis did not have, or not as new as demanded",
    "context_cache_hits": "Contexts read from Redis",
    "context_cache_misses": "Contexts that Redis did not have at the seq that was needed",
    "compaction_input_tokens": "Tokens that models read to write summaries, as they reported it",
    "compaction_output_tokens": "Tokens that models wrote for summaries, as they reported it",
    "compactions_superseded": "Summaries that came too late: the context was another by then",
    "compactions_postponed": "Compactions put off because no model may be asked just now",
    "compaction_claims_taken_over": "Sessions whose compact-worker fell silent",
}
"""What each counter counts, as Prometheus shows it."""

metrics: Final = Metrics()


class Tallies(msgspec.Struct):
    """Counters of this process with one label each: how often, by the label's value."""

    compactions: dict[str, int] = {}
    compaction_failures: dict[str, int] = {}


TALLY_HELP: Final[dict[str, tuple[str, str]]] = {
    "compactions": ("method", "Summaries that were appended"),
    "compaction_failures": ("kind", "Attempts to compact that failed"),
}
"""The label of each, and what it counts."""

tallies: Final = Tallies()


def tally(counts: dict[str, int], value: str) -> None:
    """Count one with this value of the label."""
    counts[value] = counts.get(value, 0) + 1


def count_cache_read(what: Literal["view", "scratchpad", "context"], hit: bool) -> bool:
    """Count a read of a cache, by what was read and in total; returns `hit`."""
    outcome = "hits" if hit else "misses"
    for name in (f"cache_{outcome}", f"{what}_cache_{outcome}"):
        setattr(metrics, name, getattr(metrics, name) + 1)
    return hit


class Histogram:
    """How often something took how long: a count for each bucket, and the sum."""

    __slots__ = ("bounds", "counts", "total_seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        """Upper ends of the buckets, in seconds, ascending; one more bucket has no end."""
        self.counts = [0] * (len(bounds) + 1)
        self.total_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_seconds += seconds


_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_MINUTES: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class Durations(msgspec.Struct):
    """How long things took in this process since it started."""

    commit: Histogram = msgspec.field(default_factory=lambda: Histogram((0.0005, *_SECONDS)))
    projection_batch: Histogram = msgspec.field(default_factory=lambda: Histogram(_SECONDS))
    compaction: Histogram = msgspec.field(default_factory=lambda: Histogram(_MINUTES))


DURATION_HELP: Final[dict[str, str]] = {
    "commit": "Round trip of a commit to Postgres that was answered",
    "projection_batch": "Folding and writing one batch of a shard's rows, in one transaction",
    "compaction": "One attempt to compact a session, from the plan to the event",
}

durations: Final = Durations()


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
