"""`eventlog doctor`: all well, and what it says when something is not."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from eventlog.embedded.temporary import temporary_postgres, temporary_valkey
from eventlog.schema import migrate
from tests.cli.command import CommandLine


def findings(eventlog: CommandLine, *, code: int) -> dict[str, dict[str, str]]:
    """What the doctor found, by what it looked at."""
    said = eventlog.run("doctor", "--json", code=code).stdout
    return {each["what"]: each for each in json.loads(said)}


def test_doctor_when_all_is_well_says_so(eventlog: CommandLine) -> None:
    """Everything is looked at, nothing complains, exit code 0."""
    report = eventlog.run("doctor").stdout
    found = findings(eventlog, code=0)

    assert report.rstrip().endswith("all is well")
    assert set(found) == {
        *("Postgres", "durability", "schema", "role", "connections"),
        *("Redis", "eviction", "memory", "log", "feeds", "views", "data folder"),
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


@pytest.mark.slow
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
