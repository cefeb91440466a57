"""Claims in Redis: one entry for each due session, one owner at a time, and none for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID, uuid4

import pytest
import redis.asyncio

from eventlog import EventLog
from eventlog.embedded.temporary import ValkeyServer
from eventlog.testing import until
from tests.compactor.conftest import (
    CLAIM_SECONDS,
    Hands,
    Start,
    failures,
    long_session,
    row_of,
    settled,
    summaries,
)
from workers.compactor import claims as claims_module
from workers.compactor.claims import DELIVERIES_MAX, GROUP, Claims

Make = Callable[[str], Awaitable[Claims]]
NEXT_SECONDS = 0.05
"""How long a look into the stream waits for entries that are not there."""


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of the shared Redis."""
    async with redis.asyncio.from_url(redis_url) as opened:
        yield opened


@pytest.fixture
async def make(log: EventLog, redis_url: str) -> AsyncIterator[Make]:
    """Makes what a worker of this name sees of the stream."""
    made: list[Claims] = []

    async def of(name: str) -> Claims:
        assert log.fanout is not None
        made.append(
            Claims(log.fanout, redis_url, tenant_id=0, consumer=name, claim_seconds=CLAIM_SECONDS)
        )
        await made[-1].next(1, seconds=NEXT_SECONDS)  # makes the group
        return made[-1]

    yield of
    for each in made:
        await each.aclose()


async def test_offer_when_repeated_leaves_one_entry(
    make: Make, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is offered until it is done. The control without the look: an entry each."""
    one = await make("one")
    session_id = uuid4()
    stream, _ = await one.keys()

    for _ in range(3):
        await one.offer([session_id])
    (claim,) = await one.next(10, seconds=NEXT_SECONDS)
    await one.offer([session_id])
    assert await client.xlen(stream) == 1
    assert await one.done(session_id, [claim.entry], again=False) == 1
    assert await client.xlen(stream) == 0
    assert await one.offer([session_id]) == 1

    careless = claims_module.OFFER.replace("if not entry or", "if true or")
    assert careless != claims_module.OFFER
    monkeypatch.setattr(claims_module, "OFFER", careless)
    for _ in range(3):
        await one.offer([session_id])
    assert await client.xlen(stream) == 4


async def test_claim_when_its_worker_is_silent_is_taken_over(make: Make) -> None:
    """After its time, and counted; not while it is renewed."""
    one, two = await make("one"), await make("two")
    session_id = uuid4()
    await one.offer([session_id])
    (claim,) = await one.next(1, seconds=NEXT_SECONDS)

    found: list[claims_module.Claim] = []

    async def taken_over() -> bool:
        found.extend(await two.take_over(5))
        return bool(found)

    assert await two.take_over(5) == []
    for _ in range(3):
        await asyncio.sleep(CLAIM_SECONDS / 2)
        assert await one.renew([claim]) == ([], [])
        assert await two.take_over(5) == []
    await until(taken_over)

    assert (found[0].session_id, found[0].deliveries) == (session_id, 2)
    assert await one.renew([claim]) == ([claim], [])
    assert await one.done(session_id, [claim.entry], again=False) == 0
    assert await two.done(session_id, [claim.entry], again=False) == 1


async def test_claim_when_redis_is_flushed_is_gone_and_can_be_offered_again(
    make: Make, client: redis.asyncio.Redis
) -> None:
    """Nothing in Redis is needed for anything."""
    one = await make("one")
    session_id = uuid4()
    await one.offer([session_id])
    (claim,) = await one.next(1, seconds=NEXT_SECONDS)
    await client.delete(*await one.keys())

    assert await one.renew([claim]) == ([], [claim])
    assert await one.done(session_id, [claim.entry], again=True) == 0
    assert await one.take_over(1) == []
    assert await one.offer([session_id]) == 1
    assert [each.session_id for each in await one.next(1, seconds=NEXT_SECONDS)] == [session_id]


async def test_entry_when_it_is_none_of_ours_is_removed(
    make: Make, client: redis.asyncio.Redis
) -> None:
    """It would come back for ever."""
    one = await make("one")
    stream, _ = await one.keys()
    await client.xadd(stream, {"session": "no uuid"})
    await client.xadd(stream, {"other": b"\xff"})

    assert await one.next(5, seconds=NEXT_SECONDS) == []
    assert await client.xlen(stream) == 0
    assert (await client.xpending(stream, GROUP))["pending"] == 0


async def test_worker_when_it_leaves_hands_back_what_it_has(
    make: Make, client: redis.asyncio.Redis
) -> None:
    """Also what it was given without noticing; and no name of it stays."""
    one, two = await make("one"), await make("two")
    session_ids = {uuid4() for _ in range(3)}
    await one.offer(list(session_ids))
    await one.next(3, seconds=NEXT_SECONDS)
    await one.leave()

    found = await two.next(5, seconds=NEXT_SECONDS)

    assert {each.session_id for each in found} == session_ids
    names = [each["name"] for each in await client.xinfo_consumers((await two.keys())[0], GROUP)]
    assert names == [b"two"]


async def test_consumers_when_silent_for_long_are_forgotten(
    make: Make, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of dead workers would gather; one that has claims stays until they are taken over."""
    one, two, three = await make("one"), await make("two"), await make("three")
    stream, _ = await one.keys()
    for each in (one, two, three):  # not every server does so for a read that finds nothing
        await client.xgroup_createconsumer(stream, GROUP, each.consumer)
    await two.offer([uuid4()])
    await two.next(1, seconds=NEXT_SECONDS)
    await one.forget_consumers()
    assert len(await client.xinfo_consumers(stream, GROUP)) == 3

    monkeypatch.setattr(claims_module, "SILENT_CONSUMER_SECONDS", 0.0)
    await asyncio.sleep(0.01)
    await one.forget_consumers()

    names = {each["name"] for each in await client.xinfo_consumers(stream, GROUP)}
    assert names == {b"one", b"two"}


async def test_session_when_its_worker_died_is_compacted_by_another(
    log: EventLog, start: Start, make: Make, hands: Hands
) -> None:
    """Its claim is taken over. The control: a worker that doesn't take over never compacts it."""
    dead = await make("dead")
    hands.let.clear()
    worker = start(log)
    busy = [await long_session(log) for _ in range(log.settings.compaction_at_once)]
    await until(lambda: len(hands.asked) == len(busy))
    session = await long_session(log)
    assert (await claimed(dead, session.id)).deliveries == 1

    async def nobody(count_max: int) -> list[object]:
        return []

    assert worker.compactor.claims is not None
    take_over = worker.compactor.claims.take_over
    worker.compactor.claims.take_over = nobody  # type: ignore[method-assign,assignment]
    hands.let.set()
    await until(lambda: none_due(log, [each.id for each in busy]))
    await asyncio.sleep(1.5 * CLAIM_SECONDS)  # the time in which it would be taken over
    for _ in range(3):
        await worker.compactor.tend()
    assert await summaries(session) == []

    worker.compactor.claims.take_over = take_over  # type: ignore[method-assign]
    await until(lambda: summaries(session))
    assert len(await summaries(session)) == 1


async def test_session_when_workers_die_of_it_again_and_again_is_left_alone(
    log: EventLog, start: Start, make: Make, hands: Hands
) -> None:
    """A failure says so, which holds the next attempt up like any other."""
    dead = await make("dead")
    hands.let.clear()
    worker = start(log)
    busy = [await long_session(log) for _ in range(log.settings.compaction_at_once)]
    await until(lambda: len(hands.asked) == len(busy))
    session = await long_session(log)
    claim = await claimed(dead, session.id)
    stream, _ = await dead.keys()
    for _ in range(DELIVERIES_MAX):  # as if so many workers had taken it over
        await dead._link.call("XCLAIM", stream, GROUP, "dead", 0, claim.entry)
    hands.let.set()

    await until(lambda: failures(session))
    await until(lambda: settled(log, session))

    (failed,) = await failures(session)
    row = await row_of(log, session.id)
    assert (failed.kind, failed.attempts) == ("worker_died", 1)
    assert row is not None
    assert row.why == "backing_off"
    assert session.id not in {each.session_id for each in hands.asked}
    assert worker.compactor.claims is not None


async def test_offer_when_it_was_lost_is_made_up_for_by_the_sweep(
    own_log: EventLog, valkey: ValkeyServer, start: Start
) -> None:
    """The control: without the sweep nobody ever comes to the session."""
    worker = start(own_log)

    async def nothing() -> None:
        """What a worker without a sweep does."""

    sweep = worker.compactor.sweep
    worker.compactor.sweep = nothing  # type: ignore[method-assign]
    claims = worker.compactor.claims
    assert claims is not None
    offer = claims.offer

    async def lose(session_ids: list[UUID], *, tenant_id: int | None = None) -> int:
        return 0

    claims.offer = lose  # type: ignore[method-assign,assignment]
    session = await long_session(own_log)
    await until(lambda: is_due(own_log, session.id))
    claims.offer = offer  # type: ignore[method-assign]
    for _ in range(3):
        await worker.compactor.tend()
    assert await summaries(session) == []

    worker.compactor.sweep = sweep  # type: ignore[method-assign]
    await until(lambda: summaries(session))


async def test_redis_when_flushed_at_any_time_costs_no_summary_and_makes_no_second(
    own_log: EventLog, valkey: ValkeyServer, start: Start, hands: Hands
) -> None:
    """While sessions are offered, while one is worked on, and when it is done."""
    start(own_log)
    async with redis.asyncio.from_url(valkey.url) as client:
        hands.let.clear()
        first = await long_session(own_log)
        await until(lambda: hands.asked)
        await client.flushall()
        sessions = [first, *[await long_session(own_log) for _ in range(5)]]
        await client.flushall()
        hands.let.set()
        for session in sessions:
            await until(lambda session=session: summaries(session))  # type: ignore[misc]
            await client.flushall()
        await until(lambda: none_due(own_log, [each.id for each in sessions]))

    assert [len(await summaries(each)) for each in sessions] == [1] * 6
    assert len(hands.asked) == 6


async def test_redis_when_stopped_is_done_without_until_it_is_back(
    own_log: EventLog, valkey: ValkeyServer, start: Start
) -> None:
    """Work goes on in the shards that are held, and is shared out again afterwards."""
    worker = start(own_log)
    before = await long_session(own_log)
    await until(lambda: summaries(before))

    valkey.kill()
    during = await long_session(own_log)
    await until(lambda: summaries(during), seconds=20)

    valkey.start()
    after = await long_session(own_log)
    await until(lambda: summaries(after), seconds=20)
    await until(lambda: not worker.compactor._redis_lost, seconds=20)
    assert [len(await summaries(each)) for each in (before, during, after)] == [1] * 3


async def claimed(claims: Claims, session_id: UUID) -> claims_module.Claim:
    """The claim of a session, as soon as it is offered."""
    found: list[claims_module.Claim] = []

    async def there() -> bool:
        found.extend(await claims.next(1, seconds=NEXT_SECONDS))
        return bool(found)

    await until(there)
    assert found[0].session_id == session_id
    return found[0]


async def is_due(log: EventLog, session_id: UUID) -> bool:
    """Whether the table says that it is due."""
    row = await row_of(log, session_id)
    return row is not None and row.due


async def none_due(log: EventLog, session_ids: list[UUID]) -> bool:
    """Whether none of them is."""
    return not any([await is_due(log, each) for each in session_ids])
