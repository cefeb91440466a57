"""`eventlog demo`, as a stranger runs it: it passes, and it does notice when something is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis.asyncio

from eventlog.embedded.temporary import temporary_postgres, temporary_valkey
from eventlog.schema import migrate
from tests.cli.command import CommandLine, sample
from workers.demo import examples_folder

CHECKS = 6


@pytest.fixture
def eventlog(tmp_path: Path) -> CommandLine:
    """The command on a data folder that doesn't exist yet."""
    return CommandLine({"data": str(tmp_path / "data")})


@pytest.mark.slow
def test_demo_when_run_on_a_bare_machine_passes(eventlog: CommandLine) -> None:
    """Live text, Redis flushed, stopped and started, six checks, the verdict, and what is next."""
    done = eventlog.run("demo", "--seconds", "10", columns=80)

    said = done.stdout
    assert not done.stderr
    assert "I see the issue. When `checkConcurrentSessions` returns an error" in said
    places = [
        said.index(text)
        for text in (
            "── Redis is flushed",
            "── compaction",
            "── Redis is stopped",
            "── Redis runs again",
            "the conversation as it was ──",
            "at seq 2,108, in mid-reply",
            "increments to a frame",
            "all checks passed",
            "eventlog sessions",
        )
    ]
    assert places == sorted(places)
    assert said.count("✓") == CHECKS
    assert "✗" not in said
    key = re.search(r"eventlog tail (\S+)", said)
    assert key is not None
    assert "28 messages" in eventlog.run("show", key[1]).stdout


@pytest.mark.slow
def test_demo_when_an_event_is_lost_fails(eventlog: CommandLine) -> None:
    """The check of the check: a subscriber that loses one event is found out."""
    said = eventlog.run("demo", "--fast", "--lose-one", code=1).stdout

    assert re.search(r"✗ the subscriber got seq 1 to [\d,]+, .*: after seq 100 came 102", said)
    assert f"1 of {CHECKS} checks failed" in said
    assert "all checks passed" not in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["codex_small.jsonl", "claude_clean.jsonl"])
def test_demo_when_given_a_file_plays_it_on_a_terminal(eventlog: CommandLine, name: str) -> None:
    """Any transcript will do; on a terminal lines are wrapped to its width."""
    code, output = eventlog.run_on_terminal("demo", str(sample(name)), "--fast", columns=80)

    assert code == 0, output
    assert "all checks passed" in output


@pytest.mark.slow
async def test_demo_when_servers_are_given_leaves_other_keys_alone(tmp_path: Path) -> None:
    """A Redis given by URL is not stopped, and only this log's keys are deleted from it."""
    with (
        temporary_postgres(tmp_path / "pg") as postgres,
        temporary_valkey(tmp_path / "valkey") as valkey,
    ):
        await migrate(postgres.url)
        async with redis.asyncio.from_url(valkey.url) as client:
            await client.set("somebody:else", "1")
            given = CommandLine(
                {
                    "data": str(tmp_path / "unused"),
                    "postgres_url": postgres.url,
                    "redis_url": valkey.url,
                }
            )
            said = given.run("demo", "--fast").stdout

            assert await client.get("somebody:else") == b"1"

    assert "this log's keys are deleted from Redis" in said
    assert "it is not stopped" in " ".join(said.split())
    assert "Redis is stopped" not in said
    assert "all checks passed" in said
    assert not (tmp_path / "unused").exists()


@pytest.mark.slow
def test_demo_when_there_is_no_redis_passes(tmp_path: Path) -> None:
    """Subscriptions poll; there is one check less to make."""
    without = CommandLine({"data": str(tmp_path / "data"), "redis_url": "none"})

    said = without.run("demo", "--fast").stdout

    assert "There is no Redis" in said
    assert said.count("✓") == CHECKS - 1
    assert "all checks passed" in said


def test_examples_when_looked_for_are_found() -> None:
    """Beside the package in a checkout, inside it when installed."""

    assert (examples_folder() / "claude_compacted.jsonl").is_file()
