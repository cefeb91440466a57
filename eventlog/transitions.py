"""What each event does to a state: one function for each kind of change.

The functions change a state that is theirs to change (see `folding.apply`). Rewinding concerns the
conversation: messages, context, and the agent who answers. Facts about the session (title,
metadata, usage, runs, scratchpad) stay as they are.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

import msgspec

from eventlog import events as ev
from eventlog.entries import ChunkMissing, Message
from eventlog.envelope import RecordedEvent
from eventlog.events import Usage
from eventlog.state import OpenMessage, SessionState, Spent, settle

SECONDS_PER_DAY: Final = 24 * 3600

# --- messages ------------------------------------------------------------------------------------


def add(state: SessionState, recorded: RecordedEvent, event: ev.MessageAdded) -> None:
    message = Message(
        message_id=event.message_id or str(recorded.event_id),
        seq=recorded.seq,
        role=event.role,
        content=event.content,
        agent=event.agent,
        name=event.name,
        model=event.model,
        reasoning=event.reasoning,
        tool_calls=event.tool_calls,
        tool_call_id=event.tool_call_id,
        token_count=event.token_count,
        usage=event.usage,
        finish_reason=event.finish_reason,
        metadata=event.metadata,
        native=event.native,
        recorded_at=recorded.recorded_at,
        closed_seq=recorded.seq,
    )
    state.entries.append(message)
    state.message_count += 1
    _count_tokens(state, message, 1)
    spend(state, recorded, event.usage, event.agent, event.model)
    if event.agent and event.agent != state.current_agent:
        _follow(state, event.agent)


def start(state: SessionState, recorded: RecordedEvent, event: ev.MessageStarted) -> None:
    if event.message_id in state.opened:
        return
    message = Message(
        message_id=event.message_id,
        seq=recorded.seq,
        role=event.role,
        agent=event.agent,
        name=event.name,
        model=event.model,
        metadata=event.metadata,
        status="open",
        recorded_at=recorded.recorded_at,
    )
    state.opened[event.message_id] = OpenMessage(index=state.entries.append(message))
    state.message_count += 1
    if event.agent and event.agent != state.current_agent:
        _follow(state, event.agent)


def collect_text(opened: OpenMessage, channel: ev.Channel, text: str, tool: str | None) -> None:
    match channel:
        case "text":
            opened.texts.append(text)
        case "reasoning":
            opened.reasoning.append(text)
        case "tool-arguments":
            opened.arguments[tool or ""] = opened.arguments.get(tool or "", "") + text
        case _:
            assert_never(channel)


def close(
    state: SessionState,
    recorded: RecordedEvent,
    event: ev.MessageCompleted | ev.MessageInterrupted,
) -> None:
    opened = state.opened.pop(event.message_id, None)
    message = state.entries[opened.index] if opened is not None else None
    if isinstance(event, ev.MessageCompleted):
        agent, model = (message.agent, message.model) if message is not None else (None, None)
        spend(state, recorded, event.usage, agent, model)
    if opened is None or message is None:
        return  # cleared or rewound away while it streamed
    match event:
        case ev.MessageCompleted():
            closed = msgspec.structs.replace(
                message,
                content=event.content,
                reasoning=event.reasoning,
                tool_calls=event.tool_calls,
                finish_reason=event.finish_reason,
                usage=event.usage,
                token_count=event.token_count,
                metadata={**message.metadata, **event.metadata},
                opening_metadata=message.metadata if event.metadata else None,
                native=event.native,
                status="complete",
                closed_seq=recorded.seq,
            )
        case ev.MessageInterrupted():
            closed = msgspec.structs.replace(
                message,
                content=event.content,
                reasoning=event.reasoning,
                tool_calls=event.tool_calls,
                interrupt_reason=event.reason,
                status="interrupted",
                closed_seq=recorded.seq,
            )
        case _:
            assert_never(event)
    state.entries.replace(opened.index, closed)
    _count_tokens(state, closed, 1)


def retract(state: SessionState, seq: int, message_id: str) -> None:
    cleared = state.clears[-1] if state.clears else 0
    for index in range(len(state.entries) - 1, -1, -1):
        message = state.entries[index]
        if message.seq <= cleared:
            return
        if message.message_id == message_id and not message.retracted_seq:
            settle(state)
            if message_id in state.opened and state.opened[message_id].index == index:
                del state.opened[message_id]
            message = state.entries[index]
            state.entries.replace(index, msgspec.structs.replace(message, retracted_seq=seq))
            state.retractions.append((seq, index))
            state.message_count -= 1
            _count_tokens(state, message, -1)
            return


# --- the session ---------------------------------------------------------------------------------


def create(state: SessionState, recorded: RecordedEvent, event: ev.SessionCreated) -> None:
    state.session_id = recorded.session_id
    state.key = event.key
    state.user_id = event.user_id if event.user_id is not None else state.user_id
    state.title = event.title if event.title is not None else state.title
    state.metadata = {**state.metadata, **event.metadata}
    state.status = "open"
    state.created_at = recorded.recorded_at
    state.parent_session_id = event.parent_session_id
    state.parent_seq = event.parent_seq
    state.expiry = None
    state.runs = {}
    state.run_count = 0
    state.usage = {}
    state.compaction_asked = None


def erase(state: SessionState, recorded: RecordedEvent, event: ev.Erased) -> None:
    """An event whose content is gone. A session is erased as a whole, so only its frame is left.

    It is bare from its beginning on, though it continues another session that isn't erased; and
    at its end it says so.
    """
    if event.tag == "session.created":
        _reset(
            state,
            session_id=recorded.session_id,
            seq=recorded.seq,
            created_at=recorded.recorded_at,
            updated_at=recorded.recorded_at,
            parent_session_id=event.parent_session_id,
            parent_seq=event.parent_seq,
        )
    elif event.tag == "session.deleted":
        state.status = "erased"


def _reset(state: SessionState, **fields: Any) -> None:
    bare = SessionState(**fields)
    for name in SessionState.__struct_fields__:
        setattr(state, name, getattr(bare, name))


def activate(state: SessionState, seq: int, agent: str) -> None:
    state.activations.append((seq, agent))
    _follow(state, agent)


def _follow(state: SessionState, agent: str) -> None:
    state.current_agent = agent
    if agent not in state.agents:
        state.agents.append(agent)


def rewind(state: SessionState, seq: int, to_seq: int) -> None:
    for at, earlier in state.rewinds:
        if earlier < to_seq < at:
            to_seq = earlier  # what a rewind left behind is not in the fold any more
    state.rewinds = [each for each in state.rewinds if each[0] <= to_seq] + [(seq, to_seq)]
    state.entries.truncate(state.entries.index_after(to_seq))
    length = len(state.entries)
    state.opened = {name: each for name, each in state.opened.items() if each.index < length}
    for at, index in state.retractions:
        if at > to_seq and index < length:
            message = state.entries[index]
            state.entries.replace(index, msgspec.structs.replace(message, retracted_seq=0))
    state.retractions = [
        (at, index) for at, index in state.retractions if at <= to_seq and index < length
    ]
    state.clears = [at for at in state.clears if at <= to_seq]
    _reopen(state, to_seq)
    state.compactions = [
        msgspec.structs.replace(each, reverted_seq=0) if each.reverted_seq > to_seq else each
        for each in state.compactions
        if each.seq <= to_seq
    ]
    if state.compaction_asked is not None and state.compaction_asked.seq > to_seq:
        state.compaction_asked = None
    state.compaction_missed = None
    state.closings = [each for each in state.closings if each[0] <= to_seq]
    state.activations = [(at, agent) for at, agent in state.activations if at <= to_seq]
    state.current_agent = _last_agent(state)
    while state.handoff is not None and state.handoff.seq > to_seq:
        state.handoff = state.earlier_handoffs.pop() if state.earlier_handoffs else None
    visible = state.messages
    state.message_count = len(visible)
    state.token_count = sum(each.token_count or 0 for each in visible)
    count_context(state)


def _last_agent(state: SessionState) -> str | None:
    """Who was activated or spoke last."""
    activated_seq, agent = state.activations[-1] if state.activations else (0, None)
    for message in reversed(state.entries):
        if message.seq < activated_seq:
            break
        if message.agent:
            return message.agent
    return agent


def _reopen(state: SessionState, to_seq: int) -> None:
    """Let messages that were visible and open at `to_seq` be open again."""
    streaming = {each.index for each in state.opened.values()}
    first = state.entries.index_after(state.clears[-1] if state.clears else 0)
    for index, message in enumerate(state.entries.iterate_from(first), first):
        was_open = message.closed_seq > to_seq or message.status == "open"
        if was_open and not message.retracted_seq and index not in streaming:
            state.opened[message.message_id] = OpenMessage(index=index, since=state.seq)
            state.entries.replace(index, _reopened(message))


def _reopened(message: Message) -> Message:
    """The message as it was when it had only been started."""
    return Message(
        message_id=message.message_id,
        seq=message.seq,
        role=message.role,
        agent=message.agent,
        name=message.name,
        model=message.model,
        metadata=(
            message.metadata if message.opening_metadata is None else message.opening_metadata
        ),
        recorded_at=message.recorded_at,
        status="open",
    )


# --- counting ------------------------------------------------------------------------------------


def _count_tokens(state: SessionState, message: Message, sign: int) -> None:
    """Count a visible message that was added, has ended (1) or goes away (-1)."""
    if message.token_count:
        state.token_count += sign * message.token_count
        standing = state.compaction
        if standing is None or message.seq > standing.to_seq or message.seq in standing.kept:
            state.context_token_count += sign * message.token_count


def count_context(state: SessionState) -> None:
    """Count again after a compaction: of older messages only those in the context are read."""
    if missing := state.missing_for_context():
        raise ChunkMissing(*(chunk.stored_as for chunk in missing))
    standing = state.compaction
    inside = sum(each.token_count or 0 for each in state.context_messages())
    state.context_token_count = inside + ((standing.tokens_after or 0) if standing else 0)


def spend(
    state: SessionState,
    recorded: RecordedEvent,
    usage: Usage | None,
    agent: str | None,
    model: str | None,
) -> None:
    if usage is None:
        return
    key = (int(recorded.recorded_at.timestamp() // SECONDS_PER_DAY), agent, model)
    before = state.usage.get(key, Spent())
    state.usage[key] = Spent(
        before.generations + 1,
        before.input_tokens + usage.input_tokens,
        before.output_tokens + usage.output_tokens,
        before.cached_tokens + usage.cached_tokens,
        before.reasoning_tokens + usage.reasoning_tokens,
    )
