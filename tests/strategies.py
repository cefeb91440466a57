"""Hypothesis strategies: JSON values, events of every type, and whole valid session histories.

`histories()` plays random actions of a session's users through `Script`, which knows what a writer
knows (what is visible, what streams, what was said so far) and never asks the fold under test.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec
from hypothesis import strategies as st

from eventlog import events as ev
from eventlog.codec import INTEGER_MAX, INTEGER_MIN
from eventlog.compaction.policy import CompactionPolicy
from eventlog.envelope import RecordedEvent
from tests.factories import SESSION, recorded

CHANNELS: Final[tuple[ev.Channel, ...]] = ("text", "reasoning", "tool-arguments")
ROLES: Final[tuple[ev.Role, ...]] = ("user", "assistant", "system", "developer", "tool")
_INT64: Final = st.integers(INTEGER_MIN, INTEGER_MAX)
_COUNTS: Final = st.integers(0, 2**40)


def texts(size_max: int = 12) -> st.SearchStrategy[str]:
    """Any text that has a UTF-8 form, NUL and emoji included."""
    return st.text(max_size=size_max)


def json_values(leaves_max: int = 8) -> st.SearchStrategy[Any]:
    """Any value that a free-form field of an event can hold."""
    scalars = (
        st.none()
        | st.booleans()
        | _INT64
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts()
    )
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(), inner, max_size=4),
        max_leaves=leaves_max,
    )


def json_objects() -> st.SearchStrategy[dict[str, Any]]:
    """Any JSON object."""
    return st.dictionaries(texts(), json_values(), max_size=3)


def contents() -> st.SearchStrategy[ev.Content]:
    """Text, or a list of content parts."""
    return texts(40) | st.lists(json_objects(), max_size=3)


def tool_calls() -> st.SearchStrategy[list[ev.ToolCall]]:
    """What an assistant may ask of tools."""
    call = st.builds(ev.ToolCall, id=texts(), name=texts(), arguments=texts(30))
    return st.lists(call, max_size=3)


def usages() -> st.SearchStrategy[ev.Usage | None]:
    """What a provider may report."""
    return st.none() | st.builds(
        ev.Usage,
        input_tokens=_COUNTS,
        output_tokens=_COUNTS,
        cached_tokens=_COUNTS,
        reasoning_tokens=_COUNTS,
    )


def frames() -> st.SearchStrategy[ev.TokensAppended]:
    """A frame of token increments."""
    increments = st.lists(st.tuples(texts(), st.integers(0, 60_000)), min_size=1, max_size=20)
    return st.builds(
        lambda pairs, message_id, channel, tool_call_id: ev.TokensAppended(
            message_id=message_id,
            texts=[text for text, _ in pairs],
            ms=[ms for _, ms in pairs],
            channel=channel,
            tool_call_id=tool_call_id,
        ),
        increments,
        texts(),
        st.sampled_from(CHANNELS),
        st.none() | texts(),
    )


def policies() -> st.SearchStrategy[CompactionPolicy | None]:
    """When a session is to be compacted."""
    return st.none() | st.builds(
        CompactionPolicy,
        name=texts(),
        enabled=st.booleans(),
        threshold_tokens=st.none() | st.integers(1, 10**9),
        threshold_share=st.none() | st.floats(0.01, 1.0),
        window_tokens=st.none() | st.integers(1, 10**9),
        messages_min=st.integers(0, 10**6),
        keep_messages=st.none() | st.integers(0, 10**6),
        keep_tokens=st.none() | st.integers(0, 10**9),
        keep_user_tokens=st.integers(0, 10**9),
        summary_tokens_max=st.integers(16, 10**6),
        orphan_seconds=st.floats(0, 10**9),
    )


_BY_FIELD: Final[dict[str, st.SearchStrategy[Any]]] = {
    "agent": st.none() | texts(),
    "attempts": _COUNTS,
    "calls": _COUNTS,
    "channel": st.sampled_from(CHANNELS),
    "compaction_seq": _COUNTS,
    "content": contents(),
    "context": json_values(),
    "context_tokens": st.none() | _COUNTS,
    "data": json_values(),
    "duration_ms": st.none() | _COUNTS,
    "error": texts(),
    "estimated": st.booleans(),
    "expires_at": st.none(),
    "finish_reason": st.none() | texts(),
    "from_agent": st.none() | texts(),
    "from_seq": _COUNTS,
    "instructions": st.none() | texts(),
    "kept": st.lists(_COUNTS, max_size=4),
    "key": st.none() | texts(),
    "kind": texts(),
    "message_id": texts(),
    "method": texts(),
    "metadata": json_objects(),
    "model": st.none() | texts(),
    "name": st.none() | texts(),
    "native": json_values(),
    "parent_seq": _COUNTS,
    "parent_session_id": st.none() | st.uuids(),
    "pinned": st.booleans(),
    "policy": policies(),
    "prompt_version": st.none() | texts(),
    "reason": st.none() | texts(),
    "reasoning": texts(),
    "retry_after_ms": st.none() | _COUNTS,
    "role": st.sampled_from(ROLES),
    "run_id": texts(),
    "summary": texts(40),
    "text": st.none() | texts(),
    "title": st.none() | texts(),
    "to_agent": texts(),
    "to_seq": _COUNTS,
    "token_count": st.none() | _COUNTS,
    "tokens_after": st.none() | _COUNTS,
    "tokens_before": st.none() | _COUNTS,
    "tool_call_id": st.none() | texts(),
    "tool_calls": tool_calls(),
    "ttl_seconds": st.none() | st.integers(1, 10**9),
    "usage": usages(),
    "user_id": st.none() | texts(),
    "value": json_values(),
}
_SPECIAL: Final[dict[tuple[type, str], st.SearchStrategy[Any]]] = {
    (ev.MessageInterrupted, "content"): texts(40),
    (ev.MessageInterrupted, "reason"): texts(),
    (ev.CompactionFailed, "reason"): texts(),
    (ev.AgentActivated, "agent"): texts(),
    (ev.ScratchpadWritten, "name"): texts(),
    (ev.FactPinned, "name"): texts(),
    (ev.ToolCallClosed, "tool_call_id"): texts(),
    (ev.Custom, "name"): texts(),
}
"""Fields that are stricter than their namesakes."""


def events_of(kind: type[ev.StoredEvent]) -> st.SearchStrategy[ev.StoredEvent]:
    """Events of one class. A new field without a line in `_BY_FIELD` raises `KeyError` here."""
    if kind is ev.TokensAppended:
        return frames()
    fields: dict[str, st.SearchStrategy[Any]] = {
        name: _SPECIAL[kind, name] if (kind, name) in _SPECIAL else _BY_FIELD[name]
        for name in kind.__struct_fields__
    }
    return st.builds(kind, **fields)


def events(*kinds: type[ev.StoredEvent]) -> st.SearchStrategy[ev.StoredEvent]:
    """Events of the given classes; of every class, frames included, when none is given."""
    return st.one_of([events_of(kind) for kind in kinds or ev.EVENT_CLASSES])


# --- histories -----------------------------------------------------------------------------------

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Heard(msgspec.Struct, frozen=True):
    """What was streamed of a message."""

    text: str = ""
    reasoning: str = ""
    arguments: tuple[tuple[str, str], ...] = ()

    def plus(self, channel: ev.Channel, text: str, tool_call_id: str | None) -> Heard:
        """With one more increment."""
        if channel == "text":
            return msgspec.structs.replace(self, text=self.text + text)
        if channel == "reasoning":
            return msgspec.structs.replace(self, reasoning=self.reasoning + text)
        calls = dict(self.arguments)
        calls[tool_call_id or ""] = calls.get(tool_call_id or "", "") + text
        return msgspec.structs.replace(self, arguments=tuple(calls.items()))

    def tool_calls(self, name: str = "") -> list[ev.ToolCall]:
        """The calls whose arguments were streamed."""
        return [ev.ToolCall(id=key, name=name, arguments=text) for key, text in self.arguments]


class Line(msgspec.Struct, frozen=True):
    """What is said at one seq: visible messages with their seqs, and those that stream."""

    visible: tuple[tuple[int, str], ...] = ()
    streaming: tuple[tuple[str, Heard], ...] = ()
    compactions: tuple[int, ...] = ()


class Script:
    """Writes a session's history, one action after the other, always a valid one.

    As in the log, a rewind closes what streams now and what streamed then, and only a seq that no
    earlier rewind left behind is rewound to.
    """

    def __init__(self, draw: Draw, session_id: UUID) -> None:
        self.events: list[RecordedEvent] = []
        self.session_id = session_id
        self._draw = draw
        self._lines: list[Line] = [Line()]  # by seq
        self._rewinds: list[tuple[int, int]] = []
        self._writing: dict[str, Heard] = {}
        """Replies whose writers live. One that was cleared or retracted meanwhile is among them."""
        self._made = 0
        self._runs: list[str] = []

    @property
    def seq(self) -> int:
        """The last event's number."""
        return len(self.events)

    @property
    def line(self) -> Line:
        """What is said now."""
        return self._lines[-1]

    def reachable(self) -> list[int]:
        """Seqs that no rewind left behind."""
        return [
            seq
            for seq in range(self.seq + 1)
            if not any(to_seq < seq < at for at, to_seq in self._rewinds)
        ]

    def append(self, event: ev.Event, **line: Any) -> RecordedEvent:
        """Record an event; `line` is what it changes."""
        each = recorded(self.seq + 1, event, self.session_id)
        self.events.append(each)
        self._lines.append(msgspec.structs.replace(self.line, **line))
        return each

    # --- actions ---

    def create(self) -> None:
        self.append(
            ev.SessionCreated(
                key=self._draw(st.none() | st.just("chat")),
                user_id="ada",
                title=self._draw(st.none() | st.just("t0")),
                metadata=self._draw(_METADATA),
            )
        )

    def add(self) -> None:
        role = self._draw(st.sampled_from(("user", "user", "assistant", "system", "tool")))
        named = self._draw(st.booleans())
        calling = role == "assistant" and named
        ids = self._draw(st.sampled_from((("c1",), ("c1", "c2"), ("c2", "c2")))) if calling else ()
        message_id = self._new_id() if named else ""
        each = self.append(
            ev.MessageAdded(
                role=role,
                content=self._draw(_WORDS),
                message_id=message_id,
                agent=self._draw(_AGENTS) if role == "assistant" else None,
                tool_calls=[ev.ToolCall(id=each, name="look") for each in ids],
                tool_call_id=self._draw(_CALLS) if role == "tool" else None,
                token_count=self._draw(_FEW),
                usage=self._draw(_USAGE),
                metadata=self._draw(_METADATA),
            )
        )
        self._show(each.seq, message_id or str(each.event_id))

    def start(self) -> None:
        message_id = self._new_id()
        each = self.append(
            ev.MessageStarted(
                message_id=message_id,
                agent=self._draw(_AGENTS),
                model=self._draw(st.none() | st.just("m")),
                metadata=self._draw(_METADATA),
            )
        )
        self._show(each.seq, message_id)
        self._writing[message_id] = Heard()
        self._stream(message_id, Heard())

    def write(self) -> None:
        if not self._writing:
            self.start()
            return
        message_id = self._pick(list(self._writing))
        channel = self._draw(st.sampled_from(CHANNELS))
        tool_call_id = self._draw(_CALLS) if "tool" in channel else None
        for text in self._draw(st.lists(_WORDS, min_size=1, max_size=5)):
            self._writing[message_id] = self._writing[message_id].plus(channel, text, tool_call_id)
            streaming = dict(self.line.streaming)
            if message_id in streaming:
                streaming[message_id] = streaming[message_id].plus(channel, text, tool_call_id)
            self.append(
                ev.TokenAppended(
                    message_id=message_id, text=text, channel=channel, tool_call_id=tool_call_id
                ),
                streaming=tuple(streaming.items()),
            )

    def complete(self) -> None:
        if not self._writing:
            self.start()
            return
        message_id = self._pick(list(self._writing))
        heard = self._writing.pop(message_id)
        self._unstream(
            ev.MessageCompleted(
                message_id=message_id,
                content=heard.text,
                reasoning=heard.reasoning,
                tool_calls=heard.tool_calls("look"),
                finish_reason="stop",
                usage=self._draw(_USAGE),
                token_count=self._draw(_FEW),
                metadata=self._draw(_METADATA),
            )
        )

    def interrupt(self) -> None:
        if not self._writing:
            self.start()
            return
        message_id = self._pick(list(self._writing))
        self._end(message_id, self._writing.pop(message_id), "cancelled")

    def retract(self) -> None:
        """As undo does it, or, of a message that streams, while its writer goes on."""
        if not self.line.visible:
            self.add()
            return
        seq, message_id = self._pick(list(self.line.visible))
        streaming = dict(self.line.streaming)
        if message_id in streaming and self._draw(st.booleans()):
            self._writing.pop(message_id, None)
            self._end(message_id, streaming.pop(message_id), "undone")
        streaming.pop(message_id, None)
        self.append(
            ev.MessageRetracted(message_id=message_id),
            visible=tuple(each for each in self.line.visible if each != (seq, message_id)),
            streaming=tuple(streaming.items()),
        )

    def clear(self) -> None:
        self.append(ev.SessionCleared(), visible=(), streaming=(), compactions=())

    def rewind(self) -> None:
        to_seq = self._pick(self.reachable())
        for message_id, heard in self.line.streaming:
            self._writing.pop(message_id, None)
            self._end(message_id, heard, "rewound")
        then = self._lines[to_seq]
        emptied = tuple((message_id, Heard()) for message_id, _ in then.streaming)
        self._rewinds.append((self.seq + 1, to_seq))
        self.append(
            ev.SessionRewound(to_seq=to_seq),
            visible=then.visible,
            compactions=then.compactions,
            streaming=emptied,
        )
        for message_id, heard in then.streaming:
            self._end(message_id, heard, "rewound")

    def compact(self) -> None:
        """Of any range up to now: a compactor may be late, its range cleared or rewound away."""
        to_seq = self._draw(st.integers(1, self.seq))
        inside = [seq for seq, _ in self.line.visible if seq <= to_seq]
        kept = [seq for seq in inside if self._draw(st.booleans())]
        each = self.append(
            ev.CompactionCompleted(
                summary=self._draw(_WORDS) or "s",
                from_seq=1,
                to_seq=to_seq,
                kept=kept,
                tokens_after=self._draw(_FEW),
                usage=self._draw(_USAGE),
            )
        )
        made = (*self.line.compactions, each.seq)
        self._lines[-1] = msgspec.structs.replace(self.line, compactions=made)

    def revert(self) -> None:
        if not self.line.compactions:
            self.compact()
            return
        seq = self._pick(list(self.line.compactions))
        self.append(ev.CompactionReverted(compaction_seq=seq))

    def agent(self) -> None:
        name = self._draw(st.sampled_from(("planner", "coder", "critic")))
        if self._draw(st.booleans()):
            self.append(ev.AgentActivated(agent=name))
        else:
            self.append(ev.AgentHandedOff(to_agent=name, context=self._draw(_FEW)))

    def run(self) -> None:
        if not self._runs or self._draw(st.booleans()):
            self._runs.append(f"r{len(self._runs)}{self.seq}")
            agent, metadata = self._draw(_AGENTS), self._draw(_METADATA)
            self.append(ev.RunStarted(run_id=self._runs[-1], agent=agent, metadata=metadata))
            return
        run_id = self._pick(self._runs)
        kind = self._draw(st.integers(0, 3))
        if kind == 0:
            self.append(ev.RunStopRequested(run_id=run_id))
        elif kind == 1:
            self.append(ev.RunFinished(run_id=run_id, usage=self._draw(_USAGE)))
        elif kind == 2:
            self.append(ev.RunFailed(run_id=run_id, error=self._draw(_WORDS)))
        else:  # under a name it had before, or that nobody began
            self.append(ev.RunStarted(run_id=run_id))

    def fact(self) -> None:
        """Something that is no part of the conversation."""
        kind = self._draw(st.integers(0, 5))
        if kind == 0:
            value = self._draw(st.none() | json_values(3))
            self.append(ev.ScratchpadWritten(name=self._draw(_KEYS), value=value))
        elif kind == 1:
            patch = self._draw(st.dictionaries(_KEYS, st.none() | st.integers(0, 3), max_size=2))
            self.append(ev.SessionUpdated(title=self._draw(_TITLES), metadata=patch))
        elif kind == 2:
            self.append(ev.Custom(name="app.seen", data=self._draw(json_values(3))))
        elif kind == 3:
            self.append(ev.CompactionPolicySet(policy=self._draw(policies())))
        elif kind == 4:
            ttl_seconds = self._draw(st.none() | st.integers(1, 9))
            self.append(ev.SessionExpirySet(ttl_seconds=ttl_seconds))
        else:
            data = b'{"type":"future.happened","x":1}'
            self.append(ev.Unrecognized(tag="future.happened", data=data))

    def stay(self) -> None:
        """Something that is to stay in every context; or no longer."""
        kind = self._draw(st.integers(0, 2))
        if kind == 0:
            text = self._draw(st.none() | _WORDS)
            self.append(ev.FactPinned(name=self._draw(_KEYS), text=text))
            return
        ids = [message_id for _, message_id in self.line.visible] or ["unknown"]
        self.append(ev.MessagePinned(message_id=self._pick(ids), pinned=kind == 1))

    def end_call(self) -> None:
        """A tool call that nobody waits for any more, whether it was made or not."""
        self.append(ev.ToolCallClosed(tool_call_id=self._draw(_CALLS)))

    def try_compaction(self) -> None:
        """Somebody asks for one, or one fails."""
        if self._draw(st.booleans()):
            instructions = self._draw(st.none() | _WORDS)
            self.append(ev.CompactionRequested(instructions=instructions))
            return
        failed = ev.CompactionFailed(
            reason="refused",
            kind=self._draw(st.sampled_from(("", "refused", "timeout"))),
            attempts=self._draw(st.integers(1, 3)),
            usage=self._draw(_USAGE),
        )
        self.append(failed)

    def fork(self) -> None:
        """Go on as a fork: what follows the chosen seq is left to the parent."""
        at = self._draw(st.integers(1, self.seq))
        parent_id, self.session_id = self.session_id, uuid.uuid5(self.session_id, f"fork{at}")
        del self.events[at:], self._lines[at + 1 :]
        self._rewinds = [each for each in self._rewinds if each[0] <= at]
        self._writing, self._runs = {}, []
        self.append(
            ev.SessionCreated(
                user_id="ada",
                metadata=self._draw(_METADATA),
                parent_session_id=parent_id,
                parent_seq=at,
            )
        )
        for message_id, heard in self.line.streaming:
            self._end(message_id, heard, "forked")

    def finish(self) -> None:
        """Perhaps close the session, as `session.close()` does."""
        if self._draw(st.sampled_from((True, False, False))):
            for message_id, heard in self.line.streaming:
                self._end(message_id, heard, "closed")
            self.append(ev.SessionClosed())
            if self._draw(st.booleans()):
                self.append(ev.SessionDeleted())

    # --- parts of actions ---

    def _end(self, message_id: str, heard: Heard, reason: str) -> None:
        self._unstream(
            ev.MessageInterrupted(
                message_id=message_id,
                content=heard.text,
                reasoning=heard.reasoning,
                tool_calls=heard.tool_calls(),
                reason=reason,
            )
        )

    def _unstream(self, event: ev.MessageCompleted | ev.MessageInterrupted) -> None:
        rest = tuple(each for each in self.line.streaming if each[0] != event.message_id)
        self.append(event, streaming=rest)

    def _show(self, seq: int, message_id: str) -> None:
        shown = (*self.line.visible, (seq, message_id))
        self._lines[-1] = msgspec.structs.replace(self.line, visible=shown)

    def _stream(self, message_id: str, heard: Heard) -> None:
        streaming = (*self.line.streaming, (message_id, heard))
        self._lines[-1] = msgspec.structs.replace(self.line, streaming=streaming)

    def _new_id(self) -> str:
        self._made += 1
        return f"m{self._made}"

    def _pick(self, choices: list[Any]) -> Any:
        return choices[self._draw(st.integers(0, len(choices) - 1))]


_WORDS: Final = st.sampled_from(("hello ", "wörld ", "\u0000", "👩‍👩‍👧 ", "", "a b c "))
_CALLS: Final = st.sampled_from(("c1", "c2"))
_AGENTS: Final = st.sampled_from((None, "planner", "coder"))
_TITLES: Final = st.sampled_from((None, "t1", "t2"))
_KEYS: Final = st.sampled_from(("a", "b"))
_FEW: Final = st.none() | st.integers(0, 9)
_USAGE: Final = st.none() | st.builds(
    ev.Usage, input_tokens=st.integers(0, 9), output_tokens=st.integers(0, 9)
)
_METADATA: Final = st.dictionaries(_KEYS, st.integers(0, 3), max_size=2)
_ACTIONS: Final = (
    *("add", "add", "add", "start", "start", "write", "write", "write", "write"),
    *("complete", "complete", "interrupt", "retract", "retract", "clear", "rewind", "rewind"),
    *("compact", "compact", "revert", "agent", "agent", "run", "fact"),
    *("stay", "stay", "end_call", "try_compaction"),
)


@st.composite
def histories(
    draw: Draw,
    *,
    actions_max: int = 30,
    forks: bool = False,
    leave_out: tuple[str, ...] = (),
    session_id: UUID = SESSION,
) -> list[RecordedEvent]:
    """A session's whole history, one `RecordedEvent` for each seq from 1 on.

    With `forks` it may be that of a fork (of a fork): its first part then has the parents' session
    ids, as a reader of the fork's state meets it. `leave_out` names actions that don't occur.
    """
    names = tuple(name for name in _ACTIONS + ("fork",) * forks if name not in leave_out)
    script = Script(draw, session_id)
    script.create()
    count = draw(st.integers(0, actions_max))  # lists() alone would be short nearly always
    for name in draw(st.lists(st.sampled_from(names), min_size=count, max_size=count)):
        getattr(script, name)()
    if "finish" not in leave_out:
        script.finish()
    return script.events
