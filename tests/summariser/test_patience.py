"""Trying again: only what may pass, after pauses that grow, and never earlier than asked."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import httpx2
import pytest

from eventlog.compaction.summarizer import SummaryFailed
from tests.summariser.conftest import Ask
from tests.summariser.materials import material_of
from tests.support.model_server import ModelServer
from workers.summariser.patience import (
    ASKED_PAUSE_SECONDS_MAX,
    PAUSE_SECONDS_MIN,
    TRIES_MAX,
)
from workers.summariser.refusals import RETRY_AFTER_SECONDS_MAX, retry_after

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("behaviour", ["rate_limited", "server_error", "drop", "error_in_200"])
async def test_summarize_when_the_trouble_passes_returns_a_summary(
    ask: Ask, server: ModelServer, pauses: list[float], behaviour: str
) -> None:
    """Two failures and then an answer are a summary, and all three calls are counted."""
    server.behaviour = [behaviour, behaviour, "good"]

    summary = await ask().summarize(material_of())

    assert summary.calls == len(server.requests) == TRIES_MAX
    assert len(pauses) == 2


async def test_pauses_when_nothing_is_asked_grow_and_are_jittered(
    ask: Ask, server: ModelServer, pauses: list[float]
) -> None:
    """Half of the pause is left to chance; the next is twice as long."""
    server.behaviour = "server_error"
    for chance in (0.0, 1.0):
        with pytest.raises(SummaryFailed):
            await ask(chance=lambda chance=chance: chance).summarize(material_of())

    assert pauses == [
        PAUSE_SECONDS_MIN / 2,
        PAUSE_SECONDS_MIN,
        PAUSE_SECONDS_MIN,
        PAUSE_SECONDS_MIN * 2,
    ]


@pytest.mark.parametrize("chance", [0.0, 1.0])
async def test_pauses_when_a_time_is_asked_are_never_shorter(
    ask: Ask, server: ModelServer, pauses: list[float], chance: float
) -> None:
    """`Retry-After` is the least that is waited."""
    server.behaviour, server.retry_after = "rate_limited", "7"

    with pytest.raises(SummaryFailed) as failed:
        await ask(chance=lambda: chance).summarize(material_of())

    assert failed.value.retry_after_seconds == 7.0
    assert len(pauses) == TRIES_MAX - 1
    assert all(7.0 < each < 9.0 for each in pauses)


async def test_summarize_when_a_long_pause_is_asked_leaves_it_to_the_caller(
    ask: Ask, server: ModelServer, pauses: list[float]
) -> None:
    """Nobody waits here for minutes: the failure says how long it should be."""
    server.behaviour, server.retry_after = "rate_limited", "600"

    with pytest.raises(SummaryFailed) as failed:
        await ask().summarize(material_of())

    assert ASKED_PAUSE_SECONDS_MAX < 600
    assert failed.value.retry_after_seconds == 600.0
    assert len(server.requests) == 1
    assert not pauses


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0.5 ", 0.5),
        ("-3", 0.0),
        ("1e99", RETRY_AFTER_SECONDS_MAX),
        ("inf", RETRY_AFTER_SECONDS_MAX),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Sun, 99 Nov 2026 12:00:30 GMT", None),
        (format_datetime(NOW.replace(second=30), usegmt=True), 30.0),
        ("Sun, 01 Nov 2026 12:00:30 -0000", 30.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_SECONDS_MAX),
    ],
)
def test_retry_after_when_read_is_seconds_from_now(value: str, seconds: float | None) -> None:
    """A number or a date, whatever an endpoint makes of it."""
    assert retry_after(httpx2.Headers({"retry-after": value}), now=NOW) == seconds


def test_retry_after_when_it_is_missing_is_none() -> None:
    """No header, no pause."""
    assert retry_after(httpx2.Headers()) is None
