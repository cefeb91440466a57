"""A projector that is moved step by step, can die around a commit, and go on as a zombie.

Its leases are over as soon as they are taken, so anybody may take any shard at any time: what keeps
two projectors apart here is the epoch in the checkpoint alone.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import asyncpg

from eventlog import RecordedEvent, fold, initial
from eventlog import events as ev
from eventlog.envelope import Row
from eventlog.views import view_of
from projections.cache import CacheWriter
from projections.checkpoint import PROJECTION, Fenced, Leases, postgres_of
from projections.projection import Progress, Projection
from tests.model.conversations import Conversation
from tests.model.processes import Process
from tests.projections.rows import rows_of, stored_rows

Death = Literal["none", "before commit", "after commit"]
DEATHS: Final[tuple[Death, ...]] = ("none", "none", "before commit", "after commit")
_numbers = itertools.count(1)


class Died(Exception):
    """The projector's process ended here."""


class MortalProjection(Projection):
    """Dies around its next commit, if that was planned."""

    death: Death = "none"

    @asynccontextmanager
    async def _transaction(
        self, progress: Progress, last: Row
    ) -> AsyncIterator[asyncpg.Connection[Any]]:
        async with super()._transaction(progress, last) as connection:
            yield connection
            if self.death == "before commit":
                raise Died
        if self.death == "after commit":
            raise Died


class Stepper:
    """One projector's life, from taking the shards to its death."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._store = postgres_of(process.log)
        self._projection = MortalProjection(process.log)
        self._leases = Leases(self._store, PROJECTION, f"stepper-{next(_numbers)}", seconds=0)
        self._cache = CacheWriter(process.log)
        self._progress: dict[int, Progress] = {}

    async def begin(self) -> None:
        """Take every shard from whoever has it."""
        await self._leases.join()
        for lease in await self._leases.take(self._store.shards):
            progress = self._progress[lease.shard] = await self._projection.begin(lease)
            await self._cache.refresh(lease.shard, progress.position)

    async def step(self, shard: int, count_max: int, death: Death, *, from_redis: bool) -> int:
        """Project the next rows of a shard; raises `Died`, `Fenced`."""
        progress = self._progress[shard]
        rows = await self._rows(progress, count_max, from_redis=from_redis)
        if not rows:
            return 0
        self._projection.death = death
        changes = await self._projection.apply(progress, rows)
        await self._cache.write(changes)
        return len(rows)

    async def _rows(self, progress: Progress, count_max: int, *, from_redis: bool) -> list[Row]:
        shard = progress.lease.shard
        if not from_redis:
            return await self._store.read_feed(shard, after=progress.position, limit=count_max)
        if progress.position >= (await self._store.feed_heads())[shard]:
            return []
        feed = self.process.log.feed({shard: progress.position})
        try:
            return (await feed.next_rows(seconds=10))[:count_max]
        finally:
            feed.close()

    async def catch_up(self) -> None:
        """Project all there is."""
        for shard in self._progress:
            while await self.step(shard, 1_000, "none", from_redis=False):
                pass

    async def is_refused(self, shard: int) -> bool | None:
        """Whether the next batch is; None if there is none."""
        try:
            return None if not await self.step(shard, 10, "none", from_redis=False) else False
        except Fenced:
            return True


# --- what the views must hold --------------------------------------------------------------------


async def check_session_view(process: Process, chat: Conversation) -> int:
    """The view of a session is the fold of its events up to the seq it states; returns that seq."""
    view = await process.store.session_view(chat.id)
    if view is None:
        return 0
    assert view == view_of(chat.folded(view.seq))
    return view.seq


async def check_other_views(
    connection: asyncpg.Connection[Any], chat: Conversation, seq: int
) -> None:
    """What every other table holds of a session is what the fold up to a seq makes of it.

    What a fork inherited is its parent's, and only there.
    """
    history = chat.history[:seq]
    state = fold(initial(chat.id), structure(history))
    own = [each for each in history if each.session_id == chat.id]
    for table, expected in rows_of(state, own, tenant_id=0).items():
        assert await stored_rows(connection, table, chat.id) == expected, table
    chat.compared_seq = seq


def structure(history: list[RecordedEvent]) -> list[RecordedEvent]:
    """A history without its increments."""
    return [each for each in history if not isinstance(each.event, ev.TokenAppended)]
