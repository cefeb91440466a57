"""The hour's limit of tokens: nothing is asked that might go beyond it.

What a summary may cost is reserved before the first question, and settled with what was reported
after the last: however many summaries are written at once, the limit holds.

`LocalBudget` counts for one process, over the last sixty minutes. `SharedBudget` counts for all
processes of a log, by the hours of the clock, in one key of Redis for each hour; while Redis is
away each process counts for itself. Counts are lost with the process, or with Redis: they guard
against a bill nobody expected, and are no bookkeeping.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from eventlog.compaction.summarizer import SummaryFailed
from eventlog.redis_link import RedisDown

HOUR_SECONDS: Final = 3600
KEPT_SECONDS: Final = 2 * HOUR_SECONDS
"""How long the key of an hour is kept: a summary may be settled after the hour is over."""

RESERVE: Final = """
local spent = redis.call('incrby', KEYS[1], ARGV[1])
redis.call('expire', KEYS[1], ARGV[3])
if spent > tonumber(ARGV[2]) then
    redis.call('decrby', KEYS[1], ARGV[1])
    return 0
end
return 1
"""
"""Add the tokens to the key's, unless that makes more than the limit: 1, else 0."""
SETTLE: Final = """
redis.call('incrby', KEYS[1], ARGV[1])
redis.call('expire', KEYS[1], ARGV[2])
return 1
"""

CallRedis = Callable[..., Awaitable[object]]
"""`RedisLink.call`, or `FanOut.call`."""


class Reservation(msgspec.Struct):
    """Tokens that were set aside. `tokens` becomes what was spent when it is settled."""

    tokens: int
    at: float
    key: str | None = None
    """Where it was counted in Redis; None: it wasn't."""


class TokenBudget(Protocol):
    """What may be spent."""

    async def reserve(self, tokens: int) -> Reservation:
        """Set tokens aside. Raises `SummaryFailed` ("no_budget") when there aren't as many."""
        ...

    async def settle(self, reservation: Reservation, tokens: int) -> None:
        """Say how many were spent in the end."""
        ...


class LocalBudget:
    """Counts for this process: `tokens_max` in any hour. `clock` counts seconds upwards."""

    def __init__(self, tokens_max: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens_max = tokens_max
        self._clock = clock
        self._reserved: deque[Reservation] = deque()

    @property
    def spent(self) -> int:
        """Tokens that were spent, or set aside, in the last hour."""
        self._forget()
        return sum(each.tokens for each in self._reserved)

    async def reserve(self, tokens: int) -> Reservation:
        """Set tokens aside. Raises `SummaryFailed` ("no_budget") when there aren't as many."""
        if self.spent + tokens > self._tokens_max:
            raise _no_budget(tokens, self._tokens_max, self._free_after(tokens))
        return self.count(tokens)

    def count(self, tokens: int, key: str | None = None) -> Reservation:
        """Set tokens aside without asking whether there are as many."""
        reservation = Reservation(tokens, self._clock(), key)
        self._reserved.append(reservation)
        return reservation

    async def settle(self, reservation: Reservation, tokens: int) -> None:
        """Say how many were spent in the end."""
        reservation.tokens = tokens

    def _forget(self) -> None:
        before = self._clock() - HOUR_SECONDS
        while self._reserved and self._reserved[0].at <= before:
            self._reserved.popleft()

    def _free_after(self, tokens: int) -> float:
        """Seconds until enough of what was spent is an hour ago."""
        missing = self.spent + tokens - self._tokens_max
        for each in self._reserved:
            missing -= each.tokens
            if missing <= 0:
                return each.at + HOUR_SECONDS - self._clock()
        return float(HOUR_SECONDS)


class SharedBudget:
    """Counts for all processes of a log. `prefix` names the log: `Keys.prefix`.

    `clock` says the seconds since 1970, which decide the hour.
    """

    def __init__(
        self,
        call: CallRedis,
        prefix: str,
        tokens_max: int,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._call = call
        self._prefix = prefix
        self._tokens_max = tokens_max
        self._clock = clock
        self._local = LocalBudget(tokens_max, clock=clock)

    async def reserve(self, tokens: int) -> Reservation:
        """Set tokens aside. Raises `SummaryFailed` ("no_budget") when there aren't as many."""
        now = self._clock()
        key = f"{self._prefix}:compaction:tokens:{int(now) // HOUR_SECONDS}"
        try:
            granted = await self._call(
                "EVAL", RESERVE, 1, key, tokens, self._tokens_max, KEPT_SECONDS
            )
        except RedisDown:
            return await self._local.reserve(tokens)
        if not granted:
            raise _no_budget(tokens, self._tokens_max, HOUR_SECONDS - now % HOUR_SECONDS)
        return self._local.count(tokens, key)

    async def settle(self, reservation: Reservation, tokens: int) -> None:
        """Say how many were spent in the end. While Redis is away, what was set aside stays so."""
        difference = tokens - reservation.tokens
        await self._local.settle(reservation, tokens)
        if reservation.key is None or not difference:
            return
        try:
            await self._call("EVAL", SETTLE, 1, reservation.key, difference, KEPT_SECONDS)
        except RedisDown:
            return  # the hour has less left than it could have: the safe side


def _no_budget(tokens: int, tokens_max: int, after_seconds: float) -> SummaryFailed:
    return SummaryFailed(
        "no_budget",
        f"the summary may take {tokens:,} tokens; so many are not left of {tokens_max:,} an hour",
        retry_after_seconds=max(0.0, after_seconds),
    )
