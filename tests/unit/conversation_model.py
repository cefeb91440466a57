"""A second, naive fold: the oracle that `eventlog.state` is tested against.

It keeps plain lists, copies the whole conversation after every event, removes what is cleared or
retracted, and goes back to a copy when someone rewinds. Slow, and obvious.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from eventlog import events as ev
from eventlog.entries import Message
from eventlog.envelope import RecordedEvent
from eventlog.state import SessionState
from tests.unit.rendering_model import Shown, render, shown_of


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A message as people see it."""

    message_id: str
    seq: int
    role: str
    content: Any = ""
    reasoning: str = ""
    tool_calls: tuple[ev.ToolCall, ...] = ()
    tool_call_id: str | None = None
    agent: str | None = None
    model: str | None = None
    metadata: dict[str, Any] = {}
    token_count: int | None = None
    status: str = "complete"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A compaction as people see it."""

    seq: int
    to_seq: int
    kept: frozenset[int]
    text: str
    tokens: int
    stands: bool


class Conversation(msgspec.Struct, frozen=True):
    """What a rewind brings back."""

    said: tuple[Said, ...] = ()
    summaries: tuple[Summary, ...] = ()
    cleared_seq: int = 0
    closings: tuple[tuple[int, str], ...] = ()
    """Seqs that say of a tool call that nobody waits for it."""
    agent: str | None = None
    handoff: tuple[int, str | None, str] | None = None
    live: tuple[int, ...] = ()
    """Seqs of the events that led here, without those that a rewind left behind."""


class Model:
    """Follows a history event by event; `now` is the conversation, the rest are facts."""

    def __init__(self) -> None:
        self.now = Conversation()
        self.past = [self.now]  # by seq
        self.title: str | None = None
        self.metadata: dict[str, Any] = {}
        self.scratchpad: dict[str, Any] = {}
        self.runs: dict[str, str] = {}
        self.run_count = 0
        self.agents: list[str] = []
        self.usage: Counter[tuple[str | None, str | None, str]] = Counter()
        self.expiry: int | str | None = "policy"
        self.facts: dict[str, str] = {}
        self.pinned: list[str] = []
        self.policy: Any = None
        self.asked: tuple[int, str | None] | None = None
        self.missed: tuple[int, str, int] | None = None

    def follow(self, recorded: RecordedEvent) -> None:
        """Go on to the next event."""
        event, seq = recorded.event, recorded.seq
        self._spend(event)
        if isinstance(event, ev.SessionRewound):
            self.now = self.past[event.to_seq]
        self._converse(recorded, event)
        self._learn(event)
        self._try(seq, event)
        self.now = _with(self.now, live=(*self.now.live, seq))
        self.past.append(self.now)
        assert len(self.past) == seq + 1

    def _converse(self, recorded: RecordedEvent, event: ev.Event) -> None:
        now, seq = self.now, recorded.seq
        match event:
            case ev.MessageAdded():
                added = Said(
                    message_id=event.message_id or str(recorded.event_id),
                    seq=seq,
                    role=event.role,
                    content=event.content,
                    reasoning=event.reasoning,
                    tool_calls=tuple(event.tool_calls),
                    tool_call_id=event.tool_call_id,
                    agent=event.agent,
                    model=event.model,
                    metadata=event.metadata,
                    token_count=event.token_count,
                )
                self.now = _with(now, said=(*now.said, added), agent=event.agent or now.agent)
            case ev.MessageStarted():
                started = Said(
                    message_id=event.message_id,
                    seq=seq,
                    role=event.role,
                    agent=event.agent,
                    model=event.model,
                    metadata=event.metadata,
                    status="open",
                )
                self.now = _with(now, said=(*now.said, started), agent=event.agent or now.agent)
            case ev.TokenAppended():
                self._change_open(event.message_id, lambda said: _with_increment(said, event))
            case ev.MessageCompleted():
                self._change_open(event.message_id, lambda said: _completed(said, event))
            case ev.MessageInterrupted():
                self._change_open(event.message_id, lambda said: _interrupted(said, event))
            case ev.MessageRetracted():
                places = [
                    place
                    for place, said in enumerate(now.said)
                    if said.message_id == event.message_id
                ]
                if places:
                    rest = (*now.said[: places[-1]], *now.said[places[-1] + 1 :])
                    self.now = _with(now, said=rest)
            case ev.SessionCleared():
                self.now = _with(now, said=(), cleared_seq=seq)
            case ev.CompactionCompleted():
                made = Summary(
                    seq=seq,
                    to_seq=event.to_seq,
                    kept=frozenset(event.kept),
                    text=event.summary,
                    tokens=event.tokens_after or 0,
                    stands=event.to_seq in now.live,
                )
                self.now = _with(now, summaries=(*now.summaries, made))
            case ev.CompactionReverted():
                self.now = _with(
                    now,
                    summaries=tuple(
                        _with(each, stands=False) if each.seq == event.compaction_seq else each
                        for each in now.summaries
                    ),
                )
            case ev.ToolCallClosed():
                self.now = _with(now, closings=(*now.closings, (seq, event.tool_call_id)))
            case ev.AgentActivated():
                self.now = _with(now, agent=event.agent)
            case ev.AgentHandedOff():
                handoff = (seq, event.from_agent or now.agent, event.to_agent)
                self.now = _with(now, agent=event.to_agent, handoff=handoff)
            case ev.SessionRewound():
                # Whoever streamed then is heard from its beginning: its end follows.
                self.now = _with(
                    now, said=tuple(_emptied(e) if e.status == "open" else e for e in now.said)
                )
            case _:
                pass

    def _change_open(self, message_id: str, change: Any) -> None:
        said = tuple(
            change(each) if each.message_id == message_id and each.status == "open" else each
            for each in self.now.said
        )
        self.now = _with(self.now, said=said)

    def _spend(self, event: ev.Event) -> None:
        """Tokens by agent and model of the message that they were spent on."""
        match event:
            case ev.MessageAdded(usage=ev.Usage() as usage):
                agent, model = event.agent, event.model
            case ev.MessageCompleted(usage=ev.Usage() as usage):
                streaming = [each for each in self.now.said if each.status == "open"]
                known = [each for each in streaming if each.message_id == event.message_id]
                agent, model = (known[0].agent, known[0].model) if known else (None, None)
            case (
                ev.CompactionCompleted(usage=ev.Usage() as usage)
                | ev.CompactionFailed(usage=ev.Usage() as usage)
            ):
                agent, model = None, event.model
            case _:
                return
        self.usage[agent, model, "generations"] += 1
        self.usage[agent, model, "input"] += usage.input_tokens
        self.usage[agent, model, "output"] += usage.output_tokens

    def _learn(self, event: ev.Event) -> None:
        match event:
            case ev.SessionCreated():
                self.title = event.title or self.title
                self.metadata = {**self.metadata, **event.metadata}
                self.runs, self.run_count, self.usage = {}, 0, Counter()
                self.expiry = "policy"
            case ev.SessionExpirySet():
                self.expiry = event.ttl_seconds
            case ev.SessionUpdated():
                self.title = event.title or self.title
                for key, value in event.metadata.items():
                    self.metadata[key] = value
                    if value is None:
                        del self.metadata[key]
            case ev.ScratchpadWritten():
                self.scratchpad[event.name] = event.value
                if event.value is None:
                    del self.scratchpad[event.name]
            case ev.RunStarted():
                self.runs[event.run_id] = "running"
                self.run_count += 1
            case ev.RunStopRequested() if event.run_id in self.runs:
                self.runs[event.run_id] = "stopping"
            case ev.RunFinished() | ev.RunFailed():
                self.runs.pop(event.run_id, None)
            case ev.FactPinned():
                self.facts.pop(event.name, None)
                if event.text is not None:
                    self.facts[event.name] = event.text
            case ev.MessagePinned():
                self.pinned = [each for each in self.pinned if each != event.message_id]
                self.pinned += [event.message_id] * event.pinned
            case ev.CompactionPolicySet():
                self.policy = event.policy
            case ev.AgentHandedOff():
                self._meet(event.to_agent)
            case ev.AgentActivated() | ev.MessageAdded() | ev.MessageStarted():
                self._meet(event.agent)
            case _:
                pass

    def _try(self, seq: int, event: ev.Event) -> None:
        """What is known of compactions that were asked for, or failed."""
        match event:
            case ev.CompactionRequested():
                self.asked = (seq, event.instructions)
            case ev.CompactionFailed():
                self.asked = None
                if event.kind != "nothing_to_do":
                    self.missed = (seq, event.kind, event.attempts)
            case ev.CompactionCompleted() | ev.SessionCleared():
                self.asked = self.missed = None
            case ev.CompactionReverted():
                before = self.past[-1].summaries
                if any(each.seq == event.compaction_seq and each.stands for each in before):
                    self.missed = None
            case ev.SessionRewound():
                self.missed = None
                if self.asked is not None and self.asked[0] > event.to_seq:
                    self.asked = None
            case ev.SessionCreated():
                self.asked = None  # the parent was asked, not the fork
            case _:
                pass

    def _meet(self, agent: str | None) -> None:
        if agent and agent not in self.agents:
            self.agents.append(agent)

    # --- what the model thinks that a reader sees ---

    @property
    def standing(self) -> Summary | None:
        """The newest summary that stands for something that is still there."""
        cleared = self.now.cleared_seq
        stand = [
            each
            for each in self.now.summaries
            if each.stands and each.seq > cleared and (each.to_seq > cleared or not cleared)
        ]
        return stand[-1] if stand else None

    def in_context(self) -> list[Said]:
        """Messages in the context, in order."""
        standing = self.standing
        return [
            each
            for each in self.now.said
            if each.status != "open"
            and (standing is None or each.seq > standing.to_seq or each.seq in standing.kept)
        ]

    def context(self) -> list[Shown]:
        """All that a model sees next."""
        standing = self.standing
        return render(
            self.in_context(),
            summary=None if standing is None else (standing.to_seq, standing.text),
            facts=self.facts,
            closings=self.now.closings,
        )

    def view(self) -> dict[str, Any]:
        """Everything that the model and the fold should agree on."""
        standing, now = self.standing, self.now
        return {
            "messages": list(now.said),
            "message_count": len(now.said),
            "token_count": sum(each.token_count or 0 for each in now.said),
            "context": self.context(),
            "context_token_count": sum(each.token_count or 0 for each in self.in_context())
            + (standing.tokens if standing else 0),
            "open": [each.message_id for each in now.said if each.status == "open"],
            "compaction": standing.seq if standing else None,
            "agent": now.agent,
            "handoff": now.handoff,
            "live": list(now.live),
            "title": self.title,
            "metadata": self.metadata,
            "scratchpad": self.scratchpad,
            "runs": self.runs,
            "run_count": self.run_count,
            "agents": self.agents,
            "usage": +self.usage,
            "input_tokens": sum(n for (*_, what), n in self.usage.items() if what == "input"),
            "expiry": self.expiry,
            "facts": self.facts,
            "pinned": self.pinned,
            "policy": self.policy,
            "asked": self.asked,
            "missed": self.missed,
        }


def view_of(state: SessionState) -> dict[str, Any]:
    """The same of a state of the fold under test."""
    handoff, asked, missed = state.handoff, state.compaction_asked, state.compaction_missed
    usage: Counter[tuple[str | None, str | None, str]] = Counter()
    for (_, agent, model), spent in state.usage.items():
        usage[agent, model, "generations"] += spent.generations
        usage[agent, model, "input"] += spent.input_tokens
        usage[agent, model, "output"] += spent.output_tokens
    return {
        "messages": [said_of(each) for each in state.messages],
        "message_count": state.message_count,
        "token_count": state.token_count,
        "context": shown_of(state.context()),
        "context_token_count": state.context_token_count,
        "open": [each.message_id for each in state.open_messages],
        "compaction": state.compaction.seq if state.compaction else None,
        "agent": state.current_agent,
        "handoff": (handoff.seq, handoff.from_agent, handoff.to_agent) if handoff else None,
        "live": [seq for seq in range(1, state.seq + 1) if not state.is_rewound(seq)],
        "title": state.title,
        "metadata": state.metadata,
        "scratchpad": state.scratchpad,
        "runs": state.runs,
        "run_count": state.run_count,
        "agents": state.agents,
        "usage": +usage,
        "input_tokens": state.input_tokens,
        "expiry": "policy" if state.expiry is None else state.expiry.ttl_seconds,
        "facts": state.facts,
        "pinned": state.pinned,
        "policy": state.compaction_policy,
        "asked": (asked.seq, asked.instructions) if asked else None,
        "missed": (missed.seq, missed.kind, missed.attempts) if missed else None,
    }


def said_of(message: Message) -> Said:
    """A message of the fold, as people see it."""
    return Said(
        message_id=message.message_id,
        seq=message.seq,
        role=message.role,
        content=message.content,
        reasoning=message.reasoning,
        tool_calls=tuple(message.tool_calls),
        tool_call_id=message.tool_call_id,
        agent=message.agent,
        model=message.model,
        metadata=message.metadata,
        token_count=message.token_count,
        status=message.status,
    )


def _with(what: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(what, **fields)


def _emptied(said: Said) -> Said:
    return msgspec.structs.replace(said, content="", reasoning="", tool_calls=())


def _with_increment(said: Said, event: ev.TokenAppended) -> Said:
    match event.channel:
        case "text":
            return msgspec.structs.replace(said, content=said.content + event.text)
        case "reasoning":
            return msgspec.structs.replace(said, reasoning=said.reasoning + event.text)
        case "tool-arguments":
            calls = {call.id: call.arguments for call in said.tool_calls}
            key = event.tool_call_id or ""
            calls[key] = calls.get(key, "") + event.text
            return msgspec.structs.replace(
                said,
                tool_calls=tuple(
                    ev.ToolCall(id=each, name="", arguments=text) for each, text in calls.items()
                ),
            )


def _completed(said: Said, event: ev.MessageCompleted) -> Said:
    return msgspec.structs.replace(
        said,
        content=event.content,
        reasoning=event.reasoning,
        tool_calls=tuple(event.tool_calls),
        metadata={**said.metadata, **event.metadata},
        token_count=event.token_count,
        status="complete",
    )


def _interrupted(said: Said, event: ev.MessageInterrupted) -> Said:
    return msgspec.structs.replace(
        said,
        content=event.content,
        reasoning=event.reasoning,
        tool_calls=tuple(event.tool_calls),
        status="interrupted",
    )
