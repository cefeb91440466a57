"""An endpoint that misbehaves: a typed failure each time, never a false summary.

The server is real, so is the client. Each protection has a control that takes it away.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from typing import Final

import pytest

from eventlog.compaction.summarizer import FAILURE_KINDS, FailureKind, SummaryFailed
from eventlog.events import Usage
from tests.summariser.conftest import Ask
from tests.summariser.materials import KEY, SECRET, material_of
from tests.support.model_server import HUGE_BYTES, MISBEHAVIOURS, ODDITIES, ModelServer
from workers.summariser import client
from workers.summariser.answers import Answer, Api
from workers.summariser.patience import PASSING, TRIES_MAX

KINDS: Final[dict[str, FailureKind]] = {
    "rate_limited": "rate_limited",
    "server_error": "server_error",
    "hang": "timeout",
    "drop": "connection_lost",
    "drip": "timeout",
    "html": "bad_answer",
    "broken_json": "bad_answer",
    "empty_choices": "bad_answer",
    "null_content": "empty",
    "length": "truncated",
    "content_filter": "filtered",
    "refusal": "refused",
    "huge": "bad_answer",
    "too_long": "not_smaller",
    "unauthorized": "rejected",
    "overloaded": "server_error",
    "huge_error": "server_error",
    "redirect": "rejected",
    "compressed": "bad_answer",
    "bomb": "server_error",
    "blank": "empty",
    "tool_call": "bad_answer",
    "unfinished": "bad_answer",
    "silent_length": "truncated",
    "surrogate": "bad_answer",
    "error_in_200": "server_error",
}
"""What each misbehaviour is to be taken for."""
REPORTING: Final = frozenset(
    {"empty_choices", "null_content", "length", "content_filter", "refusal", "too_long"}
)
"""Those of the fourteen whose answers say what they cost."""
USAGE: Final = Usage(input_tokens=100, output_tokens=20, cached_tokens=7, reasoning_tokens=5)
SHORT_SECONDS: Final = 0.3
"""Deadline where an answer never comes."""
BUFFERED_BYTES_MAX: Final = 5_000_000
"""What sockets of both sides may have taken in beside what the client wanted to read."""

apis = pytest.mark.parametrize("api", ["chat", "responses"])


async def failure_of(ask: Ask, api: Api, behaviour: str) -> SummaryFailed:
    """The failure that a summary ends in."""
    short = behaviour in ("hang", "drip")
    summarizer = ask(api=api, timeout_seconds=SHORT_SECONDS if short else 20.0)
    with pytest.raises(SummaryFailed) as failed:
        await summarizer.summarize(material_of())
    return failed.value


def test_kinds_when_listed_cover_the_fourteen() -> None:
    """There are fourteen misbehaviours, and every one is tested below."""
    assert len(MISBEHAVIOURS) == 14
    assert set(KINDS) == {*MISBEHAVIOURS, *ODDITIES} - {"no_usage", "thinking"}
    assert set(KINDS.values()) <= set(FAILURE_KINDS)


@apis
@pytest.mark.parametrize("behaviour", KINDS)
async def test_summarize_when_the_endpoint_misbehaves_fails_with_its_kind(
    ask: Ask, server: ModelServer, pauses: list[float], api: Api, behaviour: str
) -> None:
    """Each way to fail has its kind; only what may pass is tried again, after a pause."""
    server.behaviour = behaviour

    failure = await failure_of(ask, api, behaviour)

    assert failure.kind == KINDS[behaviour]
    tries = TRIES_MAX if failure.kind in PASSING else 1
    assert failure.calls == len(server.requests) == tries
    assert len(pauses) == tries - 1
    assert {each.behaviour for each in server.requests} == {behaviour}
    if behaviour in MISBEHAVIOURS:
        assert failure.usage == (USAGE if behaviour in REPORTING else None)
    await server.idle()  # no connection was left waiting


@apis
@pytest.mark.parametrize("behaviour", KINDS)
async def test_failure_when_shown_holds_no_content_and_no_key(
    ask: Ask, server: ModelServer, api: Api, behaviour: str
) -> None:
    """What is said of a failure, its traceback included, repeats neither conversation nor key."""
    server.behaviour = behaviour

    failure = await failure_of(ask, api, behaviour)

    shown = "".join(traceback.format_exception(failure)) + repr(failure) + failure.reason
    assert SECRET not in shown
    assert KEY not in shown
    assert "\n" not in failure.reason and len(failure.reason) < 200


@apis
async def test_summarize_when_the_answer_is_good_returns_a_summary(
    ask: Ask, server: ModelServer, api: Api
) -> None:
    """Control of all above: the same server, the same material, and a summary."""
    server.answer = lambda messages: "  ## Goal\nTo keep a number. \n"

    summary = await ask(api=api).summarize(material_of())

    assert summary.text == "## Goal\nTo keep a number."
    assert (summary.method, summary.model, summary.calls) == ("model", "gpt-4o", 1)
    assert summary.usage == USAGE
    assert [each.api for each in server.requests] == [api]


@apis
async def test_summarize_when_usage_is_missing_returns_a_summary(
    ask: Ask, server: ModelServer, api: Api
) -> None:
    """An answer that doesn't say what it cost is an answer."""
    server.behaviour = "no_usage"

    summary = await ask(api=api).summarize(material_of())

    assert summary.usage is None
    assert summary.calls == 1


@apis
async def test_summarize_when_a_model_thinks_aloud_leaves_its_thoughts_out(
    ask: Ask, server: ModelServer, api: Api
) -> None:
    """A block of thoughts in front is no part of a summary; one anywhere else stays."""
    server.behaviour = "thinking"
    server.answer = lambda messages: "They asked about <think>tags</think>."

    summary = await ask(api=api).summarize(material_of())

    assert summary.text == "They asked about <think>tags</think>."


@apis
@pytest.mark.parametrize(
    ("text", "kind"),
    [("<think>on and on", "bad_answer"), ("<think>well</think>", "empty"), ("\u3000", "empty")],
)
async def test_summarize_when_nothing_but_thoughts_came_fails(
    ask: Ask, server: ModelServer, api: Api, text: str, kind: str
) -> None:
    """Thoughts are no summary."""
    server.answer = lambda messages: text

    failure = await failure_of(ask, api, "good")

    assert failure.kind == kind


@apis
@pytest.mark.parametrize("behaviour", ["huge", "huge_error"])
async def test_summarize_when_the_answer_is_huge_stops_reading(
    ask: Ask, server: ModelServer, api: Api, behaviour: str
) -> None:
    """Of 10 MB the server can't get rid of more than the limit and what buffers hold."""
    server.behaviour = behaviour

    await failure_of(ask, api, behaviour)
    await server.idle()

    assert client.ANSWER_BYTES_MAX // 2 < server.sent_bytes < BUFFERED_BYTES_MAX


@apis
@pytest.mark.parametrize("tokens", [9, 10])
async def test_summarize_when_a_short_answer_replaces_less_fails(
    ask: Ask, server: ModelServer, api: Api, tokens: int
) -> None:
    """As many tokens as what it replaces are too many."""
    server.answer = lambda messages: "one two three four five six seven eight nine ten"

    with pytest.raises(SummaryFailed) as failed:
        await ask(api=api).summarize(material_of(tokens=tokens))
    summary = await ask(api=api).summarize(material_of(tokens=11))

    assert failed.value.kind == "not_smaller"
    assert summary.text.endswith("ten")


@apis
async def test_summarize_when_the_model_repeats_the_data_fails(
    ask: Ask, server: ModelServer, api: Api
) -> None:
    """What small models do: an echo of lines and fence is no summary, however short it is."""
    server.answer = lambda messages: messages[1]["content"]

    failure = await failure_of(ask, api, "good")

    assert failure.kind == "bad_answer"
    assert failure.usage == USAGE


async def test_summarize_when_nobody_listens_fails(ask: Ask, server: ModelServer) -> None:
    """A port at which nobody listens is a lost connection."""
    summarizer = ask(base_url="http://127.0.0.1:9/v1")

    with pytest.raises(SummaryFailed) as failed:
        await summarizer.summarize(material_of())

    assert failed.value.kind == "connection_lost"


async def test_summarize_when_cancelled_ends_the_request(ask: Ask, server: ModelServer) -> None:
    """A cancelled summary leaves no request behind, and no other error."""
    server.pause()
    task = asyncio.create_task(ask().summarize(material_of()))
    await server.arrived(1)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await server.idle()


# --- controls: with a protection taken away, the fault gets through ------------------------------


@apis
@pytest.mark.parametrize("behaviour", ["length", "content_filter", "unfinished"])
async def test_control_when_the_reason_of_the_end_is_not_checked_half_a_summary_passes(
    ask: Ask, server: ModelServer, monkeypatch: pytest.MonkeyPatch, api: Api, behaviour: str
) -> None:
    """Without that check, what these endpoints send would be taken for a summary."""
    server.behaviour = behaviour

    def unchecked(body: bytes, api: Api) -> Answer:
        answer = json.loads(body)
        if api == "chat":
            return Answer(text=answer["choices"][0]["message"]["content"])
        return Answer(text=answer["output"][-1]["content"][0]["text"])

    monkeypatch.setattr(client, "check_answer", unchecked)

    summary = await ask(api=api).summarize(material_of())

    assert summary.text.startswith("## Goal")


@apis
async def test_control_when_size_is_not_limited_all_of_it_is_read(
    ask: Ask, server: ModelServer, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    """Without the limit the client holds 10 MB."""
    server.behaviour = "huge"
    monkeypatch.setattr(client, "ANSWER_BYTES_MAX", 2 * HUGE_BYTES)

    await failure_of(ask, api, "huge")

    assert server.sent_bytes >= HUGE_BYTES


@apis
async def test_control_when_only_single_bytes_have_a_deadline_a_drip_goes_on(
    ask: Ask, server: ModelServer, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    """The package's own timeout, which each byte renews, doesn't end a slow drip."""
    server.behaviour = "drip"
    summarizer = ask(api=api, timeout_seconds=SHORT_SECONDS)
    monkeypatch.setattr(summarizer._client, "_timeout_seconds", 3600.0)

    task = asyncio.create_task(summarizer.summarize(material_of()))
    done, _ = await asyncio.wait({task}, timeout=5 * SHORT_SECONDS)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert not done
