"""Material larger than the model's window: parts, each read once, and one summary of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.compaction.summarizer import SummaryFailed
from eventlog.compaction.tokens import count_text
from eventlog.entries import Message
from eventlog.events import Usage
from tests.summariser.conftest import Ask
from tests.summariser.materials import called, documents_of, material_of, output, said
from tests.support.model_server import Messages, ModelRequest, ModelServer
from workers.summariser import map_reduce
from workers.summariser.answers import Api
from workers.summariser.map_reduce import Line, Piece, Ruler, cut, group
from workers.summariser.model_summarizer import PARTS_AT_ONCE

WINDOW: Final = 4_096
LONG: Final = "the quick brown fox jumps over the lazy dog " * 25  # some 230 tokens

apis = pytest.mark.parametrize("api", ["chat", "responses"])


def conversation(turns: int, text: str = LONG) -> list[Message]:
    """Turns of a question, a tool call, its output, and an answer."""
    messages: list[Message] = []
    for turn in range(turns):
        seq, call = 4 * turn + 1, f"call_{turn}"
        messages += [said(seq, "user", text), called(seq + 1, call), output(seq + 2, call, text)]
        messages.append(said(seq + 3, "assistant", text))
    return messages


def shown(request: ModelRequest) -> list[dict[str, Any]]:
    """The documents of a request."""
    return documents_of(request.messages[1]["content"])


def task_of(request: ModelRequest) -> str:
    """Which prompt a request was made with."""
    beginnings = {
        "You write the summary": "first",
        "You keep the summary": "update",
        "A long conversation": "part",
        "You are given summaries": "merge",
    }
    [task] = [
        task
        for beginning, task in beginnings.items()
        if request.messages[0]["content"].startswith(beginning)
    ]
    return task


@apis
async def test_summarize_when_material_exceeds_the_window_reads_each_message_once(
    ask: Ask, server: ModelServer, api: Api
) -> None:
    """Every request fits the window; together they show every message once, in order."""
    messages = conversation(20)
    server.answer = lambda given: f"summary {len(given[1]['content'])}"

    summary = await ask(api=api, window_tokens=WINDOW).summarize(
        material_of(messages, tokens=20_000, previous_summary="Before: nothing.")
    )

    parts = [each for each in server.requests if task_of(each) == "part"]
    [merge] = [each for each in server.requests if task_of(each) == "merge"]
    assert len(parts) > 3 and len(server.requests) == len(parts) + 1
    for request in server.requests:
        text = "".join(each["content"] for each in request.messages)
        assert count_text(text, "gpt-4o").tokens + request.answer_tokens_max <= WINDOW
    in_order = sorted((shown(each) for each in parts), key=lambda documents: documents[0]["seq"])
    assert [each["seq"] for part in in_order for each in part] == [each.seq for each in messages]
    previous, *summaries = shown(merge)
    assert previous == {"kind": "previous_summary", "text": "Before: nothing."}
    assert [(each["from_seq"], each["to_seq"]) for each in summaries] == [
        (part[0]["seq"], part[-1]["seq"]) for part in in_order
    ]
    assert summary.calls == len(server.requests)
    assert summary.usage == Usage(
        input_tokens=100 * summary.calls,
        output_tokens=20 * summary.calls,
        cached_tokens=7 * summary.calls,
        reasoning_tokens=5 * summary.calls,
    )


@pytest.mark.parametrize(("previous", "task"), [(None, "first"), ("Before: nothing.", "update")])
async def test_summarize_when_material_fits_asks_once(
    ask: Ask, server: ModelServer, previous: str | None, task: str
) -> None:
    """With a previous summary that one is updated, not started over."""
    await ask().summarize(material_of(conversation(3), previous_summary=previous))

    [request] = server.requests
    assert task_of(request) == task
    kinds = [each["kind"] for each in shown(request)]
    assert kinds == (["previous_summary"] if previous else []) + ["message"] * 12


async def test_summarize_when_a_part_fails_fails_with_what_was_spent(
    ask: Ask, server: ModelServer
) -> None:
    """No summary of some of the parts; what the others cost is said."""
    server.behaviour = ["good", "good", "content_filter"]

    with pytest.raises(SummaryFailed) as failed:
        await ask(window_tokens=WINDOW).summarize(material_of(conversation(20), tokens=20_000))

    assert failed.value.kind == "filtered"
    assert failed.value.calls >= 3
    assert failed.value.usage is not None
    assert failed.value.usage.input_tokens >= 300
    assert "merge" not in {task_of(each) for each in server.requests}
    await server.idle()


async def test_summarize_when_there_are_many_parts_asks_some_at_once(
    ask: Ask, server: ModelServer
) -> None:
    """As many requests as allowed are under way together, and never more."""
    server.pause()

    def answer(given: Messages) -> str:
        return "short"

    server.answer = answer
    task = asyncio.create_task(
        ask(window_tokens=WINDOW).summarize(material_of(conversation(20), tokens=20_000))
    )
    await server.arrived(PARTS_AT_ONCE)
    server.resume()
    await task

    assert server.under_way_max == PARTS_AT_ONCE


async def test_summarize_when_summaries_of_parts_are_long_merges_in_rounds(
    ask: Ask, server: ModelServer
) -> None:
    """A model that writes more than it was asked for doesn't keep it from coming to an end."""

    def answer(given: Messages) -> str:
        system = given[0]["content"]
        last = "part_summary" in given[1]["content"] and '"from_seq": 1,' in given[1]["content"]
        return "done" if last and '"to_seq": 80' in given[1]["content"] else LONG * 4 + system[:9]

    server.answer = answer

    summary = await ask(window_tokens=WINDOW).summarize(
        material_of(conversation(20), tokens=20_000)
    )

    merges = [each for each in server.requests if task_of(each) == "merge"]
    assert summary.text == "done"
    assert len(merges) > 2
    for request in server.requests:
        text = "".join(each["content"] for each in request.messages)
        assert count_text(text, "gpt-4o").tokens < WINDOW


async def test_summarize_when_one_message_exceeds_the_window_clips_it(
    ask: Ask, server: ModelServer
) -> None:
    """One message of 10 MB among others: clipped, with the seq of its original."""
    messages = [
        said(1, "user", "first"),
        said(2, "user", "word " * 2_000_000),
        said(3, "user", "x"),
    ]

    await ask(window_tokens=2_048).summarize(material_of(messages, tokens=9_000_000))

    documents = [each for request in server.requests for each in shown(request)]
    [long] = [each for each in documents if each.get("seq") == 2]
    assert "characters left out; the original is the message with seq 2]" in long["text"]
    assert len(long["text"]) < 10_000
    assert {each["seq"] for each in documents if each["kind"] == "message"} == {1, 2, 3}


async def test_summarize_when_a_message_has_no_end_of_calls_names_it(
    ask: Ask, server: ModelServer
) -> None:
    """A message that doesn't fit however its texts are clipped is at least named."""
    many = called(2, *(f"call_{number}" for number in range(5_000)))

    await ask(window_tokens=2_048).summarize(material_of([said(1), many], tokens=90_000))

    documents = [each for request in server.requests for each in shown(request)]
    assert {"kind": "message", "seq": 2, "role": "assistant", "left_out": "too large"} in documents


async def test_summarize_when_facts_and_wish_are_given_shows_them_with_every_part(
    ask: Ask, server: ModelServer
) -> None:
    """What whoever asked wants kept in mind holds for each part, and has a bound."""
    await ask(window_tokens=WINDOW).summarize(
        material_of(
            conversation(8), tokens=9_000, facts={"name": "Ada"}, instructions="Names! " * 5_000
        )
    )

    assert len(server.requests) > 2
    for request in server.requests:
        facts, wish, *_ = shown(request)
        assert facts == {"kind": "facts", "facts": {"name": "Ada"}}
        assert wish["text"].startswith("Names! ") and len(wish["text"]) < 2_100


# --- cutting and grouping ------------------------------------------------------------------------


def lines_of(messages: list[Message], tokens: int) -> list[tuple[Message, Line]]:
    """A line of so many tokens for each message."""
    return [(each, Line(f"{each.seq}", tokens)) for each in messages]


def split_calls(messages: list[Message], parts: list[map_reduce.Part]) -> int:
    """How many tool calls are in another part than one of their outputs."""
    part_of = {
        seq: number
        for number, part in enumerate(parts)
        for seq in range(part.from_seq, part.to_seq + 1)
    }
    made = {call.id: part_of[each.seq] for each in messages for call in each.tool_calls}
    return sum(
        made[each.tool_call_id] != part_of[each.seq] for each in messages if each.tool_call_id
    )


def calling(outputs: list[int]) -> list[Message]:
    """Messages of so many outputs each: 0 is somebody speaking."""

    def numbered() -> Iterator[Message]:
        seq = 1
        for count in outputs:
            ids = [f"call_{seq}_{each}" for each in range(count)]
            yield called(seq, *ids) if count else said(seq)
            yield from (output(seq + place, call) for place, call in enumerate(ids, 1))
            seq += count + 1

    return list(numbered())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(5, 30))
def test_cut_when_units_fit_parts_no_call_from_its_output(outputs: list[int], room: int) -> None:
    """Parts are in order, without a gap, not too large, and no call is split from its outputs."""
    messages = calling(outputs)

    parts = list(cut(lines_of(messages, 1), room))

    assert [line.text for part in parts for line in part.lines] == [f"{m.seq}" for m in messages]
    assert all(len(part.lines) <= room for part in parts)
    assert all(before.to_seq < after.from_seq for before, after in pairwise(parts))
    assert split_calls(messages, parts) == 0


@given(st.lists(st.integers(0, 40), min_size=1, max_size=10))
def test_cut_when_a_unit_is_larger_than_a_part_cuts_it(outputs: list[int]) -> None:
    """Where it can't be avoided, a call and its outputs are parted, and nothing is lost."""
    messages = calling(outputs)

    parts = list(cut(lines_of(messages, 1), 5))

    assert [line.text for part in parts for line in part.lines] == [f"{m.seq}" for m in messages]
    assert all(len(part.lines) <= 5 for part in parts)


def test_control_when_units_are_not_kept_together_calls_are_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut between any two messages, the same material does part calls from their outputs."""
    monkeypatch.setattr(map_reduce, "_units", lambda lines: ([each] for each in lines))
    messages = calling([2, 2, 2, 2])

    parts = list(cut(lines_of(messages, 1), 5))

    assert split_calls(messages, parts) > 0


@given(st.lists(st.text(max_size=2_000), min_size=1, max_size=40), st.integers(200, 2_000))
def test_group_when_pieces_are_of_any_size_halves_them(texts: list[str], room: int) -> None:
    """A round of merging leaves at most half as many, rounded up: it comes to an end."""
    pieces = [Piece(text, number, number) for number, text in enumerate(texts, 1)]

    groups = group(pieces, Ruler("gpt-4o"), room)

    assert [piece for each in groups for piece, _ in each] == pieces
    assert len(groups) <= (len(pieces) + 1) // 2
    assert all(sum(line.tokens for _, line in each) <= room for each in groups)
