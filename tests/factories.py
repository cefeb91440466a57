"""Plain builders for tests: recorded events, histories, rows, and the comparison of two states.

Everything here is deterministic: the same call gives the same ids, seqs and times. Generated data
is made by tests/strategies.py, on top of this.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog import events as ev
from eventlog.codec import encode_event, encode_frame
from eventlog.entries import Message
from eventlog.envelope import FRAME, RecordedEvent, Row
from eventlog.folding import fold, initial
from eventlog.state import SessionHeader, SessionState

SESSION: Final = UUID("018f0000-0000-7000-8000-000000000001")
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
BYTES_MAX: Final = 16 * 1024 * 1024


def recorded(seq: int, event: ev.Event, session_id: UUID = SESSION) -> RecordedEvent:
    """The event as the log would give it; its id and time follow from `seq`."""
    event_id = uuid.uuid5(session_id, str(seq))
    return RecordedEvent(session_id, seq, event_id, BEGIN + timedelta(milliseconds=seq), event)


def history(*events: ev.Event, after: int = 0, session_id: UUID = SESSION) -> list[RecordedEvent]:
    """Recorded events with the seqs after+1, after+2, …"""
    return [recorded(after + place, event, session_id) for place, event in enumerate(events, 1)]


def state_of(events: Iterable[RecordedEvent], session_id: UUID = SESSION) -> SessionState:
    """The fold of a whole history."""
    return fold(initial(session_id), events)


def interruption(message: Message, reason: str = "rewound") -> ev.MessageInterrupted:
    """The end of an open message, with what was heard of it until now."""
    return ev.MessageInterrupted(
        message_id=message.message_id,
        content=message.content if isinstance(message.content, str) else "",
        reasoning=message.reasoning,
        tool_calls=message.tool_calls,
        reason=reason,
    )


def rewinding(past: Sequence[RecordedEvent], to_seq: int) -> list[RecordedEvent]:
    """The batch that `session.rewind(to=…)` appends to a history whose seqs are 1 to n."""
    last = past[-1]
    batch: list[ev.Event] = [
        interruption(each) for each in state_of(past, last.session_id).open_messages
    ]
    batch.append(ev.SessionRewound(to_seq=to_seq))
    then = state_of(past[:to_seq], last.session_id)
    batch += [interruption(each) for each in then.open_messages]
    return history(*batch, after=last.seq, session_id=last.session_id)


def structural(past: Iterable[RecordedEvent]) -> list[RecordedEvent]:
    """The history without its token increments."""
    return [each for each in past if not isinstance(each.event, ev.TokenAppended)]


def framed(past: Iterable[RecordedEvent], increments_max: int = 32) -> list[RecordedEvent]:
    """The history with runs of token increments as frames, each under the seq of its last."""
    result: list[RecordedEvent] = []
    for each in past:
        event = each.event
        if not isinstance(event, ev.TokenAppended):
            result.append(each)
            continue
        frame = ev.TokensAppended(
            message_id=event.message_id,
            texts=[event.text],
            ms=[1],
            channel=event.channel,
            tool_call_id=event.tool_call_id,
        )
        before = result[-1].event if result else None
        if (
            isinstance(before, ev.TokensAppended)
            and len(before.texts) < increments_max
            and msgspec.structs.replace(before, texts=[], ms=[])
            == msgspec.structs.replace(frame, texts=[], ms=[])
        ):
            frame = msgspec.structs.replace(
                frame, texts=before.texts + frame.texts, ms=before.ms + frame.ms
            )
            result.pop()
        result.append(msgspec.structs.replace(each, event=frame))
    return result


def rows(past: Iterable[RecordedEvent]) -> list[Row]:
    """The history as stored rows, at positions 1, 2, …; increments go into frames first."""
    result = []
    for position, each in enumerate(framed(past), 1):
        event = each.event
        if isinstance(event, ev.TokensAppended):
            span, flags, data = len(event.texts), FRAME, encode_frame(event)
        elif isinstance(event, ev.Unrecognized):
            span, flags, data = 1, 0, event.data
        else:
            assert not isinstance(event, ev.TokenAppended | ev.Erased)
            span, flags, data = 1, 0, encode_event(event, bytes_max=BYTES_MAX)
        kind = ev.TYPE_CODES.get(ev.tag_of(event), 0)
        us = (each.recorded_at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
        result.append(
            Row(position, each.seq, us, each.session_id, each.event_id, span, kind, flags, data)
        )
    return result


# --- comparing states ----------------------------------------------------------------------------


def same(left: SessionState, right: SessionState) -> bool:
    """Whether two states are equal in everything that any later event or reader could see."""
    return not differences(left, right)


def differences(left: SessionState, right: SessionState) -> list[str]:
    """What differs between two states, a line each; `assert not differences(a, b)` shows it.

    The header is compared field by field, then all messages, hidden ones included. Whether what an
    open message received was already written into it is no difference.
    """
    found: list[str] = []
    for name, value in observable(left).items():
        other = observable(right)[name]
        if value == other:
            continue
        if isinstance(value, list) and isinstance(other, list):
            found += _unequal_items(name, value, other)
        else:
            found.append(f"{name}: {value!r} != {other!r}")
    return found


def observable(state: SessionState) -> dict[str, Any]:
    """Everything of a state that can be seen, now or after a rewind, in comparable form."""
    visible = list(state.messages)  # writes into open messages what they received
    fields: dict[str, Any] = {
        name: getattr(state, name) for name in SessionHeader.__struct_fields__ if name != "opened"
    }
    shown = {each.index for each in state.opened.values()}
    fields["opened"] = {name: each.index for name, each in state.opened.items()}
    fields["messages"] = visible
    fields["entries"] = [
        # A message that was hidden while it streamed comes back empty, if it does.
        each if each.status != "open" or index in shown else _without_text(each)
        for index, each in enumerate(state.entries)
    ]
    fields["context"] = state.context()
    fields["compaction"] = state.compaction
    fields["current_agent"] = state.current_agent
    fields["agent_history"] = state.agent_history
    return fields


def _without_text(message: Message) -> Message:
    return msgspec.structs.replace(message, content="", reasoning="", tool_calls=[])


def _unequal_items(name: str, left: list[Any], right: list[Any]) -> list[str]:
    found = [
        f"{name}[{place}]: {one!r} != {other!r}"
        for place, (one, other) in enumerate(zip(left, right, strict=False))
        if one != other
    ]
    if len(left) != len(right):
        found.append(f"{name}: {len(left)} of them != {len(right)}")
    return found
