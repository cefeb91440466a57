"""What projectors do about erasures: no batch brings back what was erased.

A batch may hold rows that were read before an erasure, from Redis or from memory, and states that
were folded from such rows; those of a fork hold what it inherited. So each batch looks for records
when it has moved its checkpoint. eventlog.erase() ends by taking the lock on that checkpoint: a
batch that is before it is cleared away by it, and one that is after it sees the record. What was
folded from something that was erased is then folded once more, from the log.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from eventlog.envelope import Row, shard_of
from eventlog.events import Erased
from eventlog.postgres import PostgresStore
from eventlog.queries import query
from eventlog.replay import Replayer
from projections.folding import Change, Folded, Folder, whole_change


async def without_erased(
    connection: asyncpg.Connection[Any],
    folder: Folder,
    by_session: dict[UUID, list[Row]],
    folded: Folded,
) -> Folded:
    """The same, but for sessions that were erased, or whose parents were, after they were folded.

    To be called when the batch holds the lock on its checkpoint, inside its transaction.
    """
    families = {each: [each] for each in by_session}
    for change in folded.changes:
        if change.after.parent_session_id is not None:
            parts = await folder.replayer.lineage(change.session_id)
            families[change.session_id] = [part.session_id for part in parts]
    asked = {each for family in families.values() for each in family}
    gone = await _erased(connection, folder.store, asked)
    if not gone:
        return folded
    known = {each.session_id: each for each in folded.changes}
    changes: list[Change] = []
    void: set[UUID] = set()
    for session_id, family in families.items():
        found = known.get(session_id)
        erased = gone.intersection(family)
        if session_id in gone or (found is not None and erased != found.erased):
            last = by_session[session_id][-1]
            changes.append(await anew(connection, folder.store, last, erased))
            void.add(session_id)
        elif found is not None:
            changes.append(found)
    return Folded(changes, [each for each in folded.poisons if each.session_id not in void])


def holds_content(change: Change) -> bool:
    """Whether any of the events that made it was not erased."""
    return any(not isinstance(each.event, Erased) for each in change.events)


async def _erased(
    connection: asyncpg.Connection[Any], store: PostgresStore, asked: set[UUID]
) -> set[UUID]:
    ids = list(asked)
    shards = [shard_of(each, store.shards) for each in ids]
    records = await connection.fetch(query("erasures_of"), shards, ids)
    return {record["session_id"] for record in records if record["erased_at"] is not None}


async def anew(
    connection: asyncpg.Connection[Any], store: PostgresStore, last: Row, erased: set[UUID]
) -> Change:
    """All that a session adds up to at a row, from nothing but the log as it is now."""
    shard = shard_of(last.session_id, store.shards)
    tenants = await connection.fetch(query("tenants_of"), [shard], [last.session_id])
    change = await whole_change(
        Replayer(store, save_snapshots=False),
        *(shard, last.session_id),
        tenant_id=tenants[0][1],
        seq=last.seq,
        position=last.position,
    )
    return msgspec.structs.replace(change, anew=True, erased=frozenset(erased))
