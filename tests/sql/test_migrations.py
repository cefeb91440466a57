"""Migrations: numbered, run once, safe to interrupt and to run from several processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from eventlog import EventLog, SchemaMismatch, UnsafeServer
from eventlog.schema import (
    Migration,
    check_applied,
    check_server,
    inspect_server,
    migrate,
    migrations,
)
from tests.conftest import NewDatabase


async def test_migrate_when_run_again_does_nothing(new_database: NewDatabase) -> None:
    """The first run applies all, the second none; the number of shards stays as it was made."""
    url = await new_database(empty=True)

    assert [each.number for each in await migrate(url, shards=8)] == [
        each.number for each in migrations()
    ]
    assert await migrate(url, shards=99) == []
    assert (await inspect_server(url)).shards == 8


async def test_migrate_when_run_by_four_at_once_runs_once(new_database: NewDatabase) -> None:
    """One of them migrates, the others wait and find it done."""
    url = await new_database(empty=True)

    ran = await asyncio.gather(*(migrate(url) for _ in range(4)))

    assert sorted(len(each) for each in ran) == [0, 0, 0, len(migrations())]


async def test_migrate_when_interrupted_goes_on_where_it_was(new_database: NewDatabase) -> None:
    """A migration that fails leaves nothing behind; those before it stay."""
    url = await new_database(empty=True)
    first, *rest = migrations()
    broken = msgspec.structs.replace(rest[0], sql=rest[0].sql + "; select 1 / 0;")

    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(url, wanted=[first, broken])

    assert list((await inspect_server(url)).applied) == [1]
    assert [each.number for each in await migrate(url)] == [each.number for each in rest]
    async with EventLog.open(url, "none") as log:
        await log.create_session("k")


async def test_migrate_when_a_file_was_changed_after_it_ran_is_refused(
    new_database: NewDatabase,
) -> None:
    """What ran can't be edited; the error names the file."""
    url = await new_database()
    edited = [msgspec.structs.replace(each, sha256="0" * 64) for each in migrations()]

    with pytest.raises(SchemaMismatch, match="0001_log was changed"):
        await migrate(url, wanted=edited)


def test_check_applied_when_the_database_is_newer_is_refused() -> None:
    """An older program doesn't touch a newer schema."""
    with pytest.raises(SchemaMismatch, match="upgrade"):
        check_applied({1: "a", 2: "b"}, [Migration(1, "log", "", "a")])


async def test_open_when_the_schema_is_missing_says_what_to_do(new_database: NewDatabase) -> None:
    """On a server of one's own nothing is installed silently."""
    url = await new_database(empty=True)

    with pytest.raises(SchemaMismatch, match="eventlog migrate"):
        async with EventLog.open(url, "none"):
            pass


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("fsync", False, "fsync"),
        ("full_page_writes", False, "full_page_writes"),
        ("synchronous_commit", "off", "synchronous_commit"),
    ],
)
async def test_open_when_the_server_may_lose_commits_is_refused(
    postgres_url: str, field: str, value: Any, name: str
) -> None:
    """Acknowledged must mean kept; who doesn't care can say so."""
    facts = msgspec.structs.replace(await inspect_server(postgres_url), **{field: value})

    with pytest.raises(UnsafeServer, match=name):
        check_server(facts, unsafe_durability=False)
    check_server(facts, unsafe_durability=True)


def test_migrations_when_numbered_with_a_gap_are_refused(tmp_path: Path) -> None:
    """0001, 0002, … without a gap, and nothing that isn't named so."""
    (tmp_path / "0001_a.sql").write_text("select 1")
    (tmp_path / "0003_b.sql").write_text("select 1")
    with pytest.raises(SchemaMismatch, match="without a gap"):
        migrations(tmp_path)

    (tmp_path / "nonsense.sql").write_text("select 1")
    with pytest.raises(SchemaMismatch, match=r"nonsense\.sql"):
        migrations(tmp_path)
