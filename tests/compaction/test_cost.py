"""Compacting reads what came since the last snapshot and summary, however long the history is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from eventlog import CompactionCompleted, EventLog, Session, Summary
from eventlog.compaction.summarizer import Material
from eventlog.entries import CHUNK_LENGTH
from eventlog.replay import SNAPSHOT_ROWS
from eventlog.testing import message, read_all
from tests.compaction.checks import event_bytes_max, size_of
from tests.compaction.conftest import KEEP_TWO
from tests.compaction.summaries import Brief
from tests.conftest import OpenLog

HISTORIES: Final = (1_500, 6_000)
"""Messages of a shorter session, and of one four times as long."""
NEWER: Final = 20
"""Messages that came since."""


class Read:
    """What was asked of the store."""

    def __init__(self) -> None:
        self.messages = 0
        """Rows, and messages in chunks of snapshots."""
        self.summaries = 0
        """Those of the rows that are earlier summaries, or hand-offs."""


@contextmanager
def counted(log: EventLog) -> Iterator[Read]:
    """Within the block, what this log reads of sessions is counted."""
    read, store = Read(), log.store
    read_session, read_seqs, load_chunks = store.read_session, store.read_seqs, store.load_chunks

    async def rows(*args: Any, **kwargs: Any) -> Any:
        found = await read_session(*args, **kwargs)
        read.messages += len(found)
        return found

    async def seqs(*args: Any) -> Any:
        found = await read_seqs(*args)
        read.messages += len(found)
        read.summaries += len(found)
        return found

    async def chunks(*args: Any) -> Any:
        found = await load_chunks(*args)
        read.messages += CHUNK_LENGTH * len(found)
        return found

    vars_of: Any = store
    vars_of.read_session, vars_of.read_seqs, vars_of.load_chunks = rows, seqs, chunks
    try:
        yield read
    finally:
        del vars_of.read_session, vars_of.read_seqs, vars_of.load_chunks


async def long_session(log: EventLog, count: int) -> Session:
    """So many messages, summarised but for two; then some more."""
    session = await log.create_session()
    for begin in range(0, count, 100):
        await session.append([message(f"said {n}, and more") for n in range(begin, begin + 100)])
        await session.context()
    assert await session.compact(summarizer=Brief()) is not None
    await session.append([message(f"newer {number}, and more") for number in range(NEWER)])
    return session


async def cost_of_compacting(session: Session, log: EventLog) -> Read:
    """What another process reads to compact the session, which it has never seen."""
    with counted(log) as read:
        assert await log.handle(session.id).compact(summarizer=Brief()) is not None
    return read


async def test_compaction_when_the_history_is_longer_reads_no_more(
    short_log: EventLog, open_log: OpenLog
) -> None:
    """The rows since the last snapshot, at most, and the chunk in which the context begins."""
    costs = []
    for count in HISTORIES:
        session = await long_session(short_log, count)
        read = await cost_of_compacting(session, await open_log(compaction=KEEP_TWO))
        costs.append(read.messages)

    assert max(costs) <= SNAPSHOT_ROWS + NEWER + 2 * CHUNK_LENGTH


async def test_compaction_when_it_replays_the_session_reads_all_of_it(
    short_log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with the whole state in its place the cost grows with the history."""
    monkeypatch.setattr(Session, "context_state", Session.replay)
    costs = []
    for count in HISTORIES:
        session = await long_session(short_log, count)
        read = await cost_of_compacting(session, await open_log(compaction=KEEP_TWO))
        costs.append(read.messages)

    assert costs[1] > costs[0] + (HISTORIES[1] - HISTORIES[0]) // 2
    assert costs[1] > SNAPSHOT_ROWS + NEWER + 2 * CHUNK_LENGTH


async def test_compaction_when_there_were_many_before_reads_the_newest_only(
    short_log: EventLog, open_log: OpenLog
) -> None:
    """Earlier summaries stay where they are: a hundred of them cost what one does."""
    session = await long_session(short_log, 600)
    few = await cost_of_compacting(session, await open_log(compaction=KEEP_TWO))
    for number in range(100):
        said = [message(f"turn {number}, part {part}, and more") for part in range(8)]
        await session.append(said)
        assert await session.compact(summarizer=Brief(str(number))) is not None
    await session.append([message(f"newer {number}, and more") for number in range(NEWER)])

    many = await cost_of_compacting(session, await open_log(compaction=KEEP_TWO))

    assert len(await session.compactions()) == 103
    for read in (few, many):
        assert read.messages <= SNAPSHOT_ROWS + NEWER + 2 * CHUNK_LENGTH
        assert read.summaries <= 1


class Verbose(Brief):
    """A summary of several thousand characters."""

    async def summarize(self, material: Material) -> Summary:
        """Many words, and fewer than there were."""
        self.materials.append(material)
        return Summary(text=" ".join(f"fact{number}" for number in range(400)))


async def test_event_when_a_long_history_is_compacted_is_as_long_as_its_summary(
    short_log: EventLog,
) -> None:
    """With hundreds of messages that stay: only their seqs are in it."""
    session = await short_log.create_session()
    policy = KEEP_TWO.replace('"keep_user_tokens": 0', '"keep_user_tokens": 8000')
    await session.set_compaction_policy(policy)
    for number in range(0, 1_200, 100):
        said = [message(f"question {n}?") for n in range(number, number + 50)]
        told = [message(f"answer {n}: {'word ' * 40}", "assistant") for n in range(50)]
        await session.append([*said, *told])

    made = await session.compact(summarizer=Verbose())

    assert made is not None
    event = (await read_all(session))[-1].event
    assert isinstance(event, CompactionCompleted)
    assert len(event.kept) > 400
    assert size_of(event) <= event_bytes_max(event)
    whole = (await session.replay(made.seq - 1)).context()
    assert size_of(event) * 10 < sum(len(str(each["content"])) for each in whole)
