"""`eventlog parked` and `retry`, on sessions that really were set aside."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from eventlog import Custom, EventLog, Session, folding
from eventlog.testing import message
from projections.checkpoint import postgres_of
from projections.parking import parked_sessions
from tests.cli.command import CommandLine
from tests.projections.checks import append_raw, differences, project_all

HOSTILE = "evil \x1b]0;title\x07key"


@pytest.fixture
def command(log: EventLog, postgres_url: str, redis_url: str) -> CommandLine:
    """The command, on the log of the test."""
    return CommandLine({"data": "/nowhere", "postgres_url": postgres_url, "redis_url": redis_url})


async def poisoned(log: EventLog, key: str) -> Session:
    """A session of two good events and bytes that are none, which no retry can help."""
    session = await log.create_session(key, title="t")
    await session.append(message("fine"))
    await project_all(log)
    await append_raw(log, session, b'{"type":"message.added","role":7}')
    await project_all(log)
    return session


async def trapped(log: EventLog, patch: pytest.MonkeyPatch, *keys: str) -> None:
    """Sessions that a bug in the fold kept out of the views; the bug is gone afterwards."""
    real = folding.apply

    def apply(to: Any, recorded: Any) -> None:
        if isinstance(recorded.event, Custom):
            raise ZeroDivisionError("a bug")
        real(to, recorded)

    sessions = [await log.create_session(key) for key in keys]
    await project_all(log)
    for session in sessions:
        await session.append([Custom(name="trap"), message("behind it")])
    with patch.context() as patched:
        patched.setattr(folding, "apply", apply)
        await project_all(log)


async def test_parked_when_nothing_is_parked_says_so(command: CommandLine) -> None:
    """Exit code 0; JSON is an empty list; there is nothing to retry."""

    assert "no session is parked" in (await run(command, "parked")).stdout
    assert json.loads((await run(command, "parked", "--json")).stdout) == []
    assert "no session is parked" in (await run(command, "retry", "--all")).stdout


async def test_parked_when_a_session_is_poisoned_lists_it(
    log: EventLog, command: CommandLine
) -> None:
    """Which, where, since when and why; exit code 1; text from outside can't command a terminal."""
    session = await poisoned(log, HOSTILE)

    narrow = (await run(command, "parked", code=1, columns=80)).stdout
    wide = (await run(command, "parked", code=1, columns=160)).stdout
    (found,) = json.loads((await run(command, "parked", "--json", code=1)).stdout)

    (parked,) = await parked_sessions(log)
    for text in (narrow, wide):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert f"{parked.parked_at:%Y-%m-%d %H:%M}" in text
        assert "role" in text
        assert "eventlog retry --all" in text
        assert all(len(line) <= 160 for line in text.splitlines())
    assert "views" in wide
    assert found["session_id"] == str(session.id)
    assert found["key"] == HOSTILE
    assert (found["projection"], found["shard"]) == ("views", session.shard)
    assert (found["seq"], found["position"]) == (3, parked.position)
    assert "role" in found["error"]


async def test_retry_when_the_cause_is_gone_takes_sessions_back(
    log: EventLog, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, then all the others; the views are whole; a session that isn't parked is named."""
    await trapped(log, monkeypatch, "one", "two", "three")

    first = await run(command, "retry", "one", "nobody")
    rest = await run(command, "retry", "--all")

    assert "✓ one is in the views again, up to seq 3" in first.stdout
    assert "nobody is not parked" in first.stdout
    for key in ("two", "three"):
        assert f"✓ {key} is in the views again" in rest.stdout
    assert await parked_sessions(log) == []
    assert await differences(log) == []


async def test_retry_when_some_still_fail_reports_each_and_exits_1(
    log: EventLog, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that can't be helped doesn't keep the others out, and stays parked itself."""
    bad = await poisoned(log, HOSTILE)
    await trapped(log, monkeypatch, "good")

    done = await run(command, "retry", "--all", code=1)
    again = await run(command, "retry", str(bad.id), code=1)

    assert "✓ good is in the views again" in done.stdout
    assert "✗ session evil ]0;titlekey still can't be projected" in done.stdout
    assert "1 session still parked" in done.stdout
    assert "\x1b" not in done.stdout
    assert "still can't be projected" in again.stdout
    assert [each.session_id for each in await parked_sessions(log)] == [bad.id]


async def test_retry_when_on_a_terminal_shows_progress(
    log: EventLog, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar for many; what came of each stays on the screen."""
    await trapped(log, monkeypatch, *(f"chat-{number}" for number in range(4)))

    code, output = await asyncio.to_thread(command.run_on_terminal, "retry", "--all")

    assert code == 0
    assert "4/4" in output
    assert all(f"chat-{number} is in the views again" in output for number in range(4))


async def test_retry_when_a_rebuild_parked_it_leaves_it_to_that(
    log: EventLog, command: CommandLine
) -> None:
    """Its views are another table; the rebuild meets the session again."""
    session = await log.create_session("chat")
    store = postgres_of(log)
    await store.fetch("park_session", "rebuild:views", session.shard, session.id, 1, 1, "x")

    listed = await run(command, "parked", code=1)
    done = await run(command, "retry", "--all", code=1)

    assert "rebuild:views" in listed.stdout
    assert "parked by rebuild:views" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("chat-42", "--all")])
def test_retry_when_not_told_which_refuses(
    eventlog: CommandLine, arguments: tuple[str, ...]
) -> None:
    """Names, or --all: neither and both are mistakes."""

    assert "--all" in eventlog.run("retry", *arguments, code=2).stderr


async def run(command: CommandLine, *arguments: str, **how: Any) -> Any:
    """Run the command while the log here goes on."""
    return await asyncio.to_thread(command.run, *arguments, **how)
