"""The state of a session: what its events add up to. Pure: no clock, no ids, no I/O.

`initial()` is the state before the first event, `evolve(state, recorded)` the state after one more,
`fold(state, many)` after many. Nothing passed in is changed. A message that was streamed and the
same message added whole lead to the same state; increments may be given one by one, as frames, or
left out wherever the message's end is among the events (`message.completed` and
`message.interrupted` carry the text).

Rewinding concerns the conversation: messages, context, and the agent who answers. Facts about the
session (title, metadata, usage, runs, scratchpad) stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, assert_never
from uuid import UUID

import msgspec

from eventlog import events as ev
from eventlog.entries import Chunk, Entries, Message
from eventlog.envelope import RecordedEvent
from eventlog.events import ToolCall, Usage

FOLD_VERSION: Final = 1
"""Raise this when `evolve` gives another result for old events: older snapshots are dropped."""
SUMMARY_PREFIX: Final = (
    "The earlier part of this conversation was summarised to save space. The summary:\n\n"
)
"""What a model reads before a summary in its context."""
_STATUS_OF_RUN: Final = {"started": "running", "stop_requested": "stopping"}


class Compaction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A summary that stands, or stood, in the context for a range of events."""

    seq: int
    from_seq: int
    to_seq: int
    kept: list[int] = []
    summary: str = ""
    model: str | None = None
    tokens_before: int | None = None
    tokens_after: int | None = None
    reverted_seq: int = 0


class Handoff(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The newest hand-off from one agent to another."""

    seq: int
    from_agent: str | None
    to_agent: str
    context: Any = None


class OpenMessage(msgspec.Struct, kw_only=True):
    """What was received so far of a message that still streams."""

    index: int
    texts: list[str] = []
    reasoning: list[str] = []
    arguments: dict[str, str] = {}


class SessionHeader(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything of a state but its messages; stored whole in every snapshot."""

    session_id: UUID
    seq: int = 0
    key: str | None = None
    user_id: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = {}
    status: Literal["open", "closed", "deleted"] = "open"
    created_at: datetime | None = None
    updated_at: datetime | None = None
    parent_session_id: UUID | None = None
    parent_seq: int = 0
    message_count: int = 0
    token_count: int = 0
    """Tokens of all visible messages that state a count."""
    context_token_count: int = 0
    """The same for those in the context; a summary counts as its `tokens_after`."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    agents: list[str] = []
    """Agents that spoke or were active, in order of their first appearance."""
    agent_history: list[tuple[int, str]] = []
    handoff: Handoff | None = None
    earlier_handoffs: list[Handoff] = []
    """Hand-offs before the newest, oldest first: one of them is the newest after a rewind."""
    runs: dict[str, str] = {}
    """Runs that are under way, with their status `running` or `stopping`."""
    run_count: int = 0
    scratchpad: dict[str, Any] = {}
    clears: list[int] = []
    compactions: list[Compaction] = []
    retractions: list[tuple[int, int]] = []
    rewinds: list[tuple[int, int]] = []
    """Seq and target of the rewinds, without those that a later one took back with the rest."""
    opened: dict[str, OpenMessage] = {}


class SessionState(SessionHeader, kw_only=True):
    """A session at one seq. Treat it as read-only; `evolve` and `fold` make new ones."""

    entries: Entries = msgspec.field(default_factory=Entries)
    """All messages, also those that were retracted or cleared away since."""

    @property
    def messages(self) -> Sequence[Message]:
        """Messages of the conversation in order, open and interrupted ones included."""
        _settle(self)
        if not self.clears and not self.retractions:
            return self.entries
        start = self.entries.index_after(self.clears[-1]) if self.clears else 0
        return [each for each in self.entries.iterate_from(start) if not each.retracted_seq]

    @property
    def current_agent(self) -> str | None:
        """The agent who answers now: the one activated, handed to, or heard last."""
        return self.agent_history[-1][1] if self.agent_history else None

    @property
    def compaction(self) -> Compaction | None:
        """The compaction whose summary is in the context now."""
        cleared = self.clears[-1] if self.clears else 0
        for each in reversed(self.compactions):
            if each.seq <= cleared:
                return None
            # One that was made while someone cleared stands for nothing that is still there.
            if not each.reverted_seq and not (cleared and each.to_seq <= cleared):
                return each
        return None

    @property
    def compaction_count(self) -> int:
        """Compactions that stand (reverted ones don't count)."""
        return sum(1 for each in self.compactions if not each.reverted_seq)

    @property
    def open_messages(self) -> list[Message]:
        """Messages that still stream."""
        _settle(self)
        return [self.entries[each.index] for each in self.opened.values()]

    def is_rewound(self, seq: int) -> bool:
        """Whether a rewind left the event at `seq` behind.

        The fold can't go back to there, by no rewind; a fork at that seq can.
        """
        return any(to_seq < seq < at for at, to_seq in self.rewinds)

    def context_messages(self) -> list[Message]:
        """Messages that a model sees next, in order, without the summary."""
        _settle(self)
        cleared = self.clears[-1] if self.clears else 0
        standing = self.compaction
        chosen: list[Message] = []
        if standing is not None:
            inside = sorted({seq for seq in standing.kept if cleared < seq <= standing.to_seq})
            kept = (self.entries.at_seq(seq) for seq in inside)
            chosen.extend(each for each in kept if each is not None)
        start = self.entries.index_after(standing.to_seq if standing else cleared)
        chosen.extend(self.entries.iterate_from(start))
        return [each for each in chosen if not each.retracted_seq and each.status != "open"]

    def missing_for_context(self) -> list[Chunk]:
        """Chunks of messages that `context()` needs and that are not loaded yet."""
        standing = self.compaction
        cleared = self.clears[-1] if self.clears else 0
        kept = standing.kept if standing is not None else []
        return self.entries.missing(kept, standing.to_seq if standing is not None else cleared)

    def context(self) -> list[dict[str, Any]]:
        """What a model sees next, as dicts in the form of the chat completions API.

        With a compaction standing: the messages it kept, its summary, then all that came after.
        Replies that still stream are left out; interrupted ones are in, with the text that was
        seen, but without tool calls that nobody answered: their arguments may break off anywhere.
        """
        standing = self.compaction
        result: list[dict[str, Any]] = []
        summary_due = standing is not None
        messages = self.context_messages()
        answered = {each.tool_call_id for each in messages if each.tool_call_id is not None}
        for each in messages:
            message = _without_orphans(each, answered)
            if standing is not None and summary_due and message.seq > standing.to_seq:
                result.append({"role": "user", "content": SUMMARY_PREFIX + standing.summary})
                summary_due = False
            if message.content or message.tool_calls or message.role != "assistant":
                result.append(_as_provider_dict(message))
        if standing is not None and summary_due:
            result.append({"role": "user", "content": SUMMARY_PREFIX + standing.summary})
        return result


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
        agent_history=list(state.agent_history),
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


def collect(state: SessionState, event: ev.Event) -> None:
    """Add the text of token increments to the open message they belong to; else do nothing."""
    match event:
        case ev.TokenAppended():
            if opened := state.opened.get(event.message_id):
                _collect(opened, event.channel, event.text, event.tool_call_id)
        case ev.TokensAppended():
            if opened := state.opened.get(event.message_id):
                _collect(opened, event.channel, "".join(event.texts), event.tool_call_id)


def _apply(state: SessionState, recorded: RecordedEvent, event: ev.Event) -> None:
    match event:
        case ev.TokenAppended() | ev.TokensAppended():
            collect(state, event)
        case ev.MessageAdded():
            _add(state, recorded, event)
        case ev.MessageStarted():
            _start(state, recorded, event)
        case ev.MessageCompleted() | ev.MessageInterrupted():
            _close(state, recorded, event)
        case ev.MessageRetracted():
            _retract(state, recorded.seq, event.message_id)
        case ev.SessionCreated():
            _create(state, recorded, event)
        case ev.SessionUpdated():
            state.title = event.title if event.title is not None else state.title
            removed = {key for key, value in event.metadata.items() if value is None}
            merged = {**state.metadata, **event.metadata}
            state.metadata = {key: merged[key] for key in merged if key not in removed}
        case ev.SessionCleared():
            state.clears.append(recorded.seq)
            state.opened.clear()
            state.message_count = state.token_count = state.context_token_count = 0
        case ev.SessionRewound():
            _rewind(state, recorded.seq, event.to_seq)
        case ev.SessionClosed():
            state.status = "closed"
        case ev.SessionDeleted():
            state.status = "deleted"
        case ev.AgentActivated():
            _activate(state, recorded.seq, event.agent)
        case ev.AgentHandedOff():
            if state.handoff is not None:
                state.earlier_handoffs.append(state.handoff)
            state.handoff = Handoff(
                seq=recorded.seq,
                from_agent=event.from_agent or state.current_agent,
                to_agent=event.to_agent,
                context=event.context,
            )
            _activate(state, recorded.seq, event.to_agent)
        case ev.RunStarted():
            state.runs[event.run_id] = _STATUS_OF_RUN["started"]
            state.run_count += 1
        case ev.RunStopRequested():
            if event.run_id in state.runs:
                state.runs[event.run_id] = _STATUS_OF_RUN["stop_requested"]
        case ev.RunFinished() | ev.RunFailed():
            state.runs.pop(event.run_id, None)
        case ev.CompactionCompleted():
            _compact(state, recorded.seq, event)
        case ev.CompactionReverted():
            _revert(state, recorded.seq, event.compaction_seq)
        case ev.ScratchpadWritten():
            if event.value is None:
                state.scratchpad.pop(event.name, None)
            else:
                state.scratchpad[event.name] = event.value
        case ev.CompactionRequested() | ev.CompactionFailed() | ev.Custom() | ev.Unrecognized():
            pass
        case _:
            assert_never(event)


# --- messages ------------------------------------------------------------------------------------


def _add(state: SessionState, recorded: RecordedEvent, event: ev.MessageAdded) -> None:
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
    _spend(state, event.usage)
    if event.agent and event.agent != state.current_agent:
        _activate(state, recorded.seq, event.agent)


def _start(state: SessionState, recorded: RecordedEvent, event: ev.MessageStarted) -> None:
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
        _activate(state, recorded.seq, event.agent)


def _collect(opened: OpenMessage, channel: ev.Channel, text: str, tool: str | None) -> None:
    match channel:
        case "text":
            opened.texts.append(text)
        case "reasoning":
            opened.reasoning.append(text)
        case "tool-arguments":
            opened.arguments[tool or ""] = opened.arguments.get(tool or "", "") + text
        case _:
            assert_never(channel)


def _close(
    state: SessionState,
    recorded: RecordedEvent,
    event: ev.MessageCompleted | ev.MessageInterrupted,
) -> None:
    if isinstance(event, ev.MessageCompleted):
        _spend(state, event.usage)
    opened = state.opened.pop(event.message_id, None)
    if opened is None:
        return  # cleared or rewound away while it streamed
    message = state.entries[opened.index]
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


def _retract(state: SessionState, seq: int, message_id: str) -> None:
    cleared = state.clears[-1] if state.clears else 0
    for index in range(len(state.entries) - 1, -1, -1):
        message = state.entries[index]
        if message.seq <= cleared:
            return
        if message.message_id == message_id and not message.retracted_seq:
            _settle(state)
            if message_id in state.opened and state.opened[message_id].index == index:
                del state.opened[message_id]
            message = state.entries[index]
            state.entries.replace(index, msgspec.structs.replace(message, retracted_seq=seq))
            state.retractions.append((seq, index))
            state.message_count -= 1
            _count_tokens(state, message, -1)
            return


def _settle(state: SessionState) -> None:
    """Write what open messages received so far into their entries."""
    for opened in state.opened.values():
        if not (opened.texts or opened.reasoning or opened.arguments):
            continue
        message = state.entries[opened.index]
        text, reasoning = "".join(opened.texts), "".join(opened.reasoning)
        calls = [ToolCall(id=key, name="", arguments=v) for key, v in opened.arguments.items()]
        if (text, reasoning, calls) == (message.content, message.reasoning, message.tool_calls):
            continue
        opened.texts, opened.reasoning = [text], [reasoning]
        state.entries.replace(
            opened.index,
            msgspec.structs.replace(message, content=text, reasoning=reasoning, tool_calls=calls),
        )


def _without_orphans(message: Message, answered: set[str]) -> Message:
    """An interrupted message without the tool calls that nobody answered; others as they are."""
    if message.status != "interrupted" or not message.tool_calls:
        return message
    calls = [call for call in message.tool_calls if call.id in answered]
    return msgspec.structs.replace(message, tool_calls=calls)


def _as_provider_dict(message: Message) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        result["name"] = message.name
    if message.tool_calls:
        result["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    return result


# --- the session ---------------------------------------------------------------------------------


def _create(state: SessionState, recorded: RecordedEvent, event: ev.SessionCreated) -> None:
    state.session_id = recorded.session_id
    state.key = event.key
    state.user_id = event.user_id if event.user_id is not None else state.user_id
    state.title = event.title if event.title is not None else state.title
    state.metadata = {**state.metadata, **event.metadata}
    state.status = "open"
    state.created_at = recorded.recorded_at
    state.parent_session_id = event.parent_session_id
    state.parent_seq = event.parent_seq
    state.runs = {}


def _activate(state: SessionState, seq: int, agent: str) -> None:
    state.agent_history.append((seq, agent))
    if agent not in state.agents:
        state.agents.append(agent)


def _rewind(state: SessionState, seq: int, to_seq: int) -> None:
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
    state.agent_history = [(at, agent) for at, agent in state.agent_history if at <= to_seq]
    while state.handoff is not None and state.handoff.seq > to_seq:
        state.handoff = state.earlier_handoffs.pop() if state.earlier_handoffs else None
    visible = state.messages
    state.message_count = len(visible)
    state.token_count = sum(each.token_count or 0 for each in visible)
    _count_context(state)


def _reopen(state: SessionState, to_seq: int) -> None:
    """Let messages that were visible and open at `to_seq` be open again."""
    streaming = {each.index for each in state.opened.values()}
    first = state.entries.index_after(state.clears[-1] if state.clears else 0)
    for index, message in enumerate(state.entries.iterate_from(first), first):
        was_open = message.closed_seq > to_seq or message.status == "open"
        if was_open and not message.retracted_seq and index not in streaming:
            state.opened[message.message_id] = OpenMessage(index=index)
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


def _compact(state: SessionState, seq: int, event: ev.CompactionCompleted) -> None:
    # Made while someone rewound to before its end: it tells of what is no longer said.
    stale = state.is_rewound(event.to_seq)
    state.compactions.append(
        Compaction(
            seq=seq,
            from_seq=event.from_seq,
            to_seq=event.to_seq,
            kept=event.kept,
            summary=event.summary,
            model=event.model,
            tokens_before=event.tokens_before,
            tokens_after=event.tokens_after,
            reverted_seq=seq if stale else 0,
        )
    )
    _spend(state, event.usage)
    _count_context(state)


def _revert(state: SessionState, seq: int, compaction_seq: int) -> None:
    state.compactions = [
        msgspec.structs.replace(each, reverted_seq=seq)
        if each.seq == compaction_seq and not each.reverted_seq
        else each
        for each in state.compactions
    ]
    _count_context(state)


# --- counting ------------------------------------------------------------------------------------


def _count_tokens(state: SessionState, message: Message, sign: int) -> None:
    """Count a visible message that was added, has ended (1) or goes away (-1)."""
    if message.token_count:
        state.token_count += sign * message.token_count
        standing = state.compaction
        if standing is None or message.seq > standing.to_seq or message.seq in standing.kept:
            state.context_token_count += sign * message.token_count


def _count_context(state: SessionState) -> None:
    """Count again after a compaction: of older messages only those in the context are read."""
    standing = state.compaction
    inside = sum(each.token_count or 0 for each in state.context_messages())
    state.context_token_count = inside + ((standing.tokens_after or 0) if standing else 0)


def _spend(state: SessionState, usage: Usage | None) -> None:
    if usage is not None:
        state.input_tokens += usage.input_tokens
        state.output_tokens += usage.output_tokens
        state.cached_tokens += usage.cached_tokens
        state.reasoning_tokens += usage.reasoning_tokens
