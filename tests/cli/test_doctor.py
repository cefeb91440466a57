"""`eventlog doctor`: all well, and what it says when something is not."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from eventlog import EventLog
from eventlog.embedded.temporary import temporary_postgres, temporary_valkey
from eventlog.schema import migrate
from eventlog.testing import message
from projections.checkpoint import postgres_of
from projections.lag import ShardLag
from tests.cli.command import CommandLine
from tests.projections.checks import append_raw, project_all, session_in_shard, take_shards
from workers.commands.falling_behind import (
    LAG_ROWS_WARN,
    LAG_SECONDS_FAIL,
    LAG_SECONDS_WARN,
    lag_findings,
    version_findings,
)


def findings(eventlog: CommandLine, *, code: int) -> dict[str, dict[str, str]]:
    """What the doctor found, by what it looked at."""
    said = eventlog.run("doctor", "--json", code=code).stdout
    return {each["what"]: each for each in json.loads(said)}


def test_doctor_when_all_is_well_says_so(eventlog: CommandLine) -> None:
    """Everything is looked at, nothing complains, exit code 0."""
    report = eventlog.run("doctor").stdout
    found = findings(eventlog, code=0)

    assert report.rstrip().endswith("all is well")
    assert set(found) - {"contexts"} == {  # those are there once a compact-worker has run
        *("Postgres", "durability", "schema", "role", "connections"),
        *("Redis", "eviction", "memory", "log", "feeds", "views", "compaction"),
        "data folder",
    }
    assert {each["state"] for each in found.values()} == {"ok"}
    assert "noeviction" in found["eviction"]["found"]


def test_doctor_when_redis_is_down_fails_and_looks_at_the_rest(data_folder: Path) -> None:
    """The log works without; the report names the address without its password."""
    url = "redis://user:secret@127.0.0.1:1"
    down = CommandLine({"data": str(data_folder), "redis_url": url})

    found = findings(down, code=1)
    report = down.run("doctor", code=1).stdout

    assert found["Redis"]["state"] == "fail"
    assert found["Redis"]["advice"]
    assert found["log"]["state"] == found["views"]["state"] == "ok"
    assert "feeds" not in found
    assert "1 failure" in report
    assert "secret" not in report


def test_doctor_when_postgres_is_down_fails(data_folder: Path) -> None:
    """Nothing that needs it is looked at, Redis is."""
    url = "postgresql://user:secret@127.0.0.1:1/nothing"
    found = findings(
        CommandLine({"data": str(data_folder), "postgres_url": url, "redis_url": "none"}), code=1
    )

    assert found["Postgres"]["state"] == "fail"
    assert "secret" not in json.dumps(found)
    assert found["Redis"]["state"] == "ok"
    assert "log" not in found


async def test_doctor_when_views_are_behind_says_how_far_and_who_should_act(
    log: EventLog, postgres_url: str, redis_url: str
) -> None:
    """Rows and seconds, in which shards; shards that nobody holds; sessions that were set aside."""
    given = CommandLine({"data": "/none", "postgres_url": postgres_url, "redis_url": redis_url})
    bad = await session_in_shard(log, 3)
    await project_all(log)
    await append_raw(log, bad, b"no event")
    await project_all(log)
    nobody = await asyncio.to_thread(findings, given, code=0)
    await (await session_in_shard(log, 5)).append([message("one"), message("two")])
    leases = await take_shards(log)
    async with postgres_of(log).connection() as connection:
        await connection.execute(
            "update eventlog.leases set expires_at = '-infinity' where shard = any($1::int[])",
            [5, 6, 7],
        )
    behind = await asyncio.to_thread(findings, given, code=0)

    assert len(leases) == log.store.shards
    assert nobody["views"] == {"what": "views", "state": "ok"} | {
        "found": "caught up; no projector runs now"
    }
    assert nobody["projectors"]["found"] == "nobody holds the 16 shards of views"
    assert nobody["projectors"]["state"] == "warn"
    assert nobody["parked"]["found"] == "1 session set aside by the projection views"
    assert "eventlog parked" in nobody["parked"]["advice"]
    assert re.fullmatch(r"3 rows and \d+\.\d s behind in shard 5", behind["views"]["found"])
    assert behind["projectors"]["found"] == "nobody holds shards 5-7 of views"


def lags(seconds: float, *, rows: int = 1, owner: str | None = "w:1:a") -> list[ShardLag]:
    """Two shards, of which the second is behind."""
    return [ShardLag(0, 9, 9, 0.0, owner), ShardLag(1, 9_000, 9_000 - rows, seconds, owner)]


@pytest.mark.parametrize(
    ("found", "embedded", "state"),
    [
        (lags(0.2), False, "ok"),
        (lags(LAG_SECONDS_WARN - 0.1), False, "ok"),
        (lags(LAG_SECONDS_WARN), False, "warn"),
        (lags(0.2, rows=LAG_ROWS_WARN + 1), False, "warn"),
        (lags(LAG_SECONDS_FAIL), False, "fail"),
        (lags(LAG_SECONDS_FAIL), True, "fail"),
        (lags(LAG_SECONDS_FAIL, owner=None), False, "fail"),
        (lags(LAG_SECONDS_FAIL, owner=None), True, "ok"),
        (lags(0.2, rows=LAG_ROWS_WARN + 1, owner=None), True, "warn"),
    ],
)
def test_lag_when_long_is_a_warning_then_a_failure(
    found: list[ShardLag], embedded: bool, state: str
) -> None:
    """By named thresholds; on embedded servers nobody need run a projector all the time."""
    first, *others = lag_findings("views", found, embedded=embedded)

    assert first.state == state
    assert bool(first.advice) == (state != "ok")
    assert bool(others) == (found[0].owner is None and not embedded)
    (rebuild,) = lag_findings("rebuild:views", found, embedded=embedded)
    assert rebuild.state == "ok", "it is behind until it is done"


@pytest.mark.slow
def test_versions_when_views_are_old_ask_for_a_rebuild() -> None:
    """Nothing is said of views that are as the code makes them."""
    assert version_findings([]) == []
    (found,) = version_findings(["messages", "usage"])
    assert (found.state, found.advice) == ("warn", "eventlog rebuild all")
    assert found.found.startswith("messages, usage made by an older version")


async def test_doctor_when_servers_are_set_up_badly_says_what_to_do(tmp_path: Path) -> None:
    """No schema, fsync off, evicting Redis, a superuser's login, rights that nobody should have."""
    with (
        temporary_postgres(tmp_path / "pg", settings={"fsync": "off"}) as postgres,
        temporary_valkey(tmp_path / "valkey") as valkey,
    ):
        given = CommandLine(
            {"data": "/nowhere", "postgres_url": postgres.url, "redis_url": valkey.url}
        )
        empty = findings(given, code=1)
        await migrate(postgres.url)
        async with redis.asyncio.from_url(valkey.url) as client:
            await client.config_set("maxmemory", "100mb")
            await client.config_set("maxmemory-policy", "allkeys-lru")
        connection = await asyncpg.connect(postgres.url)
        await connection.execute("grant delete on eventlog.events to eventlog_app")
        await connection.close()
        bad = findings(given, code=1)
        accepted = findings(CommandLine({**as_settings(given), "unsafe_durability": "1"}), code=1)

    assert empty["schema"]["state"] == "fail"
    assert "eventlog migrate" in empty["schema"]["advice"]
    assert bad["durability"]["state"] == "fail"
    assert "fsync" in bad["durability"]["found"]
    assert accepted["durability"]["state"] == "warn"
    assert bad["eviction"]["state"] == "warn"
    assert "noeviction" in bad["eviction"]["advice"]
    assert bad["login"]["state"] == "warn"
    assert bad["role"]["state"] == "fail"
    assert "DELETE" in bad["role"]["found"]
    assert "data folder" not in bad


def as_settings(given: CommandLine) -> dict[str, str]:
    """The settings that a command line was made with."""
    prefix = "EVENTLOG_"
    return {
        name.removeprefix(prefix).lower(): value
        for name, value in given.environment.items()
        if name.startswith(prefix)
    }
