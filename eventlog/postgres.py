"""The store on Postgres: every promise of the log is kept here, by eventlog.append().

Connections: one for each lane, which commits and does nothing else, and a small pool for reads. All
of them work as the role `eventlog_app`, which can't write to the events table in any other way. A
lost connection is opened again by the next call that needs it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast
from uuid import UUID

import asyncpg

from eventlog.append_call import append_arguments
from eventlog.envelope import Row, shard_of
from eventlog.erasing.postgres import ErasureTables
from eventlog.errors import Unavailable
from eventlog.queries import query
from eventlog.reading.postgres_views import PostgresViews
from eventlog.reading.view_store import ViewStore
from eventlog.store import (
    Answer,
    Busy,
    Command,
    Commit,
    ConnectionLost,
    Head,
    Identity,
    IdTaken,
    Snapshot,
    chunk_checksum,
)
from eventlog.telemetry import durations, get_logger
from eventlog.views import SessionView, view_from_record

READ_CONNECTIONS_MAX: Final = 8
"""Connections for reads; further reads wait for one."""
CONNECT_SECONDS_MAX: Final = 10.0
CALL_SECONDS_MAX: Final = 20.0
"""After this a call counts as lost."""
EXCLUSIVE_MAX: Final = 2
"""Exclusive appends at a time: each holds one reading connection and needs another."""
END_BACKEND_MS_MAX: Final = 1_000
"""How long to wait, each time, for a process in Postgres to end."""
READ_TRIES_MAX: Final = 3
"""A read is tried again on a fresh connection before it raises `Unavailable`."""
FOR_EVER: Final = 2**62
"""Upper bound for reads without one."""
EPOCH_2000_US: Final = 946_684_800_000_000

SERVER_SETTINGS: Final = {
    "application_name": "eventlog",
    "jit": "off",
    "lock_timeout": "5s",
    "statement_timeout": "20s",
    "idle_in_transaction_session_timeout": "30s",
    # A plan cached while the tables were empty would keep sequential scans for ever.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "plan_cache_mode": "force_generic_plan",
}

_LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
)
_BUSY: Final = (
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ReadOnlySQLTransactionError,
)

log = get_logger()


class _Pooled(asyncpg.Connection):
    """Given back without a round trip to reset it: nobody here leaves settings or locks behind."""

    def get_reset_query(self) -> str:
        return ""


async def prepare_connection(connection: asyncpg.Connection[Any]) -> None:
    """Timestamps travel as whole microseconds since 1970: exact, and cheaper than datetimes."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=lambda us: (us - EPOCH_2000_US,),
        decoder=lambda value: value[0] + EPOCH_2000_US,
        format="tuple",
    )


class PostgresStore(ErasureTables):
    """`Store` on one Postgres database whose schema is installed. Opened by `EventLog.open`."""

    def __init__(
        self,
        url: str,
        *,
        tenant_id: int,
        shards: int,
        role: str | None,
        append_seconds_max: float = CALL_SECONDS_MAX,
    ) -> None:
        self.shards = shards
        self.tenant_id = tenant_id
        self._append_seconds_max = min(append_seconds_max, CALL_SECONDS_MAX)
        self._url = url
        self._settings = {**SERVER_SETTINGS, **({"role": role} if role else {})}
        self._lanes: dict[int, asyncpg.Connection[Any]] = {}
        self._lost_backends: dict[int, int] = {}
        """Of each lane the process in Postgres that may still execute a call we know nothing of."""
        self._pool: asyncpg.Pool[Any] | None = None
        self._append = query("append")
        self.tables: ViewStore = PostgresViews(self.fetch, tenant_id=tenant_id, shards=shards)
        self._exclusive = asyncio.Semaphore(EXCLUSIVE_MAX)

    async def open(self) -> None:
        """Make the pool of reading connections; none is opened yet."""
        self._pool = asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=READ_CONNECTIONS_MAX,
            init=prepare_connection,
            connection_class=_Pooled,
            server_settings=self._settings,
            command_timeout=CALL_SECONDS_MAX,
            timeout=CONNECT_SECONDS_MAX,
        )
        await self._pool

    async def aclose(self) -> None:
        for connection in self._lanes.values():
            await _close(connection)
        self._lanes.clear()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                await asyncio.wait_for(pool.close(), CALL_SECONDS_MAX)
            except _LOST:
                pool.terminate()

    # --- appending ---

    async def commit(self, lane: int, commands: list[Command]) -> list[Answer]:
        connection = await self._lane_connection(lane)
        begin = time.perf_counter()
        try:
            records = await connection.fetch(
                self._append, *append_arguments(self.tenant_id, commands)
            )
        except asyncpg.QueryCanceledError as error:
            raise Busy(str(error)) from error
        except _LOST as error:
            self._lanes.pop(lane, None)
            self._lost_backends[lane] = connection.get_server_pid()
            connection.terminate()
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error
        except _BUSY as error:
            raise Busy(f"{type(error).__name__}: {error}") from error
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "events_by_id":
                raise
            raise IdTaken(str(error)) from error
        durations.commit.observe(time.perf_counter() - begin)
        return [Answer(*record) for record in records]

    @asynccontextmanager
    async def exclusively(self, shard: int) -> AsyncIterator[Commit]:
        appended = False
        async with self._exclusive:
            try:
                async with self.connection() as connection, connection.transaction():
                    await connection.fetch(query("lock_shard"), shard)

                    async def commit(command: Command) -> Answer:
                        nonlocal appended
                        appended = True
                        records = await connection.fetch(
                            self._append, *append_arguments(self.tenant_id, [command])
                        )
                        return Answer(*records[0])

                    yield commit
            except Unavailable as error:
                if appended:
                    raise ConnectionLost(str(error)) from error
                raise

    async def _lane_connection(self, lane: int) -> asyncpg.Connection[Any]:
        connection = self._lanes.get(lane)
        if connection is not None and not connection.is_closed():
            return connection
        seconds = self._append_seconds_max
        try:
            await self._end_lost_backend(lane)
            connection = await asyncpg.connect(
                self._url,
                server_settings=self._settings,
                command_timeout=seconds,
                timeout=min(seconds, CONNECT_SECONDS_MAX),
            )
            await prepare_connection(connection)
        except _LOST as error:
            raise Unavailable(f"Postgres can't be reached: {error}") from error
        self._lanes[lane] = connection
        return connection

    async def _end_lost_backend(self, lane: int) -> None:
        """Make sure that a call whose connection was lost is not executed after its retry.

        A backend reads what it was sent before it notices that nobody is there, be it minutes
        later; then the event would be stored twice. Ending it takes the login's own role.
        """
        pid = self._lost_backends.get(lane)
        if pid is None:
            return
        seconds = self._append_seconds_max
        connection = await asyncpg.connect(
            self._url, timeout=min(seconds, CONNECT_SECONDS_MAX), command_timeout=seconds
        )
        try:
            ended = await connection.fetchval(query("end_backend"), pid, END_BACKEND_MS_MAX)
        finally:
            await _close(connection)
        if not ended:
            raise Unavailable(f"process {pid} of Postgres still holds an append; waiting for it")
        del self._lost_backends[lane]

    # --- reading ---

    async def read_session(
        self, session_id: UUID, *, after: int, until: int | None, limit: int, frames: bool = True
    ) -> list[Row]:
        return await self._rows(
            "read_session" if frames else "read_structure",
            self._shard(session_id),
            session_id,
            after,
            FOR_EVER if until is None else until,
            limit,
        )

    async def read_seqs(self, session_id: UUID, seqs: list[int]) -> list[Row]:
        return await self._rows("read_seqs", self._shard(session_id), session_id, seqs)

    async def read_ids(
        self, session_id: UUID, event_ids: list[UUID], *, after: int | None
    ) -> list[Row]:
        shard = self._shard(session_id)
        rows = await self._rows("read_by_id", shard, session_id, event_ids)
        if after is not None and len(rows) < len(event_ids):
            rows = await self._rows("read_retried", shard, session_id, after, event_ids)
        return rows

    async def heads(self, session_ids: list[UUID]) -> dict[UUID, Head]:
        shards = [self._shard(each) for each in session_ids]
        records = await self.fetch("heads", shards, session_ids)
        return {record[0]: Head(record[1], record[2], record[3]) for record in records}

    async def tenant_of(self, session_id: UUID) -> int | None:
        records = await self.fetch("tenant_of", self._shard(session_id), session_id)
        return int(records[0][0]) if records else None

    async def seq_at(self, session_id: UUID, at_us: int) -> int:
        records = await self.fetch("seq_at", self._shard(session_id), session_id, at_us)
        return int(records[0][0])

    async def read_feed(self, shard: int, *, after: int, limit: int) -> list[Row]:
        return await self._rows("read_feed", shard, after, limit)

    async def feed_heads(self) -> list[int]:
        return [record[1] for record in await self.fetch("feed_heads", self.shards)]

    async def sessions_of(self, owner_id: UUID) -> list[UUID]:
        return [record[0] for record in await self.fetch("sessions_of", self.tenant_id, owner_id)]

    async def owned(self, owner_id: UUID, session_ids: list[UUID]) -> set[UUID]:
        records = await self.fetch("owned", self.tenant_id, owner_id, session_ids)
        return {record[0] for record in records}

    async def session_view(self, session_id: UUID) -> SessionView | None:
        records = await self.fetch("session_view", self._shard(session_id), session_id)
        return view_from_record(records[0]) if records else None

    async def identity(self) -> Identity:
        record = (await self.fetch("identity"))[0]
        return Identity(record[0], record[1], record[2])

    async def raise_epoch(self, seen: str) -> None:
        await self.fetch("raise_epoch", seen)

    # --- snapshots ---

    async def load_snapshot(self, session_id: UUID, at: int, fold_version: int) -> Snapshot | None:
        records = await self.fetch("load_snapshot", session_id, at, fold_version)
        if not records:
            return None
        seq, version, chunks, first_seqs, header, tail, checksum = records[0]
        snapshot = Snapshot(
            seq=seq,
            fold_version=version,
            header=header,
            tail=tail,
            chunks=chunks,
            first_seqs=first_seqs,
        )
        if snapshot.checksum(session_id) != checksum:
            log.warning("snapshot.ignored", session_id=str(session_id), seq=seq, why="checksum")
            return None
        return snapshot

    async def load_chunks(self, keys: list[int]) -> dict[int, bytes]:
        records = await self.fetch("load_chunks", keys)
        return {
            key: messages
            for key, checksum, messages in records
            if chunk_checksum(key, messages) == checksum
        }

    # --- plumbing ---

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        """A pooled connection, for projections and tools. Raises `Unavailable` when it is lost."""
        if self._pool is None:
            raise Unavailable("this EventLog is closed; open another")
        try:
            async with self._pool.acquire(timeout=CONNECT_SECONDS_MAX) as connection:
                yield cast("asyncpg.Connection[Any]", connection)  # a proxy with the same methods
        except _LOST as error:
            raise Unavailable(f"Postgres: {type(error).__name__}: {error}") from error
        except _BUSY as error:
            raise Unavailable(f"Postgres: {type(error).__name__}: {error}") from error

    async def fetch(self, name: str, *arguments: object) -> list[Sequence[Any]]:
        """Records of a named query; tried again when a pooled connection turns out to be dead."""
        for tries in range(1, READ_TRIES_MAX + 1):
            try:
                async with self.connection() as connection:
                    records: list[Sequence[Any]] = await connection.fetch(query(name), *arguments)
                    return records
            except Unavailable:
                if tries == READ_TRIES_MAX or self._pool is None:
                    raise
                await asyncio.sleep(0.05 * tries)
        raise AssertionError("unreachable")

    async def _rows(self, name: str, *arguments: object) -> list[Row]:
        return [Row(*record) for record in await self.fetch(name, *arguments)]

    def _shard(self, session_id: UUID) -> int:
        return shard_of(session_id, self.shards)


async def _close(connection: asyncpg.Connection[Any]) -> None:
    try:
        await connection.close(timeout=2.0)
    except _LOST:
        connection.terminate()
