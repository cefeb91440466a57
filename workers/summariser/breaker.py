"""A circuit breaker: an endpoint that fails again and again is left alone for a while.

    closed ── FAILURES_MAX in a row ──> open ── the pause is over ──> half-open
      ^                                  ^                              │    │
      │                                  └─── twice as long ── it failed┘    │
      └──────────────────────────────────────────────────────── it worked ───┘

While it is half-open, one attempt is let through as a trial. Failures of the material (an empty
answer, a refusal, one that was cut off) don't count: the endpoint answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from eventlog.compaction.summarizer import FailureKind, SummaryFailed

FAILURES_MAX: Final = 5
"""Failures in a row that open the breaker."""
PAUSE_SECONDS: Final = 30.0
"""How long it stays open at first."""
PAUSE_SECONDS_MAX: Final = 600.0
"""How long it stays open at most, however often the trial failed."""
OF_ENDPOINT: Final[frozenset[FailureKind]] = frozenset(
    {"rate_limited", "server_error", "timeout", "connection_lost", "rejected", "bad_answer"}
)
"""Failures that speak of the endpoint, its key or its settings."""
UNASKED: Final[frozenset[FailureKind]] = frozenset({"no_budget", "circuit_open"})
"""Failures that came before the endpoint was asked, and say nothing of it."""

State = Literal["closed", "open", "half-open"]


class Breaker:
    """The breaker of one endpoint, shared by all who ask it. `clock` counts seconds upwards."""

    def __init__(
        self,
        *,
        failures_max: int = FAILURES_MAX,
        pause_seconds: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures_max = failures_max
        self._pause_min = self._pause_seconds = pause_seconds
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._trial: object | None = None

    @property
    def state(self) -> State:
        """Whether attempts are let through: all, none, or one as a trial."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one attempt: raises `SummaryFailed` ("circuit_open"), or learns how it went.

        An attempt that ends in any other way than with a `SummaryFailed`, or well, says nothing.
        """
        mine = self._enter()
        try:
            yield
        except SummaryFailed as failure:
            if failure.kind in OF_ENDPOINT:
                self._failed(mine, failure.retry_after_seconds or 0.0)
            elif failure.kind not in UNASKED:
                self._worked()
            raise
        else:
            self._worked()
        finally:
            if self._trial is mine:
                self._trial = None

    def _enter(self) -> object:
        mine = object()
        state = self.state
        if state == "closed":
            return mine
        if state == "half-open" and self._trial is None:
            self._trial = mine
            return mine
        assert self._open_until is not None
        left = self._open_until - self._clock()
        raise SummaryFailed(
            "circuit_open",
            f"the endpoint failed {self._failures} times in a row and is left alone for a while",
            retry_after_seconds=left if left > 0 else self._pause_min,
        )

    def _worked(self) -> None:
        self._failures = 0
        self._open_until = None
        self._pause_seconds = self._pause_min

    def _failed(self, mine: object, asked_seconds: float) -> None:
        self._failures += 1
        if self._trial is mine:
            self._pause_seconds = min(self._pause_seconds * 2, PAUSE_SECONDS_MAX)
        elif self._open_until is not None or self._failures < self._failures_max:
            return  # one that was under way when it opened changes nothing
        self._open_until = self._clock() + max(
            self._pause_seconds, min(asked_seconds, PAUSE_SECONDS_MAX)
        )
