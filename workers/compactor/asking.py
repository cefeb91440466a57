"""Asking a summarizer on behalf of one session: in bounded time, once for the same material.

answered         the summary; asked again with the same material, the same summary
not now          `Postponed`: no model may be asked (`no_budget`, `circuit_open`). That says
                 nothing of the session, so nothing is appended, and it waits; unless somebody
                 asked for the compaction, who is told, or the context is full: then the
                 fallback is asked
everything else  `SummaryFailed`, be it too late, or a bug of the summarizer
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from eventlog.compaction.summarizer import (
    FailureKind,
    Material,
    Summarizer,
    Summary,
    SummaryFailed,
)
from eventlog.telemetry import get_logger

SUMMARY_SECONDS_MAX: Final = 900.0
"""Longest time for one summary, with all its calls."""
NOT_NOW: Final[frozenset[FailureKind]] = frozenset({"no_budget", "circuit_open"})
"""Failures that say nothing of the session."""

_log = get_logger()


class Postponed(Exception):
    """No model may be asked now. Internal."""

    def __init__(self, failure: SummaryFailed) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Asking:
    """A `Summarizer` for one session's work: wraps the one that all share."""

    def __init__(
        self,
        inner: Summarizer,
        fallback: Summarizer,
        *,
        seconds_max: float = SUMMARY_SECONDS_MAX,
    ) -> None:
        self.when_barred: Literal["wait", "fail", "fall back"] = "wait"
        """What to do when no model may be asked."""
        self.asks_model = True
        """False: the fallback is asked, and nobody else."""
        self._inner = inner
        self._fallback = fallback
        self._seconds_max = seconds_max
        self._answer: tuple[Material, Summary] | None = None

    async def summarize(self, material: Material) -> Summary:
        """Summarise. Raises `SummaryFailed`, or `Postponed`."""
        if self._answer is not None and self._answer[0] == material:
            return self._answer[1]  # it could not be appended, and that is tried again
        try:
            summary = await self._ask(material)
        except SummaryFailed:
            raise
        except TimeoutError:
            seconds = f"{self._seconds_max:g} s"
            raise SummaryFailed("timeout", f"no summary within {seconds}") from None
        except Postponed:
            raise
        except Exception as error:
            session_id = str(material.session_id)
            _log.error("worker.failed", worker="compactor", session_id=session_id, exc_info=error)
            reason = f"the summariser broke with {type(error).__name__}"
            raise SummaryFailed("bad_answer", reason) from error
        self._answer = (material, summary)
        return summary

    async def _ask(self, material: Material) -> Summary:
        async with asyncio.timeout(self._seconds_max):
            if not self.asks_model:
                return await self._fallback.summarize(material)
            try:
                return await self._inner.summarize(material)
            except SummaryFailed as failure:
                if failure.kind not in NOT_NOW or self.when_barred == "fail":
                    raise
                if self.when_barred == "wait":
                    raise Postponed(failure) from failure
            return await self._fallback.summarize(material)
