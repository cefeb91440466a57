"""A word in every place that can hold one; after the erasure it is in none.

The look-out is the same before and after: every column of every table of the schema, as text and
as hexadecimal bytes, and every key of the log in Redis. Before, it must find the word in each
place that is listed here; so what it finds nothing in afterwards, is clean.
"""

from __future__ import annotations

import secrets
from typing import Any

import asyncpg

from eventlog import EventLog, Session
from eventlog import events as ev
from eventlog.queries import VIEW_TABLES
from eventlog.replay import SNAPSHOT_ROWS
from eventlog.testing import message
from projections.heirs import settle_forks
from tests.conftest import OpenLog
from tests.projections.checks import append_raw, differences, project_all

TABLES = {
    *VIEW_TABLES,
    *("events", "snapshots", "snapshot_chunks", "parked_sessions"),
}
KEYS = {"feed", "session", "context"}


async def say_everywhere(log: EventLog, word: str) -> list[Session]:
    """A session with the word in all that it says, and a fork of it."""
    session = await log.create_session(
        word, user_id=f"user {word}", title=f"about {word}", metadata={word: [word]}
    )
    call = ev.ToolCall(id=word, name=word, arguments=f'{{"a": "{word}"}}')
    await session.append(
        [
            message(word, name=word, agent=word, model=word, native={word: word}, message_id=word),
            message(word, "assistant", reasoning=word, tool_calls=[call], metadata={word: word}),
            message(word, "tool", tool_call_id=word),
            ev.MessageAdded(
                role="assistant", content=[{"type": "text", "text": word}], agent=word,
                model=word, usage=ev.Usage(input_tokens=3), finish_reason=word,
            ),
            ev.SessionUpdated(metadata={"more": word}),
            ev.AgentActivated(agent=word),
            ev.AgentHandedOff(to_agent=word, from_agent=word, context={word: word}),
            ev.RunStarted(run_id=word, agent=word, metadata={word: word}),
            ev.RunFailed(run_id=word, error=word),
            ev.ScratchpadWritten(name=word, value={word: word}),
            ev.Custom(name=word, data={word: word}),
            ev.MessageRetracted(message_id=word, reason=word),
        ]
    )  # fmt: skip
    async with session.reply(agent=word, model=word, metadata={word: word}) as reply:
        for channel in ("text", "reasoning"):
            await reply.write(word, channel=channel)
    for _ in range(SNAPSHOT_ROWS // 256 + 1):
        await session.append([message(f"{word} {number}") for number in range(256)])
    head = await session.head()
    await session.append(
        ev.CompactionCompleted(
            summary=word, from_seq=2, to_seq=head, model=word, metadata={word: word}
        )
    )
    await session.append(ev.CompactionFailed(reason=word))
    fork = await session.fork(key=f"{word} again")
    await fork.append(message(f"own {word}"))
    return [session, fork]


async def places(log: EventLog, owner: asyncpg.Connection[Any], word: str) -> dict[str, int]:
    """Where the word is, and how often: tables, and kinds of keys in Redis."""
    found: dict[str, int] = {}
    tables = await owner.fetch(
        "select relname from pg_class where relnamespace = 'eventlog'::regnamespace"
        " and relkind in ('r', 'p')"
    )
    for (table,) in tables:
        for (text,) in await owner.fetch(f"select t::text from eventlog.{table} t"):
            if word in text or word.encode().hex() in text:
                found[table] = found.get(table, 0) + 1
    for key in await keys_of(log):
        if word in repr((key, await content(log, key))):
            kind = key.split(":{")[1].split(":")[1]
            found[kind] = found.get(kind, 0) + 1
    return found


async def keys_of(log: EventLog) -> list[str]:
    """All keys of the log in Redis, of any epoch."""
    assert log.fanout is not None
    prefix = (await log.fanout.keys()).prefix.rsplit(":", 1)[0]
    cursor, keys = b"0", set[str]()
    while True:
        answer: Any = await log.fanout.call("SCAN", cursor, "MATCH", f"{prefix}:*", "COUNT", 10_000)
        cursor = answer[0]
        keys |= {key.decode() for key in answer[1]}
        if cursor == b"0":
            return sorted(keys)


async def content(log: EventLog, key: str) -> object:
    """All that a key holds."""
    assert log.fanout is not None
    match await log.fanout.call("TYPE", key):
        case b"hash":
            return await log.fanout.call("HGETALL", key)
        case b"stream":
            return await log.fanout.call("XRANGE", key, "-", "+")
        case b"string":
            return await log.fanout.call("GET", key)
        case _:
            return await log.fanout.call("JSON.GET", key)


async def fill(log: EventLog, other: EventLog, word: str) -> list[Session]:
    """The word in all places, copies included."""
    sessions = await say_everywhere(log, word)
    await project_all(log)
    cache = log.views.cache
    assert cache is not None
    for each in sessions:
        await each.replay()
        there = other.handle(each.id)
        await there.view()
        await there.scratchpad()
        await there.context()
        await other.replayer.snapshots.save(each.id, await there.replay())
    await append_raw(log, sessions[0], b'{"type": "' + word.encode() + b" no json")
    await project_all(log)
    assert log.fanout is not None
    await log.fanout.drained()
    return sessions


async def test_erased_word_when_looked_for_everywhere_is_nowhere(
    log: EventLog, open_log: OpenLog, postgres_url: str
) -> None:
    """In no table, in no key; and before the erasure it was in all of them."""
    word = f"w{secrets.token_hex(8)}"
    sessions = await fill(log, await open_log(), word)
    owner = await asyncpg.connect(postgres_url)
    try:
        before = await places(log, owner, word)
        assert TABLES - before.keys() == set()
        assert {name.partition(".")[0] for name in before} >= KEYS

        record = await sessions[0].erase(forks=True)
        await settle_forks(log, record)

        assert await places(log, owner, word) == {}
        assert await differences(log) == []
        await project_all(log)
        assert await places(log, owner, word) == {}
        for each in sessions:
            assert word not in repr([event async for event in each.read()])
    finally:
        await owner.close()


async def test_erased_word_when_a_fork_goes_on_is_only_in_what_that_copied(
    log: EventLog, open_log: OpenLog, postgres_url: str
) -> None:
    """Its title, metadata and user, and what was said in it; nothing that it inherited."""
    word = f"w{secrets.token_hex(8)}"
    sessions = await fill(log, await open_log(), word)
    owner = await asyncpg.connect(postgres_url)
    try:
        record = await sessions[0].erase()
        at_once = await places(log, owner, word)
        await settle_forks(log, record)
        afterwards = await places(log, owner, word)

        own = {"events": 2, "session_views": 1, "message_views": 1}
        assert {name: count for name, count in at_once.items() if name != "feed"} == own
        assert {name: count for name, count in afterwards.items() if name != "feed"} == own
        texts = [one["content"] for one in await sessions[1].context()]
        assert texts == [f"own {word}"]
    finally:
        await owner.close()
