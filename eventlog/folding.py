"""Folding: the state of a session is what its events add up to. Pure: no clock, no ids, no I/O.

`initial()` is the state before the first event, `evolve(state, recorded)` the state after one more,
`fold(state, many)` after many. Nothing passed in is changed. A message that was streamed and the
same message added whole lead to the same state; increments may be given one by one, as frames, or
left out wherever the message's end is among the events (`message.completed` and
`message.interrupted` carry the text).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, assert_never
from uuid import UUID

import msgspec

from eventlog import events as ev
from eventlog import transitions as on
from eventlog.compaction import transitions as compacting
from eventlog.envelope import RecordedEvent
from eventlog.state import Expiry, Handoff, OpenMessage, SessionState

STATUS_OF_RUN: Final = {"started": "running", "stop_requested": "stopping"}


def initial(session_id: UUID) -> SessionState:
    """The state of a session before its first event."""
    return SessionState(session_id=session_id)


def evolve(state: SessionState, recorded: RecordedEvent) -> SessionState:
    """The state after one more event. Raises `ValueError` for an event that isn't the next."""
    return fold(state, (recorded,))


def fold(state: SessionState, recorded: Iterable[RecordedEvent]) -> SessionState:
    """The state after all of `recorded`, in order. `state` is not changed."""
    result = copy(state)
    for each in recorded:
        apply(result, each)
    return result


def copy(state: SessionState) -> SessionState:
    """A state of one's own with the same content."""
    return msgspec.structs.replace(
        state,
        entries=state.entries.copy(),
        metadata=dict(state.metadata),
        agents=list(state.agents),
        activations=list(state.activations),
        usage=dict(state.usage),
        runs=dict(state.runs),
        scratchpad=dict(state.scratchpad),
        clears=list(state.clears),
        compactions=list(state.compactions),
        retractions=list(state.retractions),
        rewinds=list(state.rewinds),
        earlier_handoffs=list(state.earlier_handoffs),
        opened={
            name: OpenMessage(
                index=each.index,
                since=each.since,
                texts=list(each.texts),
                reasoning=list(each.reasoning),
                arguments=dict(each.arguments),
            )
            for name, each in state.opened.items()
        },
    )


def apply(state: SessionState, recorded: RecordedEvent) -> None:
    """Change `state`, which must be the caller's own (`initial`, `copy`), by one event."""
    if recorded.seq <= state.seq:
        raise ValueError(f"event {recorded.seq} can't follow {state.seq}")
    state.seq = recorded.seq
    state.updated_at = recorded.recorded_at
    _apply(state, recorded, recorded.event)


def collect(state: SessionState, event: ev.Event, *, seq: int | None = None) -> None:
    """Add the text of token increments to the open message they belong to; else do nothing.

    `seq` is theirs; it matters where they are added later than the events that followed them.
    """
    if not isinstance(event, ev.TokenAppended | ev.TokensAppended):
        return
    opened = state.opened.get(event.message_id)
    if opened is None or (seq is not None and seq <= opened.since):
        return
    text = event.text if isinstance(event, ev.TokenAppended) else "".join(event.texts)
    on.collect_text(opened, event.channel, text, event.tool_call_id)


def _apply(state: SessionState, recorded: RecordedEvent, event: ev.Event) -> None:
    match event:
        case ev.TokenAppended() | ev.TokensAppended():
            collect(state, event)
        case ev.MessageAdded():
            on.add(state, recorded, event)
        case ev.MessageStarted():
            on.start(state, recorded, event)
        case ev.MessageCompleted() | ev.MessageInterrupted():
            on.close(state, recorded, event)
        case ev.MessageRetracted():
            on.retract(state, recorded.seq, event.message_id)
        case ev.SessionCreated():
            on.create(state, recorded, event)
        case ev.SessionUpdated():
            state.title = event.title if event.title is not None else state.title
            removed = {key for key, value in event.metadata.items() if value is None}
            merged = {**state.metadata, **event.metadata}
            state.metadata = {key: merged[key] for key in merged if key not in removed}
        case ev.SessionCleared():
            state.clears.append(recorded.seq)
            state.opened.clear()
            state.compaction_asked = state.compaction_missed = None
            state.message_count = state.token_count = state.context_token_count = 0
        case ev.SessionRewound():
            on.rewind(state, recorded.seq, event.to_seq)
        case ev.SessionClosed():
            state.status = "closed"
        case ev.SessionDeleted():
            state.status = "deleted"
        case ev.SessionExpirySet():
            state.expiry = Expiry(ttl_seconds=event.ttl_seconds, expires_at=event.expires_at)
        case ev.Erased():
            on.erase(state, recorded, event)
        case ev.AgentActivated():
            on.activate(state, recorded.seq, event.agent)
        case ev.AgentHandedOff():
            if state.handoff is not None:
                state.earlier_handoffs.append(state.handoff)
            state.handoff = Handoff(
                seq=recorded.seq,
                from_agent=event.from_agent or state.current_agent,
                to_agent=event.to_agent,
                context=event.context,
            )
            on.activate(state, recorded.seq, event.to_agent)
        case ev.RunStarted():
            state.runs[event.run_id] = STATUS_OF_RUN["started"]
            state.run_count += 1
        case ev.RunStopRequested():
            if event.run_id in state.runs:
                state.runs[event.run_id] = STATUS_OF_RUN["stop_requested"]
        case ev.RunFinished() | ev.RunFailed():
            state.runs.pop(event.run_id, None)
        case (
            ev.CompactionRequested()
            | ev.CompactionCompleted()
            | ev.CompactionFailed()
            | ev.CompactionReverted()
            | ev.CompactionPolicySet()
            | ev.MessagePinned()
            | ev.FactPinned()
            | ev.ToolCallClosed()
        ):
            compacting.apply(state, recorded, event)
        case ev.ScratchpadWritten():
            if event.value is None:
                state.scratchpad.pop(event.name, None)
            else:
                state.scratchpad[event.name] = event.value
        case ev.Custom() | ev.Unrecognized():
            pass
        case _:
            assert_never(event)
