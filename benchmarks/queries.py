"""Questions to the views of a large log: lists, pages of messages, searches, sums.

A log of 110,000 sessions and 1.1 million messages is written as sets (`read_side`), so that filling
takes a minute; one user has 100,000 of the sessions. Then the library asks through its public
methods, over one connection, as a gateway would: what is timed is everything, from the call to the
structs. Searches go for words of every frequency, those too that no index helps with.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from benchmarks import project
from benchmarks.measure import Bench, Case, Result, Spread, at_most, shown, spread

if TYPE_CHECKING:
    from eventlog import EventLog

CASE: Final = "queries"
SESSIONS: Final = 110_000
SESSIONS_QUICK: Final = 20_000
MESSAGES_PER_SESSION: Final = 10
TARGET_LIST_MS: Final = 2.0
REPEATS: Final = 200
REPEATS_QUICK: Final = 30
SLOW_REPEATS: Final = 10
SLOW_MS: Final = 50
"""What takes longer than this, once, is repeated less."""

Question = Callable[[], Awaitable[Any]]


async def run_queries(bench: Bench) -> list[Result]:
    """Fill the log, then ask."""
    from benchmarks.read_side import fill

    sessions = bench.count(SESSIONS, SESSIONS_QUICK)
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        await fill(
            ground.connection,
            sessions=sessions,
            messages_per_session=MESSAGES_PER_SESSION,
            events_per_session=MESSAGES_PER_SESSION,
        )
        messages = sessions * MESSAGES_PER_SESSION
        bench.say(f"{sessions:,} sessions, {messages:,} messages are written")
        repeats = bench.count(REPEATS, REPEATS_QUICK)
        results: list[Result] = []
        for name, (question, target) in _questions(log, sessions).items():
            found = await _ask(question, repeats)
            bench.say(f"{name}: {found} ms")
            if target is None:
                results.append(shown(CASE, f"{name}, p50", found.p50, "ms"))
            else:
                results.append(at_most(CASE, f"{name}, p50", found.p50, "ms", target=target))
            results.append(shown(CASE, f"{name}, p99", found.p99, "ms"))
        return results


def _questions(log: EventLog, sessions: int) -> dict[str, tuple[Question, float | None]]:
    """Each question, and what it should take at most."""
    from benchmarks.read_side import HEAVY_USER, LIGHT_USERS, id_of

    light = LIGHT_USERS[7]
    session = log.handle(id_of(sessions // 2 + 1))
    rare = f'"w{sessions // 40}x1"'
    return {
        "a user's 50 newest sessions of 100,000": (
            lambda: log.sessions(user_id=HEAVY_USER, limit=50),
            TARGET_LIST_MS,
        ),
        "a user's 50 newest sessions of 100": (lambda: log.sessions(user_id=light), None),
        "the same with forks below": (
            lambda: log.sessions(user_id=HEAVY_USER, forks="nested"),
            None,
        ),
        "sessions by a word of their titles": (lambda: log.sessions(text="t777"), None),
        "page of messages of a session": (session.messages, None),
        "its newest 5 of a role": (lambda: session.messages(role="assistant", limit=5), None),
        "its usage": (session.usage, None),
        "search: word of 20 messages": (lambda: log.search(rare), None),
        "search: word of 1 in 100": (lambda: log.search("limit"), None),
        "search: word of every message": (lambda: log.search("the"), None),
        "search: two words": (lambda: log.search("limit rate"), None),
        "search: word of no message": (lambda: log.search('"nowhere"'), None),
        "search: word of the older half only": (lambda: log.search('"gone"'), None),
        "search: of a user, word of every message": (
            lambda: log.search("the", user_id=light),
            None,
        ),
        "search: in a session": (lambda: log.search("the", session=session), None),
        "usage by day and model of a user": (
            lambda: log.usage(by=("day", "model"), user_id=light),
            None,
        ),
        "usage by day of everybody": (lambda: log.usage(by="day"), None),
    }


async def _ask(question: Question, repeats: int) -> Spread:
    """Times of a question, after the first."""
    first = await _time(question)
    if first * 1e3 > SLOW_MS:
        repeats = min(repeats, SLOW_REPEATS)
    return spread([await _time(question) for _ in range(repeats)], scale=1e3)


async def _time(question: Question) -> float:
    started = time.perf_counter()
    await question()
    return time.perf_counter() - started


CASES = [Case(CASE, "lists, pages, searches and sums on a million messages", run_queries)]
