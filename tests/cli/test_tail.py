"""`eventlog tail`: what another process appends, while it does."""

from __future__ import annotations

import json
import signal

from eventlog import EventLog, MessageAdded
from tests.cli.command import CommandLine


async def test_tail_when_a_reply_streams_shows_its_text_as_it_arrives(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Increments are there before the reply has ended; the command ends with the session."""
    session = await opened.create_session(key=key)
    await session.append(MessageAdded(role="user", content="old question"))
    await session.append(MessageAdded(role="user", content="new question"))

    async with await eventlog.start("tail", key) as tail:
        await tail.until("new question")
        async with session.reply(agent="teller") as reply:
            for number in range(5):
                await reply.write(f"part{number} ")
                await tail.until(f"part{number}")
            assert reply.status == "open"
        await session.append(MessageAdded(role="user", content="thanks"))
        await tail.until("thanks")
        await session.close()

        assert await tail.end() == 0
    assert "old question" not in tail.output
    assert "assistant · teller" in tail.output
    assert "part0 part1 part2 part3 part4" in tail.output
    assert "session.closed" in tail.output


async def test_tail_when_two_replies_stream_tells_them_apart(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Text of one message never stands under the heading of another."""
    session = await opened.create_session(key=key)

    async with await eventlog.start("tail", key, "--after", "0") as tail:
        async with session.reply(agent="one") as one, session.reply(agent="two") as two:
            await one.write("from one")
            await tail.until("from one")
            await two.write("from two")
            await tail.until("from two")
            await one.write(" again", channel="reasoning")
            await tail.until("again")
        await session.close()
        await tail.end()

    places = [
        tail.output.index(text)
        for text in (
            "assistant · one",
            "assistant · one · continues",
            "from one",
            "assistant · two · continues",
            "from two",
            "again",
        )
    ]
    assert places[1:] == sorted(places[1:])
    assert "session.created" in tail.output


async def test_tail_when_raw_writes_events_as_stored(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """One JSON object a line, one line a seq, after the one that was asked for."""
    session = await opened.create_session(key=key)
    async with session.reply() as reply:
        for word in ["a\x1b[2J ", "b ", "c"]:
            await reply.write(word)
    await session.close()

    lines = eventlog.run("tail", key, "--after", "1", "--raw").stdout.splitlines()

    assert [json.loads(line)["seq"] for line in lines] == list(range(2, 8))
    assert json.loads(lines[1])["event"]["text"] == "a\x1b[2J "


async def test_tail_when_raw_on_a_terminal_is_refused(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """What is stored may command a terminal."""
    session = await opened.create_session(key=key)
    await session.append(MessageAdded(role="user", content="Hi"))

    code, output = eventlog.run_on_terminal("tail", key, "--raw")

    assert code == 2
    assert "terminal would obey" in output
    assert "Hi" not in output


async def test_tail_when_interrupted_ends_at_once(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Ctrl-C is the usual end of it: no traceback, exit code 130."""
    session = await opened.create_session(key=key)
    await session.append(MessageAdded(role="user", content="Hi"))

    async with await eventlog.start("tail", key) as tail:
        await tail.until("Hi")
        seconds = await tail.interrupt(signal.SIGINT)

        assert tail.process.returncode == 130
        assert seconds < 5
        assert tail.process.stderr is not None
        assert await tail.process.stderr.read() == b""


async def test_tail_when_the_cursor_is_beyond_the_end_exits_2(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """A cursor of another session is a mistake, not a reason to wait for ever."""
    await opened.create_session(key=key)

    assert "beyond" in eventlog.run("tail", key, "--after", "99", code=2).stderr
