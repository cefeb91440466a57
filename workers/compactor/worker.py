"""The compact-worker as a process: finds due sessions, shares them with its likes, compacts them.

    projector   of the projection `contexts`: a session becomes due ──> offered in Redis
    reader      claims what was offered, as long as there is a free place
    tend        every third of a claim: renew ours ──> take over dead ones ──> sweep: offer all that
                is due by the table, which makes up for lost offers and brings back-offs back

Without Redis, and while it is away, each worker compacts what is due in the shards that it holds.
When it stops, what is under way is given up, and handed to the others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final
from uuid import UUID

import msgspec

from eventlog.envelope import shard_of
from eventlog.errors import EventLogError, Unavailable
from eventlog.log import EventLog
from eventlog.redis_link import RedisDown
from eventlog.telemetry import get_logger, metrics
from projections.checkpoint import LEASE_SECONDS, postgres_of
from projections.contexts import ContextViews, contexts_projection
from projections.folding import Change
from workers.compactor.claims import CLAIM_SECONDS, DELIVERIES_MAX, Claim, Claims
from workers.compactor.work import SessionWork
from workers.projector import Projector
from workers.runtime import Backoff, pause, repeat, report_failure, unless_stopped

SESSIONS_PER_PAGE: Final = 200
"""Due sessions that one query returns."""
SWEPT_MAX: Final = 2_000
"""Due sessions that one sweep looks at, those first that wait longest."""
WAITING_MAX: Final = 10_000
"""Sessions that wait in memory, without Redis; the next sweep finds what is beyond."""
STOP_SECONDS_MAX: Final = 3.0
"""How long what is under way may take to end when the worker stops."""

_log = get_logger()


class Compactor:
    """One worker: its projector, its claims, and the sessions that it works on."""

    def __init__(
        self,
        log: EventLog,
        work: SessionWork,
        *,
        name: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        claim_seconds: float = CLAIM_SECONDS,
        at_once: int | None = None,
    ) -> None:
        self._log = log
        self._store = postgres_of(log)
        self._work = work
        self._at_once = at_once or log.settings.compaction_at_once
        self._every_seconds = claim_seconds / 3
        self.views = ContextViews(log)
        self.projector = Projector(
            log,
            name=name,
            lease_seconds=lease_seconds,
            projection=contexts_projection(log, self.views),
            after_batch=self,
        )
        self.claims = _claims_of(log, self.projector.owner, claim_seconds)
        self._redis_lost = False
        self._under_way: dict[UUID, _UnderWay] = {}
        self._waiting: OrderedDict[UUID, None] = OrderedDict()
        self._places = asyncio.Semaphore(self._at_once)
        self._changed = asyncio.Event()
        """Set when a place has become free."""
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Compact what is due until `stop`, through all outages."""
        self._stop = stop
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.projector.run(stop), name="compactor-projector")
                group.create_task(
                    repeat("compactor", stop, self.tend, every_seconds=self._every_seconds),
                    name="compactor-tend",
                )
                if self.claims is not None:
                    group.create_task(self._read(self.claims, stop), name="compactor-reader")
                group.create_task(self._end_with(stop), name="compactor-end")
        finally:
            if self.claims is not None:
                await self._leave(self.claims)

    # --- noticing: what the projector calls ---

    async def refresh(self, shard: int, position: int) -> None:
        """A shard was taken over: the next sweep looks at what is due there."""

    async def catch_up(self) -> None:
        """There is nothing to be projected just now."""

    async def write(self, changes: list[Change]) -> None:
        """Offer the sessions that have become due with a committed batch."""
        found = self.views.take_due(each.session_id for each in changes)
        by_tenant: dict[int, list[UUID]] = {}
        for session_id, tenant_id in found.items():
            by_tenant.setdefault(tenant_id, []).append(session_id)
        for tenant_id, session_ids in by_tenant.items():
            await self._offer(session_ids, tenant_id, noticed=True)

    async def _offer(
        self, session_ids: list[UUID], tenant_id: int, *, noticed: bool = False
    ) -> None:
        """Offer sessions to all workers of their tenant, or else see to them here.

        `noticed`: the projector waits for this, so a Redis that is away isn't asked.
        """
        if self.claims is not None and not (noticed and self._redis_lost):
            try:
                await self.claims.offer(session_ids, tenant_id=tenant_id)
            except (RedisDown, Unavailable) as error:
                self._lost(error)
            else:
                self._found_again()
                return
        if tenant_id == self._store.tenant_id:
            held = set(self.projector.shards)
            shards = self._store.shards
            self._begin_here(each for each in session_ids if shard_of(each, shards) in held)

    # --- tending ---

    async def tend(self) -> None:
        """Renew what is claimed, take over what others left, and sweep."""
        if self.claims is not None:
            try:
                await self._renew(self.claims)
                free = self._at_once - len(self._under_way)
                if free > 0:
                    await self._take_over(self.claims, free)
                await self.claims.forget_consumers()
            except RedisDown as error:
                self._lost(error)
        await self.sweep()

    async def _renew(self, claims: Claims) -> None:
        mine = {entry: each for each in self._under_way.values() for entry in each.entries}
        asked = [Claim(each.session_id, entry) for entry, each in mine.items()]
        others, gone = await claims.renew(asked)
        for claim in others:
            # Whoever has it now does it. If ours was about to be appended, the log takes one.
            _log.warning("compaction.claim_lost", session_id=str(claim.session_id))
            mine[claim.entry].entries.discard(claim.entry)
            mine[claim.entry].task.cancel()
        for claim in gone:  # flushed: the sweep offers it anew, and it is ours or another's then
            mine[claim.entry].entries.discard(claim.entry)

    async def _take_over(self, claims: Claims, count_max: int) -> None:
        for claim in await claims.take_over(count_max):
            if claim.session_id not in self._under_way:
                metrics.compaction_claims_taken_over += 1
                session_id = str(claim.session_id)
                deliveries = claim.deliveries
                _log.warning("compaction.taken_over", session_id=session_id, deliveries=deliveries)
            self._begin(claim.session_id, claim)

    async def sweep(self) -> None:
        """Offer what is due by the table. Raises `Unavailable`."""
        place: tuple[int, UUID] = (0, UUID(int=0))
        for _ in range(0, SWEPT_MAX, SESSIONS_PER_PAGE):
            tenant_id = self._store.tenant_id
            records = await self._store.fetch("due_contexts", tenant_id, *place, SESSIONS_PER_PAGE)
            if records:
                due = [record[1] for record in records if record[1] not in self._under_way]
                await self._offer(due, tenant_id)
                place = (records[-1][2], records[-1][1])
            if len(records) < SESSIONS_PER_PAGE:
                return

    def _lost(self, error: EventLogError) -> None:
        if not self._redis_lost:
            _log.warning("compactor.redis_lost", error=str(error))
        self._redis_lost = True

    def _found_again(self) -> None:
        if self._redis_lost:
            _log.info("compactor.redis_back")
        self._redis_lost = False

    # --- claiming ---

    async def _read(self, claims: Claims, stop: asyncio.Event) -> None:
        """Claim what is offered, as long as there is a free place."""
        backoff = Backoff()
        while not stop.is_set():
            self._changed.clear()
            free = self._at_once - len(self._under_way)
            if free <= 0:
                await unless_stopped(stop, self._changed.wait())
                continue
            try:
                found = await unless_stopped(stop, claims.next(free))
            except (RedisDown, Unavailable) as error:
                self._lost(error)
                await pause(stop, backoff.next_seconds())
                continue
            except Exception as error:
                report_failure("compactor", error, step="claim")
                await pause(stop, backoff.next_seconds())
                continue
            backoff.reset()
            self._found_again()
            for claim in found or ():
                self._begin(claim.session_id, claim)

    def _begin_here(self, session_ids: Iterable[UUID]) -> None:
        """Work on sessions without a claim; as many wait as there is no place for."""
        for each in session_ids:
            if each not in self._under_way and len(self._waiting) < WAITING_MAX:
                self._waiting[each] = None
        while self._waiting and len(self._under_way) < self._at_once:
            session_id, _ = self._waiting.popitem(last=False)
            self._begin(session_id, None)

    def _begin(self, session_id: UUID, claim: Claim | None) -> None:
        """Work on a session; a second claim of one that is worked on is held beside the first."""
        if self._stop.is_set():
            return  # what was claimed is handed back with the rest
        known = self._under_way.get(session_id)
        if known is None:
            task = asyncio.create_task(
                self._see_to(session_id, claim), name=f"compact-{session_id}"
            )
            known = self._under_way[session_id] = _UnderWay(session_id, task, set())
            task.add_done_callback(lambda _: self._ended(session_id))
        if claim is not None:
            known.entries.add(claim.entry)

    def _ended(self, session_id: UUID) -> None:
        del self._under_way[session_id]
        self._changed.set()
        self._begin_here(())

    # --- one session ---

    async def _see_to(self, session_id: UUID, claim: Claim | None) -> None:
        """Do what is to be done about a session, and give its claims up."""
        again = True  # unless it comes to an end of its own
        try:
            async with self._places:
                await self._do(session_id, 1 if claim is None else claim.deliveries)
            again = False
        except Exception as error:
            report_failure("compactor", error, session_id=str(session_id))
            again = not await self._put_off(session_id)
        finally:
            await self._give_up(session_id, again=again)

    async def _do(self, session_id: UUID, deliveries: int) -> None:
        if deliveries > 2 * DELIVERIES_MAX:
            await self._work.put_off(session_id)  # to look at it may be what they died of
        elif deliveries > DELIVERIES_MAX:
            await self._work.report_death(session_id, deliveries)
        else:
            await self._work.compact_if_due(session_id)

    async def _put_off(self, session_id: UUID) -> bool:
        try:
            await self._work.put_off(session_id)
        except EventLogError as error:
            report_failure("compactor", error, session_id=str(session_id))
            return False
        return True

    async def _give_up(self, session_id: UUID, *, again: bool) -> None:
        entries = self._under_way[session_id].entries
        if self.claims is None or not entries:
            return
        try:
            await self.claims.done(session_id, list(entries), again=again)
        except (RedisDown, Unavailable) as error:
            self._lost(error)  # whoever takes the claim over finds that nothing is due

    # --- the end ---

    async def _end_with(self, stop: asyncio.Event) -> None:
        """Give up what is under way when the worker is to stop; nothing of it is appended."""
        await stop.wait()
        self._waiting.clear()
        tasks = [each.task for each in self._under_way.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS_MAX)

    async def _leave(self, claims: Claims) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await claims.leave()
        except (RedisDown, Unavailable, TimeoutError) as error:
            report_failure("compactor", error, step="leave")  # claims are taken over by themselves
        finally:
            await claims.aclose()


class _UnderWay(msgspec.Struct):
    """A session that is worked on."""

    session_id: UUID
    task: asyncio.Task[None]
    entries: set[bytes]
    """Of the claims that are held for it; none, without Redis."""


def _claims_of(log: EventLog, consumer: str, claim_seconds: float) -> Claims | None:
    redis_url = log.servers.redis_url if log.servers is not None else None
    if log.fanout is None or redis_url is None:
        return None
    return Claims(
        log.fanout,
        redis_url,
        tenant_id=postgres_of(log).tenant_id,
        consumer=consumer,
        claim_seconds=claim_seconds,
    )
