"""`eventlog expire`, `erase` and `erasures`: asked first, done for good, and on record."""

from __future__ import annotations

import json

import pytest

from eventlog import Erased, EventLog
from eventlog.errors import InvalidRequest
from eventlog.integrations.export import export_jsonl_stream
from eventlog.testing import message
from tests.cli.command import CommandLine
from workers.commands.erasing import parse_duration


async def test_expire_when_told_when_says_it_and_shows_it(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """After silence, at a time, never; `show` tells the time."""
    session = await opened.create_session(key)

    assert eventlog.run("expire", key, "--after", "2h").stdout == (
        f"{key} expires after 2 h of silence\n"
    )
    assert (await session.replay()).expires_at is not None
    said = eventlog.run("expire", key, "--at", "2100-01-31T14:05Z").stdout
    assert said == f"{key} expires at 2100-01-31T14:05:00+00:00\n"
    assert "expires 2100-01-31 14:05Z" in eventlog.run("show", key, columns=120).stdout
    assert eventlog.run("expire", key, "--never").stdout == f"{key} never expires\n"
    assert (await session.replay()).expires_at is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say one of"),
        (("--after", "1h", "--never"), "say one of"),
        (("--after", "soon"), "90s, 30m, 1h or 7d"),
        (("--at", "17"), "is not a time"),
    ],
)
def test_expire_when_it_makes_no_sense_is_refused(
    eventlog: CommandLine, arguments: tuple[str, ...], said: str
) -> None:
    """Before any server is asked."""
    assert said in eventlog.run("expire", "k", *arguments, code=2).stderr


def test_durations_when_read_are_seconds() -> None:
    """A whole number and a unit."""
    assert [parse_duration(text) for text in ("90s", "30m", "30 min", "1h", "7d")] == [
        *(90, 1_800, 1_800, 3_600, 604_800)
    ]
    for text in ("", "h", "1.5h", "1w", "-1h", "1h2m"):
        with pytest.raises(InvalidRequest):
            parse_duration(text)


async def test_erase_when_nobody_confirms_changes_nothing(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """It says what would be removed, and that it needs a yes."""
    session = await opened.create_session(key)
    await session.append(message("kept"))
    await session.fork()

    refused = eventlog.run("erase", key, code=2).stderr

    assert "2 events" in refused
    assert "1 session forked from it: keep what is their own" in refused
    assert "say --yes" in refused
    assert [each.content for each in (await session.replay()).messages] == ["kept"]


async def test_erase_when_confirmed_removes_content_and_is_on_record(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """With its forks; `erasures` has who and why, and asking for the session says when."""
    session = await opened.create_session(key)
    await session.append(message("secret"))
    fork = await session.fork(key=f"{key}-fork")

    done = eventlog.run("erase", key, "--forks", "--yes", "--reason", "request 17").stdout

    assert f"✓ {key} and 1 fork: 5 events" in done
    assert "vacuum eventlog.events" in done
    for each in (session, fork):
        state = await each.replay()
        assert state.status == "erased"
        events = [one.event async for one in each.read()]
        assert {type(one) for one in events} == {Erased}
    assert "was erased on" in eventlog.run("show", key, code=1).stderr
    records = json.loads(eventlog.run("erasures", "--json").stdout)
    mine = [each for each in records if each["session_id"] in (str(session.id), str(fork.id))]
    assert [each["reason"] for each in mine] == ["request 17"] * 2
    assert all(each["left"] == [] and each["requested_by"] for each in mine)
    assert str(session.id) in eventlog.run("erasures", columns=200).stdout


async def test_erase_when_there_is_no_such_session_says_so(eventlog: CommandLine, key: str) -> None:
    """As other commands do."""
    assert "does not exist" in eventlog.run("erase", key, "--yes", code=1).stderr


async def test_export_when_erased_writes_lines_that_say_so(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """By its UUID, through the library: the session's command line is closed to it."""
    session = await opened.create_session(key)
    await session.append(message("secret"))
    eventlog.run("erase", key, "--yes")

    lines = [json.loads(line) async for line in export_jsonl_stream(session.read())]

    assert [line["event"]["type"] for line in lines] == ["erased"] * 3
    assert lines[1]["event"]["tag"] == "message.added"
