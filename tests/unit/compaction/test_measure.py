"""The size of a session's context: reported, counted, estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eventlog import events as ev
from eventlog.compaction import measure
from eventlog.compaction.measure import ContextTokens, context_tokens
from eventlog.compaction.tokens import count_dicts, count_messages
from eventlog.envelope import RecordedEvent
from eventlog.folding import fold
from eventlog.rendering import facts_dict
from tests.factories import history, state_of
from tests.strategies import histories

MODEL = "gpt-4o"
PROMPT = "Please look at the log and say what went wrong. " * 20
ANSWER = "The disk was full, so nothing could be written. " * 10


def user(text: str = PROMPT, **fields: Any) -> ev.MessageAdded:
    """What the user says."""
    return ev.MessageAdded(role="user", content=text, **fields)


def assistant(usage: ev.Usage | None = None, text: str = ANSWER, **fields: Any) -> ev.MessageAdded:
    """An answer, with what the provider reported of it."""
    return ev.MessageAdded(
        **{"role": "assistant", "content": text, "model": MODEL, "usage": usage, **fields}
    )


def measured(*events: ev.Event, model: str | None = None) -> ContextTokens:
    """The size of the context of a session with these events."""
    return context_tokens(state_of(history(ev.SessionCreated(), *events)), model)


def own(*events: ev.Event) -> int:
    """Our count of these messages."""
    return count_dicts(state_of(history(ev.SessionCreated(), *events)).context(), MODEL).tokens


def test_context_when_nothing_is_reported_is_counted() -> None:
    """Exactly, for the model that answered last, whose window it takes a share of."""
    size = measured(user(), assistant())

    assert size.tokens == size.counted == own(user(), assistant())
    assert (size.source, size.reported, size.model) == ("counted", None, MODEL)
    assert size.window == 128_000
    assert size.share == size.tokens / 128_000
    assert size.by_role == {"user": own(user()), "assistant": own(assistant())}


def test_context_when_empty_is_nothing() -> None:
    """No message, no tokens; of an unknown model no window and no share."""
    size = measured()

    assert (size.tokens, size.by_role, size.window, size.share) == (0, {}, None, None)


def test_context_when_model_is_given_is_counted_for_it() -> None:
    """Whatever answered last; one whose tokenizer isn't known gives an estimate."""
    size = measured(user(), assistant(), model="claude-sonnet-4-5")

    assert (size.model, size.window, size.source) == ("claude-sonnet-4-5", 200_000, "estimated")
    assert measured(user(), assistant()).source == "counted"  # the control


def test_context_when_usage_is_reported_is_that_and_what_came_after() -> None:
    """What was read and what was written, but its reasoning; then our count of what followed."""
    usage = ev.Usage(input_tokens=1_000, output_tokens=300, reasoning_tokens=180, cached_tokens=900)
    size = measured(user(), assistant(usage), user("And now?"))

    assert size.reported == 1_000 + 300 - 180
    assert size.tokens == size.reported + own(user("And now?"))
    assert size.source == "reported"
    assert size.counted == own(user(), assistant(), user("And now?"))


def test_context_when_many_replies_report_takes_the_newest_alone() -> None:
    """Each request's figure holds all before it: to add them up would compact on every call."""
    replies = [
        event
        for number in range(1, 9)
        for event in (user(), assistant(ev.Usage(input_tokens=1_000 * number, output_tokens=100)))
    ]

    assert measured(*replies).tokens == 8_100


def test_context_when_the_reply_was_streamed_counts_it_once() -> None:
    """It ends after it began; what it says of itself is in what it reports."""
    usage = ev.Usage(input_tokens=1_000, output_tokens=100)
    size = measured(
        user(),
        ev.MessageStarted(message_id="m", model=MODEL),
        ev.MessageCompleted(message_id="m", content=ANSWER, usage=usage),
    )

    assert (size.tokens, size.source) == (1_100, "reported")


def test_context_when_much_came_after_the_report_still_begins_with_it() -> None:
    """Only what the report is about is compared with it."""
    usage = ev.Usage(input_tokens=1_000, output_tokens=100)
    size = measured(user(), assistant(usage), *(user() for _ in range(50)))

    assert size.counted > 10 * 1_100
    assert size.tokens == 1_100 + 50 * own(user())


def test_context_when_what_followed_is_an_estimate_is_marked() -> None:
    """A report with an image of unknown size behind it is no more certain than that."""
    usage = ev.Usage(input_tokens=1_000, output_tokens=100)
    image = ev.MessageAdded(
        role="user",
        content=[{"type": "image_url", "image_url": {"url": "https://example.net/a.png"}}],
    )
    size = measured(user(), assistant(usage), image)

    assert (size.source, size.reported) == ("estimated", 1_100)
    assert size.tokens > 1_100 + 1_445


def test_context_when_a_message_was_open_while_another_was_asked_for_counts_it_too() -> None:
    """A reply that still streamed wasn't read for one that began after it, though it is older."""
    usage = ev.Usage(input_tokens=1_000, output_tokens=100)
    slow = (
        ev.MessageStarted(message_id="slow", model=MODEL),
        assistant(usage),
        ev.MessageCompleted(message_id="slow", content=ANSWER),
    )
    size = measured(user(), *slow)

    assert size.tokens == 1_100 + own(assistant())


@pytest.mark.parametrize(
    "change",
    [
        lambda: [ev.MessageRetracted(message_id="m")],
        lambda: [ev.SessionRewound(to_seq=4)],
        lambda: [ev.CompactionCompleted(summary="It was full.", from_seq=1, to_seq=3)],
        lambda: [
            ev.CompactionCompleted(summary="It was full.", from_seq=1, to_seq=3),
            ev.CompactionReverted(compaction_seq=6),
        ],
    ],
    ids=["retracted", "rewound", "compacted", "uncompacted"],
)
def test_context_when_it_has_changed_since_the_report_is_counted(
    change: Callable[[], list[ev.Event]],
) -> None:
    """The report is of another context then; with a reply after the change it counts again."""
    usage = ev.Usage(input_tokens=50_000, output_tokens=100)
    past = (user(), user("Quick!", message_id="m"), assistant(usage), user("And?"))

    unchanged = measured(*past)
    changed = measured(*past, *change())
    reported_again = measured(
        *past, *change(), assistant(ev.Usage(input_tokens=7_000, output_tokens=5))
    )

    assert unchanged.tokens > 50_000
    assert (changed.source, changed.reported) == ("counted", None)
    assert changed.tokens == changed.counted < 2_000
    assert reported_again.tokens == 7_005


def test_context_when_uncompacted_after_a_report_is_counted() -> None:
    """The report is of the context with the summary; now it is a larger one."""
    summary = ev.CompactionCompleted(summary="It was full.", from_seq=1, to_seq=3)
    past = (user(), user(), summary, assistant(ev.Usage(input_tokens=7_000, output_tokens=5)))

    assert measured(*past).tokens == 7_005
    assert measured(*past, ev.CompactionReverted(compaction_seq=4)).reported is None


def test_context_when_cleared_is_counted_from_there() -> None:
    """What was before is in no context, nor is what was reported of it."""
    usage = ev.Usage(input_tokens=50_000, output_tokens=100)

    assert measured(user(), assistant(usage), ev.SessionCleared(), user()).counted == own(user())
    assert measured(user(), assistant(usage), ev.SessionCleared(), user()).reported is None


def test_context_when_the_report_is_of_another_context_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sub-agent's reply reports its own small context; without the check it would be believed."""
    small = ev.Usage(input_tokens=40, output_tokens=10)
    past = [*(user() for _ in range(10)), assistant(small)]

    assert measured(*past).tokens == own(*past)
    assert measured(*past).reported is None
    monkeypatch.setattr(measure, "OWN_SHARE_MIN", 0.0)
    assert measured(*past).tokens == 50


def test_context_when_only_output_is_reported_is_counted() -> None:
    """Some providers say nothing of what they read."""
    usage = ev.Usage(output_tokens=50_000)

    assert measured(user(), assistant(usage)).tokens == own(user(), assistant())


def test_context_when_reasoning_is_not_part_of_the_output_never_goes_below_the_input() -> None:
    """Some providers report it beside the output."""
    usage = ev.Usage(input_tokens=5_000, output_tokens=10, reasoning_tokens=400)

    assert measured(user(), assistant(usage)).tokens == 5_000


def test_context_when_messages_state_their_tokens_takes_these() -> None:
    """They replace our count, also of messages that we could only estimate."""
    unknown = ev.MessageAdded(role="user", content=[{"type": "new", "x": 1}], token_count=900)
    size = measured(unknown, assistant())

    assert size.counted == 900 + own(assistant())
    assert size.by_role == {"user": 900, "assistant": own(assistant())}
    assert size.source == "counted"
    unstated = ev.MessageAdded(role="user", content=[{"type": "new", "x": 1}])
    assert measured(unstated, assistant()).source == "estimated"  # the control


def test_context_when_compacted_holds_the_summary() -> None:
    """Its tokens are told, and are part of what the user says."""
    compaction = ev.CompactionCompleted(summary="It was full.", from_seq=1, to_seq=3)
    size = measured(user(), assistant(), compaction, user("And?"))

    assert 0 < size.summary < 60
    assert size.by_role["user"] == size.summary + own(user("And?"))
    assert measured(user(), assistant()).summary == 0


def test_context_when_facts_are_pinned_holds_them() -> None:
    """What is in every context is counted in every context."""
    fact = ev.FactPinned(name="city", text="Köln")

    assert measured(user(), fact, model=MODEL).counted > measured(user(), model=MODEL).counted


def unstated(past: list[RecordedEvent]) -> list[RecordedEvent]:
    """The history without what messages state of their tokens, and without usage."""
    result = []
    for each in past:
        event = each.event
        if isinstance(event, ev.MessageAdded | ev.MessageCompleted):
            event = msgspec.structs.replace(event, token_count=None, usage=None)
        result.append(msgspec.structs.replace(each, event=event))
    return result


@given(histories(forks=True), st.sampled_from([None, MODEL, "gpt-4", "claude-opus-5"]))
def test_context_when_counted_is_what_a_model_is_given(
    past: list[RecordedEvent], model: str | None
) -> None:
    """Whatever happened in a session: its count is that of `state.context()`, to the token."""
    state = state_of(unstated(past), past[-1].session_id)
    size = context_tokens(state, model)
    context = count_dicts(state.context(), size.model)

    assert size.tokens == size.counted == context.tokens == sum(size.by_role.values())
    assert size.source == ("counted" if context.exact else "estimated")
    assert size.summary <= size.by_role.get("user", 0)
    assert size == context_tokens(state, model)


@given(histories(forks=True))
def test_context_when_messages_state_their_tokens_is_never_negative(
    past: list[RecordedEvent],
) -> None:
    """Whatever they state, and whatever of them is in the context."""
    size = context_tokens(state_of(past, past[-1].session_id))

    assert min(size.tokens, size.counted, size.summary, *size.by_role.values(), 0) == 0
    assert size.counted == sum(size.by_role.values())


@given(histories(leave_out=("compact", "revert")))
def test_context_when_it_has_no_summary_is_the_sum_of_its_messages(
    past: list[RecordedEvent],
) -> None:
    """Counting message by message gives the same; pinned facts are one more."""
    state = state_of(past)
    messages = state.context_messages()
    # Outputs that are missing are put in, those without a call are told in other words.
    assume(not any(each.tool_calls or each.role == "tool" for each in messages))
    shown = [each for each in messages if each.content or each.role != "assistant"]

    each_count = count_messages(shown, MODEL)
    facts = count_dicts([facts_dict(state.facts)] if state.facts else [], MODEL)

    summed = facts.tokens + sum(each.tokens for each in each_count)
    assert context_tokens(state, MODEL).counted == summed


@given(histories(leave_out=("finish",)), st.booleans())
def test_context_when_a_user_says_more_grows_by_that(
    past: list[RecordedEvent], reports: bool
) -> None:
    """Our count never shrinks because something is added, and nothing is counted twice."""
    state = state_of(past)
    reply = assistant(ev.Usage(input_tokens=10**6, output_tokens=5) if reports else None)
    answered = fold(state, history(reply, after=state.seq))
    more = fold(answered, history(user("And?"), after=answered.seq))
    before, after = context_tokens(answered, MODEL), context_tokens(more, MODEL)

    assert after.counted >= before.counted + own(user("And?"))
    if reports:
        assert after.reported == before.reported == 10**6 + 5
        assert after.tokens == before.tokens + own(user("And?"))
