"""Reading: what a model sees next, and the state at any point of a long session.

`context`: of a session with 10,000 messages of which a compaction left the newest 99 and a summary,
beside one with 100 messages: the same size, a hundredth of the history.

`replay`: the state at a random seq, of a session of 10,000 messages and of one of 10,000 events as
agents make them (a question, then a reply of about a hundred increments).

Each is measured twice: in a log that has read the session before, and cold, in a log that was just
opened and has only read another session, as a process does that was just started.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from benchmarks import project
from benchmarks.measure import Bench, Case, Result, Spread, at_most, shown, spread
from benchmarks.project import CONTENT, WORDS
from benchmarks.servers import Ground

if TYPE_CHECKING:
    from eventlog import EventLog, Session

SHORT_MESSAGES = 100
LONG_MESSAGES = 10_000
BATCH_MESSAGES = 500
REPLY_INCREMENTS = 97
"""With the question, the start and the end of the reply: 100 events a turn."""
SEED = 20_240_229


async def run_context(bench: Bench) -> list[Result]:
    """Both sessions in turns, many times; the figures are ratios of medians."""
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        other = await _messages(log, 1)
        short = await _messages(log, SHORT_MESSAGES)
        long = await _messages(log, LONG_MESSAGES)
        bench.say(f"sessions of {SHORT_MESSAGES} and {LONG_MESSAGES:,} messages are written")
        whole = await _timed(long.context, bench.count(10, 3))
        whole_count = len(await long.context())
        await _compact(long)
        short_count, long_count = len(await short.context()), len(await long.context())
        bench.say(f"contexts hold {short_count} and {long_count} messages")
        if not SHORT_MESSAGES <= long_count < 2 * SHORT_MESSAGES:
            raise AssertionError(f"the compacted context holds {long_count} messages")
        both = (short, long)
        warm = await _in_turns(both, lambda: _warm(log), repeats=bench.count(300, 50))
        bench.say(f"warm: 100 messages {warm[0]} ms; 10,000 compacted {warm[1]} ms")
        cold = await _in_turns(both, lambda: _cold(ground, other), repeats=bench.count(40, 8))
        bench.say(f"cold: 100 messages {cold[0]} ms; 10,000 compacted {cold[1]} ms")
    return [
        shown("context", "100 messages, p50", warm[0].p50, "ms"),
        shown("context", "10,000 messages after a compaction, p50", warm[1].p50, "ms"),
        at_most("context", "10,000 ÷ 100 messages", warm[1].p50 / warm[0].p50, "×", target=3),
        shown("context", "100 messages, cold, p50", cold[0].p50, "ms"),
        shown("context", "10,000 messages after a compaction, cold, p50", cold[1].p50, "ms"),
        at_most("context", "10,000 ÷ 100 messages, cold", cold[1].p50 / cold[0].p50, "×", target=3),
        shown(
            "context",
            "10,000 messages before the compaction, p50",
            whole.p50,
            "ms",
            note=f"{whole_count:,} messages",
        ),
    ]


async def run_replay(bench: Bench) -> list[Result]:
    """States at random seqs; a fixed seed, so that every run asks for the same ones."""
    results: list[Result] = []
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        other = await _messages(log, 1)
        sessions = {
            "10,000 messages": await _messages(log, LONG_MESSAGES),
            "10,000 events of an agent": await _turns(log, LONG_MESSAGES // (REPLY_INCREMENTS + 3)),
        }
        for name, session in sessions.items():
            last = (await session.replay()).seq
            seqs = random.Random(SEED)
            warm = [
                await _replay_time(log, session, seqs.randint(1, last))
                for _ in range(bench.count(300, 50))
            ]
            cold: list[float] = []
            for _ in range(bench.count(40, 8)):
                async with _cold(ground, other) as fresh:
                    cold.append(await _replay_time(fresh, session, seqs.randint(1, last)))
            found, found_cold = spread(warm, scale=1e3), spread(cold, scale=1e3)
            bench.say(f"{name} ({last:,} events): warm {found} ms; cold {found_cold} ms")
            results += [
                at_most("replay", f"{name}, p50", found.p50, "ms", target=5),
                shown("replay", f"{name}, p99", found.p99, "ms"),
                at_most("replay", f"{name}, cold, p50", found_cold.p50, "ms", target=5),
            ]
    return results


async def _replay_time(log: EventLog, session: Session, at: int) -> float:
    mine = await log.session(session.id)
    started = time.perf_counter()
    state = await mine.replay(at=at)
    spent = time.perf_counter() - started
    if state.seq != at:
        raise AssertionError(f"replay(at={at}) stands at {state.seq}")
    return spent


async def _in_turns(
    sessions: tuple[Session, Session],
    opening: Callable[[], AbstractAsyncContextManager[EventLog]],
    *,
    repeats: int,
) -> tuple[Spread, Spread]:
    """Times (ms) of `context()` of both sessions, each call in a log that `opening` gives."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for session, of_this in zip(sessions, times, strict=True):
            async with opening() as log:
                mine = await log.session(session.id)
                of_this.append(await _time(mine.context))
    return spread(times[0], scale=1e3), spread(times[1], scale=1e3)


@asynccontextmanager
async def _warm(log: EventLog) -> AsyncIterator[EventLog]:
    yield log


@asynccontextmanager
async def _cold(ground: Ground, other: Session) -> AsyncIterator[EventLog]:
    """A log just opened, whose connection has prepared its statements on another session."""
    async with project.open_log(ground.postgres_url, ground.redis_url) as log:
        await (await log.session(other.id)).replay()
        yield log


async def _messages(log: EventLog, count: int) -> Session:
    """A session with `count` messages of 200 bytes, user and assistant in turns."""
    from eventlog import MessageAdded

    session = (await project.new_sessions(log, 1))[0]
    for start in range(0, count, BATCH_MESSAGES):
        await session.append(
            [
                MessageAdded(role="assistant" if number % 2 else "user", content=CONTENT)
                for number in range(start, min(count, start + BATCH_MESSAGES))
            ]
        )
    return session


async def _turns(log: EventLog, count: int) -> Session:
    """A session of questions and streamed replies, 100 events a turn."""
    session = (await project.new_sessions(log, 1))[0]
    for _ in range(count):
        await session.append(project.message())
        async with session.reply(agent="a", model="m") as reply:
            for number in range(REPLY_INCREMENTS):
                await reply.write(WORDS[number % 10])
    return session


async def _compact(session: Session) -> None:
    """Append the summary of all but the newest 99 messages, as a compaction worker does."""
    from eventlog import CompactionCompleted

    last = (await session.replay()).seq
    await session.append(
        CompactionCompleted(
            summary="They spoke of many things. " * 20,
            from_seq=2,
            to_seq=last - (SHORT_MESSAGES - 1),
            model="bench",
        )
    )


async def _time(call: Callable[[], Awaitable[Any]]) -> float:
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started


async def _timed(call: Callable[[], Awaitable[Any]], repeats: int) -> Spread:
    return spread([await _time(call) for _ in range(repeats)], scale=1e3)


CASES = [
    Case("context", "context of 10,000 compacted messages beside one of 100", run_context),
    Case("replay", "state at a random seq of 10,000 events", run_replay),
]
