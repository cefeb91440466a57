"""Rebuilding views: which rebuild is under way, its phase, how far it has come.

A rebuild makes tables of views anew, from nothing but the log, beside those that are served:

    fold     every session whole, shard by shard                       rebuild_folding.py
    index    the indexes of the full tables                            (in Postgres)
    follow   what was appended meanwhile, as a projector does it       rebuild_switch.py, `catch_up`
    switch   the new tables take the places of the old ones            rebuild_switch.py

What is known of it is in Postgres (eventlog.rebuilds, eventlog.rebuild_shards): anybody may go on
with a rebuild whose process is gone, several processes may share one, and a process that was left
behind finds out. Who does the steps is workers/rebuilder.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import asyncpg
import msgspec

from eventlog.errors import EventLogError, InvalidRequest
from eventlog.log import EventLog
from eventlog.postgres import PostgresStore
from eventlog.queries import query
from projections.checkpoint import PROJECTION, postgres_of
from projections.projection import VIEWS, View

NAME_BEGINS: Final = "rebuild:"
ALL: Final = "all"
"""What to call all views together."""
REFUSED: Final = ("EL001", "EL002", "EL003")
"""SQLSTATEs of sql/migrations/0005_rebuild.sql, for what it doesn't do."""
Phase = Literal["fold", "index", "follow"]


class RebuildRefused(EventLogError):
    """A rebuild can't begin, or go on, as things are; the message says what to do."""


class Rebuild(msgspec.Struct, frozen=True):
    """The rebuild that is under way."""

    number: int
    name: str
    """Of its projection, and of its leases."""
    views: list[str]
    versions: list[int]
    phase: Phase
    started_us: int

    @property
    def what(self) -> str:
        """What to write behind `eventlog rebuild` for this one."""
        return " ".join(_named(self.views))

    @property
    def chosen(self) -> list[View]:
        """The code of its views."""
        return [each for each in VIEWS if each.name in self.views]


class ShardProgress(msgspec.Struct, frozen=True):
    """How far the first phase is in a shard."""

    shard: int
    position: int
    events_due: int | None
    """None: they aren't counted yet."""
    events: int
    sessions: int
    done: bool


class RebuildProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rebuild is."""

    phase: Phase
    events: int
    events_due: int | None
    """Events that are to be folded in the first phase; None: not all are counted yet."""
    sessions: int
    shards_done: int
    shards: int
    rows_behind: int
    """Rows of the feeds that the projectors have done and this rebuild hasn't."""


def choose_views(names: Sequence[str]) -> list[View]:
    """The views of these names, in the order of `VIEWS`. Raises `InvalidRequest`."""
    known = [each.name for each in VIEWS]
    unknown = [name for name in names if name not in (*known, ALL)]
    if unknown or not names:
        said = f"there is no view {unknown[0]!r:.60}" if unknown else "no view is named"
        raise InvalidRequest(f"{said}; views are: {', '.join(known)}, or {ALL} for all of them")
    return [each for each in VIEWS if ALL in names or each.name in names]


async def find_rebuild(store: PostgresStore) -> Rebuild | None:
    """The rebuild that is under way, if there is one."""
    records = await store.fetch("rebuild")
    return Rebuild(*records[0]) if records else None


async def begin_rebuild(store: PostgresStore, views: Sequence[View]) -> Rebuild:
    """Begin one, or go on with the one of these views. Raises `RebuildRefused`.

    It is refused while another is under way, when the code of the views is not the code that it was
    begun with, and when a table has what a new one would not get.
    """
    names = [each.name for each in views]
    found = await find_rebuild(store)
    if found is None:
        name = NAME_BEGINS + "+".join(_named(names))
        versions = [each.version for each in views]
        whole = len(views) == len(VIEWS)
        try:
            await store.fetch("begin_rebuild", name, names, versions, whole)
        except asyncpg.PostgresError as error:
            if error.sqlstate not in REFUSED:
                raise
            if error.sqlstate == "EL002":
                raise RebuildRefused(f"{error}; remove that first") from error
        found = await find_rebuild(store)
        if found is None:
            raise RebuildRefused(
                "the rebuild was given up, or finished, by somebody else meanwhile"
            )
    check_same(found, views)
    if found.versions != [each.version for each in views]:
        raise RebuildRefused(
            "the rebuild was begun by another version of the views' code; begin anew: "
            f"eventlog rebuild {found.what} --start-over"
        )
    return found


def check_same(found: Rebuild, views: Sequence[View]) -> None:
    """Raise `RebuildRefused` unless the rebuild that is under way is of these views."""
    if found.views != [each.name for each in views]:
        raise RebuildRefused(
            f"a rebuild of {found.what} is not finished; go on with it: eventlog rebuild "
            f"{found.what}, or give it up: eventlog rebuild {found.what} --abandon"
        )


async def abandon_rebuild(store: PostgresStore, rebuild: Rebuild) -> None:
    """Give it up: its tables are dropped, those that are served stay."""
    async with store.connection() as connection:
        await connection.execute(query("abandon_rebuild"), rebuild.number)


async def due(log: EventLog) -> list[str]:
    """Views whose rows were made by older code than this, or lack part of the log."""
    store = postgres_of(log)
    made = {view: version for view, version, _ in await store.fetch("view_versions")}
    return [each.name for each in VIEWS if made.get(each.name, 0) < each.version]


async def is_switched(store: PostgresStore, rebuild: Rebuild) -> bool:
    """Whether a rebuild that is gone was finished, and not given up."""
    records = await store.fetch("view_versions")
    built_us = {view: at_us for view, _, at_us in records}
    return all(built_us.get(view, 0) >= rebuild.started_us for view in rebuild.views)


async def shards_of(store: PostgresStore) -> list[ShardProgress]:
    """How far the first phase is, shard by shard."""
    return [ShardProgress(*record) for record in await store.fetch("rebuild_progress")]


async def rows_behind(store: PostgresStore, rebuild: Rebuild) -> int:
    """Rows of the feeds that the projectors have done and the rebuild hasn't."""
    records = await store.fetch("rebuild_rest", rebuild.name, PROJECTION)
    return sum(rows for _, rows in records)


async def progress_of(store: PostgresStore, rebuild: Rebuild) -> RebuildProgress:
    """How far a rebuild is, in numbers."""
    shards = await shards_of(store)
    due = [each.events_due if each.position else 0 for each in shards]
    counted = [each for each in due if each is not None]
    return RebuildProgress(
        phase=rebuild.phase,
        events=sum(each.events for each in shards),
        events_due=sum(counted) if len(counted) == len(due) else None,
        sessions=sum(each.sessions for each in shards),
        shards_done=sum(each.done for each in shards),
        shards=len(shards),
        rows_behind=await rows_behind(store, rebuild),
    )


def _named(views: Sequence[str]) -> list[str]:
    return [ALL] if len(views) == len(VIEWS) else list(views)
