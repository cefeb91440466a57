"""Projectors leave snapshots behind, so that nobody who reads a long session later folds it all."""

from __future__ import annotations

from eventlog import EventLog
from eventlog.replay import SNAPSHOT_ROWS
from eventlog.telemetry import metrics
from eventlog.testing import message, shown
from projections.checkpoint import postgres_of
from projections.folding import Folder, group
from tests.conftest import OpenLog

MESSAGES = 3 * SNAPSHOT_ROWS


async def test_first_reader_when_a_projector_followed_the_session_starts_from_a_snapshot(
    log: EventLog, open_log: OpenLog
) -> None:
    """The session was written in large batches, and read by nobody until now."""
    session = await log.create_session()
    for start in range(0, MESSAGES, 500):
        await session.append([message(f"{n}") for n in range(start, start + 500)])
    projector = await open_log()
    folder = Folder(postgres_of(projector), projector.replayer)
    rows = await projector.store.read_feed(session.shard, after=0, limit=10_000)
    for start in range(0, len(rows), 700):
        batch = group(rows[start : start + 700], without=set())
        folder.remember((await folder.fold(session.shard, batch)).changes)
    await projector.replayer.aclose()
    used, saved = metrics.snapshots_used, metrics.snapshots_saved

    state = await session.replay()

    assert metrics.snapshots_used == used + 1
    assert metrics.snapshots_saved == saved
    assert len(state.messages) >= MESSAGES
    assert shown(await session.replay(1_000)) == shown(
        await projector.replayer.replay(session.id, 1_000)
    )


async def test_states_when_they_are_large_are_remembered_up_to_a_bound(log: EventLog) -> None:
    """Few messages, much text: what counts are bytes."""
    folder = Folder(postgres_of(log), log.replayer, bytes_max=300_000)
    by_shard: dict[int, int] = {}
    for _ in range(10):
        session = await log.create_session()
        await session.append([message("x" * 20_000) for _ in range(3)])
        after = by_shard.get(session.shard, 0)
        rows = await log.store.read_feed(session.shard, after=after, limit=100)
        by_shard[session.shard] = rows[-1].position
        folder.remember((await folder.fold(session.shard, group(rows, without=set()))).changes)
        assert 0 < folder.remembered_bytes <= 300_000

    assert 1 < len(folder._known) < 6
