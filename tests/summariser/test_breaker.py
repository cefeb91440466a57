"""The circuit breaker: opens, lets one through as a trial, closes; and only the endpoint counts."""

from __future__ import annotations

import asyncio

import pytest

from eventlog.compaction.summarizer import FailureKind, SummaryFailed
from tests.summariser.conftest import Ask
from tests.summariser.materials import material_of
from tests.support.model_server import ModelServer
from workers.summariser.breaker import PAUSE_SECONDS_MAX, UNASKED, Breaker
from workers.summariser.guarded import GuardedSummarizer


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    """Opens after three failures, for ten seconds."""
    return Breaker(failures_max=3, pause_seconds=10.0, clock=clock)


def state_of(breaker: Breaker) -> str:
    """Its state now."""
    return breaker.state


def fail(breaker: Breaker, kind: FailureKind = "server_error", **fields: float) -> SummaryFailed:
    """One attempt that fails; returns what came out, which may be the breaker's own failure."""
    with pytest.raises(SummaryFailed) as failed, breaker.attempt():
        raise SummaryFailed(kind, "it broke", retry_after_seconds=fields.get("retry_after"))
    return failed.value


def test_breaker_when_failures_follow_one_another_opens(breaker: Breaker) -> None:
    """After three in a row the fourth isn't made, and is told when to come back."""
    assert [fail(breaker).kind for _ in range(4)] == ["server_error"] * 3 + ["circuit_open"]
    assert state_of(breaker) == "open"
    assert fail(breaker).retry_after_seconds == 10.0


def test_breaker_when_something_worked_in_between_stays_closed(breaker: Breaker) -> None:
    """Only failures in a row count."""
    for _ in range(5):
        fail(breaker)
        fail(breaker)
        with breaker.attempt():
            pass

    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("kind", ["empty", "truncated", "filtered", "refused", "not_smaller"])
def test_breaker_when_the_material_is_at_fault_stays_closed(
    breaker: Breaker, kind: FailureKind
) -> None:
    """The endpoint answered: that counts as if it had worked."""
    fail(breaker)
    fail(breaker)
    for _ in range(5):
        fail(breaker, kind)
    fail(breaker)
    fail(breaker)

    assert state_of(breaker) == "closed"


def test_breaker_when_nothing_was_asked_learns_nothing(breaker: Breaker, clock: Clock) -> None:
    """A spent budget neither opens nor closes it, and is no verdict of a trial."""
    fail(breaker)
    fail(breaker)
    fail(breaker, "no_budget")
    assert "no_budget" in UNASKED
    fail(breaker)
    assert state_of(breaker) == "open"

    clock.now += 10
    fail(breaker, "no_budget")

    assert state_of(breaker) == "half-open"
    assert fail(breaker).kind == "server_error"  # the trial is still to be had


def test_breaker_when_the_pause_is_over_lets_one_through(breaker: Breaker, clock: Clock) -> None:
    """While the trial is under way nobody else is let through; when it works, everybody is."""
    for _ in range(3):
        fail(breaker)
    clock.now += 9.9
    assert fail(breaker).kind == "circuit_open"
    clock.now += 0.1

    with breaker.attempt():
        assert state_of(breaker) == "half-open"
        assert fail(breaker).kind == "circuit_open"

    assert state_of(breaker) == "closed"


def test_breaker_when_the_trial_fails_waits_twice_as_long(breaker: Breaker, clock: Clock) -> None:
    """10, 20, 40 seconds and so on, up to a bound; once it works, it starts over."""
    for _ in range(3):
        fail(breaker)
    waited = [10.0]
    for _ in range(8):
        clock.now += waited[-1]
        assert fail(breaker).kind == "server_error"
        waited.append(fail(breaker).retry_after_seconds or 0.0)
    assert waited == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, *[PAUSE_SECONDS_MAX] * 3]

    clock.now += PAUSE_SECONDS_MAX
    with breaker.attempt():
        pass
    for _ in range(3):
        fail(breaker)

    assert fail(breaker).retry_after_seconds == 10.0


def test_breaker_when_the_endpoint_asks_for_longer_waits_so_long(breaker: Breaker) -> None:
    """A pause that the endpoint asked for is kept, up to a bound."""
    fail(breaker)
    fail(breaker)
    fail(breaker, "rate_limited", retry_after=60.0)

    assert fail(breaker).retry_after_seconds == 60.0


async def test_breaker_when_a_trial_is_cancelled_lets_another_through(
    breaker: Breaker, clock: Clock
) -> None:
    """A trial without an end must not keep the breaker open for ever."""
    for _ in range(3):
        fail(breaker)
    clock.now += 10

    with pytest.raises(asyncio.CancelledError), breaker.attempt():
        raise asyncio.CancelledError

    with breaker.attempt():
        pass
    assert state_of(breaker) == "closed"


def test_breaker_when_old_attempts_fail_late_pauses_no_longer(
    breaker: Breaker, clock: Clock
) -> None:
    """Attempts that were under way when it opened don't prolong the pause."""
    with pytest.raises(SummaryFailed), breaker.attempt():
        for _ in range(3):
            fail(breaker)
        clock.now += 5
        raise SummaryFailed("timeout", "late")

    assert fail(breaker).retry_after_seconds == 5.0


async def test_guarded_when_the_endpoint_is_down_stops_asking_it(
    ask: Ask, server: ModelServer, clock: Clock
) -> None:
    """With a real endpoint: no more requests while it is open, one trial, and then all again."""
    server.behaviour = "unauthorized"
    guarded = GuardedSummarizer(ask(), breaker=Breaker(failures_max=2, clock=clock))
    kinds = []
    for _ in range(5):
        with pytest.raises(SummaryFailed) as failed:
            await guarded.summarize(material_of())
        kinds.append(failed.value.kind)
    assert kinds == ["rejected"] * 2 + ["circuit_open"] * 3
    assert len(server.requests) == 2

    server.behaviour = "good"
    clock.now += 3_600
    await guarded.summarize(material_of())
    await guarded.summarize(material_of())

    assert len(server.requests) == 4


async def test_control_when_there_is_no_breaker_every_attempt_is_made(
    ask: Ask, server: ModelServer
) -> None:
    """The same endpoint without a breaker is asked every time."""
    server.behaviour = "unauthorized"
    summarizer = ask()
    for _ in range(5):
        with pytest.raises(SummaryFailed):
            await summarizer.summarize(material_of())

    assert len(server.requests) == 5
