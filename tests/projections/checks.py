"""What the tests of projections share: histories in a real log, steps by hand, and the comparison.

`differences` is the checker: it compares every row of the views with a fold of the log that owes
nothing to the projector's memory, and finds what is missing, behind, ahead or left over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from eventlog import EventLog, Session
from eventlog import events as ev
from eventlog.envelope import Draft, RecordedEvent, new_id, owner_id_of, shard_of
from eventlog.postgres import PostgresStore
from eventlog.queries import VIEW_TABLES
from eventlog.replay import Replayer
from eventlog.state import SessionState
from eventlog.store import Command, Status
from eventlog.views import view_of
from projections.checkpoint import PROJECTION, Lease, Leases, checkpoints, postgres_of
from projections.folding import Change
from projections.projection import Progress, Projection
from projections.tables import Tables
from tests.factories import rows as as_rows
from tests.projections.rows import rows_of, stored_rows


class Crash(BaseException):
    """The process dies here. Nothing catches it but the test."""


class Bomb:
    """A view that keeps nothing, and lets the process die while its batch is being written."""

    def __init__(self) -> None:
        self.armed = False

    name = "bomb"
    version = 1

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        if self.armed:
            self.armed = False
            raise Crash

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Nothing is there."""


# --- projecting by hand --------------------------------------------------------------------------


async def take_shards(log: EventLog, *, owner: str = "test", seconds: float = 600) -> list[Lease]:
    """Leases of every shard that nobody holds."""
    leases = Leases(postgres_of(log), PROJECTION, owner, seconds=seconds)
    await leases.join()
    return await leases.take(log.store.shards)


async def take_over(log: EventLog, lease: Lease, *, owner: str = "other") -> Lease:
    """The lease of the same shard, after the one before ran out."""
    store = postgres_of(log)
    async with store.connection() as connection:
        await connection.execute(
            "update eventlog.leases set expires_at = '-infinity' where name = $1 and shard = $2",
            lease.name,
            lease.shard,
        )
    (taken,) = await Leases(store, lease.name, owner, seconds=600).take(1)
    assert taken.shard == lease.shard
    return taken


async def step(
    log: EventLog, projection: Projection, progress: Progress, *, limit: int = 1_000
) -> list[Change]:
    """Project the next rows of a shard, at most so many."""
    rows = await log.store.read_feed(progress.lease.shard, after=progress.position, limit=limit)
    return await projection.apply(progress, rows) if rows else []


async def project_all(log: EventLog, *, owner: str = "test") -> None:
    """Bring all views up to date, and give the shards back."""
    leases = Leases(postgres_of(log), PROJECTION, owner, seconds=600)
    await leases.join()
    held = await leases.take(log.store.shards)
    projection = Projection(log)
    for lease in held:
        progress = await projection.begin(lease)
        while await step(log, projection, progress):
            pass
    await leases.release(held)


def id_in_shard(log: EventLog, shard: int) -> UUID:
    """A new session id that lives in this shard."""
    while shard_of(made := new_id(), log.store.shards) != shard:
        pass
    return made


async def session_in_shard(log: EventLog, shard: int, **created: Any) -> Session:
    """A new session in this shard."""
    return await log.create(ev.SessionCreated(**created), session_id=id_in_shard(log, shard))


# --- histories -----------------------------------------------------------------------------------


def commands_of(log: EventLog, past: Sequence[RecordedEvent], shard: int) -> list[Command]:
    """A generated history, ready to be committed one command after the other, under new ids.

    Each session that occurs in it (a fork's first part is its parent's) becomes one of this shard.
    """
    ids = {each.session_id: id_in_shard(log, shard) for each in past}
    commands: list[Command] = []
    for each in as_rows(_renamed(past, ids)):
        session_id = ids[each.session_id]
        first = not any(command.session_id == session_id for command in commands)
        draft = Draft(new_id(), each.type, each.flags, each.span, each.data)
        base = each.first_seq - 1 if first else None
        commands.append(Command(session_id, shard, [draft], base=base))
    return commands


def _renamed(past: Sequence[RecordedEvent], ids: dict[UUID, UUID]) -> list[RecordedEvent]:
    """The history with a fork's parent under its new id.

    A fork of a fork from before the latter began is one of the session that holds that seq.
    """
    holders = {each.seq: each.session_id for each in past}
    result = []
    for each in past:
        event = each.event
        if isinstance(event, ev.SessionCreated) and event.parent_session_id is not None:
            parent_id = ids[holders[event.parent_seq]]
            event = msgspec.structs.replace(event, parent_session_id=parent_id)
        result.append(msgspec.structs.replace(each, event=event))
    return result


async def commit(log: EventLog, command: Command) -> None:
    """Append rows as they are."""
    (answer,) = await log.store.commit(0, [command])
    assert answer.status == Status.OK


async def append_raw(log: EventLog, session: Session, data: bytes, kind: int = 10) -> None:
    """Append a row with any bytes, as a broken writer would."""
    await commit(log, Command(session.id, session.shard, [Draft(new_id(), kind, 0, 1, data)]))


# --- the checker ---------------------------------------------------------------------------------

_OWN_COLUMNS = ("shard", "position", "tenant_id", "owner_id")


async def differences(log: EventLog, *, only: set[UUID] | None = None) -> list[str]:
    """Where the views are not the fold of the log at their checkpoints; empty: nowhere.

    Of all sessions that aren't parked, or `only` of some.
    """
    store = postgres_of(log)
    replayer = Replayer(store, save_snapshots=False)
    found: list[str] = []
    async with store.connection() as connection:
        parked = {
            record[0]
            for record in await connection.fetch("select session_id from eventlog.parked_sessions")
        }
        due = await _due(connection, await checkpoints(store))
        shown = await connection.fetch("select session_id from eventlog.session_views")
        found += [f"{each[0]}: should not be there" for each in shown if each[0] not in due]
        for session_id, (seq, position) in due.items():
            if session_id not in parked and (only is None or session_id in only):
                state = await replayer.structure(session_id, seq)
                found += await _session_differences(store, connection, state, position)
                own = (await replayer.lineage(session_id))[-1]
                events = [e async for e in replayer.read(session_id, after=own.after, until=seq)]
                found += await _other_differences(store, connection, state, events)
    return found


async def _due(connection: asyncpg.Connection[Any], done: list[int]) -> dict[UUID, tuple[int, int]]:
    """Seq and position that each session's views must have, by the checkpoints."""
    records = await connection.fetch(
        "select e.session_id, max(e.seq), max(e.position) from eventlog.events e "
        "join unnest($1::bigint[]) with ordinality as c (position, n) "
        "on e.shard = c.n - 1 and e.position <= c.position group by 1",
        done,
    )
    return {session_id: (seq, position) for session_id, seq, position in records}


async def _session_differences(
    store: PostgresStore,
    connection: asyncpg.Connection[Any],
    state: SessionState,
    position: int,
) -> list[str]:
    name = str(state.session_id)
    view = await store.session_view(state.session_id)
    if view is None:
        return [f"{name}: has no row"]
    expected = view_of(state)
    found = [
        f"{name}: {field} is {getattr(view, field)!r}, not {getattr(expected, field)!r}"
        for field in view.__struct_fields__
        if getattr(view, field) != getattr(expected, field)
    ]
    columns = ", ".join(_OWN_COLUMNS)
    own = await connection.fetchrow(
        f"select {columns} from eventlog.session_views where session_id = $1", state.session_id
    )
    assert own is not None
    owner = None if state.user_id is None else owner_id_of(state.user_id, store.tenant_id)
    wanted = (shard_of(state.session_id, store.shards), position, store.tenant_id, owner)
    if tuple(own) != wanted:
        found.append(f"{name}: {_OWN_COLUMNS} are {tuple(own)}, not {wanted}")
    return found


async def _other_differences(
    store: PostgresStore,
    connection: asyncpg.Connection[Any],
    state: SessionState,
    events: list[RecordedEvent],
) -> list[str]:
    """Where the rows of the session in every other table are not what its state says."""
    lines: list[str] = []
    for table, expected in rows_of(state, events, store.tenant_id).items():
        found = await stored_rows(connection, table, state.session_id)
        if found != expected:
            lines.append(f"{state.session_id}: {table}: {len(found)} rows, not {len(expected)}")
            lines += [
                f"  {one}\n  not {other}"
                for one, other in zip(found, expected, strict=False)
                if one != other
            ]
    return lines


async def snapshot_of_views(log: EventLog) -> list[tuple[Any, ...]]:
    """Every row of the views and checkpoints, to see whether something was written."""
    found: list[tuple[Any, ...]] = []
    async with postgres_of(log).connection() as connection:
        for table in (*VIEW_TABLES, "checkpoints", "parked_sessions"):
            records = await connection.fetch(f"select t::text from eventlog.{table} t order by 1")
            found += [(table, record[0]) for record in records]
    return found
