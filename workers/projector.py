"""The projector: keeps the views in step with the log, sharing the shards with its likes.

    tend      renew leases ──> too many: finish and release some ──> too few: take what is free
    shard     begin ──> rows from the feed ──> apply ──> cache ──> rows …; one task per shard held

Every projector counts who else is alive and holds at most its fair share, so shards move by
themselves when projectors come and go: within a lease's time when one dies, in less when one leaves
or arrives. Which of two believes to hold a shard is decided at the checkpoint, by epoch, for each
batch.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from eventlog.errors import EventLogError
from eventlog.log import EventLog
from eventlog.telemetry import get_logger
from projections.cache import CacheWriter
from projections.checkpoint import (
    LEASE_SECONDS,
    PROJECTION,
    Fenced,
    Lease,
    Leases,
    postgres_of,
)
from projections.checkpoint import lag as lag_of
from projections.folding import Change
from projections.projection import Projection
from projections.rebuild import due
from workers.runtime import Backoff, pause, repeat, report_failure, unless_stopped

BATCHES_AT_ONCE_MAX: Final = 3
"""Batches that are folded or written side by side; the rows of others gather meanwhile."""
LEAVE_SECONDS_MAX: Final = 3.0
"""At the end, how long to try to tell the others."""
IDLE_SECONDS: Final = 5.0
"""A shard without rows for so long uses the time to write what the cache missed."""

_log = get_logger()


async def run_projector(
    log: EventLog,
    stop: asyncio.Event,
    *,
    name: str | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> None:
    """Project this process's share of the shards until `stop`, through all outages.

    `name`: what to call this worker in the table of leases; None: host and process. Raises
    `InvalidSetting` for a log in memory.
    """
    await Projector(log, name=name, lease_seconds=lease_seconds).run(stop)


async def lag(log: EventLog) -> dict[int, int]:
    """Rows of each shard that the views don't show yet."""
    return dict(enumerate(await lag_of(postgres_of(log))))


class AfterBatch(Protocol):
    """What is done about a shard beside its batches. What it raises has the shard begun anew."""

    async def refresh(self, shard: int, position: int) -> None:
        """A shard was taken over at a position."""
        ...

    async def write(self, changes: list[Change]) -> None:
        """A batch with these changes was committed."""
        ...

    async def catch_up(self) -> None:
        """There is nothing to be projected just now."""
        ...


class Projector:
    """One worker's shards and the tasks on them."""

    def __init__(
        self,
        log: EventLog,
        *,
        name: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        projection: Projection | None = None,
        after_batch: AfterBatch | None = None,
    ) -> None:
        """`projection`: None: the views. `after_batch`: None: the caches of the views."""
        self.owner = f"{name or f'{socket.gethostname()}:{os.getpid()}'}:{secrets.token_hex(4)}"
        self.projection = projection or Projection(log)
        self._log = log
        self._leases = Leases(
            postgres_of(log), self.projection.name, self.owner, seconds=lease_seconds
        )
        self._after_batch: AfterBatch = after_batch or CacheWriter(log)
        self._shards: dict[int, _ShardTask] = {}
        self._ending: set[asyncio.Task[None]] = set()
        """Shards that are given up, each after the batch it is at; renewals don't wait for them."""
        self._turn = asyncio.Semaphore(BATCHES_AT_ONCE_MAX)
        self._joined = False
        name = self.projection.name
        self._worker = "projector" if name == PROJECTION else f"projector of {name}"

    @property
    def shards(self) -> list[int]:
        """The shards that this worker projects now."""
        return sorted(self._shards)

    async def run(self, stop: asyncio.Event) -> None:
        """Hold and project a fair share of the shards until `stop`."""
        try:
            await repeat(self._worker, stop, self.tend, every_seconds=self._leases.seconds / 3)
        finally:
            await self._leave()

    async def tend(self) -> None:
        """Renew what is held, and hold neither more nor less than a fair share."""
        if not self._joined:
            await self._leases.join()
            self._joined = True
            if self.projection.name == PROJECTION:
                await self._warn_of_old_views()
        for shard, each in list(self._shards.items()):
            if each.task.done() and not each.stop.is_set():  # it lost its lease
                self._shards.pop(shard).task.result()
        held = [each.lease for each in self._shards.values()]
        renewed = await self._leases.renew(held)
        kept = {lease.shard for lease in renewed.kept}
        for lease in held:
            if lease.shard not in kept:
                self._give_up(self._shards.pop(lease.shard), release=False)
        going_on = [each for each in self._shards.values() if not each.stop.is_set()]
        surplus = len(going_on) - renewed.fair_share
        if surplus > 0:
            for each in random.sample(going_on, surplus):
                self._give_up(each, release=True)
        elif surplus < 0:
            self._start(await self._leases.take(-surplus))

    async def _warn_of_old_views(self) -> None:
        """Rows that are already there don't change by being projected further."""
        views = await due(self._log)
        if views:
            advice = f"run: eventlog rebuild {' '.join(views)}"
            _log.warning("projector.views_are_old", views=views, advice=advice)

    def _start(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._shards[lease.shard] = _ShardTask(lease, self._project)
        if leases:
            shards = sorted(lease.shard for lease in leases)
            name = self.projection.name
            _log.info(
                "projector.leases_taken", projection=name, shards=shards, held=len(self._shards)
            )

    def _give_up(self, given: _ShardTask, *, release: bool) -> None:
        """Let a shard's task end after the batch it is at. Until it is released it is renewed."""
        given.stop.set()
        ending = asyncio.create_task(self._end(given, release=release))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, given: _ShardTask, *, release: bool) -> None:
        await given.task
        if not release or self._shards.get(given.lease.shard) is not given:
            return
        del self._shards[given.lease.shard]
        try:
            await self._leases.release([given.lease])
        except EventLogError as error:
            report_failure(self._worker, error, step="release")  # the lease expires by itself
            return
        name, shards = self.projection.name, [given.lease.shard]
        _log.info(
            "projector.leases_released", projection=name, shards=shards, held=len(self._shards)
        )

    async def _leave(self) -> None:
        held = [each.lease for each in self._shards.values()]
        for each in self._shards.values():
            each.stop.set()
        await asyncio.gather(*(each.task for each in self._shards.values()), *self._ending)
        try:
            async with asyncio.timeout(LEAVE_SECONDS_MAX):
                await self._leases.release(held)
                await self._leases.leave()
        except (EventLogError, TimeoutError) as error:
            report_failure(self._worker, error, step="leave")  # the leases expire by themselves

    # --- one shard ---

    async def _project(self, lease: Lease, stop: asyncio.Event) -> None:
        """Project a shard until told to stop, or until someone else does."""
        backoff = Backoff()
        while not stop.is_set():
            try:
                await self._follow(lease, stop, backoff)
            except Fenced as error:
                name = self.projection.name
                _log.info(
                    "projector.lease_lost", projection=name, shard=lease.shard, error=str(error)
                )
                return
            except Exception as error:
                _log.warning(
                    "projector.batch_failed",
                    projection=self.projection.name,
                    shard=lease.shard,
                    error=f"{type(error).__name__}: {error}",
                    exc_info=None if isinstance(error, EventLogError) else error,
                )
                await pause(stop, backoff.next_seconds())

    async def _follow(self, lease: Lease, stop: asyncio.Event, backoff: Backoff) -> None:
        progress = await self.projection.begin(lease)
        await self._after_batch.refresh(lease.shard, progress.position)
        feed = self._log.feed({lease.shard: progress.position})
        try:
            while True:
                rows = await unless_stopped(stop, feed.next_rows(seconds=IDLE_SECONDS))
                if rows is None:
                    return
                if not rows:
                    await self._after_batch.catch_up()
                    continue
                async with self._turn:
                    if stop.is_set():
                        return
                    changes = await self.projection.apply(progress, rows)
                await self._after_batch.write(changes)
                backoff.reset()
        finally:
            feed.close()


class _ShardTask:
    def __init__(
        self,
        lease: Lease,
        project: Callable[[Lease, asyncio.Event], Coroutine[Any, Any, None]],
    ) -> None:
        self.lease = lease
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(
            project(lease, self.stop), name=f"projector-shard-{lease.shard}"
        )
