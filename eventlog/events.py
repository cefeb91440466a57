"""Every event that can happen in a session: frozen tagged structs, their union, and the codec.

An event is an immutable fact in the past tense, `noun.verb`. It is stored as exactly the JSON bytes
that `encode_event` returned, for ever; `decode_event` reads every version ever written. The rules
that keep this true:

- a tag never changes its meaning and is never used again;
- a new field has a default, so that old bytes decode; unknown fields are ignored, so that old
  programs read new bytes;
- a tag from the future decodes to `Unrecognized`, which keeps the bytes;
- what can't be stored exactly (NaN, a lone surrogate, an object key that isn't a string, nesting
  deeper than `DEPTH_MAX`) is refused here, before anything is sent to Postgres.

Adding an event: a struct below, a line in `Event`, a number in `TYPE_CODES`, a case in
`state._apply`, a line in tests/golden. No migration.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Final, Literal, get_args
from uuid import UUID

import msgspec

from eventlog.errors import EventLogError, InvalidEvent

DEPTH_MAX: Final = 128
"""Deepest nesting of lists and objects in an event's free-form fields; deeper is refused."""
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
"""Integers outside this range don't survive every JSON reader; they are refused."""

Role = Literal["user", "assistant", "system", "developer", "tool"]
Channel = Literal["text", "reasoning", "tool-arguments"]
Content = str | list[dict[str, Any]]
"""Text, or a list of the provider's content parts (`{"type": "text", "text": …}`, images, …)."""

# --- values inside events ------------------------------------------------------------------------


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call of a tool that an assistant message asks for; `arguments` is the model's own text."""

    id: str
    name: str
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens that the provider reported for one generation."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


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


# --- compaction ----------------------------------------------------------------------------------


class CompactionRequested(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.requested", omit_defaults=True
):
    """Somebody asked for a summary of the older part of the context."""

    reason: str | None = None


class CompactionCompleted(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.completed", omit_defaults=True
):
    """A summary now stands in the context for events `from_seq` to `to_seq`, both included.

    `kept` are the seqs of messages in that range that stay in the context beside the summary. The
    events themselves are untouched.
    """

    summary: str
    from_seq: int
    to_seq: int
    kept: list[int] = []
    model: str | None = None
    prompt_version: str | None = None
    tokens_before: int | None = None
    tokens_after: int | None = None
    usage: Usage | None = None
    metadata: dict[str, Any] = {}


class CompactionReverted(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.reverted", omit_defaults=True
):
    """A compaction is undone: the context is again made of what it stood for."""

    compaction_seq: int


class CompactionFailed(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.failed", omit_defaults=True
):
    """An attempt to summarise failed; the context is as it was."""

    reason: str
    from_seq: int = 0
    to_seq: int = 0
    attempts: int = 1


# --- the rest ------------------------------------------------------------------------------------


class ScratchpadWritten(
    msgspec.Struct, frozen=True, kw_only=True, tag="scratchpad.written", omit_defaults=True
):
    """An entry of the session's scratchpad was written; a null `value` removes it."""

    name: str
    value: Any = None


class Custom(msgspec.Struct, frozen=True, kw_only=True, tag="custom", omit_defaults=True):
    """An application's own event: a name and any JSON. Folds leave it alone."""

    name: str
    data: Any = None


class Unrecognized(msgspec.Struct, frozen=True, kw_only=True):
    """An event written by a newer version: its tag and its exact bytes."""

    tag: str
    data: bytes


StoredEvent = (
    SessionCreated
    | SessionUpdated
    | SessionCleared
    | SessionRewound
    | SessionClosed
    | SessionDeleted
    | MessageAdded
    | MessageStarted
    | TokensAppended
    | MessageCompleted
    | MessageInterrupted
    | MessageRetracted
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
    | ScratchpadWritten
    | Custom
)
Event = StoredEvent | TokenAppended | Unrecognized
"""What a reader can meet."""

TYPE_CODES: Final[dict[str, int]] = {
    "session.created": 1,
    "session.updated": 2,
    "session.cleared": 3,
    "session.rewound": 4,
    "session.closed": 5,
    "session.deleted": 6,
    "message.added": 10,
    "message.started": 11,
    "tokens.appended": 12,
    "message.completed": 13,
    "message.interrupted": 14,
    "message.retracted": 15,
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
    "scratchpad.written": 50,
    "custom": 60,
}
"""Column `type` of the table, for each tag. Numbers are for ever, like tags."""

EVENT_CLASSES: Final[tuple[type[StoredEvent], ...]] = get_args(StoredEvent)
_TAGS: Final[dict[type, str]] = {kind: str(kind.__struct_config__.tag) for kind in EVENT_CLASSES}
_CODES: Final[dict[type, int]] = {kind: TYPE_CODES[tag] for kind, tag in _TAGS.items()}
_FREE_FORM: Final[dict[type, tuple[str, ...]]] = {
    kind: tuple(
        name
        for name in ("content", "metadata", "native", "context", "value", "data")
        if name in kind.__struct_fields__
    )
    for kind in EVENT_CLASSES
}
_INTEGERS: Final[dict[type, tuple[str, ...]]] = {
    kind: tuple(
        name
        for name in (
            *("parent_seq", "to_seq", "from_seq", "compaction_seq", "kept", "token_count", "usage"),
            *("tokens_before", "tokens_after", "attempts", "ms"),
        )
        if name in kind.__struct_fields__
    )
    for kind in EVENT_CLASSES
}
_EXACT: Final = (str, int, float)
"""Subclasses of these, numpy's float64 among them, are refused unless they are enums."""


class CorruptEvent(EventLogError):
    """Stored bytes that are no event of any version: the row was damaged outside this library."""


class _Tag(msgspec.Struct, frozen=True):
    type: str = ""


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[StoredEvent] = msgspec.json.Decoder(StoredEvent)
_tag_decoder = msgspec.json.Decoder(_Tag)


def type_code(event: StoredEvent) -> int:
    """Number of this event's type in the table."""
    return _CODES[type(event)]


def tag_of(event: Event) -> str:
    """The event's tag, `message.added` and so on."""
    match event:
        case Unrecognized(tag=tag):
            return tag
        case TokenAppended():
            return "token.appended"
        case _:
            return _TAGS[type(event)]


def encode_event(event: StoredEvent, *, bytes_max: int) -> bytes:
    """The exact bytes to store. Raises `InvalidEvent` when they would not read back the same."""
    kind = type(event)
    free_form = _FREE_FORM.get(kind)
    if free_form is None:
        raise InvalidEvent(
            f"{kind.__name__} can't be appended; append one of: "
            + ", ".join(sorted({each.__name__ for each in EVENT_CLASSES} - {"TokensAppended"}))
            + " (token increments are written with session.reply())"
        )
    try:
        for name in free_form:
            value = getattr(event, name)
            if value is not None and type(value) is not str and value != {}:
                _check_json(value, f"{_TAGS[kind]}.{name}", node_count_max=bytes_max)
        data = _encoder.encode(event)
        if b"\n" in data or b"\r" in data:  # out of a Raw; a stored event is one line
            data = msgspec.json.format(data, indent=-1)
        if len(data) > bytes_max:
            raise InvalidEvent(
                f"{_TAGS[kind]} is {len(data):,} bytes; the limit is {bytes_max:,} "
                "(EVENTLOG_EVENT_BYTES_MAX); store large things elsewhere and append a reference"
            )
        _check_read_back(event, _decoder.decode(data))
    except UnicodeEncodeError as error:
        raise InvalidEvent(
            f"{_place_of(error.object, event)} has a lone surrogate "
            f"(\\u{ord(error.object[error.start]):04x}) at index {error.start}; replace it, for "
            "example with text.encode('utf-8', 'replace').decode()"
        ) from None
    except RecursionError:
        raise InvalidEvent(f"{_TAGS[kind]} is nested deeper than {DEPTH_MAX} levels") from None
    except (msgspec.MsgspecError, OverflowError, TypeError) as error:
        raise InvalidEvent(f"{_TAGS[kind]}: {error}") from None
    return data


def encode_frame(frame: TokensAppended) -> bytes:
    """The bytes of a frame that `reply` built, of any size. Raises `InvalidEvent`."""
    return encode_event(frame, bytes_max=INTEGER_MAX)


def decode_event(data: bytes) -> StoredEvent | Unrecognized:
    """The event in stored bytes; `Unrecognized` for a tag from a newer version."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        tag = _tag_of_bytes(data)
        if tag and tag not in TYPE_CODES:
            return Unrecognized(tag=tag, data=bytes(data))
        raise CorruptEvent(f"stored event can't be read ({error}): {data[:80]!r}…") from None


def _tag_of_bytes(data: bytes) -> str:
    try:
        return _tag_decoder.decode(data).type
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def check_text(text: str) -> int:
    """How many bytes a text has as JSON. Raises `InvalidEvent` for one without a UTF-8 form."""
    if type(text) is not str:  # the encoder would take numbers, and bytes as base64
        raise InvalidEvent(f"text must be a str, not {type(text).__name__}")
    try:
        return len(_encoder.encode(text)) - 2
    except UnicodeEncodeError as error:
        raise InvalidEvent(
            f"text has a lone surrogate at index {error.start}; join split pairs before writing"
        ) from None


_Place = str | tuple["_Place", str | int]
"""Where a value stands: the field, or a place and the key or index in it. Shown by `_show`."""


def _check_json(value: object, field: str, *, node_count_max: int) -> None:
    """Refuse anything in a free-form field that JSON would change silently or not carry."""
    stack: list[tuple[object, _Place, int]] = [(value, field, 1)]
    node_count = 0
    while stack:
        item, place, depth = stack.pop()
        node_count += 1
        if depth > DEPTH_MAX:
            raise InvalidEvent(f"{field} is nested deeper than {DEPTH_MAX} levels")
        if node_count > node_count_max:  # each takes a byte; ends [x, x] of [y, y] of … early
            raise InvalidEvent(f"{field} holds more values than the {node_count_max:,} bytes allow")
        match item:
            case None | bool():
                pass
            case str() | int() | float() if not (
                type(item) in _EXACT or isinstance(item, enum.Enum)
            ):
                raise _not_json(item, place)
            case str():
                pass
            case int():
                _check_integer(item, place)
            case float():
                if not math.isfinite(item):
                    raise InvalidEvent(
                        f"{_show(place)} is {item}; JSON has no such number; send null"
                    )
            case dict():
                for key, inner in item.items():
                    if not isinstance(key, str):
                        raise InvalidEvent(
                            f"{_show(place)} has the key {key!r}; keys must be strings"
                        )
                    stack.append((inner, (place, key), depth + 1))
            case list() | tuple():
                stack.extend((inner, (place, index), depth + 1) for index, inner in enumerate(item))
            case msgspec.Raw():
                stack.append((_from_raw(item, place), place, depth))
            case _:
                raise _not_json(item, place)


def _check_integer(number: int, place: _Place) -> None:
    if not INTEGER_MIN <= number <= INTEGER_MAX:
        raise InvalidEvent(f"{_show(place)} is an integer beyond 64 bits; send it as a string")


def _from_raw(raw: msgspec.Raw, place: _Place) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"{_show(place)} is a Raw that is no JSON: {error}") from None


def _not_json(item: object, place: _Place) -> InvalidEvent:
    return InvalidEvent(
        f"{_show(place)} is a {type(item).__name__}; only null, booleans, numbers, strings, "
        "lists and dicts are stored"
    )


def _check_read_back(event: StoredEvent, read: StoredEvent) -> None:
    """Refuse what the encoder turned into something else (bytes, dates), and too large numbers."""
    kind = type(event)
    for name in _INTEGERS[kind]:
        match getattr(read, name):
            case int() as number:
                _check_integer(number, (_TAGS[kind], name))
            case list() as numbers:
                for number in numbers:
                    _check_integer(number, (_TAGS[kind], name))
            case Usage() as usage:
                for part in Usage.__struct_fields__:
                    _check_integer(getattr(usage, part), ((_TAGS[kind], name), part))
    if read == event:
        return
    for name in kind.__struct_fields__:
        given, back = getattr(event, name), getattr(read, name)
        if name in _FREE_FORM[kind] or given == back:
            continue  # free-form fields were checked: a tuple or a Raw may differ, its JSON doesn't
        if not isinstance(given, tuple) or list(given) != back:
            raise InvalidEvent(
                f"{_TAGS[kind]}.{name} is a {type(given).__name__} that would read back as "
                f"{back!r:.80}; convert it before"
            )


def _place_of(text: str, event: StoredEvent) -> str:
    """Where in an event a text stands: a value, or a key of an object."""
    tag = _TAGS[type(event)]
    stack: list[tuple[object, _Place]] = [(event, tag)]
    seen: set[int] = set()
    while stack:
        item, place = stack.pop()
        if item is text:
            return _show(place)
        if id(item) in seen:
            continue
        seen.add(id(item))
        match item:
            case msgspec.Struct():
                names = item.__struct_fields__
                stack.extend((getattr(item, name), (place, name)) for name in names)
            case dict():
                if any(key is text for key in item):
                    return f"a key of {_show(place)}"
                stack.extend((inner, (place, str(key))) for key, inner in item.items())
            case list() | tuple():
                stack.extend((inner, (place, index)) for index, inner in enumerate(item))
    return f"a text of {tag}"


def _show(place: _Place) -> str:
    steps: list[str] = []
    while isinstance(place, tuple):
        place, step = place
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    # A key may itself be what has no UTF-8 form, and the message must be printable everywhere.
    return (place + "".join(reversed(steps))).encode("utf-8", "backslashreplace").decode()
