"""The context as a model reads it: calls with their outputs, facts, summaries, each in its place.

The rules one by one; generated contexts are held against the naive rendering of rendering_model.py.
"""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.entries import Message
from eventlog.event_values import ToolCall
from eventlog.rendering import (
    FACTS_PREFIX,
    LATE_OUTPUT,
    NO_OUTPUT,
    SUMMARY_PREFIX,
    as_shown,
    outputs_of,
    provider_dicts,
)
from eventlog.state import Compaction
from tests.factories import BEGIN
from tests.unit.rendering_model import render, shown_of

IDS: Final = ("a", "b", "")


def said(seq: int, role: Any, content: Any = "text", **fields: Any) -> Message:
    """A message at a seq."""
    return Message(
        **{"message_id": f"m{seq}", "seq": seq, "role": role, "content": content},
        **{"recorded_at": BEGIN, "closed_seq": seq, **fields},
    )


def call(seq: int, *ids: str, **fields: Any) -> Message:
    """An answer without words that calls tools."""
    calls = [ToolCall(id=each, name="look", arguments="{}") for each in ids]
    return said(seq, "assistant", fields.pop("content", ""), tool_calls=calls, **fields)


def output(seq: int, call_id: str | None, content: Any = "found") -> Message:
    """What a tool found."""
    return said(seq, "tool", content, tool_call_id=call_id)


def lines(messages: list[Message], **fields: Any) -> list[str]:
    """Role and content of each line, calls and what they are answered to as ids."""
    dicts = provider_dicts(messages, **{"facts": {}, "closed_calls": {}, **fields})
    return [
        " ".join(
            [
                f"{each['role']}:",
                *([str(each["content"])] if each["content"] else []),
                *(f"call({one['id']})" for one in each.get("tool_calls", ())),
                *([f"<{each['tool_call_id']}>"] if "tool_call_id" in each else []),
            ]
        )
        for each in dicts
    ]


def compaction(to_seq: int, summary: str = "S") -> Compaction:
    """A summary that stands."""
    return Compaction(seq=99, from_seq=1, to_seq=to_seq, summary=summary)


@st.composite
def contexts(draw: st.DrawFn) -> dict[str, Any]:
    """Messages in which anything is wrong with calls and outputs, and what else is in a context."""
    messages: list[Message] = []
    for seq in sorted(draw(st.sets(st.integers(2, 40), max_size=12))):
        role = draw(st.sampled_from(("user", "assistant", "assistant", "tool", "tool", "system")))
        ids = draw(st.lists(st.sampled_from(IDS), max_size=2)) if role == "assistant" else []
        messages.append(
            said(
                seq,
                role,
                draw(st.sampled_from(("", "text"))),
                tool_calls=[ToolCall(id=each, name="look") for each in ids],
                tool_call_id=draw(st.sampled_from(IDS)) if role == "tool" else None,
                status=draw(st.sampled_from(("complete", "complete", "interrupted"))),
            )
        )
    seqs = st.integers(1, 45)
    return {
        "messages": messages,
        "to_seq": draw(st.none() | seqs),
        "facts": draw(st.dictionaries(st.sampled_from(("x", "y")), st.just("so"))),
        "closings": sorted(draw(st.sets(st.tuples(seqs, st.sampled_from(IDS)), max_size=3))),
    }


@given(contexts())
def test_context_when_anything_is_wrong_with_calls_is_what_the_model_says(
    given_: dict[str, Any],
) -> None:
    """Calls without outputs, outputs without calls, twice, late, of interrupted messages."""
    to_seq, messages = given_["to_seq"], given_["messages"]
    standing = None if to_seq is None else compaction(to_seq)

    context = provider_dicts(
        messages,
        compaction=standing,
        facts=given_["facts"],
        closed_calls={call_id: seq for seq, call_id in given_["closings"]},
    )

    expected = render(
        messages,
        summary=None if to_seq is None else (to_seq, "S"),
        facts=given_["facts"],
        closings=given_["closings"],
    )
    assert shown_of(context) == expected


@given(contexts())
def test_outputs_when_paired_are_used_once(given_: dict[str, Any]) -> None:
    """Each belongs to one call before it, and each call has at most one."""
    messages = given_["messages"]

    found = outputs_of(messages)

    seqs = [each.seq for each in found.values()]
    assert len(set(seqs)) == len(seqs)
    by_seq = {each.seq: each for each in messages}
    for (seq, call_id), answer in found.items():
        assert seq < answer.seq
        assert answer.tool_call_id == call_id
        assert any(each.id == call_id for each in by_seq[seq].tool_calls)


def test_output_when_others_spoke_meanwhile_is_behind_its_call() -> None:
    """In the order in which the calls were made, whatever came first."""
    messages = [call(2, "a", "b"), said(3, "user"), output(4, "b", "B"), output(5, "a", "A")]

    assert lines(messages) == [
        *("assistant: call(a) call(b)", "tool: A <a>", "tool: B <b>", "user: text"),
    ]


def test_call_when_the_conversation_went_on_without_its_output_says_so() -> None:
    """A provider would refuse it; with the output it is as ever."""
    went_on = [call(2, "a"), said(3, "user")]

    assert lines(went_on) == ["assistant: call(a)", f"tool: {NO_OUTPUT} <a>", "user: text"]
    assert lines([*went_on, output(4, "a")])[1] == "tool: found <a>"


def test_call_when_it_is_at_the_very_end_waits() -> None:
    """Its tool is yet to run; also when some of the outputs are there already."""
    assert lines([said(2, "user"), call(3, "a")]) == ["user: text", "assistant: call(a)"]
    assert lines([call(3, "a", "b"), output(4, "b")]) == [
        *("assistant: call(a) call(b)", "tool: found <b>"),
    ]


def test_call_when_closed_says_so_at_the_end_too() -> None:
    """A closing counts for calls that were made before it; an output that comes later counts."""
    assert lines([call(3, "a")], closed_calls={"a": 4})[-1] == f"tool: {NO_OUTPUT} <a>"
    assert lines([call(5, "a")], closed_calls={"a": 4}) == ["assistant: call(a)"]
    late = [call(3, "a"), output(6, "a")]
    assert lines(late, closed_calls={"a": 4})[-1] == "tool: found <a>"


def test_call_when_it_is_kept_before_a_summary_is_not_at_the_end() -> None:
    """For the summary follows it, and a model reads that as the user's words."""
    context = lines([call(3, "a")], compaction=compaction(8))

    assert context[:2] == ["assistant: call(a)", f"tool: {NO_OUTPUT} <a>"]
    assert context[2].startswith("user: The earlier part")


def test_output_when_its_call_is_not_there_is_told_by_the_user() -> None:
    """Text in one piece, parts with a part before them; a provider takes both."""
    parts = [{"type": "text", "text": "found"}]
    context = provider_dicts(
        [said(2, "user"), output(3, "a"), output(4, None, parts)], facts={}, closed_calls={}
    )

    assert context[1:] == [
        {"role": "user", "content": f"{LATE_OUTPUT}\n\nfound"},
        {"role": "user", "content": [{"type": "text", "text": LATE_OUTPUT}, *parts]},
    ]


def test_output_when_there_are_two_for_one_call_is_shown_once() -> None:
    """The first belongs to it, the second to nobody."""
    assert lines([call(2, "a"), output(3, "a", "1"), output(4, "a", "2"), said(5, "user")]) == [
        *("assistant: call(a)", "tool: 1 <a>", f"user: {LATE_OUTPUT}\n\n2", "user: text"),
    ]


def test_output_when_a_message_calls_the_same_twice_is_shown_once() -> None:
    """One id is one call."""
    assert lines([call(2, "a", "a"), output(3, "a")]) == [
        *("assistant: call(a) call(a)", "tool: found <a>"),
    ]


def test_output_when_ids_come_again_belongs_to_the_first_call_without_one() -> None:
    """Some programs count their calls anew in every turn."""
    again = [call(2, "a"), output(3, "a", "1"), call(4, "a"), output(5, "a", "2")]

    assert lines(again) == [
        *("assistant: call(a)", "tool: 1 <a>", "assistant: call(a)", "tool: 2 <a>"),
    ]


def test_message_when_interrupted_keeps_answered_calls_only() -> None:
    """And without words or answered calls it isn't shown at all."""
    broken = call(2, "a", "b", status="interrupted")

    assert lines([broken, output(3, "b"), said(4, "user")]) == [
        *("assistant: call(b)", "tool: found <b>", "user: text"),
    ]
    assert lines([broken, said(4, "user")]) == ["user: text"]


@pytest.mark.parametrize(
    ("roles", "place"),
    [
        ([], 0),
        (["user", "system"], 0),
        (["system", "developer", "user"], 2),
        (["system", "developer"], 2),
    ],
)
def test_facts_when_pinned_stand_behind_the_instructions(roles: list[str], place: int) -> None:
    """By the user, a line each, in the order in which they were pinned."""
    messages = [said(seq, role) for seq, role in enumerate(roles, 2)]

    context = provider_dicts(messages, facts={"b": "two", "a": "one"}, closed_calls={})

    assert context[place] == {"role": "user", "content": f"{FACTS_PREFIX}- b: two\n- a: one"}
    assert [each["role"] for each in context if each is not context[place]] == roles


def test_summary_when_it_stands_is_between_what_it_kept_and_the_rest() -> None:
    """An output that came later stands with the call that was kept."""
    kept = [said(2, "system", "rules"), call(3, "a")]
    rest = [said(10, "user", "new"), output(11, "a")]

    assert lines([*kept, *rest], compaction=compaction(9), facts={"n": "x"}) == [
        "system: rules",
        f"user: {FACTS_PREFIX}- n: x",
        "assistant: call(a)",
        "tool: found <a>",
        f"user: {SUMMARY_PREFIX}S",
        "user: new",
    ]


def test_messages_as_shown_when_counted_are_those_of_a_context_that_goes_on() -> None:
    """What says nothing is left out, and words for missing outputs are in."""
    messages = [said(2, "assistant", ""), call(3, "a"), call(4, "b", status="interrupted")]

    assert [(each.role, each.content) for each in as_shown(messages)] == [
        *(("assistant", ""), ("tool", NO_OUTPUT)),
    ]
    assert as_shown([]) == []
