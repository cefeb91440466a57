"""Two projectors on one shard: whoever lost the lease writes nothing, however late it goes on.

The controls take the protection away, and the same story must then end in wrong views.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from eventlog import EventLog, Unavailable
from eventlog.envelope import Row, new_id, pack_row
from eventlog.feeds import Run
from eventlog.testing import message
from projections.checkpoint import Fenced, Lease, NotInLog, postgres_of
from projections.parking import retry_parked
from projections.projection import Progress, Projection
from projections.tables import Tables
from tests.projections.checks import (
    differences,
    session_in_shard,
    snapshot_of_views,
    step,
    take_over,
    take_shards,
)

SHARD = 3


class Unfenced(Projection):
    """The control: it moves the checkpoint without looking whose it is, or where."""

    async def _move(
        self, connection: asyncpg.Connection[Any], progress: Progress, last: Row
    ) -> None:
        await connection.execute(
            "update eventlog.checkpoints set position = $3 where projection = $1 and shard = $2",
            self.name,
            progress.lease.shard,
            last.position,
        )


class WithoutEpoch(Projection):
    """The control: it looks where the checkpoint is, but not under whose epoch."""

    async def _move(
        self, connection: asyncpg.Connection[Any], progress: Progress, last: Row
    ) -> None:
        moved = await connection.execute(
            "update eventlog.checkpoints set position = $4"
            " where projection = $1 and shard = $2 and position = $3",
            self.name,
            progress.lease.shard,
            progress.position,
            last.position,
        )
        if moved == "UPDATE 0":
            raise Fenced(progress.lease)


async def lease_of(log: EventLog) -> Lease:
    """The lease of the shard that these tests are about."""
    (lease,) = [each for each in await take_shards(log) if each.shard == SHARD]
    return lease


async def overtake(log: EventLog, zombie: Projection) -> tuple[Progress, list[Row]]:
    """A projector reads rows and sleeps; another takes its shard and goes on beyond them."""
    session = await session_in_shard(log, SHARD)
    lease = await lease_of(log)
    progress = await zombie.begin(lease)
    await session.append([message("one"), message("two")])
    rows = await log.store.read_feed(SHARD, after=progress.position, limit=100)
    other = Projection(log)
    further = await other.begin(await take_over(log, lease))
    await session.append(message("three", token_count=5))
    await session.undo(2)
    while await step(log, other, further, limit=2):
        pass
    return progress, rows


async def test_batch_when_the_lease_was_taken_over_writes_nothing(log: EventLog) -> None:
    """A zombie that goes on is refused, and nothing in the tables shows that it was there."""
    zombie = Projection(log)
    progress, rows = await overtake(log, zombie)
    before = await snapshot_of_views(log)

    with pytest.raises(Fenced):
        await zombie.apply(progress, rows)

    assert await snapshot_of_views(log) == before
    assert await differences(log) == []


async def test_batch_when_nothing_fences_it_corrupts_the_views(log: EventLog) -> None:
    """The control for the test above: without the check the zombie brings old rows back."""
    zombie = Unfenced(log)
    progress, rows = await overtake(log, zombie)

    await zombie.apply(progress, rows)

    assert await differences(log)


async def test_batch_when_written_while_the_lease_is_taken_is_waited_for(log: EventLog) -> None:
    """A batch that came first is committed before the new owner learns where to go on."""
    session = await session_in_shard(log, SHARD)
    lease = await lease_of(log)
    gate = Gate()
    slow = Projection(log, views=(gate,))
    progress = await slow.begin(lease)
    writing = asyncio.create_task(step(log, slow, progress))
    await gate.reached.wait()
    beginning = asyncio.create_task(Projection(log).begin(await take_over(log, lease)))

    done, _ = await asyncio.wait({beginning}, timeout=0.2)
    assert not done
    gate.open.set()
    await writing

    assert (await beginning).position == 1
    assert (await session.head(),) == (1,)


class Gate:
    """A view that stops in the middle of a batch until it is told to go on."""

    name = "gate"
    version = 1

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def write(self, tables: Tables, changes: object) -> None:
        self.reached.set()
        await self.open.wait()

    async def remove(self, tables: Tables, shard: int, of: object) -> None:
        """Nothing is there."""


async def test_batch_when_its_answer_was_lost_is_not_applied_twice(log: EventLog) -> None:
    """The commit came through but nobody heard: the same batch again is refused."""
    session = await session_in_shard(log, SHARD)
    await session.append(message())
    projection = Projection(log)
    progress = await projection.begin(await lease_of(log))
    rows = await log.store.read_feed(SHARD, after=0, limit=10)
    forgetful = Progress(progress.lease, progress.position, set())
    await projection.apply(progress, rows)

    with pytest.raises(Fenced):
        await projection.apply(forgetful, rows)

    again = await projection.begin(progress.lease)
    assert again.position == rows[-1].position
    assert await differences(log) == []


async def test_batch_when_rows_are_not_the_next_ones_is_refused(log: EventLog) -> None:
    """Rows that leave a hole, or come again, are a mistake of the caller."""
    session = await session_in_shard(log, SHARD)
    await session.append([message(), message()])
    projection = Projection(log)
    progress = await projection.begin(await lease_of(log))
    rows = await log.store.read_feed(SHARD, after=0, limit=10)

    with pytest.raises(ValueError, match="follow position 0"):
        await projection.apply(progress, rows[1:])


@pytest.mark.parametrize("owner", [Projection, WithoutEpoch])
async def test_owner_when_a_session_is_taken_back_in_must_begin_anew(
    log: EventLog, owner: type[Projection]
) -> None:
    """The epoch, not only the position, fences: the owner doesn't know of a change by hand.

    The control shows it: its checkpoint is right, and it passes over the session's next rows.
    """
    session = await session_in_shard(log, SHARD)
    projection = owner(log)
    progress = await projection.begin(await lease_of(log))
    await step(log, projection, progress)
    await park(log, session.id)
    progress.parked.add(session.id)
    await session.append(message("while parked"))
    await step(log, projection, progress)
    await retry_parked(log, session.id)
    await session.append(message("afterwards"))

    if owner is WithoutEpoch:
        await step(log, projection, progress)
        assert await differences(log)
        return
    with pytest.raises(Fenced):
        await step(log, projection, progress)
    again = await projection.begin(await take_over(log, progress.lease))
    await step(log, projection, again)
    assert await differences(log) == []


async def park(log: EventLog, session_id: object) -> None:
    """Set a session aside by hand."""
    await postgres_of(log).fetch("park_session", "views", SHARD, session_id, 1, 1, "by hand")


async def test_rows_when_only_redis_has_them_are_refused(log: EventLog) -> None:
    """Redis may know of a future that Postgres lost in a failover: it never reaches the views."""
    session = await session_in_shard(log, SHARD)
    projection = Projection(log)
    progress = await projection.begin(await lease_of(log))
    await step(log, projection, progress)
    last = (await log.store.read_feed(SHARD, after=0, limit=10))[-1]
    phantom = Row(
        last.position + 1,
        last.seq + 1,
        last.recorded_us,
        session.id,
        new_id(),
        1,
        10,
        0,
        b'{"type":"message.added","role":"user","content":"never happened"}',
    )
    assert log.fanout is not None
    await log.fanout.drained()
    await log.fanout.publish([Run(SHARD, phantom.position, [pack_row(phantom)])])
    before = await snapshot_of_views(log)

    with pytest.raises(NotInLog):
        await projection.apply(progress, [phantom])

    assert await snapshot_of_views(log) == before


async def test_begin_when_someone_newer_began_is_refused(log: EventLog) -> None:
    """A worker that wakes up between taking its lease and beginning finds it is too late."""
    lease = await lease_of(log)
    newer = await take_over(log, lease)
    await Projection(log).begin(newer)

    with pytest.raises(Fenced):
        await Projection(log).begin(lease)


async def test_worker_when_stopped_inside_a_batch_does_not_block_others_for_long(
    log: EventLog,
) -> None:
    """Postgres ends the transaction of a worker that is frozen, so that its shard can go on."""
    await session_in_shard(log, SHARD)
    lease = await lease_of(log)
    gate = Gate()
    frozen = Projection(log, views=(gate,))
    progress = await frozen.begin(lease)
    stuck = asyncio.create_task(step(log, frozen, progress))
    await gate.reached.wait()
    newer = await take_over(log, lease)

    async with asyncio.timeout(20):
        while True:
            try:
                position = (await Projection(log).begin(newer)).position
                break
            except Unavailable:
                continue  # it waited for the row as long as a lock may be waited for

    assert position == 0
    gate.open.set()
    with pytest.raises(Unavailable):
        await stuck
