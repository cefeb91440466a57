"""The store in memory: the same promises inside one process, for tests and examples.

Nothing outlives the process. It follows eventlog.append() step by step and is the oracle that the
Postgres store is tested against.
"""

from __future__ import annotations

import bisect
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from eventlog.envelope import BY_ID, FRAME, TOMBSTONE, Row, erased_row, parent_of, shard_of
from eventlog.erasing.record import Erasure, ErasureStatus
from eventlog.reading.memory_views import MemoryViews
from eventlog.reading.view_store import ViewStore
from eventlog.store import Answer, Command, Commit, Head, Identity, Snapshot, Status
from eventlog.views import SessionView


def _now_us() -> int:
    return time.time_ns() // 1_000


class MemoryStore:
    """`Store` in dicts and lists. `now_us` is the clock, in µs since 1970."""

    def __init__(
        self, *, shards: int = 16, tenant_id: int = 0, now_us: Callable[[], int] = _now_us
    ) -> None:
        self.shards = shards
        self.tenant_id = tenant_id
        self._now_us = now_us
        self._sessions: defaultdict[UUID, list[Row]] = defaultdict(list)
        self._feeds: list[list[Row]] = [[] for _ in range(shards)]
        self._by_id: set[tuple[UUID, UUID]] = set()
        self._owners: defaultdict[UUID, list[UUID]] = defaultdict(list)
        self._snapshots: defaultdict[UUID, dict[int, Snapshot]] = defaultdict(dict)
        self._chunks: dict[int, bytes] = {}
        self._chunk_owners: dict[int, UUID] = {}
        self._continued: dict[UUID, set[UUID]] = {}
        """Sessions whose messages are in the snapshots of a fork."""
        self._erasures: dict[UUID, Erasure] = {}
        self._identity = Identity(uuid4(), "1", shards)
        self.tables: ViewStore = MemoryViews(self, lambda: list(self._sessions))

    async def commit(self, lane: int, commands: list[Command]) -> list[Answer]:
        return [self._append(command) for command in commands]

    @asynccontextmanager
    async def exclusively(self, shard: int) -> AsyncIterator[Commit]:
        async def commit(command: Command) -> Answer:
            return self._append(command)

        yield commit

    def _append(self, command: Command) -> Answer:
        rows = self._sessions[command.session_id]
        head = rows[-1] if rows else None
        status = self._judge(command, rows, head)
        before = head.seq if head else (command.base or 0)
        feed = self._feeds[command.shard]
        first_position = len(feed) + 1
        recorded_us = max(self._now_us(), head.recorded_us if head else 0)
        if status is not Status.OK:
            return Answer(status, before, 0, 0, recorded_us)
        seq = before
        for draft in command.drafts:
            seq += draft.span
            row = Row(
                len(feed) + 1,
                seq,
                recorded_us,
                command.session_id,
                draft.event_id,
                draft.span,
                draft.type,
                draft.flags,
                draft.data,
            )
            rows.append(row)
            feed.append(row)
            if draft.flags & BY_ID:
                self._by_id.add((command.session_id, draft.event_id))
        if command.owner_id is not None:
            self._owners[command.owner_id].append(command.session_id)
        return Answer(Status.OK, before, before, first_position, recorded_us)

    def _judge(self, command: Command, rows: list[Row], head: Row | None) -> Status:
        session_id, ids = command.session_id, command.ids
        if any((session_id, each) in self._by_id for each in ids) or len(set(ids)) < len(ids):
            return Status.KNOWN
        if command.sent and any(
            row.event_id == command.drafts[0].event_id and row.seq > command.retry_after
            for row in rows
        ):
            return Status.KNOWN
        if head is None and command.base is None:
            return Status.ABSENT
        if head is not None and command.base is not None:
            return Status.EXISTS
        last = Head(head.seq, head.recorded_us, head.flags) if head else Head(0, 0, 0)
        if last.deleted:
            return Status.DELETED
        if last.closed and not command.tombstone:
            return Status.CLOSED
        if command.expected is not None and command.expected != (
            head.seq if head else command.base
        ):
            return Status.CONFLICT
        if command.unless is not None and (session_id, command.unless) in self._by_id:
            return Status.FENCED
        return Status.OK

    async def read_session(
        self, session_id: UUID, *, after: int, until: int | None, limit: int, frames: bool = True
    ) -> list[Row]:
        rows = self._sessions.get(session_id, [])
        start = bisect.bisect_right(rows, after, key=lambda row: row.seq)
        found: list[Row] = []
        for row in rows[start:]:
            if len(found) == limit or (until is not None and row.first_seq > until):
                break
            if frames or not row.flags & FRAME:
                found.append(row)
        return found

    async def read_seqs(self, session_id: UUID, seqs: list[int]) -> list[Row]:
        wanted = set(seqs)
        return [row for row in self._sessions.get(session_id, []) if row.seq in wanted]

    async def read_ids(
        self, session_id: UUID, event_ids: list[UUID], *, after: int | None
    ) -> list[Row]:
        return [
            row
            for row in self._sessions.get(session_id, [])
            if row.event_id in event_ids
            and (row.flags & BY_ID or (after is not None and row.seq > after))
        ]

    async def heads(self, session_ids: list[UUID]) -> dict[UUID, Head]:
        found = {each: rows[-1] for each in session_ids if (rows := self._sessions.get(each))}
        return {each: Head(row.seq, row.recorded_us, row.flags) for each, row in found.items()}

    async def tenant_of(self, session_id: UUID) -> int | None:
        return self.tenant_id if self._sessions.get(session_id) else None

    async def seq_at(self, session_id: UUID, at_us: int) -> int:
        rows = self._sessions.get(session_id, [])
        place = bisect.bisect_right(rows, at_us, key=lambda row: row.recorded_us)
        return rows[place - 1].seq if place else 0

    async def read_feed(self, shard: int, *, after: int, limit: int) -> list[Row]:
        return self._feeds[shard][after : after + limit]

    async def feed_heads(self) -> list[int]:
        return [len(feed) for feed in self._feeds]

    async def sessions_of(self, owner_id: UUID) -> list[UUID]:
        return list(self._owners.get(owner_id, ()))

    async def owned(self, owner_id: UUID, session_ids: list[UUID]) -> set[UUID]:
        return set(session_ids) & set(self._owners.get(owner_id, ()))

    async def session_view(self, session_id: UUID) -> SessionView | None:
        return None  # nobody keeps views here: they are folded when asked for

    async def identity(self) -> Identity:
        return self._identity

    async def raise_epoch(self, seen: str) -> None:
        if self._identity.epoch == seen:
            self._identity = Identity(self._identity.log_id, str(int(seen) + 1), self.shards)

    async def load_snapshot(self, session_id: UUID, at: int, fold_version: int) -> Snapshot | None:
        usable = [
            each
            for seq, each in self._snapshots[session_id].items()
            if seq <= at and each.fold_version == fold_version
        ]
        return max(usable, key=lambda each: each.seq, default=None)

    async def load_chunks(self, keys: list[int]) -> dict[int, bytes]:
        return {key: self._chunks[key] for key in keys if key in self._chunks}

    async def save_snapshot(
        self,
        session_id: UUID,
        snapshot: Snapshot,
        chunks: dict[int, bytes],
        *,
        lineage: Sequence[UUID] = (),
    ) -> bool:
        if any(each in self._erasures for each in (session_id, *lineage)):
            return False
        self._chunks.update(chunks)
        self._chunk_owners.update(dict.fromkeys(chunks, session_id))
        self._snapshots[session_id][snapshot.seq] = snapshot
        self._continued[session_id] = set(lineage)
        return True

    def _drop_snapshots(self, session_id: UUID) -> None:
        """Those of a session, and of its forks, which hold its messages, too."""
        dropped = {each for each, older in self._continued.items() if session_id in older}
        for each in (session_id, *dropped):
            self._snapshots.pop(each, None)
            for key in [key for key, owner in self._chunk_owners.items() if owner == each]:
                self._chunks.pop(key, None)

    async def erase(
        self, session_id: UUID, *, reason: str | None, requested_by: str | None
    ) -> ErasureStatus:
        rows = self._sessions.get(session_id)
        if not rows:
            return ErasureStatus.ABSENT
        if not rows[-1].flags & TOMBSTONE:
            return ErasureStatus.ALIVE
        if session_id in self._erasures:
            return ErasureStatus.DONE
        erased = [erased_row(row) for row in rows]
        self._sessions[session_id] = erased
        for row in erased:
            self._feeds[shard_of(session_id, self.shards)][row.position - 1] = row
        for sessions in self._owners.values():
            if session_id in sessions:
                sessions.remove(session_id)
        self._drop_snapshots(session_id)
        at = self._now_us()
        events, size = sum(row.span for row in rows), sum(len(row.data) for row in rows)
        counts = (len(rows), events, size)
        by = requested_by or "memory"
        self._erasures[session_id] = Erasure(session_id, at, at, *counts, at, at, reason, by)
        return ErasureStatus.DONE

    async def erasures_of(self, session_ids: Sequence[UUID]) -> dict[UUID, Erasure]:
        return {each: self._erasures[each] for each in session_ids if each in self._erasures}

    async def erasures(self, *, after: tuple[int, UUID], limit: int) -> list[Erasure]:
        ordered = sorted(self._erasures.values(), key=lambda each: (each.begun_us, each.session_id))
        return [each for each in ordered if (each.begun_us, each.session_id) > after][:limit]

    async def erased_since(self, at_us: int) -> list[tuple[UUID, int]]:
        found = ((each.session_id, each.erased_us or 0) for each in self._erasures.values())
        return sorted((each for each in found if each[1] > at_us), key=lambda each: each[1])

    async def forks_of(self, session_ids: Sequence[UUID]) -> set[UUID]:
        firsts = [rows[0] for rows in self._sessions.values() if rows]
        return {row.session_id for row in firsts if parent_of(row) in session_ids}

    async def aclose(self) -> None:
        """Nothing to give back."""
