"""Metrics for Prometheus: the counters of this process, and what is to be seen of the whole log.

    GET /metrics ──> MetricsPage ──> one look at Postgres and Redis, shared by all who ask meanwhile
                                └──> counters and durations of this process  ──> text, in a thread

Whoever scrapes, however often, causes at most one look at a time and one in `FRESH_SECONDS`. A
server that doesn't answer is shown as down, and what it would have told is left out: a gap in a
graph is honest, a zero is not. What is said of the log is the same from every process, so queries
take the maximum over instances.

The endpoint understands just enough HTTP for scrapers and health checks: one GET a connection. It
asks for no password; by default only the machine itself can reach it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from eventlog.errors import InvalidSetting
from eventlog.log import EventLog
from eventlog.postgres import PostgresStore
from eventlog.telemetry import (
    DURATION_HELP,
    METRIC_HELP,
    TALLY_HELP,
    Histogram,
    durations,
    get_logger,
    metrics,
    tallies,
)
from projections.lag import held_by, worker_name
from projections.watching import Look, PostgresFacts, RedisFacts, Watch

FRESH_SECONDS: Final = 1.0
"""A page is given again for so long after it was made."""
REQUEST_SECONDS_MAX: Final = 10.0
"""A request that isn't read, answered and taken by then is given up."""
REQUEST_BYTES_MAX: Final = 8192
CONNECTIONS_MAX: Final = 16
"""Requests at a time; others are told to come back,"""
CROWDED_SECONDS_MAX: Final = 1.0
"""if they have asked by then."""

_log = get_logger()


# --- the page ------------------------------------------------------------------------------------


class MetricsPage:
    """Makes the page of metrics of one log, for whatever serves it. `aclose()` it when done."""

    def __init__(self, log: EventLog, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        in_postgres = isinstance(log.store, PostgresStore)  # one in memory has but its counters
        self._watch = Watch(log) if in_postgres else None
        self._fresh_seconds = fresh_seconds
        self._page: asyncio.Task[bytes] | None = None
        self._stale_at = 0.0
        self._complained = ""

    async def render(self) -> bytes:
        """The page, at most `FRESH_SECONDS` old, in Prometheus' text format."""
        page = self._page
        if page is None or (page.done() and time.monotonic() >= self._stale_at):
            page = self._page = asyncio.create_task(self._make(), name="eventlog-metrics")
        return await asyncio.shield(page)  # who goes away doesn't take it from the others

    async def aclose(self) -> None:
        """Stop looking."""
        if self._page is not None:
            self._page.cancel()
            await asyncio.gather(self._page, return_exceptions=True)
        if self._watch is not None:
            await self._watch.aclose()

    async def _make(self) -> bytes:
        try:
            look = await self._watch.look() if self._watch is not None else None
            self._complain(look)
            return await asyncio.to_thread(render, look)  # thousands of shards take a while
        finally:
            self._stale_at = time.monotonic() + self._fresh_seconds

    def _complain(self, look: Look | None) -> None:
        """Log what didn't answer; once, until it is something else."""
        said = (
            " ".join(each for each in (look.postgres_error, look.redis_error) if each)
            if look
            else ""
        )
        if said and said != self._complained:
            _log.warning("metrics.failed", error=said)
        self._complained = said


def render(look: Look | None) -> bytes:
    """What was seen, and this process's own counters, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Families([*of_process(), *(of_log(look) if look is not None else ())]))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Families(Collector):
    """Families that are there already, as a registry wants them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def of_process() -> Iterator[Metric]:
    """Every counter and duration of `eventlog.telemetry`, by the names they have there."""
    for name in metrics.__struct_fields__:
        said = METRIC_HELP.get(name, name.replace("_", " "))
        yield CounterMetricFamily(f"eventlog_{name}", said, value=getattr(metrics, name))
    for name, (label, said) in TALLY_HELP.items():
        family = CounterMetricFamily(f"eventlog_{name}", said, labels=(label,))
        for value, count in tuple(getattr(tallies, name).items()):
            family.add_metric((value,), count)
        yield family
    for name in durations.__struct_fields__:
        said = DURATION_HELP.get(name, name.replace("_", " "))
        yield _histogram(f"eventlog_{name}_seconds", said, getattr(durations, name))


def of_log(look: Look) -> Iterator[Metric]:
    """What was seen of the log, and whether its servers answered."""
    up = look.postgres is not None
    yield GaugeMetricFamily("eventlog_postgres_up", "Whether Postgres answered", value=up)
    if look.postgres is not None:
        yield from _of_projections(look.postgres)
        yield from _of_sessions(look.postgres)
    if look.has_redis:
        up = look.redis is not None
        yield GaugeMetricFamily("eventlog_redis_up", "Whether Redis answered", value=up)
    if look.redis is not None:
        yield from _of_redis(look.redis)


def _of_projections(facts: PostgresFacts) -> Iterator[Metric]:
    by_shard = ("projection", "shard")
    rows = GaugeMetricFamily("eventlog_lag_rows", "Rows not projected yet", labels=by_shard)
    seconds = GaugeMetricFamily(
        "eventlog_lag_seconds",
        "Since when the first row that is not projected waits",
        labels=by_shard,
    )
    held = GaugeMetricFamily(
        "eventlog_leases_held", "Shards that a worker holds", labels=("projection", "owner")
    )
    free = GaugeMetricFamily(
        "eventlog_leases_free", "Shards that nobody holds", labels=("projection",)
    )
    parked = GaugeMetricFamily(
        "eventlog_parked_sessions", "Sessions set aside by a projection", labels=("projection",)
    )
    for name, lags in facts.lags.items():
        for each in lags:
            rows.add_metric((name, str(each.shard)), each.rows_behind)
            seconds.add_metric((name, str(each.shard)), each.seconds_behind)
        owners = held_by(lags)
        free.add_metric((name,), len(owners.pop(None, ())))
        counts: Counter[str] = Counter()
        for owner, shards in owners.items():
            counts[worker_name(str(owner))] += len(shards)
        for owner, count in counts.items():
            held.add_metric((name, owner), count)
    for name in {**facts.lags, **facts.parked}:
        parked.add_metric((name,), facts.parked.get(name, 0))
    yield from (rows, seconds, held, free, parked)


def _of_sessions(facts: PostgresFacts) -> Iterator[Metric]:
    appended = CounterMetricFamily(
        "eventlog_appended_rows",
        "Rows in the log: the last position of each shard",
        labels=("shard",),
    )
    for shard, head in enumerate(facts.heads):
        appended.add_metric((str(shard),), head)
    yield appended
    yield GaugeMetricFamily(
        "eventlog_sessions_active",
        "Open sessions of the tenant with an event in the last 5 minutes, up to 10,000",
        value=facts.active_recently,
    )
    yield GaugeMetricFamily(
        "eventlog_replies_open",
        "Replies of the tenant that are being streamed, up to 10,000",
        value=facts.open_replies,
    )
    yield GaugeMetricFamily(
        "eventlog_compactions_due",
        "Sessions of the tenant that are due for compaction, up to 10,000",
        value=facts.compactions_due,
    )


def _of_redis(facts: RedisFacts) -> Iterator[Metric]:
    rows = GaugeMetricFamily("eventlog_feed_rows", "Rows that a feed holds", labels=("shard",))
    ends = GaugeMetricFamily(
        "eventlog_feed_last_position", "Position of a feed's last row", labels=("shard",)
    )
    for shard, (length, end) in enumerate(zip(facts.feed_lengths, facts.feed_ends, strict=True)):
        rows.add_metric((str(shard),), length)
        ends.add_metric((str(shard),), end)
    yield from (rows, ends)
    numbers = {
        "used_bytes": ("Memory that Redis uses", facts.used_bytes),
        "max_bytes": ("Memory that Redis may use; 0: no limit", facts.max_bytes),
        "clients": ("Connections to Redis", facts.clients),
    }
    for name, (said, value) in numbers.items():
        yield GaugeMetricFamily(f"eventlog_redis_{name}", said, value=value)


def _histogram(name: str, said: str, histogram: Histogram) -> Metric:
    buckets: list[tuple[str, float]] = []
    count = 0
    ends = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    for end, added in zip(ends, tuple(histogram.counts), strict=True):
        count += added
        buckets.append((end, count))
    return HistogramMetricFamily(name, said, buckets=buckets, sum_value=histogram.total_seconds)


# --- the endpoint --------------------------------------------------------------------------------


@asynccontextmanager
async def serving_metrics(log: EventLog, host: str, port: int | None) -> AsyncIterator[str | None]:
    """Serve `/metrics` and `/healthz` while the block runs; yields the URL of the former.

    Port 0: any that is free; None: serve nothing. Raises `InvalidSetting` if it can't listen there.
    """
    if port is None:
        yield None
        return
    page = MetricsPage(log)
    endpoint = _Endpoint(page)
    try:
        server = await asyncio.start_server(endpoint.answer, host, port, limit=REQUEST_BYTES_MAX)
    except OSError as error:
        raise InvalidSetting(
            f"metrics can't be served at {host}:{port}: {error.strerror or error}; choose another "
            "--metrics-port or --metrics-host (EVENTLOG_METRICS_PORT, EVENTLOG_METRICS_HOST)"
        ) from error
    try:
        place = server.sockets[0].getsockname()
        url = f"http://{f'[{place[0]}]' if ':' in place[0] else place[0]}:{place[1]}/metrics"
        _log.info("metrics.listening", url=url)
        yield url
    finally:
        server.close()
        await endpoint.aclose()
        await page.aclose()


class _Endpoint:
    """Answers requests, each on a connection of its own."""

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._answering: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Give up what is being answered."""
        for each in self._answering:
            each.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        task = asyncio.current_task()
        assert task is not None
        crowded = len(self._answering) >= CONNECTIONS_MAX
        self._answering.add(task)
        try:
            async with asyncio.timeout(CROWDED_SECONDS_MAX if crowded else REQUEST_SECONDS_MAX):
                request = await reader.readuntil(b"\r\n\r\n")
                if crowded:
                    answer = _response("503 Service Unavailable", b"too many requests at a time\n")
                else:
                    answer = await self._answer(request)
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            # Whoever asked went away, says nothing, or too much. That is for nobody to act on.
            _log.debug("metrics.failed", error=f"{type(error).__name__}: {error}")
        finally:
            self._answering.discard(task)
            writer.transport.abort()  # does nothing to one that is closed

    async def _answer(self, request: bytes) -> bytes:
        match request.partition(b"\r\n")[0].split(b" "):
            case [b"GET" | b"HEAD" as method, target, version] if version.startswith(b"HTTP/1."):
                whole = await self._found(target.partition(b"?")[0])
                return whole if method == b"GET" else whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            case [_, _, version] if version.startswith(b"HTTP/1."):
                return _response("405 Method Not Allowed", b"only GET and HEAD\n")
            case _:
                return _response("400 Bad Request", b"this is no HTTP request\n")

    async def _found(self, path: bytes) -> bytes:
        match path:
            case b"/metrics":
                try:
                    page = await self._page.render()
                except Exception as error:
                    _log.error("metrics.failed", error=str(error), exc_info=error)
                    return _response("500 Internal Server Error", b"see the log\n")
                return _response("200 OK", page, CONTENT_TYPE_PLAIN_0_0_4)
            case b"/healthz":
                return _response("200 OK", b"ok\n")
            case _:
                return _response("404 Not Found", b"there are /metrics and /healthz\n")


def _response(status: str, body: bytes, kind: str = "text/plain; charset=utf-8") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
