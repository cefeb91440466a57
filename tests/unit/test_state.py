"""The fold: given a history, when events follow, then the state is this.

The rules are told one by one in examples; whole generated histories are held against the naive
fold in conversation_model.py, at every seq.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import events as ev
from eventlog.compaction.policy import MODULE_9, OFF
from eventlog.entries import CHUNK_LENGTH, Chunk, ChunkMissing, Entries, Message
from eventlog.envelope import RecordedEvent
from eventlog.folding import apply, collect, copy, evolve, fold, initial
from eventlog.rendering import SUMMARY_PREFIX
from eventlog.state import SessionHeader, SessionState
from tests.factories import (
    BEGIN,
    SESSION,
    differences,
    framed,
    history,
    interruption,
    observable,
    recorded,
    rewinding,
    same,
    state_of,
    structural,
)
from tests.strategies import CHANNELS, histories, json_objects, texts, tool_calls, usages
from tests.unit.conversation_model import Model, said_of, view_of

CREATED: Final = ev.SessionCreated(user_id="ada")


def session(*events: ev.Event) -> SessionState:
    """Given: a session in which these events happened after its creation, from seq 2 on."""
    return state_of(history(CREATED, *events))


def after(state: SessionState, *events: ev.Event) -> SessionState:
    """When: these events follow."""
    return fold(state, history(*events, after=state.seq))


def user(content: str, **fields: Any) -> ev.MessageAdded:
    """A user's message whose id is its text."""
    return ev.MessageAdded(role="user", content=content, message_id=content, **fields)


def started(message_id: str = "m", **fields: Any) -> ev.MessageStarted:
    """A reply begins."""
    return ev.MessageStarted(message_id=message_id, **fields)


def token(text: str, message_id: str = "m", **fields: Any) -> ev.TokenAppended:
    """A piece of a reply."""
    return ev.TokenAppended(message_id=message_id, text=text, **fields)


def completed(content: str, message_id: str = "m", **fields: Any) -> ev.MessageCompleted:
    """A reply is whole."""
    return ev.MessageCompleted(message_id=message_id, content=content, **fields)


def interrupted(content: str, message_id: str = "m", **fields: Any) -> ev.MessageInterrupted:
    """A reply ended early."""
    return ev.MessageInterrupted(message_id=message_id, content=content, **fields)


def compacted(to_seq: int, kept: Sequence[int] = (), **fields: Any) -> ev.CompactionCompleted:
    """A summary `S<to_seq>` for everything up to a seq."""
    return ev.CompactionCompleted(
        **{"summary": f"S{to_seq}", "from_seq": 1, "to_seq": to_seq, "kept": list(kept), **fields}
    )


def texts_of(state: SessionState) -> list[Any]:
    """What the visible messages say."""
    return [each.content for each in state.messages]


def context_of(state: SessionState) -> list[Any]:
    """What the context says, summaries as `S<to_seq>`."""
    return [str(each["content"]).removeprefix(SUMMARY_PREFIX) for each in state.context()]


# --- whole histories -----------------------------------------------------------------------------


@given(histories(forks=True))
def test_state_when_any_history_is_folded_is_what_the_model_says(
    past: list[RecordedEvent],
) -> None:
    """Messages, context, counts, agents, hand-offs, facts: at every seq, also of forks of forks."""
    model, state = Model(), initial(SESSION)
    for each in past:
        model.follow(each)
        state = evolve(state, each)

        assert view_of(state) == model.view()
        assert (state.seq, state.updated_at) == (each.seq, each.recorded_at)
        assert state.session_id == each.session_id


@given(histories(forks=True))
def test_counts_when_compared_at_every_seq_are_those_of_the_messages(
    past: list[RecordedEvent],
) -> None:
    """`message_count` and `token_count` are kept as events come, and never drift."""
    state = initial(SESSION)
    for each in past:
        state = evolve(state, each)

        assert state.message_count == len(state.messages)
        assert state.token_count == sum(message.token_count or 0 for message in state.messages)
        assert state.compaction_count == sum(not one.reverted_seq for one in state.compactions)


@given(histories(), st.integers(1, 8))
def test_state_when_every_message_has_ended_needs_no_increments(
    past: list[RecordedEvent], increments_max: int
) -> None:
    """Increments one by one, in frames of any length, or left out: the same state."""
    ends = [interruption(each) for each in state_of(past).open_messages]
    whole = past + history(*ends, ev.Custom(name="last"), after=len(past))

    state = state_of(whole)

    assert not state.opened
    assert not differences(state, state_of(framed(whole, increments_max)))
    assert not differences(state, state_of(structural(whole)))


@given(histories())
def test_state_when_messages_are_open_is_the_same_from_increments_and_frames(
    past: list[RecordedEvent],
) -> None:
    """Mid-reply too, and when someone looked at the messages in between."""
    one_by_one, looked_at = state_of(past), initial(SESSION)
    for each in past:
        looked_at = evolve(looked_at, each)
        assert looked_at.messages is not None

    assert not differences(one_by_one, state_of(framed(past)))
    assert not differences(one_by_one, looked_at)


@given(histories())
def test_state_when_increments_are_collected_later_is_the_same(past: list[RecordedEvent]) -> None:
    """As replay does it: the structure first, then what open messages had received."""
    state = state_of(structural(past))
    first = min((each.seq for each in state.open_messages), default=len(past))
    for each in past[first:]:
        collect(state, each.event)

    assert [said_of(each) for each in state.messages] == [
        said_of(each) for each in state_of(past).messages
    ]


@given(histories(forks=True), st.data())
def test_fold_when_done_in_two_parts_is_the_fold_of_both(
    past: list[RecordedEvent], data: st.DataObject
) -> None:
    """Wherever the history is cut: snapshots rest on it."""
    cut = data.draw(st.integers(0, len(past)))

    halfway = fold(initial(SESSION), past[:cut])

    assert not differences(fold(initial(SESSION), past), fold(halfway, past[cut:]))


@given(histories(forks=True))
def test_evolve_when_called_changes_nothing_that_went_in(past: list[RecordedEvent]) -> None:
    """Every state on the way is, at the end, still what it was; so are the events."""
    events = msgspec.msgpack.encode(past)
    states, pictures = [initial(SESSION)], [picture(initial(SESSION))]
    for each in past:
        states.append(evolve(states[-1], each))
        pictures.append(picture(copy(states[-1])))

    for state, each in zip(states, past, strict=False):
        for again in (evolve(state, each), fold(state, past[state.seq :])):
            assert again is not state
    assert [picture(each) for each in states] == pictures
    assert msgspec.msgpack.encode(past) == events


@pytest.mark.parametrize(
    "events",
    [
        [ev.AgentHandedOff(to_agent=name) for name in "abc"],
        [ev.AgentActivated(agent=name) for name in "abc"],
        [ev.RunStarted(run_id=name) for name in "abc"],
        [ev.ScratchpadWritten(name=name, value=1) for name in "abc"],
        [ev.SessionUpdated(metadata={name: 1}) for name in "abc"],
        [ev.SessionCleared() for _ in "abc"],
        [ev.SessionRewound(to_seq=seq) for seq in (1, 2, 3)],
        [ev.CompactionRequested(), *(ev.CompactionFailed(reason="x") for _ in "ab")],
        [ev.CompactionCompleted(summary="s", from_seq=1, to_seq=1) for _ in "abc"],
        [ev.CompactionPolicySet(policy=each) for each in (OFF, MODULE_9, None)],
        [ev.MessagePinned(message_id=name) for name in "aba"],
        [ev.FactPinned(name=name, text=name) for name in "aba"],
        [ev.ToolCallClosed(tool_call_id=name) for name in "aba"],
        [ev.MessageAdded(role="user", content=name) for name in "abc"],
        [ev.MessageStarted(message_id=name) for name in "abc"],
    ],
    ids=lambda events: type(events[-1]).__name__,
)
def test_evolve_when_events_of_a_kind_follow_one_another_changes_no_older_state(
    events: list[ev.Event],
) -> None:
    """Everything that grows with such events grows in the new state only."""
    states = [session()]
    pictures = [picture(session())]
    for each in events:
        states.append(after(states[-1], each))
        pictures.append(picture(copy(states[-1])))

    assert [picture(each) for each in states] == pictures


def picture(state: SessionState) -> bytes:
    """All that can be seen of a state, as bytes that nobody changes."""
    return msgspec.msgpack.encode(observable(state))


@given(histories(), st.data())
def test_state_when_its_header_went_through_a_snapshot_goes_on_the_same(
    past: list[RecordedEvent], data: st.DataObject
) -> None:
    """A header that was encoded and decoded continues as the original does."""
    cut = data.draw(st.integers(0, len(past)))
    state = state_of(past[:cut])
    fields = {name: getattr(state, name) for name in SessionHeader.__struct_fields__}
    data_stored = msgspec.msgpack.encode(SessionHeader(**fields))

    header = msgspec.msgpack.decode(data_stored, type=SessionHeader)

    restored = SessionState(
        **{name: getattr(header, name) for name in SessionHeader.__struct_fields__},
        entries=state.entries.copy(),
    )
    assert not differences(restored, state)
    assert not differences(fold(restored, past[cut:]), state_of(past))


@given(histories(leave_out=("finish",)), st.data())
def test_rewind_when_to_any_seq_brings_back_the_conversation_of_that_seq(
    past: list[RecordedEvent], data: st.DataObject
) -> None:
    """Messages, context, agent and hand-off of then; what was open then is interrupted."""
    now = state_of(past)
    to_seq = data.draw(st.sampled_from([s for s in range(len(past) + 1) if not now.is_rewound(s)]))
    then = state_of(past[:to_seq])
    then = after(then, *[interruption(each) for each in then.open_messages])
    then = msgspec.structs.replace(then, facts=now.facts)  # facts stay as they are

    rewound = fold(now, rewinding(past, to_seq))

    for name in (
        *("messages", "context", "message_count", "token_count", "context_token_count", "opened"),
        *("compaction", "compactions", "clears", "retractions", "current_agent", "agent_history"),
        *("handoff", "earlier_handoffs", "closings"),
    ):
        was, is_now = observable(then)[name], observable(rewound)[name]
        if name == "messages":
            was, is_now = ([unnumbered(each) for each in those] for those in (was, is_now))
        assert is_now == was, name
    for name in (
        *("title", "metadata", "scratchpad", "runs", "run_count", "agents", "input_tokens"),
        *("facts", "pinned", "compaction_policy"),
    ):
        assert getattr(rewound, name) == getattr(now, name), name


def unnumbered(message: Message) -> Message:
    """A message without the seq of its end, which an interruption after a rewind moves."""
    return msgspec.structs.replace(message, closed_seq=0)


@given(histories(leave_out=("finish",)), st.data())
def test_rewind_when_done_twice_to_the_same_seq_changes_nothing_more(
    past: list[RecordedEvent], data: st.DataObject
) -> None:
    """The second finds the conversation as it is to be."""
    now = state_of(past)
    to_seq = data.draw(st.sampled_from([s for s in range(len(past) + 1) if not now.is_rewound(s)]))

    once = past + rewinding(past, to_seq)
    twice = once + rewinding(once, to_seq)

    assert [unnumbered(each) for each in state_of(twice).messages] == [
        unnumbered(each) for each in state_of(once).messages
    ]
    assert state_of(twice).context() == state_of(once).context()


def test_same_when_states_differ_says_where() -> None:
    """The comparison that these tests rest on can fail, and names the field."""
    state = session(user("a"))

    assert same(state, session(user("a")))
    assert not same(state, session(user("b")))
    assert [line.split(":")[0] for line in differences(state, after(state, user("b")))] == [
        *("seq", "updated_at", "message_count", "messages", "entries", "context"),
    ]
    hidden = after(state, ev.SessionCleared())
    entries = hidden.entries.copy()
    entries.replace(0, msgspec.structs.replace(entries[0], content="other"))
    assert differences(hidden, msgspec.structs.replace(hidden, entries=entries))


# --- the order of events -------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [-1, 0, 1, 2])
def test_evolve_when_the_event_is_not_a_later_one_raises(seq: int) -> None:
    """The same event twice, or an older one, is a bug of the caller; the state stays as it is."""
    state = session(user("a"))

    with pytest.raises(ValueError, match=f"event {seq} can't follow 2"):
        evolve(state, recorded(seq, user("b")))
    with pytest.raises(ValueError, match="can't follow"):
        apply(copy(state), recorded(seq, user("b")))
    assert not differences(state, session(user("a")))


def test_initial_when_folded_over_nothing_is_empty() -> None:
    """A session before its first event: seq 0, no messages, no context."""
    state = initial(SESSION)

    assert (state.seq, list(state.messages), state.context()) == (0, [], [])
    assert (state.created_at, state.current_agent, state.compaction) == (None, None, None)
    assert not differences(fold(state, []), state)


# --- messages ------------------------------------------------------------------------------------


def test_message_when_added_has_all_its_fields() -> None:
    """Nothing of a message is lost on the way into the state."""
    fields: dict[str, Any] = {
        "role": "assistant",
        "content": [{"type": "text", "text": "hi"}],
        "message_id": "m",
        "agent": "planner",
        "name": "n",
        "model": "large",
        "reasoning": "r",
        "tool_calls": [ev.ToolCall(id="c", name="look")],
        "tool_call_id": "c0",
        "token_count": 3,
        "usage": ev.Usage(input_tokens=1),
        "finish_reason": "stop",
        "metadata": {"a": 1},
        "native": {"id": "x"},
    }

    [message] = session(ev.MessageAdded(**fields)).messages

    assert set(fields) == set(ev.MessageAdded.__struct_fields__), "a new field gets a line above"
    assert {name: getattr(message, name) for name in fields} == fields
    assert (message.seq, message.closed_seq, message.status) == (2, 2, "complete")
    assert message.recorded_at == recorded(2, CREATED).recorded_at


def test_message_when_added_without_an_id_goes_by_that_of_its_event() -> None:
    """Whoever appended it knows that id from the answer, and can retract the message by it."""
    added = recorded(2, ev.MessageAdded(role="user", content="a"))

    state = fold(session(), [added])

    assert state.messages[0].message_id == str(added.event_id)
    assert texts_of(after(state, ev.MessageRetracted(message_id=str(added.event_id)))) == []


@given(
    end=st.builds(
        ev.MessageCompleted,
        message_id=st.just("m"),
        content=texts(40),
        reasoning=texts(40),
        tool_calls=tool_calls(),
        finish_reason=st.none() | texts(),
        usage=usages(),
        token_count=st.none() | st.integers(0, 10_000),
        metadata=json_objects(),
        native=json_objects(),
    ),
    begin=st.builds(
        started,
        agent=st.none() | texts(),
        name=st.none() | texts(),
        model=st.none() | texts(),
        metadata=json_objects(),
    ),
    data=st.data(),
)
def test_message_when_streamed_is_the_same_as_added_whole(
    end: ev.MessageCompleted, begin: ev.MessageStarted, data: st.DataObject
) -> None:
    """In any pieces and channels: message, context, counts, agents and usage are equal."""
    pieces: list[ev.Event] = []
    for channel, text in ("text", str(end.content)), ("reasoning", end.reasoning):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        bounds = [0, *cuts, len(text)]
        pieces += [token(text[left:right], channel=channel) for left, right in pairwise(bounds)]
    pieces += [
        token(each.arguments, channel="tool-arguments", tool_call_id=each.id)
        for each in end.tool_calls
    ]
    whole = ev.MessageAdded(
        role=begin.role,
        content=end.content,
        message_id="m",
        agent=begin.agent,
        name=begin.name,
        model=begin.model,
        reasoning=end.reasoning,
        tool_calls=end.tool_calls,
        token_count=end.token_count,
        usage=end.usage,
        finish_reason=end.finish_reason,
        metadata={**begin.metadata, **end.metadata},
        native=end.native,
    )

    streamed = session(begin, *data.draw(st.permutations(pieces)), end)
    added = session(whole)

    assert unplaced(streamed) == unplaced(added)


def unplaced(state: SessionState) -> dict[str, Any]:
    """All that can be seen of a state but when, and at which seq, things happened."""
    fields = observable(state)
    for name in ("seq", "updated_at", "entries"):
        del fields[name]
    fields["messages"] = [
        msgspec.structs.replace(each, closed_seq=0, opening_metadata=None)
        for each in fields["messages"]
    ]
    return fields


@pytest.mark.parametrize("channel", CHANNELS)
def test_message_when_open_shows_what_arrived_so_far(channel: ev.Channel) -> None:
    """Replay stops mid-reply: the text, reasoning or tool arguments until there, in order."""
    state = session(
        started(agent="planner"),
        *(token(text, channel=channel, tool_call_id="c1") for text in ("He", "", "l", "lo")),
    )

    [message] = state.messages

    assert (message.status, message.closed_seq) == ("open", 0)
    seen = {
        "text": message.content,
        "reasoning": message.reasoning,
        "tool-arguments": "".join(each.arguments for each in message.tool_calls),
    }
    assert seen.pop(channel) == "Hello"
    assert set(seen.values()) == {""}
    assert [each.message_id for each in state.open_messages] == ["m"]
    assert state.message_count == 1


def test_message_when_looked_at_between_increments_goes_on_growing() -> None:
    """Looking writes what was received into the message, and loses nothing of what follows."""
    state = session(started())
    seen = []
    for text in "abc":
        state = after(state, token(text), token(text.upper(), channel="reasoning"))
        [message] = state.messages
        seen.append((message.content, message.reasoning))

    assert seen == [("a", "A"), ("ab", "AB"), ("abc", "ABC")]


def test_message_when_two_tools_are_called_at_once_keeps_their_arguments_apart() -> None:
    """Increments of parallel calls come interleaved; a call's place is that of its first one."""
    state = session(
        started(),
        *(
            token(text, channel="tool-arguments", tool_call_id=call)
            for call, text in [("c2", "{"), ("c1", "["), ("c2", "}"), ("c1", "]")]
        ),
    )

    assert state.messages[0].tool_calls == [
        ev.ToolCall(id="c2", name="", arguments="{}"),
        ev.ToolCall(id="c1", name="", arguments="[]"),
    ]


def test_messages_when_two_stream_at_once_do_not_mix() -> None:
    """Two agents reply side by side, and a user's message comes in between."""
    state = session(
        started("m1", agent="a"),
        started("m2", agent="b"),
        token("1", "m1"),
        user("wait"),
        token("2", "m2"),
        token("1", "m1"),
        completed("11", "m1"),
        token("2", "m2"),
    )

    assert texts_of(state) == ["11", "22", "wait"]
    assert [each.status for each in state.messages] == ["complete", "open", "complete"]
    assert state.agents == ["a", "b"]


def test_message_when_interrupted_keeps_what_was_seen() -> None:
    """It stays in the conversation and in the context, with the reason."""
    state = session(user("q"), started(), token("par"), interrupted("par", reason="cancelled"))

    message = state.messages[-1]

    assert (message.status, message.interrupt_reason) == ("interrupted", "cancelled")
    assert (message.content, message.closed_seq) == ("par", 5)
    assert context_of(state) == ["q", "par"]


@pytest.mark.parametrize(
    "late",
    [
        token("x"),
        ev.TokensAppended(message_id="m", texts=["x"], ms=[0]),
        completed("x"),
        interrupted("x"),
        ev.MessageRetracted(message_id="other"),
    ],
)
def test_message_when_it_has_ended_takes_nothing_more(late: ev.Event) -> None:
    """What a zombie writer still sends, or what concerns no message, changes no message."""
    state = session(started(), interrupted("seen"))

    again = after(state, late)

    assert list(again.messages) == list(state.messages)
    assert again.message_count == 1


def test_message_when_started_twice_is_one() -> None:
    """A second start of an open message is a retry: it changes nothing."""
    state = session(started(agent="a"), token("x"))

    again = after(state, started(agent="a"))

    assert texts_of(again) == ["x"]
    assert again.message_count == 1


def test_usage_when_a_reply_ends_after_it_was_cleared_away_is_counted() -> None:
    """The tokens were spent, whether or not anyone still sees the message."""
    state = session(started(), ev.SessionCleared())

    state = after(state, completed("x", usage=ev.Usage(output_tokens=7)))

    assert texts_of(state) == []
    assert state.output_tokens == 7


# --- retracting and clearing ---------------------------------------------------------------------


def test_message_when_retracted_leaves_view_and_context() -> None:
    """Undo takes back one message; the others stay in order."""
    state = session(user("a", token_count=1), user("b", token_count=2), user("c", token_count=4))

    state = after(state, ev.MessageRetracted(message_id="b"))

    assert texts_of(state) == ["a", "c"]
    assert context_of(state) == ["a", "c"]
    assert (state.message_count, state.token_count, state.context_token_count) == (2, 5, 5)


def test_messages_when_undone_one_after_the_other_go_from_the_end() -> None:
    """As `session.undo(2)` appends it."""
    state = session(user("a"), user("b"), user("c"))

    state = after(state, ev.MessageRetracted(message_id="c"), ev.MessageRetracted(message_id="b"))

    assert texts_of(state) == ["a"]


def test_message_when_its_id_was_used_twice_is_retracted_newest_first() -> None:
    """Ids are the writers'; where one is used again, undo takes the newest that is visible."""
    state = session(user("a"), started("a"), token("old", "a"), user("a"))

    once = after(state, ev.MessageRetracted(message_id="a"))
    twice = after(once, ev.MessageRetracted(message_id="a"))

    assert texts_of(once) == ["a", "old"]
    assert [each.message_id for each in once.open_messages] == ["a"]
    assert texts_of(after(once, token("er", "a"))) == ["a", "older"]
    assert texts_of(twice) == ["a"]
    assert twice.open_messages == []


def test_message_when_retracted_while_it_streams_stays_away() -> None:
    """Its writer goes on for a while; nobody sees it any more."""
    state = session(user("q"), started(), token("x"))

    state = after(state, ev.MessageRetracted(message_id="m"), token("y"), completed("xy"))

    assert texts_of(state) == ["q"]
    assert state.open_messages == []


def test_session_when_cleared_starts_over() -> None:
    """Messages, context, counts and the standing summary go; facts and agent stay."""
    state = session(
        user("a", token_count=3),
        ev.AgentActivated(agent="planner"),
        ev.ScratchpadWritten(name="n", value=1),
        compacted(2, tokens_after=1),
        started(),
    )

    state = after(state, ev.SessionCleared(), user("b", token_count=2))

    assert texts_of(state) == ["b"]
    assert context_of(state) == ["b"]
    assert (state.message_count, state.token_count, state.context_token_count) == (1, 2, 2)
    assert (state.compaction, state.open_messages) == (None, [])
    assert (state.current_agent, state.scratchpad) == ("planner", {"n": 1})


def test_message_when_cleared_away_cannot_be_retracted() -> None:
    """What is gone is gone: a message of before the clear is not looked for."""
    state = session(user("a"), ev.SessionCleared(), user("b"))

    state = after(state, ev.MessageRetracted(message_id="a"))

    assert texts_of(state) == ["b"]
    assert state.retractions == []


# --- compaction ----------------------------------------------------------------------------------


def test_context_when_compacted_is_kept_messages_summary_and_the_rest() -> None:
    """In this order; the messages themselves all stay in the view."""
    state = session(*[user(each, token_count=10) for each in "abcdef"])

    state = after(state, compacted(5, kept=[4, 2], tokens_after=3))

    assert context_of(state) == ["a", "c", "S5", "e", "f"]
    assert state.context()[2] == {"role": "user", "content": SUMMARY_PREFIX + "S5"}
    assert texts_of(state) == list("abcdef")
    assert (state.token_count, state.context_token_count) == (60, 43)
    assert state.compaction_count == 1


def test_context_when_everything_was_compacted_ends_with_the_summary() -> None:
    """Nothing follows yet: the summary is last, and alone when nothing is kept."""
    state = session(user("a"), user("b"))

    assert context_of(after(state, compacted(3))) == ["S3"]
    assert context_of(after(state, compacted(3, kept=[2]))) == ["a", "S3"]
    assert context_of(after(state, compacted(3), user("c"))) == ["S3", "c"]
    assert context_of(after(state, compacted(1))) == ["S1", "a", "b"]


def test_context_when_compacted_again_has_the_newest_summary_only() -> None:
    """Summaries build on one another: the newest stands for all before."""
    state = session(
        user("a"), user("b"), compacted(2), user("c"), compacted(5, kept=[2]), user("d")
    )

    assert context_of(state) == ["a", "S5", "d"]
    assert state.compaction_count == 2


def test_context_when_kept_has_seqs_that_make_no_sense_ignores_them() -> None:
    """Seqs outside of the range, of no message, or named twice bring nothing twice."""
    state = session(user("a"), user("b"), user("c"))

    state = after(state, compacted(3, kept=[3, 3, 4, 1, 0, -5, 99]))

    assert context_of(state) == ["b", "S3", "c"]


def test_context_when_kept_has_a_message_of_before_a_clear_leaves_it_out() -> None:
    """No compaction brings back what was cleared away."""
    state = session(user("a"), ev.SessionCleared(), user("b"), user("c"))

    state = after(state, compacted(4, kept=[2, 4]))

    assert context_of(state) == ["b", "S4", "c"]


def test_context_when_a_kept_message_is_retracted_loses_it() -> None:
    """Undo reaches into what a compaction kept."""
    state = session(user("a", token_count=1), user("b", token_count=1), compacted(3, kept=[2]))

    state = after(state, ev.MessageRetracted(message_id="a"))

    assert context_of(state) == ["S3"]
    assert state.context_token_count == 0


def test_context_when_a_compaction_is_reverted_is_what_it_stood_for() -> None:
    """The one before stands again, or the messages themselves."""
    state = session(user("a"), user("b"), compacted(2), user("c"), compacted(5, tokens_after=9))

    once = after(state, ev.CompactionReverted(compaction_seq=6))
    twice = after(once, ev.CompactionReverted(compaction_seq=4))

    assert context_of(once) == ["S2", "b", "c"]
    assert context_of(twice) == ["a", "b", "c"]
    assert [each.compaction_count for each in (state, once, twice)] == [2, 1, 0]
    assert twice.context_token_count == 0


def test_compaction_when_reverted_twice_is_reverted_by_the_first() -> None:
    """A rewind to between the two finds it reverted, as it was then."""
    past = history(
        CREATED,
        user("a"),
        compacted(2),
        ev.CompactionReverted(compaction_seq=3),
        user("b"),
        ev.CompactionReverted(compaction_seq=3),
    )

    state = state_of(past + rewinding(past, 5))

    assert context_of(state) == ["a", "b"]


def test_tokens_when_a_reply_ends_that_a_compaction_covers_are_not_in_the_context() -> None:
    """The message is not in the context, so neither are its tokens; kept, both are."""
    covered = session(started(), compacted(2), completed("x", token_count=5))
    kept = session(started(), compacted(2, kept=[2]), completed("x", token_count=5))

    assert (covered.token_count, covered.context_token_count) == (5, 0)
    assert (kept.token_count, kept.context_token_count) == (5, 5)
    assert context_of(covered) == ["S2"]
    assert context_of(kept) == ["x", "S2"]


def test_compaction_when_the_session_was_cleared_meanwhile_stands_for_nothing() -> None:
    """A summary of what was cleared away must not bring it back into the context."""
    state = session(user("a"), user("b"), ev.SessionCleared(), compacted(2), user("c"))

    assert context_of(state) == ["c"]
    assert state.compaction is None
    assert context_of(after(state, compacted(6))) == ["S6"]


def test_compaction_when_the_session_was_rewound_meanwhile_stands_for_nothing() -> None:
    """A summary that tells of messages that were rewound away must not stand for those left."""
    state = session(user("a"), user("b"), ev.SessionRewound(to_seq=2), compacted(3), user("c"))

    assert context_of(state) == ["a", "c"]
    assert (state.compaction, state.compaction_count) == (None, 0)
    assert context_of(after(state, compacted(2))) == ["S2", "c"]


def test_context_when_a_reply_streams_leaves_it_out() -> None:
    """A model never sees half of what another is saying."""
    state = session(user("q"), started(), token("half"))

    assert context_of(state) == ["q"]
    assert context_of(after(state, completed("whole"))) == ["q", "whole"]


def test_context_when_a_reply_was_interrupted_has_no_calls_that_nobody_answered() -> None:
    """Their arguments may break off anywhere, and providers refuse calls without an answer."""
    calls = [ev.ToolCall(id="c1", name="look", arguments="{}"), ev.ToolCall(id="c2", name="")]
    state = session(user("q"), started(), interrupted("hm", tool_calls=calls))

    assert state.context()[-1] == {"role": "assistant", "content": "hm"}
    assert state.messages[-1].tool_calls == calls
    answer = ev.MessageAdded(role="tool", tool_call_id="c1", content="seen")
    assert [call["id"] for call in after(state, answer).context()[1]["tool_calls"]] == ["c1"]
    silent = session(user("q"), started(), interrupted("", tool_calls=calls))
    assert context_of(silent) == ["q"]


def test_context_when_given_to_a_provider_has_its_form() -> None:
    """Role, content, name, calls and the id that a tool's answer goes by; nothing else."""
    parts = [{"type": "text", "text": "hi"}]
    state = session(
        ev.MessageAdded(role="developer", content="Be brief."),
        ev.MessageAdded(role="user", content=parts, name="ada", metadata={"a": 1}),
        ev.MessageAdded(
            role="assistant", tool_calls=[ev.ToolCall(id="c", name="look", arguments="{}")]
        ),
        ev.MessageAdded(role="tool", content="seen", tool_call_id="c"),
        ev.MessageAdded(role="assistant", content="", reasoning="nothing to say"),
    )

    assert state.context() == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ada"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "content": "seen", "tool_call_id": "c"},
    ]


# --- rewinding -----------------------------------------------------------------------------------


def test_session_when_rewound_is_as_it_was_and_goes_on_from_there() -> None:
    """Later messages are gone, new ones follow."""
    past = history(CREATED, user("a"), user("b"), user("c"))

    state = state_of(past + rewinding(past, 3))

    assert texts_of(state) == ["a", "b"]
    assert texts_of(after(state, user("d"))) == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("undoing", "context"),
    [
        (ev.SessionCleared(), ["a", "b"]),
        (ev.MessageRetracted(message_id="a"), ["a", "b"]),
        (compacted(3), ["a", "b"]),
    ],
)
def test_rewind_when_to_before_an_event_undoes_it(undoing: ev.Event, context: list[str]) -> None:
    """A clear, a retraction, a compaction: none of them is final."""
    past = history(CREATED, user("a"), user("b"), undoing, user("c"))

    state = state_of(past + rewinding(past, 3))

    assert context_of(state) == context
    assert texts_of(state) == ["a", "b"]


def test_rewind_when_to_before_a_revert_has_the_summary_again() -> None:
    """Going back over the undoing of a compaction."""
    past = history(CREATED, user("a"), compacted(2), ev.CompactionReverted(compaction_seq=3))

    assert context_of(state_of(past)) == ["a"]
    assert context_of(state_of(past + rewinding(past, 3))) == ["S2"]


def test_rewind_when_to_the_middle_of_a_reply_shows_what_was_seen_then() -> None:
    """The reply that was completed later is there, interrupted, with the text of that moment."""
    past = history(
        CREATED,
        user("q"),
        started(agent="a", model="m1", metadata={"begun": 1}),
        token("Hel"),
        token("lo"),
        completed("Hello", token_count=5, metadata={"ended": 1}, finish_reason="stop"),
        user("more"),
    )

    state = state_of(past + rewinding(past, 4))

    assert texts_of(state) == ["q", "Hel"]
    message = state.messages[1]
    assert (message.status, message.agent, message.model) == ("interrupted", "a", "m1")
    assert (message.metadata, message.finish_reason, message.token_count) == (
        {"begun": 1},
        None,
        None,
    )
    assert (state.token_count, state.open_messages) == (0, [])


def test_rewind_when_a_reply_streams_now_and_did_then_closes_it_twice() -> None:
    """First with all of its text, which the log keeps, then with the text of then, which counts."""
    past = history(CREATED, started(), token("Hel"), token("lo"))

    batch = rewinding(past, 3)

    assert [type(each.event).__name__ for each in batch] == [
        *("MessageInterrupted", "SessionRewound", "MessageInterrupted"),
    ]
    assert texts_of(state_of(past + batch)) == ["Hel"]
    assert texts_of(fold(state_of(past + batch), history(token("!"), after=7))) == ["Hel"]


def test_rewind_when_to_after_a_clear_does_not_wake_what_streamed_before_it() -> None:
    """A reply that was cleared away stays away: it is neither open nor counted."""
    past = history(CREATED, started(), token("x"), ev.SessionCleared(), user("a"), user("b"))

    state = state_of(past + rewinding(past, 5))

    assert texts_of(state) == ["a"]
    assert (state.open_messages, state.message_count) == ([], 1)
    late = after(state, completed("x", token_count=9))
    assert late.token_count == 0


def test_rewind_when_to_after_a_retraction_does_not_wake_what_was_retracted() -> None:
    """The same for a reply that was taken back while it streamed."""
    past = history(
        CREATED, started(), token("x"), ev.MessageRetracted(message_id="m"), user("a"), user("b")
    )

    state = state_of(past + rewinding(past, 5))

    assert texts_of(state) == ["a"]
    assert (state.open_messages, state.message_count) == ([], 1)


def test_rewind_when_to_before_the_clear_wakes_what_streamed_then() -> None:
    """There the reply was visible and open, so it is interrupted with what it had."""
    past = history(CREATED, started(), token("x"), ev.SessionCleared(), token("y"), completed("xy"))

    state = state_of(past + rewinding(past, 3))

    assert [(each.content, each.status) for each in state.messages] == [("x", "interrupted")]


def test_rewind_when_to_before_a_handoff_has_the_earlier_one_again() -> None:
    """Agent and hand-off are part of the conversation, the list of agents used is a fact."""
    past = history(
        CREATED,
        ev.AgentActivated(agent="a"),
        ev.AgentHandedOff(to_agent="b", context={"n": 1}),
        ev.AgentHandedOff(to_agent="c"),
    )

    state = state_of(past + rewinding(past, 3))

    assert state.current_agent == "b"
    assert state.handoff is not None
    assert (state.handoff.from_agent, state.handoff.to_agent) == ("a", "b")
    assert state.handoff.context == {"n": 1}
    assert state.agents == ["a", "b", "c"]
    assert state_of(past + rewinding(past, 2)).handoff is None


def test_rewind_when_to_the_start_leaves_nothing_said() -> None:
    """Seq 0 and seq 1 are before every message; facts stay."""
    past = history(CREATED, user("a"), ev.ScratchpadWritten(name="n", value=1))
    for to_seq in (0, 1):
        state = state_of(past + rewinding(past, to_seq))

        assert (texts_of(state), state.context(), state.message_count) == ([], [], 0)
        assert (state.user_id, state.scratchpad) == ("ada", {"n": 1})


def test_rewind_when_to_where_an_earlier_one_came_from_brings_nothing_back() -> None:
    """Known limit: what a rewind left behind can be read and forked, not rewound to."""
    past = history(CREATED, user("a"), user("b"), user("c"))
    past += rewinding(past, 2)

    state = state_of(past)

    assert [seq for seq in range(7) if state.is_rewound(seq)] == [3, 4]
    again = state_of(past + rewinding(past, 4))
    assert texts_of(again) == ["a"]
    assert [seq for seq in range(8) if again.is_rewound(seq)] == [3, 4, 5]


def test_rewind_when_nobody_closed_what_streams_keeps_what_began_before() -> None:
    """`session.rewind()` closes all replies first; without that they go on, or were never there."""
    state = session(started("m1"), token("x", "m1"), started("m2"), token("y", "m2"))

    state = after(state, ev.SessionRewound(to_seq=3))

    assert texts_of(state) == ["x"]
    assert texts_of(after(state, token("!", "m1"), token("!", "m2"))) == ["x!"]
    assert [each.message_id for each in state.open_messages] == ["m1"]


def test_rewind_when_there_were_others_remembers_all_that_was_left_behind() -> None:
    """Rewinds side by side, and one over the others."""
    past = history(CREATED, user("a"), user("b"))
    past += rewinding(past, 2)  # seq 4; 3 is left behind
    past += history(user("c"), user("d"), after=4)
    past += rewinding(past, 5)  # seq 7; 6 too

    both = state_of(past)
    over = state_of(past + rewinding(past, 2))

    assert [seq for seq in range(8) if both.is_rewound(seq)] == [3, 6]
    assert [seq for seq in range(9) if over.is_rewound(seq)] == [3, 4, 5, 6, 7]
    assert over.rewinds == [(8, 2)]


# --- forks ---------------------------------------------------------------------------------------


def test_fork_when_it_continues_a_parent_has_its_messages_and_its_own_name() -> None:
    """The fork's first event has seq N + 1; the conversation goes on, runs don't."""
    fork_id = UUID(int=7)
    parent = history(
        ev.SessionCreated(key="chat", user_id="ada", title="t", metadata={"a": 1, "b": 1}),
        user("a", token_count=1),
        ev.AgentActivated(agent="planner"),
        ev.RunStarted(run_id="r"),
        user("b", token_count=2),
    )
    created = ev.SessionCreated(
        user_id="bob", metadata={"b": 2}, parent_session_id=SESSION, parent_seq=4
    )
    own = history(created, user("c", token_count=4), after=4, session_id=fork_id)

    state = state_of(parent[:4] + own, fork_id)

    assert (state.session_id, state.seq) == (fork_id, 6)
    assert (state.parent_session_id, state.parent_seq) == (SESSION, 4)
    assert texts_of(state) == ["a", "c"]
    assert (state.message_count, state.token_count) == (2, 5)
    assert (state.key, state.user_id, state.title) == (None, "bob", "t")
    assert state.metadata == {"a": 1, "b": 2}
    assert (state.current_agent, state.runs) == ("planner", {})
    assert state.created_at == own[0].recorded_at


def test_fork_when_the_parent_was_closed_is_open() -> None:
    """A closed session can be forked to go on."""
    parent = history(CREATED, user("a"), ev.SessionClosed())
    created = ev.SessionCreated(parent_session_id=SESSION, parent_seq=3)

    state = state_of(parent + history(created, after=3, session_id=UUID(int=7)))

    assert state_of(parent).status == "closed"
    assert state.status == "open"


def test_fork_when_rewound_to_a_seq_of_its_parent_has_that_conversation() -> None:
    """Cursors and seqs run through: a fork can go back to before its own beginning."""
    fork_id = UUID(int=7)
    past = history(CREATED, user("a"), user("b"), user("c"))[:3]
    created = ev.SessionCreated(parent_session_id=SESSION, parent_seq=3)
    past += history(created, user("d"), after=3, session_id=fork_id)

    state = state_of(past + rewinding(past, 2), fork_id)

    assert texts_of(state) == ["a"]
    assert state.parent_seq == 3


# --- facts ---------------------------------------------------------------------------------------


def test_metadata_when_patched_changes_what_the_patch_names() -> None:
    """A key with null is removed, others stay, also those that were null from the beginning."""
    state = state_of(history(ev.SessionCreated(metadata={"a": 1, "b": {"c": 2}, "n": None})))

    state = after(state, ev.SessionUpdated(metadata={"a": None, "b": {"d": 3}, "x": None}))

    assert state.metadata == {"b": {"d": 3}, "n": None}
    assert after(state, ev.SessionUpdated(title="t")).metadata == state.metadata


def test_title_when_not_in_an_update_stays() -> None:
    """Null means unchanged; an empty title is a title."""
    state = after(session(), ev.SessionUpdated(title="t"))

    assert after(state, ev.SessionUpdated(metadata={"a": 1})).title == "t"
    assert after(state, ev.SessionUpdated(title="")).title == ""


def test_agents_when_they_come_and_go_are_listed_once() -> None:
    """Activated, handed to, or heard; the current one is the latest of these."""
    state = session(
        ev.AgentActivated(agent="a"),
        ev.MessageAdded(role="assistant", content="x", agent="b"),
        ev.AgentHandedOff(to_agent="a"),
        started(agent="c"),
        user("q"),
        ev.MessageAdded(role="assistant", content="y", agent="c"),
    )

    assert state.agents == ["a", "b", "c"]
    assert state.current_agent == "c"
    assert state.handoff is not None
    assert (state.handoff.from_agent, state.handoff.to_agent, state.handoff.seq) == ("b", "a", 4)


def test_runs_when_under_way_have_a_status() -> None:
    """Running, stopping, gone; a stop for an unknown run is no run."""
    state = session(ev.RunStarted(run_id="r1"), ev.RunStarted(run_id="r2"))

    state = after(state, ev.RunStopRequested(run_id="r1"), ev.RunStopRequested(run_id="r9"))

    assert state.runs == {"r1": "stopping", "r2": "running"}
    state = after(state, ev.RunFinished(run_id="r1"), ev.RunFailed(run_id="r2"))
    assert (state.runs, state.run_count) == ({}, 2)


def test_scratchpad_when_written_keeps_the_newest_value() -> None:
    """Null removes an entry; false, zero and empty are values."""
    values: list[Any] = [0, "", [], {"a": 1}]
    state = session(*[ev.ScratchpadWritten(name=str(each), value=each) for each in values])

    state = after(state, ev.ScratchpadWritten(name="0"), ev.ScratchpadWritten(name="", value=False))

    assert state.scratchpad == {"": False, "[]": [], "{'a': 1}": {"a": 1}}


def test_status_when_closed_and_deleted_follows() -> None:
    """Open, closed, deleted; messages stay readable."""
    state = session(user("a"))

    closed = after(state, ev.SessionClosed())
    deleted = after(closed, ev.SessionDeleted())

    assert [each.status for each in (state, closed, deleted)] == ["open", "closed", "deleted"]
    assert texts_of(deleted) == ["a"]


def test_usage_when_reported_adds_up() -> None:
    """Of messages and compactions; a run's usage repeats that of its messages."""
    usage = ev.Usage(input_tokens=1, output_tokens=2, cached_tokens=3, reasoning_tokens=4)
    state = session(
        ev.MessageAdded(role="assistant", content="x", usage=usage),
        started(),
        completed("y", usage=usage),
        compacted(2, usage=usage),
        ev.RunFinished(run_id="r", usage=usage),
    )

    assert (state.input_tokens, state.output_tokens) == (3, 6)
    assert (state.cached_tokens, state.reasoning_tokens) == (9, 12)


@pytest.mark.parametrize(
    "event",
    [
        ev.Custom(name="app.rated", data={"stars": 5}),
        ev.Unrecognized(tag="message.translated", data=b"{}"),
        ev.RunFinished(run_id="unknown"),
        ev.MessageRetracted(message_id="unknown"),
        ev.CompactionReverted(compaction_seq=99),
        ev.FactPinned(name="unknown"),
        ev.MessagePinned(message_id="unknown", pinned=False),
        ev.CompactionPolicySet(),
    ],
)
def test_event_when_it_is_no_concern_of_the_state_only_moves_it_on(event: ev.Event) -> None:
    """Applications' own events, those of the future, and what refers to nothing that is there."""
    state = session(user("a"), started())

    moved = after(state, event)

    assert [line.split(":")[0] for line in differences(state, moved)] == ["seq", "updated_at"]
    assert moved.updated_at is not None
    assert moved.updated_at > BEGIN


# --- snapshots -----------------------------------------------------------------------------------


def restored(state: SessionState) -> SessionState:
    """The state as a snapshot gives it: of its full chunks only the keys are known."""
    chunks = [
        Chunk(None, first_seq=each.first_seq, count=each.count, stored_as=number)
        if each.count == CHUNK_LENGTH
        else Chunk(None, encoded=each.encode(), first_seq=each.first_seq, count=each.count)
        for number, each in enumerate(state.entries.chunks, 1)
    ]
    return msgspec.structs.replace(copy(state), entries=Entries(chunks))


LONG: Final = session(*[user(str(seq), token_count=1) for seq in range(2, 1500)])


@pytest.mark.parametrize(
    ("events", "chunk_count"),
    [
        ([], 5),
        ([compacted(1400)], 0),
        ([compacted(1400, kept=[2, 3, 700])], 2),
        ([compacted(1000)], 2),
        ([ev.SessionCleared()], 0),
        ([compacted(1400), ev.SessionCleared(), user("x")], 0),
        ([compacted(1400), user("x"), compacted(1501, kept=[300])], 1),
    ],
)
def test_context_when_a_snapshot_was_restored_needs_the_chunks_it_names(
    events: list[ev.Event], chunk_count: int
) -> None:
    """What a model sees is read without the rest of the history, and is the same."""
    whole = after(LONG, *events)
    state = restored(whole)

    missing = state.missing_for_context()

    assert len(missing) == chunk_count
    for chunk in missing:
        chunk.load(whole.entries.chunks[chunk.stored_as - 1].encode())
    assert state.context() == whole.context()
    assert state.compaction == whole.compaction


@pytest.mark.parametrize(
    "event",
    [
        user("x", token_count=1),
        started(),
        ev.MessageRetracted(message_id="1499"),
        ev.SessionCleared(),
        compacted(1400, kept=[1400], tokens_after=3),
        ev.AgentActivated(agent="a"),
        ev.ScratchpadWritten(name="n", value=1),
    ],
)
def test_event_when_it_concerns_the_end_needs_no_old_chunks(event: ev.Event) -> None:
    """Folding the tail behind a snapshot costs the tail: counts are kept, not counted again."""
    whole = after(LONG, event)

    state = after(restored(LONG), event)

    for name in ("message_count", "token_count", "context_token_count", "opened"):
        assert getattr(state, name) == getattr(whole, name)
    assert len(state.entries) == len(whole.entries)
    assert not any(chunk.loaded for chunk in state.entries.chunks[:5])


def test_event_when_it_concerns_an_old_message_says_which_chunk_it_needs() -> None:
    """The reader loads it and folds again, from a copy: the state it had is as it was."""
    state = restored(LONG)

    with pytest.raises(ChunkMissing):
        after(state, ev.MessageRetracted(message_id="5"))
    for number, chunk in enumerate(state.entries.chunks[:5]):
        chunk.load(LONG.entries.chunks[number].encode())

    assert state.seq == LONG.seq
    assert not differences(
        after(state, ev.MessageRetracted(message_id="5")),
        after(LONG, ev.MessageRetracted(message_id="5")),
    )


# --- size ----------------------------------------------------------------------------------------


def test_state_when_it_has_many_messages_is_copied_in_no_time() -> None:
    """20,000 messages: an event more costs a chunk, not the whole; old states are still theirs."""
    state = state_of(history(CREATED, *[user(str(n)) for n in range(20_000)]))

    states = [state]
    for number in range(200):
        states.append(after(states[-1], user(f"more {number}")))

    assert [each.message_count for each in states] == list(range(20_000, 20_201))
    assert states[-1].entries.chunks[0] is state.entries.chunks[0]
    assert state.messages[-1].content == "19999"
    assert states[7].messages[-1].content == "more 6"
