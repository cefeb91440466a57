"""Every event that can happen in a session: frozen tagged structs, and their union.

An event is an immutable fact in the past tense, `noun.verb`. The rules that let bytes of today be
read for ever:

- a tag never changes its meaning and is never used again;
- a new field has a default, so that old bytes decode; unknown fields are ignored, so that old
  programs read new bytes;
- a tag from the future decodes to `Unrecognized`, which keeps the bytes.

Adding an event: a struct below, a line in `StoredEvent`, a number in `TYPE_CODES`, a case in
`folding._apply`, a line in tests/golden. No migration.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, get_args
from uuid import UUID

import msgspec

from eventlog.compaction.events import CompactionCompleted as CompactionCompleted
from eventlog.compaction.events import CompactionFailed as CompactionFailed
from eventlog.compaction.events import CompactionPolicySet as CompactionPolicySet
from eventlog.compaction.events import CompactionRequested as CompactionRequested
from eventlog.compaction.events import CompactionReverted as CompactionReverted
from eventlog.event_values import Channel as Channel
from eventlog.event_values import Content as Content
from eventlog.event_values import Role as Role
from eventlog.event_values import ToolCall as ToolCall
from eventlog.event_values import Usage as Usage

# --- sessions ------------------------------------------------------------------------------------


class SessionCreated(
    msgspec.Struct, frozen=True, kw_only=True, tag="session.created", omit_defaults=True
):
    """First event of every session. With a parent, the session continues it after `parent_seq`."""

    key: str | None = None
    user_id: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = {}
    parent_session_id: UUID | None = None
    parent_seq: int = 0


class SessionUpdated(
    msgspec.Struct, frozen=True, kw_only=True, tag="session.updated", omit_defaults=True
):
    """Title or metadata changed. `metadata` is a patch: a key with null is removed."""

    title: str | None = None
    metadata: dict[str, Any] = {}


class SessionCleared(
    msgspec.Struct, frozen=True, kw_only=True, tag="session.cleared", omit_defaults=True
):
    """The conversation starts over: earlier messages leave the view and the context."""

    reason: str | None = None


class SessionRewound(
    msgspec.Struct, frozen=True, kw_only=True, tag="session.rewound", omit_defaults=True
):
    """The conversation is again as it was at `to_seq`: later messages leave view and context."""

    to_seq: int
    reason: str | None = None


class SessionClosed(
    msgspec.Struct, frozen=True, kw_only=True, tag="session.closed", omit_defaults=True
):
    """The session takes no more events; subscriptions end here."""

    reason: str | None = None


class SessionDeleted(
    msgspec.Struct, frozen=True, kw_only=True, tag="session.deleted", omit_defaults=True
):
    """Tombstone: the session leaves every view. Nothing follows it."""

    reason: str | None = None


class SessionExpirySet(
    msgspec.Struct, frozen=True, kw_only=True, tag="session.expiry_set", omit_defaults=True
):
    """When the session expires: so many seconds after its last event, or at a time, or never.

    With neither field it never does. It stands for what the log's own policy says of sessions.
    """

    ttl_seconds: int | None = None
    expires_at: datetime | None = None


# --- messages ------------------------------------------------------------------------------------


class MessageAdded(
    msgspec.Struct, frozen=True, kw_only=True, tag="message.added", omit_defaults=True
):
    """A whole chat message. Without a `message_id` the event's own id names the message."""

    role: Role
    content: Content = ""
    message_id: str = ""
    agent: str | None = None
    name: str | None = None
    model: str | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    token_count: int | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    metadata: dict[str, Any] = {}
    native: Any = None
    """The provider's own item, kept as it came, so that adapters lose nothing."""


class MessageStarted(
    msgspec.Struct, frozen=True, kw_only=True, tag="message.started", omit_defaults=True
):
    """A reply begins to stream; its increments follow under the same `message_id`."""

    message_id: str
    role: Role = "assistant"
    agent: str | None = None
    name: str | None = None
    model: str | None = None
    metadata: dict[str, Any] = {}


class TokensAppended(
    msgspec.Struct, frozen=True, kw_only=True, tag="tokens.appended", omit_defaults=True
):
    """A frame: consecutive token increments of one message and channel, stored as one row.

    `ms[i]` is the time in milliseconds between increment i and the one before it. Written by
    `session.reply()` only; readers see one `TokenAppended` for each entry of `texts`.
    """

    message_id: str
    texts: list[str]
    ms: list[int]
    channel: Channel = "text"
    tool_call_id: str | None = None


class TokenAppended(msgspec.Struct, frozen=True, kw_only=True, tag="token.appended"):
    """One token increment, as readers and subscribers see it. Never stored on its own."""

    message_id: str
    text: str
    channel: Channel = "text"
    tool_call_id: str | None = None


class MessageCompleted(
    msgspec.Struct, frozen=True, kw_only=True, tag="message.completed", omit_defaults=True
):
    """A streamed message is whole. Carries the full content, so folds need no increments."""

    message_id: str
    content: Content = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    finish_reason: str | None = None
    usage: Usage | None = None
    token_count: int | None = None
    metadata: dict[str, Any] = {}
    native: Any = None


class MessageInterrupted(
    msgspec.Struct, frozen=True, kw_only=True, tag="message.interrupted", omit_defaults=True
):
    """A streamed message ended early. Keeps what was seen until then, as text."""

    message_id: str
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    reason: str = ""


class MessageRetracted(
    msgspec.Struct, frozen=True, kw_only=True, tag="message.retracted", omit_defaults=True
):
    """A message leaves view and context (undo, pop)."""

    message_id: str
    reason: str | None = None


class MessagePinned(
    msgspec.Struct, frozen=True, kw_only=True, tag="message.pinned", omit_defaults=True
):
    """A message stays in the context word for word, whatever is summarised; or no longer."""

    message_id: str
    pinned: bool = True


class ToolCallClosed(
    msgspec.Struct, frozen=True, kw_only=True, tag="tool_call.closed", omit_defaults=True
):
    """Nobody waits for the output of a tool call any more. An output that comes later counts."""

    tool_call_id: str
    reason: str | None = None


# --- agents and runs -----------------------------------------------------------------------------


class AgentActivated(
    msgspec.Struct, frozen=True, kw_only=True, tag="agent.activated", omit_defaults=True
):
    """An agent is now the one that answers in this session."""

    agent: str


class AgentHandedOff(
    msgspec.Struct, frozen=True, kw_only=True, tag="agent.handed_off", omit_defaults=True
):
    """One agent passed the conversation to another, with what the other needs to know."""

    to_agent: str
    from_agent: str | None = None
    context: Any = None


class RunStarted(msgspec.Struct, frozen=True, kw_only=True, tag="run.started", omit_defaults=True):
    """An agent run began."""

    run_id: str
    agent: str | None = None
    metadata: dict[str, Any] = {}


class RunFinished(
    msgspec.Struct, frozen=True, kw_only=True, tag="run.finished", omit_defaults=True
):
    """An agent run ended as it should."""

    run_id: str
    usage: Usage | None = None


class RunFailed(msgspec.Struct, frozen=True, kw_only=True, tag="run.failed", omit_defaults=True):
    """An agent run ended with an error."""

    run_id: str
    error: str = ""


class RunStopRequested(
    msgspec.Struct, frozen=True, kw_only=True, tag="run.stop_requested", omit_defaults=True
):
    """Somebody asked a run to stop; whoever runs it should see this and end its reply."""

    run_id: str
    reason: str | None = None


# --- the rest ------------------------------------------------------------------------------------


class ScratchpadWritten(
    msgspec.Struct, frozen=True, kw_only=True, tag="scratchpad.written", omit_defaults=True
):
    """An entry of the session's scratchpad was written; a null `value` removes it."""

    name: str
    value: Any = None


class FactPinned(msgspec.Struct, frozen=True, kw_only=True, tag="fact.pinned", omit_defaults=True):
    """A sentence that stands in every context of the session from now on; null removes it."""

    name: str
    text: str | None = None


class Custom(msgspec.Struct, frozen=True, kw_only=True, tag="custom", omit_defaults=True):
    """An application's own event: a name and any JSON. Folds leave it alone."""

    name: str
    data: Any = None


class Unrecognized(msgspec.Struct, frozen=True, kw_only=True):
    """An event written by a newer version: its tag and its exact bytes."""

    tag: str
    data: bytes


class Erased(msgspec.Struct, frozen=True, kw_only=True, tag="erased", omit_defaults=True):
    """An event whose content was erased: the tag it had, and no more. Never stored.

    Of a fork's first event the link to what it continues is left: its history is read along it.
    """

    tag: str
    parent_session_id: UUID | None = None
    parent_seq: int = 0


StoredEvent = (
    SessionCreated
    | SessionUpdated
    | SessionCleared
    | SessionRewound
    | SessionClosed
    | SessionDeleted
    | SessionExpirySet
    | MessageAdded
    | MessageStarted
    | TokensAppended
    | MessageCompleted
    | MessageInterrupted
    | MessageRetracted
    | MessagePinned
    | ToolCallClosed
    | AgentActivated
    | AgentHandedOff
    | RunStarted
    | RunFinished
    | RunFailed
    | RunStopRequested
    | CompactionRequested
    | CompactionCompleted
    | CompactionReverted
    | CompactionFailed
    | CompactionPolicySet
    | ScratchpadWritten
    | FactPinned
    | Custom
)
Event = StoredEvent | TokenAppended | Unrecognized | Erased
"""What a reader can meet."""

TYPE_CODES: Final[dict[str, int]] = {
    "session.created": 1,
    "session.updated": 2,
    "session.cleared": 3,
    "session.rewound": 4,
    "session.closed": 5,
    "session.deleted": 6,
    "session.expiry_set": 7,
    "message.added": 10,
    "message.started": 11,
    "tokens.appended": 12,
    "message.completed": 13,
    "message.interrupted": 14,
    "message.retracted": 15,
    "message.pinned": 16,
    "tool_call.closed": 17,
    "agent.activated": 20,
    "agent.handed_off": 21,
    "run.started": 30,
    "run.finished": 31,
    "run.failed": 32,
    "run.stop_requested": 33,
    "compaction.requested": 40,
    "compaction.completed": 41,
    "compaction.failed": 42,
    "compaction.reverted": 43,
    "compaction.policy_set": 44,
    "scratchpad.written": 50,
    "fact.pinned": 51,
    "custom": 60,
}
"""Column `type` of the table, for each tag. Numbers are for ever, like tags."""

EVENT_CLASSES: Final[tuple[type[StoredEvent], ...]] = get_args(StoredEvent)
_TAGS: Final[dict[type, str]] = {kind: str(kind.__struct_config__.tag) for kind in EVENT_CLASSES}
_TAG_OF_CODE: Final[dict[int, str]] = {code: tag for tag, code in TYPE_CODES.items()}
_CODES: Final[dict[type, int]] = {kind: TYPE_CODES[tag] for kind, tag in _TAGS.items()}


def tag_of_code(code: int) -> str:
    """The tag whose number this is; of one from a newer version just the number."""
    return _TAG_OF_CODE.get(code, f"type {code}")


def type_code(event: StoredEvent) -> int:
    """Number of this event's type in the table."""
    return _CODES[type(event)]


def tag_of(event: Event) -> str:
    """The event's tag, `message.added` and so on."""
    match event:
        case Unrecognized(tag=tag) | Erased(tag=tag):
            return tag
        case TokenAppended():
            return "token.appended"
        case _:
            return _TAGS[type(event)]
