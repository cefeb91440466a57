"""Compaction: what it costs beside the model, and whether that grows with the history.

`token-counts`: how fast text is counted, and how long it takes to measure a context of about
200,000 tokens: the first time, and again after one more message, as in a long session.

`compact`: one compaction with a summariser that answers at once: plan, checks, append. Sessions of
1,000 and of 50,000 messages before the last summary, with the same 400 since, in turns, each in a
log that was just opened: what differs is the history, and it must not show.
"""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks import project
from benchmarks.measure import Bench, Case, Result, at_most, median_ratio, shown, spread
from benchmarks.timetravel import cold, timed

if TYPE_CHECKING:
    from eventlog import EventLog, Material, MessageAdded, Session, Summary

CASE: Final = "compact"
CONTEXT_MESSAGES: Final = 1_000
CONTEXT_WORDS: Final = 150
"""In each of them: about 200 tokens."""
HISTORIES: Final = (1_000, 50_000)
SINCE: Final = 400
BATCH: Final = 500
SUMMARY: Final = "They spoke of many things. " * 100
FLAT_RATIO: Final = 1.5
SEED: Final = 20_261_122


async def run_token_counts(bench: Bench) -> list[Result]:
    """Text, and contexts, by the tokenizer of the newest models."""
    from eventlog import EventLog
    from eventlog.compaction.tokens import count_text

    chance = random.Random(SEED)
    text = "".join(_words(chance, 200_000))
    count_text("", "gpt-5")  # reads the vocabulary
    started = time.perf_counter()
    tokens = count_text(text, "gpt-5").tokens
    seconds = time.perf_counter() - started
    bench.say(f"{len(text):,} characters are {tokens:,} tokens, {seconds * 1e3:.0f} ms")
    first: list[float] = []
    again: list[float] = []
    size = 0
    for _ in range(bench.count(10, 3)):
        async with EventLog.in_memory() as log:
            session = await log.create_session()
            await session.append([_message(chance, number) for number in range(CONTEXT_MESSAGES)])
            await session.context()
            first.append(await timed(partial(session.context_tokens, "gpt-5")))
            await session.append(_message(chance, 0))
            again.append(await timed(partial(session.context_tokens, "gpt-5")))
            size = (await session.context_tokens("gpt-5")).tokens
    one, other = spread(first, scale=1e3), spread(again, scale=1e3)
    bench.say(f"a context of {size:,} tokens: {one} ms; one message later {other} ms")
    return [
        shown("token-counts", "text", len(text) / seconds / 1e6, "M characters/s"),
        shown("token-counts", f"context of {size:,} tokens, first, p50", one.p50, "ms"),
        shown("token-counts", "the same one message later, p50", other.p50, "ms"),
    ]


async def run_compact(bench: Bench) -> list[Result]:
    """Two sessions in turns, each with new messages before it is compacted again."""
    histories = [bench.count(count, count // 10) for count in HISTORIES]
    times: dict[int, list[float]] = {count: [] for count in histories}
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        other = (await project.new_sessions(log, 1))[0]
        sessions = {count: await _session(log, count) for count in histories}
        for count, session in sessions.items():
            await session.replay()  # leaves snapshots behind, as readers and projectors do
            bench.say(f"a session of {count:,} messages is written and compacted")
        for _ in range(bench.count(30, 5)):
            for count, session in sessions.items():
                await _append(session, SINCE)
                await session.context()
                async with cold(ground, other) as fresh:
                    mine = await fresh.session(session.id)
                    times[count].append(await timed(partial(mine.compact, summarizer=Instant())))
    found = {count: spread(each, scale=1e3) for count, each in times.items()}
    for count, each in found.items():
        bench.say(f"{count:,} messages before: {each} ms")
    short, long = histories
    return [
        *(
            shown(CASE, f"{SINCE} messages after {n:,}, cold, p50", found[n].p50, "ms")
            for n in histories
        ),
        at_most(
            CASE,
            f"after {long:,} ÷ after {short:,}, cold, median of rounds",
            median_ratio(list(zip(times[long], times[short], strict=True)), float),
            "×",
            target=FLAT_RATIO,
        ),
    ]


class Instant:
    """A summariser that has its answer at hand."""

    async def summarize(self, material: Material) -> Summary:
        """The same words whatever it is given."""
        from eventlog import Summary

        del material
        return Summary(text=SUMMARY, model="bench")


async def _session(log: EventLog, count: int) -> Session:
    session = (await project.new_sessions(log, 1))[0]
    await session.set_compaction_policy("module-9")
    await _append(session, count)
    if await session.compact(summarizer=Instant()) is None:
        raise AssertionError("there was nothing to compact")
    return session


async def _append(session: Session, count: int) -> None:
    chance = random.Random(SEED)
    for start in range(0, count, BATCH):
        numbers = range(start, min(count, start + BATCH))
        await session.append([_message(chance, number) for number in numbers])


def _message(chance: random.Random, number: int) -> MessageAdded:
    from eventlog import MessageAdded

    content = "".join(_words(chance, CONTEXT_WORDS))
    return MessageAdded(role="assistant" if number % 2 else "user", content=content, model="gpt-5")


def _words(chance: random.Random, count: int) -> list[str]:
    """Words, and now and then a number, so that no two messages are the same."""
    some = chance.choices(project.WORDS, k=count)
    return [f"{each}{chance.randint(0, 99)}" if i % 7 == 0 else each for i, each in enumerate(some)]


CASES = [
    Case("token-counts", "counting tokens, and measuring a context", run_token_counts),
    Case(CASE, "a compaction after 50,000 messages beside one after 1,000", run_compact),
]
