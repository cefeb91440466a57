"""Metrics as Prometheus gets them: over HTTP, read by its own parser, also with servers down."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eventlog import EventLog, Settings
from eventlog.errors import InvalidSetting
from eventlog.telemetry import (
    DURATION_HELP,
    METRIC_HELP,
    TALLY_HELP,
    Durations,
    Histogram,
    Metrics,
    Tallies,
    durations,
    metrics,
    tally,
)
from eventlog.testing import message
from projections.watching import Look, Watch
from tests.cli.command import WAIT_SECONDS_MAX, CommandLine
from tests.conftest import OpenLog
from tests.projections.checks import append_raw, project_all, session_in_shard, take_shards
from tests.support.proxy import proxy
from workers import metrics as served
from workers.metrics import MetricsPage, serving_metrics

SHARD = 3
ANSWER_SECONDS_MAX = 10.0

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def ask(url: str, request: bytes | None = None) -> tuple[str, str, bytes]:
    """Status line, headers and body of one answer."""
    found = re.fullmatch(r"http://([\d.]+):(\d+)(/.*)", url)
    assert found is not None, url
    reader, writer = await asyncio.open_connection(found[1], int(found[2]))
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            writer.write(request or f"GET {found[3]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, _, headers = head.decode().partition("\r\n")
    return status, headers, body


def port_of(url: str) -> int:
    """The port in it."""
    return urlsplit(url).port or 0


def parsed(page: bytes) -> Samples:
    """Every sample of a page."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


async def scrape(url: str) -> Samples:
    """What a scrape finds."""
    status, headers, body = await ask(url)
    assert status == "HTTP/1.1 200 OK", body
    assert "Content-Type: text/plain; version=0.0.4" in headers
    return parsed(body)


@pytest.fixture
async def url(log: EventLog) -> AsyncIterator[str]:
    """Where the log's metrics are served."""
    async with serving_metrics(log, "127.0.0.1", 0) as served_at:
        assert served_at is not None
        yield served_at


async def test_metrics_when_scraped_tell_of_the_log(log: EventLog, url: str) -> None:
    """Lag, leases, parked sessions, feeds, sessions: as they are, by projection and shard."""
    session = await session_in_shard(log, SHARD)
    await project_all(log)
    bad = await session_in_shard(log, SHARD + 1)
    await append_raw(log, bad, b'{"type":"message.added","role":7}')
    await project_all(log)
    await session.append([message("one"), message("two")])
    await take_shards(log, owner="host:12:abcd")
    assert log.fanout is not None
    await log.fanout.drained()

    found = await scrape(url)

    shard, views = ("shard", str(SHARD)), ("projection", "views")
    assert found["eventlog_lag_rows", (views, shard)] == 2
    assert found["eventlog_lag_seconds", (views, shard)] > 0
    assert found["eventlog_lag_rows", (views, ("shard", "0"))] == 0
    assert found["eventlog_lag_seconds", (views, ("shard", "0"))] == 0
    assert found["eventlog_leases_held", (("owner", "host:12"), views)] == log.store.shards
    assert found["eventlog_leases_free", (views,)] == 0
    assert found["eventlog_parked_sessions", (views,)] == 1
    assert found["eventlog_appended_rows_total", (shard,)] == 3
    assert found["eventlog_feed_rows", (shard,)] == 3
    assert found["eventlog_feed_last_position", (shard,)] == 3
    assert found["eventlog_sessions_active", ()] == 2
    assert found["eventlog_replies_open", ()] == 0
    assert found["eventlog_compactions_due", ()] == 0
    assert (found["eventlog_postgres_up", ()], found["eventlog_redis_up", ()]) == (1, 1)
    assert found["eventlog_redis_used_bytes", ()] > 0
    assert found["process_resident_memory_bytes", ()] > 0


async def test_metrics_when_scraped_have_every_counter_of_the_process(
    log: EventLog, url: str
) -> None:
    """Each by its name, and the durations as histograms that grow with what was done."""
    before = metrics.commits
    await session_in_shard(log, SHARD)
    await project_all(log)

    found = await scrape(url)

    for name in Metrics.__struct_fields__:
        assert found[f"eventlog_{name}_total", ()] == getattr(metrics, name)
    assert metrics.commits == before + 1
    for name in Durations.__struct_fields__:
        count = found[f"eventlog_{name}_seconds_count", ()]
        assert count == found[f"eventlog_{name}_seconds_bucket", (("le", "+Inf"),)]
        assert count == sum(getattr(durations, name).counts)
    for name in ("commit", "projection_batch"):
        assert found[f"eventlog_{name}_seconds_sum", ()] > 0


def test_counters_when_listed_say_what_they_count() -> None:
    """A new counter gets a line beside `Metrics`; nobody else need know of it."""

    assert set(METRIC_HELP) == set(Metrics.__struct_fields__)
    assert set(DURATION_HELP) == set(Durations.__struct_fields__)
    assert set(TALLY_HELP) == set(Tallies.__struct_fields__)


def test_tallies_when_scraped_are_counters_with_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each value that was counted."""
    counted = Tallies()
    monkeypatch.setattr(served, "tallies", counted)
    for kind in ("timeout", "timeout", "refused"):
        tally(counted.compaction_failures, kind)

    found = parsed(served.render(None))

    name = "eventlog_compaction_failures_total"
    assert found[name, (("kind", "timeout"),)] == 2
    assert found[name, (("kind", "refused"),)] == 1


def test_counter_when_it_is_new_is_served_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before it has a help text."""
    grown = msgspec.defstruct("Grown", [("new_things", int, 7)])()
    monkeypatch.setattr(served, "metrics", grown)

    assert parsed(served.render(None))["eventlog_new_things_total", ()] == 7


def test_histogram_when_observed_counts_into_buckets() -> None:
    """A bound belongs to its bucket; what is beyond all is in the last."""
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 3.0):
        histogram.observe(seconds)

    assert histogram.counts == [2, 1, 1]
    assert histogram.total_seconds == pytest.approx(3.65)


async def test_metrics_when_a_server_is_down_say_so_and_leave_out_the_rest(
    postgres_url: str, redis_url: str
) -> None:
    """A scrape is answered in time and with 200; what isn't known is a gap, not a zero."""
    async with (
        proxy(postgres_url) as postgres,
        proxy(redis_url) as valkey,
        EventLog.open(postgres.url, valkey.url, settings=Settings()) as log,
    ):
        page = MetricsPage(log, fresh_seconds=0)
        well = parsed(await page.render())
        valkey.refuse()
        valkey.cut()
        without_redis = parsed(await page.render())
        valkey.refuse(False)
        postgres.refuse()
        postgres.cut()
        begin = time.monotonic()
        without_postgres = parsed(await page.render())
        seconds = time.monotonic() - begin
        postgres.refuse(False)
        await page.aclose()

    assert (well["eventlog_postgres_up", ()], well["eventlog_redis_up", ()]) == (1, 1)
    assert without_redis["eventlog_redis_up", ()] == 0
    assert without_redis["eventlog_postgres_up", ()] == 1
    assert not any(name.startswith("eventlog_feed_") for name, _ in without_redis)
    assert without_postgres["eventlog_postgres_up", ()] == 0
    assert without_postgres["eventlog_redis_up", ()] == 1
    assert not any(name.startswith("eventlog_lag_") for name, _ in without_postgres)
    assert without_postgres["eventlog_commits_total", ()] == metrics.commits
    assert seconds < 5


async def test_metrics_when_there_is_no_redis_have_nothing_of_it(open_log: OpenLog) -> None:
    """No Redis on purpose is no outage that anybody should be woken for."""
    page = MetricsPage(await open_log(redis="none"))
    found = parsed(await page.render())
    await page.aclose()

    assert found["eventlog_postgres_up", ()] == 1
    assert not any("redis" in name or "feed" in name for name, _ in found)


async def test_metrics_when_the_log_is_in_memory_have_the_counters() -> None:
    """It has no servers; the page says what there is."""
    async with EventLog.in_memory() as log:
        page = MetricsPage(log)
        found = parsed(await page.render())
        await page.aclose()

    assert ("eventlog_commits_total", ()) in found
    assert ("eventlog_postgres_up", ()) not in found


@pytest.mark.parametrize(("fresh_seconds", "looks"), [(60.0, 1), (0.0, 3)])
async def test_metrics_when_many_scrape_look_once(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, fresh_seconds: float, looks: int
) -> None:
    """All who ask at the same time, and a moment later, share one look; without that each looks."""
    real = Watch.look
    count = 0

    async def look(watch: Watch) -> Look:
        nonlocal count
        count += 1
        return await real(watch)

    monkeypatch.setattr(Watch, "look", look)
    page = MetricsPage(log, fresh_seconds=fresh_seconds)
    for _ in range(3):
        pages = await asyncio.gather(*(page.render() for _ in range(20)))
        assert len(set(pages)) == 1
    await page.aclose()

    assert count == looks


async def test_endpoint_when_asked_otherwise_answers_in_kind(url: str) -> None:
    """Health, HEAD, unknown paths and methods, what is no HTTP, what is too long."""
    place = url.removesuffix("/metrics")

    assert await ask(f"{place}/healthz") == (
        "HTTP/1.1 200 OK",
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n"
        "Cache-Control: no-store\r\nConnection: close",
        b"ok\n",
    )
    head = await ask(url, b"HEAD /metrics?x=y HTTP/1.0\r\n\r\n")
    assert head[0] == "HTTP/1.1 200 OK"
    assert int(head[1].partition("Content-Length: ")[2].split("\r\n")[0]) > 1000
    assert head[2] == b""
    assert (await ask(f"{place}/"))[0] == "HTTP/1.1 404 Not Found"
    assert (await ask(url, b"POST /metrics HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 405 ")
    assert (await ask(url, b"\x16\x03\x01 hello\r\n\r\n"))[0].startswith("HTTP/1.1 400 ")
    with contextlib.suppress(ConnectionError):
        assert await ask(url, b"GET /metrics HTTP/1.1\r\n" + b"a" * 100_000) == ("", "", b"")
    assert (await ask(url))[0] == "HTTP/1.1 200 OK"


async def test_endpoint_when_some_never_ask_serves_others_until_it_is_crowded(
    log: EventLog, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that stay silent take a place each, for a while; others are told to come back."""
    monkeypatch.setattr(served, "CONNECTIONS_MAX", 4)
    port = port_of(url)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]

    assert (await ask(url))[0] == "HTTP/1.1 200 OK"
    silent.append(await asyncio.open_connection("127.0.0.1", port))
    assert (await ask(url))[0] == "HTTP/1.1 503 Service Unavailable"

    for _, writer in silent:
        writer.close()
        await writer.wait_closed()


async def test_serving_when_the_port_is_taken_says_what_to_do(log: EventLog, url: str) -> None:
    """The command ends with 2 and names the options."""
    port = port_of(url)

    with pytest.raises(InvalidSetting, match="--metrics-port"):
        async with serving_metrics(log, "127.0.0.1", port):
            pass


@pytest.mark.parametrize("worker", ["relay", "project", "reap"])
async def test_worker_when_given_a_port_serves_metrics(eventlog: CommandLine, worker: str) -> None:
    """Its log says where; port 0 takes any that is free. It still ends cleanly."""
    async with await eventlog.start(worker, "--metrics-port", "0") as running:
        assert running.process.stderr is not None
        said = b""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while b"metrics.listening" not in said:
                said = await running.process.stderr.readline()
        found = await scrape(msgspec.json.decode(said)["url"])
        await running.interrupt()

    assert found["eventlog_postgres_up", ()] == 1
    assert running.process.returncode == 0


async def test_up_when_the_environment_names_a_port_serves_metrics(tmp_path: Path) -> None:
    """Its panel has the address; what the projector did is in the counters."""
    up = CommandLine({"data": str(tmp_path / "data"), "metrics_port": "0"})

    async with await up.start("up") as running:
        await running.until("Ctrl-C stops all")
        address = re.search(r"http://127\.0\.0\.1:\d+/metrics", running.output)
        assert address is not None, running.output
        found = await scrape(address[0])
        await running.interrupt()

    assert found["eventlog_leases_free", (("projection", "views"),)] <= 16
    assert running.process.returncode == 0


def test_metrics_port_when_out_of_range_is_refused(eventlog: CommandLine) -> None:
    """Before anything is opened."""

    assert (
        "--metrics-port is 70000" in eventlog.run("relay", "--metrics-port", "70000", code=2).stderr
    )
