"""The rebuilder: makes views anew, with as many workers as there are, and puts them into service.

    worker        take a shard's lease ──> fold it ──> the next …; build an index ──> the next …;
                  project what a shard lacks ──> the next …; ends when the rebuild is gone
    coordinator   looks on, and when little is left to be projected, switches

Workers ask Postgres what there is to do, so they may be tasks, processes or machines, and come and
go. None of them is needed for long: a shard whose worker died is free when its lease has run out,
and goes on where its cursor is. Who was only thought dead is refused at the cursor.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from eventlog.errors import Unavailable
from eventlog.log import EventLog
from eventlog.queries import query
from eventlog.telemetry import get_logger
from projections.checkpoint import (
    LEASE_SECONDS,
    PROJECTION,
    Fenced,
    Lease,
    checkpoints,
    postgres_of,
)
from projections.rebuild import (
    Rebuild,
    RebuildProgress,
    RebuildRefused,
    find_rebuild,
    is_switched,
    progress_of,
)
from projections.rebuild_folding import GreenProjection, ShardFolding
from projections.rebuild_switch import catch_up, switch
from workers.runtime import Backoff, pause, report_failure

IDLE_SECONDS: Final = 0.1
"""A worker that finds nothing to do asks again after so long; so often the coordinator looks."""
INDEX_SECONDS_MAX: Final = 24 * 3600.0
"""Building one index takes no longer."""
ROWS_LEFT_MAX: Final = 500
"""With so few rows to go the projectors are stopped, and the tables switched."""
PATIENCE_SECONDS: Final = 10.0
"""If it doesn't come to that for so long, twice as many rows will do, and so on: projecting them
while the projectors wait takes longer, but comes to an end."""
LOCK_MS: Final = (100, 200, 400, 800, 1_600)
"""How long the switch waits for the tables, try after try: others who want to read them wait with
it. The longest is longer than `deadlock_timeout`, after which Postgres cancels a vacuum that is in
the way."""
OUTAGE_SECONDS_MAX: Final = 60.0
"""How long Postgres may be away until the coordinator ends; the rebuild can be gone on with."""

_log = get_logger()
Shown = Callable[[RebuildProgress], None]


class RebuildWorker:
    """Does whatever there is to do for one rebuild."""

    def __init__(
        self, log: EventLog, rebuild: Rebuild, *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._rebuild = rebuild
        self._store = postgres_of(log)
        self._projection = GreenProjection(log, rebuild)
        self._lease_seconds = lease_seconds

    async def run(self, stop: asyncio.Event) -> None:
        """Work until the rebuild is switched or given up, or until `stop`; through outages."""
        backoff = Backoff()
        while not stop.is_set():
            try:
                rebuild = await find_rebuild(self._store)
                if rebuild is None or rebuild.number != self._rebuild.number:
                    return
                worked = await self._step(rebuild, stop)
            except Fenced as error:
                _log.info("rebuild.lease_lost", shard=error.lease.shard, error=str(error))
                continue
            except Exception as error:
                report_failure("rebuilder", error, rebuild=self._rebuild.name)
                await pause(stop, backoff.next_seconds())
                continue
            backoff.reset()
            if not worked:
                await pause(stop, IDLE_SECONDS)

    async def _step(self, rebuild: Rebuild, stop: asyncio.Event) -> bool:
        """One piece of work; False: there was none."""
        match rebuild.phase:
            case "fold":
                return await self._fold(stop)
            case "index":
                return await self._build_index()
            case "follow":
                return await self._follow()

    async def _fold(self, stop: asyncio.Event) -> bool:
        lease = await self._take("take_rebuild_shard")
        if lease is None:
            return bool(await self._store.fetch("end_folding", self._rebuild.number))
        async with self._holding(lease):
            await ShardFolding(self._projection, lease).run(stop)
        return True

    async def _build_index(self) -> bool:
        async with self._store.connection() as connection, connection.transaction():
            await connection.execute(query("no_statement_timeout"))
            name = await connection.fetchval(
                query("build_rebuild_index"), self._rebuild.number, timeout=INDEX_SECONDS_MAX
            )
        return name is not None

    async def _follow(self) -> bool:
        lease = await self._take("take_rebuild_rest", PROJECTION)
        if lease is None:
            return False
        async with self._holding(lease):
            progress = await self._projection.begin(lease)
            done = await checkpoints(self._store)
            await catch_up(self._projection, progress, until=done[lease.shard])
        return True

    # --- leases ---

    async def _take(self, how: str, *arguments: str) -> Lease | None:
        name = self._rebuild.name
        records = await self._store.fetch(how, name, self.owner, self._lease_seconds, *arguments)
        return Lease(name, *records[0]) if records else None

    @asynccontextmanager
    async def _holding(self, lease: Lease) -> AsyncIterator[None]:
        renewing = asyncio.create_task(self._renew(lease))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        await self._store.fetch(
            "release_leases", lease.name, self.owner, [lease.shard], [lease.epoch]
        )

    async def _renew(self, lease: Lease) -> None:
        """Keep a lease. Whether it is still ours is found out at the next batch, not here."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await self._store.fetch(
                    "renew_lease",
                    lease.name,
                    *(self.owner, lease.shard, lease.epoch, self._lease_seconds),
                )
            except Unavailable as error:
                report_failure("rebuilder", error, step="renew")


async def run_rebuild(
    log: EventLog,
    rebuild: Rebuild,
    stop: asyncio.Event,
    *,
    workers: int = 1,
    show: Shown | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> bool:
    """Work on a rebuild in this process until it is in service; False: `stop` came before that.

    `workers`: tasks that share the shards; 0: others do the work. Raises `RebuildRefused` when it
    was given up meanwhile, `Unavailable` when Postgres is away for long.
    """
    ending = asyncio.Event()
    working = [RebuildWorker(log, rebuild, lease_seconds=lease_seconds) for _ in range(workers)]
    tasks = [asyncio.create_task(each.run(ending)) for each in working]
    try:
        return await Coordinator(log, rebuild, show=show).run(stop)
    finally:
        ending.set()
        await asyncio.gather(*tasks)


class Coordinator:
    """Looks on while others work, and takes the views into service in the end."""

    def __init__(self, log: EventLog, rebuild: Rebuild, *, show: Shown | None = None) -> None:
        self._log = log
        self._rebuild = rebuild
        self._store = postgres_of(log)
        self._show = show
        self._tries = 0
        self._following_since: float | None = None

    async def run(self, stop: asyncio.Event) -> bool:
        """Until the views are in service; False: `stop` came before that."""
        reached_at = time.monotonic()
        while not stop.is_set():
            try:
                if await self._look():
                    return True
                reached_at = time.monotonic()
            except Unavailable as error:
                if time.monotonic() - reached_at > OUTAGE_SECONDS_MAX:
                    raise
                report_failure("rebuilder", error, step="look")
            await pause(stop, IDLE_SECONDS)
        return False

    async def _look(self) -> bool:
        current = await find_rebuild(self._store)
        if current is None or current.number != self._rebuild.number:
            return await self._gone()
        progress = await progress_of(self._store, current)
        if self._show is not None:
            self._show(progress)
        if current.phase != "follow" or progress.rows_behind > self._rows_left_max():
            return False
        lock_ms = LOCK_MS[min(self._tries, len(LOCK_MS) - 1)]
        self._tries += 1
        try:
            switched = await switch(self._log, current, lock_ms=lock_ms)
        except Unavailable as error:  # someone reads, or vacuums, for long; or an outage
            _log.info("rebuild.switch_waits", lock_ms=lock_ms, error=str(error))
            return False
        if not switched:
            return await self._gone()
        _log.info("rebuild.switched", views=current.views, sessions=progress.sessions)
        return True

    def _rows_left_max(self) -> int:
        now = time.monotonic()
        if self._following_since is None:
            self._following_since = now
        doublings = int((now - self._following_since) / PATIENCE_SECONDS)
        return ROWS_LEFT_MAX << min(doublings, 30)

    async def _gone(self) -> bool:
        if await is_switched(self._store, self._rebuild):
            return True
        raise RebuildRefused(f"the rebuild of {self._rebuild.what} was given up by somebody else")
