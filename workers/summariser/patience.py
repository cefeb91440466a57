"""The same request again, where that can help; and what all requests of a summary cost.

A rate limit, an error of the server, a deadline and a lost connection may be over in a moment: the
request is sent up to `TRIES_MAX` times, after growing pauses that are jittered, so that many
workers don't come back at once. A pause that the endpoint asks for is kept, if it isn't longer than
`ASKED_PAUSE_SECONDS_MAX`; a longer one is the caller's to keep. Everything else fails at once: the
same question to the same model would be answered the same way.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final

from eventlog.compaction.summarizer import FailureKind, SummaryFailed
from eventlog.events import Usage
from workers.summariser.client import ModelClient, Question

TRIES_MAX: Final = 3
PAUSE_SECONDS_MIN: Final = 0.5
"""Before the second try, about; it doubles with each."""
PAUSE_SECONDS_MAX: Final = 8.0
ASKED_PAUSE_SECONDS_MAX: Final = 20.0
"""Longest pause that is waited for here, when the endpoint asks for one."""
PASSING: Final[frozenset[FailureKind]] = frozenset(
    {"rate_limited", "server_error", "timeout", "connection_lost"}
)
"""Failures that may be over in a moment."""

Pause = Callable[[float], Awaitable[None]]


class Tally:
    """What the requests of one summary cost, those that failed included."""

    def __init__(self) -> None:
        self.calls = 0
        self.usage: Usage | None = None

    def add(self, usage: Usage | None) -> None:
        """Count a request, and what its answer reported."""
        self.calls += 1
        if usage is None:
            return
        total = self.usage or Usage()
        self.usage = Usage(
            input_tokens=total.input_tokens + usage.input_tokens,
            output_tokens=total.output_tokens + usage.output_tokens,
            cached_tokens=total.cached_tokens + usage.cached_tokens,
            reasoning_tokens=total.reasoning_tokens + usage.reasoning_tokens,
        )

    def onto(self, failure: SummaryFailed) -> SummaryFailed:
        """The failure, with what everything up to it cost."""
        failure.usage, failure.calls = self.usage, self.calls
        return failure


async def ask_patiently(
    client: ModelClient,
    question: Question,
    tally: Tally,
    *,
    pause: Pause = asyncio.sleep,
    chance: Callable[[], float] = random.random,
) -> str:
    """The text of the answer. Raises `SummaryFailed` of the last try; the costs are in `tally`."""
    for tries_left in reversed(range(TRIES_MAX)):
        try:
            answer = await client.ask(question)
        except SummaryFailed as failure:
            tally.add(failure.usage)
            seconds = _pause_seconds(failure, tries_left, chance)
            if seconds is None:
                raise
        else:
            tally.add(answer.usage)
            return answer.text
        await pause(seconds)
    raise AssertionError("the last try has returned or raised")


def _pause_seconds(
    failure: SummaryFailed, tries_left: int, chance: Callable[[], float]
) -> float | None:
    """How long to wait before the next try; None: there is to be none."""
    if not tries_left or failure.kind not in PASSING:
        return None
    doubled = math.ldexp(PAUSE_SECONDS_MIN, TRIES_MAX - 1 - tries_left)
    own = min(PAUSE_SECONDS_MAX, doubled) * (0.5 + chance() / 2)
    asked = failure.retry_after_seconds
    if asked is None:
        return own
    # Never earlier than asked; a little later, or all whom it told the same come back at once.
    return asked + own / 2 if asked <= ASKED_PAUSE_SECONDS_MAX else None
