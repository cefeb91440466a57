"""Time travel: what a long session costs those who read it at any point.

`timetravel`: a session of 100,000 events as two agents make them, which answer in turns with a tool
call between: streamed replies as frames, tool results, hand-offs, and a compaction every 5,000
events. It is written in large batches
with nobody reading it, so the first reader folds all of it, once, and leaves snapshots behind; that
is a figure of its own. After that: the state at random seqs and at random times, the context now
and at random seqs, and how long a subscription from now on takes to be live.

`compactions`: the context after 0, 1, 10 and 50 compactions with 4 KB summaries, 100 messages after
the last. The sessions are padded at their beginning, so that the newest snapshot lies before the
last compaction in each: what differs is the history, and it must not show.

*Cold* is a log that was just opened and has only read another session, as in `context`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks import project
from benchmarks.measure import Bench, Case, Result, Spread, at_most, median_ratio, shown, spread
from benchmarks.project import CONTENT, WORDS
from benchmarks.servers import Ground

if TYPE_CHECKING:
    from eventlog import EventLog, Session
    from eventlog.envelope import Draft

CASE: Final = "timetravel"
EVENTS: Final = 100_000
EVENTS_PER_TURN: Final = 100
FRAME_INCREMENTS: Final = 32
TURNS_PER_HANDOFF: Final = 10
HANDOFF_CONTEXT_BYTES: Final = 2_000
TURNS_PER_COMPACTION: Final = 50
TOOL_RESULT_BYTES: Final = 800
BATCH_DRAFTS: Final = 1_000
COMPACTION_COUNTS: Final = (0, 1, 10, 50)
SUMMARY: Final = "They spoke of many things. " * 150
"""4 KB, as summaries of long sessions are."""
TARGET_MS: Final = 10
FLAT_RATIO: Final = 1.5
SEED: Final = 20_261_122

Opening = Callable[[], AbstractAsyncContextManager["EventLog"]]
Reading = Callable[["EventLog", "Session"], Awaitable[Any]]


async def run_timetravel(bench: Bench) -> list[Result]:
    """Write the session, read it once, then travel."""
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        other = (await project.new_sessions(log, 1))[0]
        session = (await project.new_sessions(log, 1))[0]
        turns = bench.count(EVENTS, EVENTS // 10) // EVENTS_PER_TURN
        started = time.perf_counter()
        await _write_turns(session, turns)
        seconds = time.perf_counter() - started
        head = await session.head()
        bench.say(f"{head:,} events are written, {head / seconds:,.0f}/s")
        first = await timed(session.replay)
        await log.replayer.aclose()
        saved = await ground.connection.fetchval("select count(*) from eventlog.snapshots")
        bench.say(f"the first reader took {first * 1e3:.0f} ms and left {saved} snapshots")
        results = [
            shown(CASE, f"{head:,} events in batches of {BATCH_DRAFTS}", head / seconds, "/s"),
            shown(
                CASE, "state now, first reader ever", first * 1e3, "ms", note=f"{saved} snapshots"
            ),
        ]
        results += await _travel(bench, ground, log, session, other)
    return results


async def _travel(
    bench: Bench, ground: Ground, log: EventLog, session: Session, other: Session
) -> list[Result]:
    """All kinds of reading, warm and cold."""
    begin, end, head = await _bounds(session)
    chance = random.Random(SEED)

    def any_seq() -> int:
        return chance.randint(1, head)

    def any_time() -> datetime:
        return begin + timedelta(seconds=chance.random() * (end - begin).total_seconds())

    kinds: dict[str, tuple[Reading, float | None]] = {
        "state at a random seq": (lambda log, one: one.replay(any_seq()), TARGET_MS),
        "state at a random time": (lambda log, one: one.replay(any_time()), TARGET_MS),
        "state now": (lambda log, one: one.replay(), None),
        "context now": (_context, None),
        "context at a random seq": (lambda log, one: one.context(at=any_seq()), TARGET_MS),
        "subscription from now until it is live": (lambda log, one: _go_live(one, head), None),
    }
    openings: dict[str, tuple[Opening, int]] = {
        "": (lambda: _warm(log), bench.count(300, 40)),
        ", cold": (lambda: cold(ground, other), bench.count(60, 10)),
    }
    results: list[Result] = []
    for kind, (call, target) in kinds.items():
        for how, (opening, repeats) in openings.items():
            found = await _spread_of(call, session, opening, repeats=repeats)
            bench.say(f"{kind}{how}: {found} ms")
            name = f"{kind}{how}, p50"
            if target is None:
                results.append(shown(CASE, name, found.p50, "ms"))
            else:
                results.append(at_most(CASE, name, found.p50, "ms", target=target))
            results.append(shown(CASE, f"{kind}{how}, p99", found.p99, "ms"))
    return results


async def run_compactions(bench: Bench) -> list[Result]:
    """Contexts of sessions that were compacted more and more often, in turns, cold."""
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        other = (await project.new_sessions(log, 1))[0]
        sessions = {count: await _compacted(log, count) for count in COMPACTION_COUNTS}
        async with project.open_log(ground.postgres_url, ground.redis_url) as reader:
            for session in sessions.values():
                await (await reader.session(session.id)).replay()
        bench.say("sessions are written, and read once")
        times: dict[int, list[float]] = {count: [] for count in sessions}
        for _ in range(bench.count(100, 10)):
            for count, session in sessions.items():
                async with cold(ground, other) as log_now:
                    mine = await log_now.session(session.id)
                    times[count].append(await timed(partial(_context, log_now, mine)))
    found = {count: spread(each, scale=1e3) for count, each in times.items()}
    for count, each in found.items():
        bench.say(f"after {count} compactions: {each} ms")
    return [
        *(shown("compactions", f"context after {n}, cold, p50", found[n].p50, "ms") for n in found),
        at_most(
            "compactions",
            "context after 50 ÷ after 1, cold, median of rounds",
            median_ratio(list(zip(times[50], times[1], strict=True)), float),
            "×",
            target=FLAT_RATIO,
        ),
    ]


# --- reading -------------------------------------------------------------------------------------


async def _bounds(session: Session) -> tuple[datetime, datetime, int]:
    """Times of the first and the last event, and the last seq."""
    state = await session.replay()
    assert state.created_at is not None and state.updated_at is not None
    return state.created_at, state.updated_at, state.seq


async def _context(log: EventLog, session: Session) -> list[dict[str, Any]]:
    """The context now from Postgres, whatever the cache in Redis has."""
    return (await log.replayer.context_state(session.id, None)).context()


async def _spread_of(call: Reading, session: Session, opening: Opening, *, repeats: int) -> Spread:
    times: list[float] = []
    for _ in range(repeats):
        async with opening() as log:
            mine = await log.session(session.id)
            times.append(await timed(partial(call, log, mine)))
    return spread(times, scale=1e3)


async def _go_live(session: Session, head: int) -> None:
    """Subscribe behind the last event, and return when only the live tail is waited for."""
    async with session.subscribe(after=head) as subscription:
        following = asyncio.create_task(anext(subscription))
        while subscription.state != "live":
            await asyncio.sleep(0)
            if following.done():
                following.result()
        following.cancel()
        await asyncio.wait([following])


@asynccontextmanager
async def _warm(log: EventLog) -> AsyncIterator[EventLog]:
    yield log


@asynccontextmanager
async def cold(ground: Ground, other: Session) -> AsyncIterator[EventLog]:
    """A log just opened, whose connection has prepared its statements on another session."""
    async with project.open_log(ground.postgres_url, ground.redis_url) as log:
        await (await log.session(other.id)).replay()
        yield log


async def timed(call: Callable[[], Awaitable[Any]]) -> float:
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started


# --- writing -------------------------------------------------------------------------------------


async def _write_turns(session: Session, turns: int) -> None:
    """Turns of `EVENTS_PER_TURN` events, many to a commit, and a compaction now and then."""
    from eventlog import CompactionCompleted

    batch: list[Draft] = []
    seq = 1
    for turn in range(turns):
        batch += _turn(session, turn)
        seq += EVENTS_PER_TURN
        if turn % TURNS_PER_COMPACTION == TURNS_PER_COMPACTION - 1:
            done = CompactionCompleted(
                summary=SUMMARY, from_seq=2, to_seq=seq - 5 * EVENTS_PER_TURN
            )
            batch.append(session.draft(done))
            seq += 1
        if len(batch) > BATCH_DRAFTS - 2 * EVENTS_PER_TURN or turn == turns - 1:
            await session.append_drafts(batch)
            batch = []


def _turn(session: Session, turn: int) -> list[Draft]:
    """A question, the planner's reply and its tool call, and the coder's reply."""
    from eventlog import AgentHandedOff, MessageAdded, ToolCall

    call = ToolCall(id=f"c{turn}", name="search", arguments='{"query":"the log keeps it"}')
    result = "r" * TOOL_RESULT_BYTES
    drafts = [session.draft(MessageAdded(role="user", content=CONTENT, token_count=50))]
    drafts += _reply(session, f"p{turn}", "planner", 40)
    drafts += [
        session.draft(MessageAdded(role="assistant", agent="planner", tool_calls=[call])),
        session.draft(MessageAdded(role="tool", content=result, tool_call_id=call.id)),
    ]
    handed = turn % TURNS_PER_HANDOFF == 0
    if handed:
        told = {"so far": "h" * HANDOFF_CONTEXT_BYTES}
        drafts.append(session.draft(AgentHandedOff(to_agent="coder", context=told)))
    used = sum(draft.span for draft in drafts)
    return drafts + _reply(session, f"c{turn}", "coder", EVENTS_PER_TURN - used - 2)


def _reply(session: Session, message_id: str, agent: str, increments: int) -> list[Draft]:
    """A streamed reply as `session.reply()` stores it."""
    from eventlog import MessageCompleted, MessageStarted, TokensAppended
    from eventlog.codec import encode_frame
    from eventlog.envelope import FRAME, Draft, new_id
    from eventlog.events import type_code

    texts = [WORDS[number % len(WORDS)] for number in range(increments)]
    drafts = [session.draft(MessageStarted(message_id=message_id, agent=agent, model="m"))]
    for start in range(0, increments, FRAME_INCREMENTS):
        part = texts[start : start + FRAME_INCREMENTS]
        frame = TokensAppended(message_id=message_id, texts=part, ms=[30] * len(part))
        drafts.append(Draft(new_id(), type_code(frame), FRAME, len(part), encode_frame(frame)))
    ended = MessageCompleted(message_id=message_id, content="".join(texts), token_count=increments)
    return [*drafts, session.draft(ended)]


async def _compacted(log: EventLog, count: int) -> Session:
    """A session with so many compactions, each of the 100 messages before it but for some."""
    from eventlog import CompactionCompleted, MessageAdded
    from eventlog.replay import SNAPSHOT_ROWS

    session = (await project.new_sessions(log, 1))[0]
    hundred = [MessageAdded(role="user", content=CONTENT, token_count=50)] * 100
    rows = 1 + len(hundred) * count + count - 1  # before the last compaction
    padding = -rows % SNAPSHOT_ROWS if count else 0
    if padding:
        await session.append((hundred * 6)[:padding])
    for _ in range(count):
        last = (await session.append(hundred)).last_seq
        done = CompactionCompleted(summary=SUMMARY, from_seq=2, to_seq=last - 10, kept=[2, 3])
        await session.append(done)
    await session.append(hundred)
    return session


CASES = [
    Case(CASE, "states, contexts and subscriptions in a session of 100,000 events", run_timetravel),
    Case("compactions", "context after 50 compactions beside that after 1", run_compactions),
]
