"""Who may project a shard, and how far it was projected: leases and checkpoints.

A lease is a row that names an owner until a time, by the database's clock. Whoever takes one gets
an epoch greater than any before, and begins by writing it into the checkpoint of the shard. A batch
moves the checkpoint on condition that it holds that epoch. So a worker that was paused for longer
than its lease, and goes on, finds its batch refused (`Fenced`), however late it notices.

    join ──> renew, every third of the lease ──> take what nobody holds, up to a fair share
                                            └──> release what is more than a fair share
"""

from __future__ import annotations

import math
from typing import Any, Final

import asyncpg
import msgspec

from eventlog.envelope import Row
from eventlog.errors import EventLogError, InvalidSetting
from eventlog.log import EventLog
from eventlog.postgres import PostgresStore
from eventlog.queries import query

PROJECTION: Final = "views"
"""Name of the projection that keeps the session and message views."""
LEASE_SECONDS: Final = 5.0
"""How long a worker may be silent until its shards go to others."""


class Fenced(EventLogError):
    """Another worker has begun on this shard, or changed it: stop, and drop what you know of it."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(
            f"shard {lease.shard} of {lease.name!r} is no longer held under epoch {lease.epoch}"
        )
        self.lease = lease


class NotInLog(EventLogError):
    """Rows came from Redis that Postgres doesn't have: the log lost its end. Read them again."""


class Lease(msgspec.Struct, frozen=True):
    """The right to work on one shard, as long as it is renewed."""

    name: str
    shard: int
    epoch: int


class Renewed(msgspec.Struct, frozen=True):
    """Answer to a renewal: the leases that still are one's own, and how many one may hold."""

    kept: list[Lease]
    fair_share: int


class Leases:
    """One worker's leases of one work. `owner` must be a name that no other worker has or had."""

    def __init__(
        self, store: PostgresStore, name: str, owner: str, *, seconds: float = LEASE_SECONDS
    ) -> None:
        self.name = name
        self.owner = owner
        self.seconds = seconds
        self._store = store

    async def join(self) -> None:
        """Make sure that the work has a lease for each shard."""
        await self._store.fetch("join_work", self.name, self._store.shards)

    async def renew(self, held: list[Lease]) -> Renewed:
        """Show that this worker lives, and keep what it holds."""
        records = await self._store.fetch(
            "renew_leases",
            self.name,
            self.owner,
            self.seconds,
            [lease.shard for lease in held],
            [lease.epoch for lease in held],
        )
        workers, kept = records[0]
        return Renewed(
            [lease for lease in held if lease.shard in set(kept)],
            math.ceil(self._store.shards / workers),
        )

    async def take(self, count_max: int) -> list[Lease]:
        """Take leases that nobody holds, at most so many."""
        records = await self._store.fetch(
            "take_leases", self.name, self.owner, self.seconds, count_max
        )
        return [Lease(self.name, shard, epoch) for shard, epoch in records]

    async def release(self, leases: list[Lease]) -> None:
        """Give leases back, once nothing is done under them any more."""
        await self._store.fetch(
            "release_leases",
            self.name,
            self.owner,
            [lease.shard for lease in leases],
            [lease.epoch for lease in leases],
        )

    async def leave(self) -> None:
        """Stop counting as one who shares the work."""
        await self._store.fetch("leave_work", self.name, self.owner)


async def begin(store: PostgresStore, lease: Lease) -> int:
    """Fence whoever held the shard before; returns the position to go on from. Raises `Fenced`."""
    records = await store.fetch("begin_checkpoint", lease.name, lease.shard, lease.epoch)
    if not records:
        raise Fenced(lease)
    return int(records[0][0])


async def move(
    connection: asyncpg.Connection[Any], lease: Lease, *, position: int, last: Row
) -> None:
    """Move the checkpoint to a row, inside the transaction that does what that stands for.

    Raises `Fenced`, and `NotInLog` for a row that isn't the log's.
    """
    place = (lease.name, lease.shard, position)
    moved = await connection.fetchval(
        query("move_checkpoint"), *place, last.position, lease.epoch, last.event_id
    )
    if moved is not None:
        return
    if await connection.fetchval(query("holds_checkpoint"), *place, lease.epoch):
        raise NotInLog(f"shard {lease.shard} has no event {last.event_id} at {last.position}")
    raise Fenced(lease)


async def take_away(connection: asyncpg.Connection[Any], name: str, shard: int) -> int:
    """Fence a shard's worker for a change by hand; returns the checkpoint, locked until commit.

    A batch that is being written is waited for. Whoever takes the lease next goes on from there.
    """
    epoch = await connection.fetchval(query("take_away_lease"), name, shard)
    position: int = await connection.fetchval(query("begin_checkpoint"), name, shard, epoch)
    return position


async def checkpoints(store: PostgresStore, name: str = PROJECTION) -> list[int]:
    """The last position done of each shard."""
    return [position for _, position in await store.fetch("checkpoints", name, store.shards)]


async def lag(store: PostgresStore, name: str = PROJECTION) -> list[int]:
    """How many rows each shard's views are behind the log."""
    done = await checkpoints(store, name)
    heads = await store.feed_heads()
    return [head - position for head, position in zip(heads, done, strict=True)]


def postgres_of(log: EventLog) -> PostgresStore:
    """The log's Postgres. Raises `InvalidSetting` for a log in memory, which needs no workers."""
    if not isinstance(log.store, PostgresStore):
        raise InvalidSetting("workers need a log on Postgres; one in memory folds views itself")
    return log.store
