"""The compact-worker: puts summaries in the place of what has grown too long, by itself.

    worker   finds due sessions and shares them with other workers
    claims   who works on which, in a stream of Redis
    work     what is done with one session
    asking   asking a summarizer, in bounded time

Which sessions are due is kept by a projection, `projections/contexts.py`. Any number of workers may
run, and any of them may die at any moment: one summary is appended for each range, as the log takes
no second one.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final
from urllib.parse import urlsplit

from eventlog.compaction.summarizer import Summarizer
from eventlog.compaction.tokens import count_text
from eventlog.log import EventLog
from eventlog.settings import Settings, read_model_key
from eventlog.telemetry import get_logger
from projections.checkpoint import LEASE_SECONDS, postgres_of
from workers.compactor.asking import SUMMARY_SECONDS_MAX
from workers.compactor.claims import CLAIM_SECONDS
from workers.compactor.work import SessionWork
from workers.compactor.worker import Compactor
from workers.summariser.budget import SharedBudget
from workers.summariser.extractive import ExtractiveSummarizer
from workers.summariser.guarded import GuardedSummarizer, summarizer_of

WITHOUT_MODEL: Final = "no key, or no model: summaries are made of sentences of the conversation"
_log = get_logger()


async def run_compactor(
    log: EventLog,
    stop: asyncio.Event,
    *,
    summarizer: Summarizer | None = None,
    fallback: Summarizer | None = None,
    name: str | None = None,
    lease_seconds: float = LEASE_SECONDS,
    claim_seconds: float = CLAIM_SECONDS,
    summary_seconds_max: float = SUMMARY_SECONDS_MAX,
) -> None:
    """Compact the log's sessions when they are due, until `stop`, through all outages.

    `summarizer`: None: the one of the settings, or without a key one that picks sentences. That
    one is the `fallback`, too, when a context is full and no model answers. `name`: what to call
    this worker; None: host and process. Raises `InvalidSetting`, also for a log in memory.
    """
    postgres_of(log)
    log.compaction.default  # noqa: B018  it raises now, not when the first session is due
    extractive = fallback or ExtractiveSummarizer()
    async with AsyncExitStack() as stack:
        if summarizer is None:
            guarded = await model_of(log, stack)
            _log.info("compactor.started", **_described(log.settings, asks=guarded is not None))
            summarizer = guarded or extractive
        await asyncio.to_thread(count_text, "loads the vocabulary, which takes a second")
        work = SessionWork(log, summarizer, fallback=extractive, seconds_max=summary_seconds_max)
        compactor = Compactor(
            *(log, work),
            name=name,
            lease_seconds=lease_seconds,
            claim_seconds=claim_seconds,
        )
        await compactor.run(stop)


async def model_of(log: EventLog, stack: AsyncExitStack) -> GuardedSummarizer | None:
    """The model of the settings, behind the limits that all workers of the log share.

    None: there is none. Raises `InvalidSetting`. What it holds is closed by `stack`.
    """
    settings = log.settings
    budget: SharedBudget | None = None
    tokens_max = settings.compaction_tokens_per_hour_max
    if tokens_max is not None and log.fanout is not None:
        budget = SharedBudget(log.fanout.call, (await log.fanout.keys()).prefix, tokens_max)
    guarded = summarizer_of(settings, read_model_key(), budget=budget)
    if guarded is not None:
        stack.push_async_callback(guarded.aclose)
    return guarded


def _described(settings: Settings, *, asks: bool) -> dict[str, object]:
    """Which model is asked where. The key is not in it, nor a password in the address."""
    if not asks:
        return {"summaries": WITHOUT_MODEL}
    facts: dict[str, object] = {"model": settings.compaction_model, "api": settings.compaction_api}
    if settings.compaction_base_url is None:
        return {**facts, "endpoint": "OPENAI_BASE_URL, or OpenAI's"}
    parts = urlsplit(settings.compaction_base_url)
    return {**facts, "endpoint": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"}
