"""Snapshots are for speed only: with them or without them, the state is the same."""

from __future__ import annotations

import asyncio
from typing import Any

from eventlog import CompactionCompleted, EventLog, Session, fold, initial
from eventlog.replay import Replayer
from eventlog.telemetry import metrics
from eventlog.testing import message, read_all, shown
from tests.conftest import OpenLog

COUNT = 3_000


async def long_session(log: EventLog) -> Session:
    """3,000 messages, and what concerns old ones: retractions, a compaction, a rewind, replies."""
    session = await log.create_session(user_id="ada", metadata={"a": 1})
    for start in range(0, COUNT, 500):
        await session.append(
            [message(f"{n}", token_count=1, metadata={"n": n}) for n in range(start, start + 500)]
        )
        await session.undo(3)
        async with session.reply(agent="a", flush_seconds=0) as reply:
            for piece in "abc":
                await reply.write(piece)
    await session.append(CompactionCompleted(summary="s", from_seq=1, to_seq=2_000, kept=[5, 700]))
    await session.rewind(to=2_800)
    await session.append(message("last"))
    return session


async def test_replay_when_snapshots_are_used_or_not_is_the_same(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """3,000 messages, at many seqs: by the first reader, by one with snapshots, by one without."""
    session = await long_session(any_log)
    first = shown(await session.replay())
    await any_log.replayer.aclose()  # the snapshots it left behind are saved
    other = await open_log()
    used = metrics.snapshots_used

    second = await (await other.session(session.id)).replay()
    plain = Replayer(other.store, save_snapshots=False)
    folded = fold(initial(session.id), await read_all(session))

    assert metrics.snapshots_used > used
    assert shown(second) == first == shown(folded)
    for seq in (0, 1, 511, 512, 513, 700, 1_025, 1_600, 2_048, 2_799, 2_801, second.seq - 1):
        expected = shown(fold(initial(session.id), await read_until(session, seq)))
        assert shown(await session.replay(seq)) == expected, seq
        assert shown(await (await other.session(session.id)).replay(seq)) == expected, seq
        assert shown(await plain.replay(session.id, seq)) == expected, seq


async def read_until(session: Session, seq: int) -> list[Any]:
    """The session's events up to a seq."""
    return [each async for each in session.read(until=seq)]


async def test_context_when_snapshots_are_used_reads_what_it_needs(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """The context of a long session, by a process that starts from a snapshot."""
    session = await long_session(any_log)
    expected = (await session.replay()).context()
    await any_log.replayer.aclose()

    other = await open_log()

    assert await (await other.session(session.id)).context() == expected
    assert await (await other.session(session.id)).context(at=2_500) == (
        (await session.replay(2_500)).context()
    )


async def test_fork_when_its_parent_has_snapshots_uses_them(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """A fork's state begins from its parent's snapshots, and equals the fold all the same."""
    session = await long_session(any_log)
    await session.replay()
    await any_log.replayer.aclose()
    other = await open_log()
    fork = await (await other.session(session.id)).fork(at=2_222)
    used = metrics.snapshots_used

    await fork.append(message("fork"))
    grandchild = await fork.fork()
    await grandchild.undo(2)

    for each in (fork, grandchild):
        expected = fold(initial(each.id), await read_all(each))
        fresh = Replayer(other.store, save_snapshots=False)
        assert shown(await each.replay()) == shown(expected)
        assert shown(await fresh.replay(each.id, None)) == shown(expected)
    assert metrics.snapshots_used > used


async def test_replay_when_many_readers_save_snapshots_at_once_is_right(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Readers that start together save the same snapshots; nobody minds."""
    session = await long_session(any_log)
    logs = [await open_log() for _ in range(3)]

    states = await asyncio.gather(
        *(log.handle(session.id).replay() for log in logs for _ in range(3))
    )
    for log in logs:
        await log.replayer.aclose()

    expected = shown(fold(initial(session.id), await read_all(session)))
    assert all(shown(state) == expected for state in states)
    assert shown(await (await (await open_log()).session(session.id)).replay()) == expected
