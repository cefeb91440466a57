"""A summarizer behind a circuit breaker and a budget, and the one that the settings describe."""

from __future__ import annotations

from typing import Final, Protocol

from eventlog.compaction.summarizer import FailureKind, Material, Summary, SummaryFailed
from eventlog.events import Usage
from eventlog.settings import Settings
from workers.summariser.breaker import Breaker
from workers.summariser.budget import LocalBudget, TokenBudget
from workers.summariser.model_summarizer import ModelSummarizer

PROMPT_TOKENS: Final = 1_000
"""What a question takes beside the material, about."""
NO_MODEL: Final = "none"
"""Setting of the model that says: ask none."""
UNSPENT: Final[frozenset[FailureKind]] = frozenset({"rate_limited", "server_error", "rejected"})
"""Failures that cost nothing beyond what was reported. After others, such as a deadline, the
endpoint may have worked all the same: what was set aside counts as spent."""


class ClosableSummarizer(Protocol):
    """A `Summarizer` that holds connections."""

    async def summarize(self, material: Material) -> Summary:
        """Summarise. Raises `SummaryFailed`."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class GuardedSummarizer:
    """Asks `inner` if the breaker lets it, and if there are tokens left to be spent."""

    def __init__(
        self,
        inner: ClosableSummarizer,
        *,
        breaker: Breaker | None = None,
        budget: TokenBudget | None = None,
    ) -> None:
        self.breaker = breaker or Breaker()
        self._inner = inner
        self._budget = budget

    async def summarize(self, material: Material) -> Summary:
        """Summarise. Raises `SummaryFailed`, also as "circuit_open" and "no_budget"."""
        with self.breaker.attempt():
            if self._budget is None:
                return await self._inner.summarize(material)
            return await self._within_budget(self._budget, material)

    async def _within_budget(self, budget: TokenBudget, material: Material) -> Summary:
        expected = material.tokens + material.tokens_max + PROMPT_TOKENS
        reservation = await budget.reserve(expected)
        try:
            summary = await self._inner.summarize(material)
        except SummaryFailed as failure:
            unknown = 0 if failure.kind in UNSPENT else expected
            await budget.settle(reservation, _tokens_of(failure.usage, unknown))
            raise
        await budget.settle(reservation, _tokens_of(summary.usage, expected))
        return summary

    async def aclose(self) -> None:
        """Close the connections of `inner`."""
        await self._inner.aclose()


def _tokens_of(usage: Usage | None, unknown: int) -> int:
    return unknown if usage is None else usage.input_tokens + usage.output_tokens


def summarizer_of(
    settings: Settings,
    key: str | None,
    *,
    breaker: Breaker | None = None,
    budget: TokenBudget | None = None,
) -> GuardedSummarizer | None:
    """The summarizer that the settings describe; None: there is no model, or no key to ask it with.

    `key` is what `read_model_key()` found; an endpoint of one's own (`compaction_base_url`) may
    need none. `budget` is a `SharedBudget` where processes share one; without it the limit of the
    settings, if there is one, is counted here. Raises `InvalidSetting`.
    """
    no_endpoint = key is None and settings.compaction_base_url is None
    if settings.compaction_model == NO_MODEL or no_endpoint:
        return None
    tokens_max = settings.compaction_tokens_per_hour_max
    if budget is None and tokens_max is not None:
        budget = LocalBudget(tokens_max)
    inner = ModelSummarizer(
        model=settings.compaction_model,
        key=key,
        base_url=settings.compaction_base_url,
        api=settings.compaction_api,
        window_tokens=settings.compaction_window_tokens,
        timeout_seconds=settings.compaction_timeout_seconds,
    )
    return GuardedSummarizer(inner, breaker=breaker, budget=budget)
