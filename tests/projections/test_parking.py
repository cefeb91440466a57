"""One session that can't be projected doesn't stop the others, is visible, and can come back."""

from __future__ import annotations

from typing import Any

import pytest

from eventlog import Custom, EventLog, InvalidRequest, MessageAdded, folding
from eventlog.testing import message, refused
from projections.folding import Change
from projections.parking import StillParked, parked_sessions, retry_parked
from projections.projection import Projection
from projections.tables import Tables
from tests.projections.checks import (
    append_raw,
    differences,
    project_all,
    session_in_shard,
    step,
    take_shards,
)

SHARD = 9


async def test_session_when_its_row_is_garbage_is_parked(log: EventLog) -> None:
    """Bytes that are no event: the session stops before them, its neighbours don't."""
    bad, good = await session_in_shard(log, SHARD), await session_in_shard(log, SHARD)
    await bad.append(message("fine"))
    await append_raw(log, bad, b'{"type":"message.added","role":7}')
    await bad.append(message("after"))
    await good.append(message("other"))

    await project_all(log)
    await good.append(message("later"))
    await bad.append(message("later"))
    await project_all(log)

    (parked,) = await parked_sessions(log)
    assert (parked.session_id, parked.shard, parked.seq) == (bad.id, SHARD, 3)
    assert "role" in parked.error
    assert await differences(log) == []
    shown = await log.store.session_view(bad.id)
    assert shown is not None
    assert (shown.seq, shown.message_count) == (2, 1)


async def test_session_when_its_first_row_is_garbage_is_parked(log: EventLog) -> None:
    """Then the views have nothing of it."""
    session = await session_in_shard(log, SHARD)
    await project_all(log)
    await append_raw(log, session, b"\xff\x00")
    fork = await log.create_session()

    await project_all(log)

    assert [each.session_id for each in await parked_sessions(log)] == [session.id]
    assert await log.store.session_view(fork.id) is not None


async def test_session_when_postgres_refuses_a_value_is_parked_alone(log: EventLog) -> None:
    """Counts beyond 64 bits fold, but fit in no column; the rest of the batch is written."""
    bad, good = await session_in_shard(log, SHARD), await session_in_shard(log, SHARD)
    most = 2**63 - 1
    await good.append(message("one"))
    await bad.append([MessageAdded(role="user", token_count=most) for _ in range(2)])
    await good.append(message("two"))

    await project_all(log)

    assert [each.session_id for each in await parked_sessions(log)] == [bad.id]
    assert await differences(log) == []
    with refused(StillParked):
        await retry_parked(log, bad.id)
    assert [each.session_id for each in await parked_sessions(log)] == [bad.id]


async def test_session_when_a_view_fails_on_it_is_parked_alone(log: EventLog) -> None:
    """An error in a view's own code is that session's, too."""
    bad, good = await session_in_shard(log, SHARD), await session_in_shard(log, SHARD)

    class Picky:
        name = "picky"
        version = 1

        async def write(self, tables: Tables, changes: list[Change]) -> None:
            if any(change.session_id == bad.id for change in changes):
                raise KeyError("no such thing")

        async def remove(self, tables: Tables, shard: int, session_id: object) -> None:
            """Nothing is there."""

    projection = Projection(log, views=(Picky(),))
    (lease,) = [each for each in await take_shards(log) if each.shard == SHARD]
    progress = await projection.begin(lease)

    changes = await step(log, projection, progress)

    assert [change.session_id for change in changes] == [good.id]
    assert [each.session_id for each in await parked_sessions(log)] == [bad.id]


async def test_session_when_the_cause_is_gone_comes_back_whole(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the fold, fixed later: the session's views are made anew and go on from there."""
    session = await session_in_shard(log, SHARD)
    await session.append([message("one"), message("two")])
    await project_all(log)
    await session.append([Custom(name="trap"), message("three")])
    real = folding.apply

    def apply(to: Any, recorded: Any) -> None:
        if isinstance(recorded.event, Custom):
            raise ZeroDivisionError("a bug")
        real(to, recorded)

    with monkeypatch.context() as patch:
        patch.setattr(folding, "apply", apply)
        await project_all(log)
        with refused(StillParked):
            await retry_parked(log, session.id)
    await session.append(message("four"))
    await project_all(log)
    (parked,) = await parked_sessions(log)
    assert parked.seq == 4

    shown = await retry_parked(log, session.id)

    assert shown == await session.head() == 6
    assert await parked_sessions(log) == []
    assert await differences(log) == []
    await session.append(message("five"))
    await project_all(log)
    assert await differences(log) == []
    with refused(InvalidRequest):
        await retry_parked(log, session.id)


async def test_session_when_taken_back_in_shows_what_the_checkpoint_says(log: EventLog) -> None:
    """Retrying stops where the shard's other sessions are, so that nothing is applied twice."""
    session = await session_in_shard(log, SHARD)
    projection = Projection(log)
    (lease,) = [each for each in await take_shards(log) if each.shard == SHARD]
    progress = await projection.begin(lease)
    await step(log, projection, progress)
    await projection.store.fetch("park_session", "views", SHARD, session.id, 1, 1, "by hand")
    progress = await projection.begin(lease)
    await session.append([message("one"), message("two")])
    await step(log, projection, progress, limit=1)
    await session.append(message("three"))

    assert await retry_parked(log, session.id) == 2
    assert await differences(log) == []
