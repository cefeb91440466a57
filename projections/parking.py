"""Sessions that a projection set aside: which they are and why, and how to take one back in.

Retrying makes the session's views anew from the log. It first takes the shard's lease away from
whoever holds it, which also waits for the batch that is being written: the worker that goes on with
the shard afterwards begins by reading which sessions are parked, so none of this session's rows is
applied twice or passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from eventlog.envelope import shard_of
from eventlog.errors import EventLogError, InvalidRequest, Unavailable
from eventlog.log import EventLog
from eventlog.postgres import PostgresStore
from eventlog.queries import query
from eventlog.replay import Replayer
from eventlog.views import unescape_text
from projections.checkpoint import PROJECTION, postgres_of, take_away
from projections.folding import Change, whole_change
from projections.projection import VIEWS, View, write_views
from projections.tables import Tables


class StillParked(EventLogError):
    """A parked session was tried again and still can't be projected; it stays parked."""


class ParkedSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session that a projection passes over, from the row at `position` (and `seq`) on."""

    session_id: UUID
    shard: int
    position: int
    seq: int
    error: str
    parked_at: datetime


async def parked_sessions(log: EventLog, *, name: str = PROJECTION) -> list[ParkedSession]:
    """Everything that a projection set aside, oldest first."""
    records = await postgres_of(log).fetch("parked_sessions", name)
    return [
        ParkedSession(
            session_id=session_id,
            shard=shard,
            position=position,
            seq=seq,
            error=unescape_text(error),
            parked_at=datetime.fromtimestamp(parked_us / 1_000_000, UTC),
        )
        for session_id, shard, position, seq, error, parked_us in records
    ]


async def retry_parked(
    log: EventLog,
    session_id: UUID,
    *,
    name: str = PROJECTION,
    views: Sequence[View] = VIEWS,
) -> int:
    """Make a parked session's views from the log and take it back in; returns the seq they show.

    Raises `InvalidRequest` if it isn't parked, `StillParked` if what it was parked for is still so,
    `Unavailable`.
    """
    store = postgres_of(log)
    shard = shard_of(session_id, store.shards)
    async with store.connection() as connection, connection.transaction():
        position = await take_away(connection, name, shard)
        if await connection.fetchval(query("unpark_session"), name, shard, session_id) is None:
            raise InvalidRequest(f"session {session_id} is not parked for {name!r}")
        try:
            change = await _refold(store, connection, session_id, position)
            tables = Tables(connection)
            for view in views:
                await view.remove(tables, shard, session_id)
            await write_views(tables, views, [change])
        except Unavailable:
            raise
        except Exception as error:
            if connection.is_closed():
                raise
            raise StillParked(
                f"session {session_id} still can't be projected: {type(error).__name__}: {error}"
            ) from error
    return change.after.seq


async def _refold(
    store: PostgresStore, connection: asyncpg.Connection[Any], session_id: UUID, position: int
) -> Change:
    """Everything that the session's rows up to a position of its shard's feed add up to."""
    shard = shard_of(session_id, store.shards)
    last = await connection.fetchrow(query("row_at_position"), shard, session_id, position)
    assert last is not None, "a session is parked at one of its rows, which the log keeps"
    tenants = await connection.fetch(query("tenants_of"), [shard], [session_id])
    # Not the log's own replayer: what it remembers may be from before the cause was gone.
    replayer = Replayer(store, save_snapshots=False)
    return await whole_change(
        replayer, shard, session_id, tenant_id=tenants[0][1], seq=last[0], position=last[1]
    )
