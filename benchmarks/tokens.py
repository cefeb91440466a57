"""Token increments: as many as go through, and how soon a subscriber has one at a model's pace.

`tokens`: 32 replies write without a pause; the clock stops when a subscriber in a second process
has seen the end of the last one, so every counted increment is committed and delivered. The same
with the subscriber in the writers' process is shown beside it.

`paced`: 32 replies at 30 increments/s with `flush_seconds=0`; from the call of `write` to the
subscriber in the same process, against the yardstick with its row per token, in turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any

from benchmarks import project, yardstick
from benchmarks.child import Local, Remote, same_process, second_process
from benchmarks.follow import following_tokens
from benchmarks.load import PacedRound, pace, wait_until
from benchmarks.measure import (
    Bench,
    Case,
    Result,
    alternate,
    at_least,
    at_most,
    median,
    median_ratio,
    shown,
)
from benchmarks.project import WORDS
from benchmarks.servers import Ground
from benchmarks.yardstick import TOKEN_SESSIONS, TOKENS_PER_SECOND

if TYPE_CHECKING:
    from eventlog import Session

Opening = Callable[..., AbstractAsyncContextManager[Remote | Local]]
ARRIVAL_TIMEOUT_SECONDS = 20
"""Increments that were written and have not reached the subscriber by then count as lost."""


# --- as many as go through -----------------------------------------------------------------------


async def run_unthrottled(bench: Bench) -> list[Result]:
    """Rounds of 32 replies, for each way to subscribe."""
    rounds = bench.count(3, 1)
    own = await _rates(bench, "subscriber in its own process", second_process, rounds=rounds)
    shared = await _rates(bench, "subscriber with the writers", same_process, rounds=rounds)
    return [
        at_least(
            "tokens",
            "durable and seen, subscriber in its own process",
            median(own),
            "increments/s",
            target=200_000,
        ),
        shown("tokens", "the same, subscriber with the writers", median(shared), "increments/s"),
    ]


async def _rates(bench: Bench, name: str, opening: Opening, *, rounds: int) -> list[float]:
    """Increments per second of each round, on a fresh log; the first round is not counted."""
    per_session = bench.count(25_000, 5_000)
    rates: list[float] = []
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        sessions = await project.new_sessions(log, TOKEN_SESSIONS)
        async with opening(
            following_tokens,
            ground.postgres_url,
            ground.redis_url,
            [session.id for session in sessions],
            noting=False,
        ) as follower:
            await follower.call("ready")
            for number in range(rounds + 1):
                start = time.monotonic_ns()
                async with asyncio.TaskGroup() as tasks:
                    for session in sessions:
                        tasks.create_task(_write_all(session, per_session))
                written = time.monotonic_ns()
                ended = await follower.call("replies_ended", TOKEN_SESSIONS * (number + 1))
                rate = TOKEN_SESSIONS * per_session / ((ended - start) / 1e9)
                bench.say(
                    f"{name}: {rate:,.0f}/s (durable after {(written - start) / 1e9:.2f} s, "
                    f"seen after {(ended - start) / 1e9:.2f} s)"
                )
                if number:
                    rates.append(rate)
            seen = await follower.call("total")
            expected = TOKEN_SESSIONS * per_session * (rounds + 1)
            if seen != expected:
                raise AssertionError(f"{seen:,} increments seen, {expected:,} written")
    return rates


async def _write_all(session: Session, count: int) -> None:
    async with session.reply(agent="a", model="m") as reply:
        for number in range(count):
            await reply.write(WORDS[number % 10])


# --- at a model's pace ---------------------------------------------------------------------------


async def run_paced(bench: Bench) -> list[Result]:
    """Project and yardstick in turns, subscriber in the writers' process for both."""
    seconds = bench.pick(6, 2)
    async with (
        bench.place.fresh() as own_ground,
        bench.place.fresh() as bare_ground,
        project.new_log(own_ground) as log,
        yardstick.running(bare_ground) as bare,
    ):
        sessions = await project.new_sessions(log, TOKEN_SESSIONS)
        async with _same_process_follower(own_ground, sessions) as follower:
            await follower.call("ready")

            async def own_round() -> PacedRound:
                found = await _paced_round(sessions, follower, seconds=seconds)
                bench.say(f"project    {found}")
                return found

            async def bare_round() -> PacedRound:
                found = await yardstick.token_round(bare, bare_ground, seconds=seconds)
                bench.say(f"yardstick  {found}")
                return found

            pairs = await alternate(own_round, bare_round, rounds=bench.count(5, 2))
    own = [pair[0].latency for pair in pairs]
    other = [pair[1].latency for pair in pairs]
    beside = f"yardstick {median(s.p50 for s in other):.2f} / {median(s.p99 for s in other):.2f} ms"
    return [
        shown("paced", "call → subscriber p50", median(s.p50 for s in own), "ms", note=beside),
        shown("paced", "call → subscriber p99", median(s.p99 for s in own), "ms"),
        at_most(
            "paced", "p50 ÷ yardstick", median_ratio(pairs, lambda r: r.latency.p50), "×", target=3
        ),
    ]


def _same_process_follower(
    ground: Ground, sessions: list[Session]
) -> AbstractAsyncContextManager[Local]:
    return same_process(
        following_tokens,
        ground.postgres_url,
        ground.redis_url,
        [session.id for session in sessions],
        noting=True,
    )


async def _paced_round(sessions: list[Session], follower: Local, *, seconds: float) -> PacedRound:
    """One reply per session at a pace; each call's time is matched with its arrival."""
    sent: list[list[int]] = [[] for _ in sessions]
    await follower.call("take_seen")
    before = int(await follower.call("total"))
    async with AsyncExitStack() as stack:
        replies: list[Any] = [
            await stack.enter_async_context(session.reply(agent="a", model="m", flush_seconds=0))
            for session in sessions
        ]

        async def write(index: int, number: int) -> None:
            sent[index].append(time.monotonic_ns())
            await replies[index].write(WORDS[number % 10])

        await pace(write, sessions=len(sessions), per_second=TOKENS_PER_SECOND, seconds=seconds)
        expected = before + sum(len(calls) for calls in sent)

        async def all_seen() -> bool:
            return int(await follower.call("total")) >= expected

        await wait_until(all_seen, poll_seconds=0.01, timeout_seconds=ARRIVAL_TIMEOUT_SECONDS)
    return PacedRound.of(sent, await follower.call("take_seen"))


CASES = [
    Case("tokens", "32 replies unthrottled, durable and seen by a subscriber", run_unthrottled),
    Case("paced", "32 replies at 30 tokens/s, call → subscriber, against the yardstick", run_paced),
]
