"""The hour's limit of tokens: it holds for one process and for many, with Redis and without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from eventlog.compaction.summarizer import SummaryFailed
from eventlog.redis_link import RedisLink
from tests.summariser.conftest import Ask
from tests.summariser.materials import material_of
from tests.support.model_server import ModelServer
from tests.support.proxy import proxy
from workers.summariser.budget import HOUR_SECONDS, LocalBudget, SharedBudget
from workers.summariser.guarded import PROMPT_TOKENS, GuardedSummarizer

NOON = 500_000 * HOUR_SECONDS
"""A time in seconds since 1970 at which an hour begins."""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = float(NOON)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
async def links(redis_url: str) -> AsyncIterator[list[RedisLink]]:
    """Two connections, as two processes have them."""
    async with AsyncExitStack() as opened:
        made = [RedisLink(redis_url), RedisLink(redis_url)]
        for each in made:
            opened.push_async_callback(each.aclose)
        yield made


@pytest.fixture
def prefix() -> str:
    """Names in Redis of the test's own."""
    return f"eventlog:test:{uuid4().hex}"


async def test_local_when_the_hour_is_spent_refuses_until_enough_is_an_hour_ago(
    clock: Clock,
) -> None:
    """The hour slides: what was spent first is free first."""
    budget = LocalBudget(100, clock=clock)
    await budget.reserve(60)
    clock.now += 600
    await budget.reserve(40)
    clock.now += 600

    with pytest.raises(SummaryFailed) as failed:
        await budget.reserve(1)

    assert failed.value.kind == "no_budget"
    assert failed.value.retry_after_seconds == HOUR_SECONDS - 1_200
    clock.now += HOUR_SECONDS - 1_200
    assert budget.spent == 40
    await budget.reserve(60)
    with pytest.raises(SummaryFailed) as failed:
        await budget.reserve(1)
    assert failed.value.retry_after_seconds == 600


async def test_local_when_settled_counts_what_was_spent(clock: Clock) -> None:
    """What wasn't needed of a reservation is free again."""
    budget = LocalBudget(100, clock=clock)
    reservation = await budget.reserve(90)

    await budget.settle(reservation, 30)

    assert budget.spent == 30
    await budget.reserve(70)


async def test_local_when_more_is_asked_than_an_hour_has_refuses(clock: Clock) -> None:
    """It is told to come back in an hour, and no counting error comes of an empty history."""
    with pytest.raises(SummaryFailed) as failed:
        await LocalBudget(100, clock=clock).reserve(101)

    assert failed.value.retry_after_seconds == HOUR_SECONDS


async def test_shared_when_two_processes_spend_share_one_limit(
    links: list[RedisLink], prefix: str, clock: Clock
) -> None:
    """However they interleave, no more is granted than there is."""
    budgets = [SharedBudget(link.call, prefix, 100, clock=clock) for link in links]

    granted = await asyncio.gather(
        *(budgets[number % 2].reserve(10) for number in range(30)), return_exceptions=True
    )

    refused = [each for each in granted if isinstance(each, SummaryFailed)]
    assert len(granted) - len(refused) == 10
    assert {each.kind for each in refused} == {"no_budget"}


async def test_control_when_processes_count_alone_they_spend_more(clock: Clock) -> None:
    """Without the shared count two processes spend twice the limit."""
    budgets = [LocalBudget(100, clock=clock) for _ in range(2)]

    granted = await asyncio.gather(
        *(budgets[number % 2].reserve(10) for number in range(30)), return_exceptions=True
    )

    assert sum(not isinstance(each, SummaryFailed) for each in granted) == 20


async def test_shared_when_settled_in_the_next_hour_counts_in_its_own(
    links: list[RedisLink], prefix: str, clock: Clock
) -> None:
    """The new hour begins at zero, and isn't given what the old one had left."""
    budget = SharedBudget(links[0].call, prefix, 100, clock=clock)
    clock.now += HOUR_SECONDS - 10
    reservation = await budget.reserve(90)
    with pytest.raises(SummaryFailed) as failed:
        await budget.reserve(20)
    assert failed.value.retry_after_seconds == 10
    clock.now += 10
    await budget.settle(reservation, 50)

    keys = [f"{prefix}:compaction:tokens:{NOON // HOUR_SECONDS + each}" for each in range(2)]
    assert await links[0].call("MGET", *keys) == [b"50", None]
    assert 0 < int(await links[0].call("TTL", keys[0])) <= 2 * HOUR_SECONDS
    await budget.reserve(100)


async def test_shared_when_redis_is_away_counts_for_itself(
    redis_url: str, prefix: str, clock: Clock
) -> None:
    """What this process has spent already counts on; so does what it spends meanwhile."""
    async with proxy(redis_url) as between:
        link = RedisLink(between.url)
        budget = SharedBudget(link.call, prefix, 100, clock=clock)
        first = await budget.reserve(60)
        between.refuse()
        between.cut()

        with pytest.raises(SummaryFailed):
            await budget.reserve(50)
        await budget.reserve(40)
        await budget.settle(first, 10)
        await budget.reserve(50)
        with pytest.raises(SummaryFailed):
            await budget.reserve(1)
        await link.aclose()


async def test_guarded_when_the_budget_is_spent_asks_nothing(
    ask: Ask, server: ModelServer, clock: Clock
) -> None:
    """What a summary may cost is set aside first; what it did cost is counted in the end."""
    expected = 1_000 + 200 + PROMPT_TOKENS
    budget = LocalBudget(expected + 200, clock=clock)
    guarded = GuardedSummarizer(ask(), budget=budget)

    await guarded.summarize(material_of())
    assert budget.spent == 120
    await guarded.summarize(material_of())
    assert budget.spent == 240
    with pytest.raises(SummaryFailed) as failed:
        await guarded.summarize(material_of())

    assert failed.value.kind == "no_budget"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("behaviour", "spent"),
    [("length", 120), ("rate_limited", 0), ("unauthorized", 0), ("drop", 2_200), ("html", 2_200)],
)
async def test_guarded_when_a_summary_fails_counts_what_it_may_have_cost(
    ask: Ask, server: ModelServer, clock: Clock, behaviour: str, spent: int
) -> None:
    """What was reported; nothing, where nothing was done; else all that was set aside."""
    server.behaviour = behaviour
    budget = LocalBudget(10_000, clock=clock)

    with pytest.raises(SummaryFailed):
        await GuardedSummarizer(ask(), budget=budget).summarize(material_of())

    assert budget.spent == spent


async def test_guarded_when_many_ask_at_once_keeps_the_limit(
    ask: Ask, server: ModelServer, clock: Clock
) -> None:
    """Ten at once, and room for two: two requests."""
    server.pause()
    guarded = GuardedSummarizer(ask(), budget=LocalBudget(5_000, clock=clock))
    tasks = [asyncio.create_task(guarded.summarize(material_of())) for _ in range(10)]
    await server.arrived(2)
    server.resume()

    ended = await asyncio.gather(*tasks, return_exceptions=True)

    assert len(server.requests) == 2
    assert sum(isinstance(each, SummaryFailed) for each in ended) == 8
