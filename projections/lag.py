"""How far projections are behind the log: for each shard in rows and in seconds, and who holds it.

A projection is behind by the rows after its checkpoint, and since the first of them was recorded: a
shard in which nothing happens is caught up, however old its last row. Both ends are the database's:
its positions and its clock. What a projection set aside (`parking.py`) doesn't count as behind.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from eventlog.postgres import PostgresStore
from projections.checkpoint import PROJECTION


class ShardLag(msgspec.Struct, frozen=True):
    """How far one projection is behind in one shard."""

    shard: int
    head_position: int
    """Of the log's last row there; 0: it holds none."""
    done_position: int
    """Of the last row that the projection has done."""
    seconds_behind: float
    """Since when the first row that isn't done is waiting; 0: all is done."""
    owner: str | None
    """Who holds the shard's lease now; None: nobody."""

    @property
    def rows_behind(self) -> int:
        """Rows that are not done; never negative, also where the log lost its end."""
        return max(0, self.head_position - self.done_position)


async def lag(store: PostgresStore, name: str = PROJECTION) -> list[ShardLag]:
    """How far a projection is behind, shard by shard. One query. Raises `Unavailable`."""
    return [ShardLag(*record) for record in await store.fetch("projection_lag", name, store.shards)]


async def projection_names(store: PostgresStore) -> list[str]:
    """The views, whether or not a projector ever ran, and what else keeps checkpoints."""
    found = [record[0] for record in await store.fetch("projection_names")]
    return [PROJECTION, *(name for name in found if name != PROJECTION)]


def rows_behind(lags: Iterable[ShardLag]) -> int:
    """Rows that are not done, in all these shards together."""
    return sum(each.rows_behind for each in lags)


def seconds_behind(lags: Iterable[ShardLag]) -> float:
    """What the shard that is longest behind is behind."""
    return max((each.seconds_behind for each in lags), default=0.0)


def held_by(lags: Iterable[ShardLag]) -> dict[str | None, list[int]]:
    """The shards of each owner; those that nobody holds are under None."""
    found: dict[str | None, list[int]] = {}
    for each in lags:
        found.setdefault(each.owner, []).append(each.shard)
    return found


def worst_first(lags: Iterable[ShardLag]) -> list[ShardLag]:
    """The shards that are behind: those that wait longest first."""
    behind = [each for each in lags if each.rows_behind]
    return sorted(behind, key=lambda each: (-each.seconds_behind, -each.rows_behind, each.shard))


def shard_ranges(shards: Iterable[int]) -> str:
    """`0-3 6 8-9`."""
    runs: list[list[int]] = []
    for shard in sorted(shards):
        if runs and shard == runs[-1][1] + 1:
            runs[-1][1] = shard
        else:
            runs.append([shard, shard])
    return " ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def worker_name(owner: str) -> str:
    """What a worker is called, without what makes the name unlike that of any worker before it."""
    return owner.rpartition(":")[0] or owner
