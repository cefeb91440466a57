"""The codec: an event as the exact JSON bytes that are stored, and back.

`encode_event` is the door: what can't be stored exactly is refused here, before anything is sent to
Postgres. That is NaN and infinity (the encoder would write null), lone surrogates, object keys that
aren't strings, integers beyond 64 bits, nesting deeper than `DEPTH_MAX`, and anything that would
read back as something else. `decode_event` reads every version ever written.
"""

from __future__ import annotations

import enum
import math
from typing import Final

import msgspec

from eventlog.compaction.policy import check_policy
from eventlog.errors import CorruptEvent, InvalidEvent, InvalidRequest
from eventlog.events import (
    EVENT_CLASSES,
    TYPE_CODES,
    CompactionPolicySet,
    SessionExpirySet,
    StoredEvent,
    TokensAppended,
    Unrecognized,
    Usage,
    tag_of,
)

DEPTH_MAX: Final = 128
"""Deepest nesting of lists and objects in an event's free-form fields; deeper is refused."""
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
"""Integers outside this range don't survive every JSON reader; they are refused."""
TTL_SECONDS_MAX: Final = 100 * 365 * 24 * 3600
"""Longest time to live of a session: a hundred years."""

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
            *("tokens_before", "tokens_after", "attempts", "ms", "ttl_seconds"),
            *("context_tokens", "calls", "duration_ms", "retry_after_ms"),
        )
        if name in kind.__struct_fields__
    )
    for kind in EVENT_CLASSES
}
_EXACT: Final = (str, int, float)
"""Subclasses of these, numpy's float64 among them, are refused unless they are enums."""


class _Tag(msgspec.Struct, frozen=True):
    type: str = ""


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[StoredEvent] = msgspec.json.Decoder(StoredEvent)
_tag_decoder = msgspec.json.Decoder(_Tag)


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
            if value is not None and type(value) is not str and (type(value) is not dict or value):
                _check_json(value, f"{tag_of(event)}.{name}", node_count_max=bytes_max)
        data = _encoder.encode(event)
        if b"\n" in data or b"\r" in data:  # out of a Raw; a stored event is one line
            data = msgspec.json.format(data, indent=-1)
        if len(data) > bytes_max:
            raise InvalidEvent(
                f"{tag_of(event)} is {len(data):,} bytes; the limit is {bytes_max:,} "
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
        raise InvalidEvent(f"{tag_of(event)} is nested deeper than {DEPTH_MAX} levels") from None
    except (msgspec.MsgspecError, OverflowError, TypeError) as error:
        raise InvalidEvent(f"{tag_of(event)}: {error}") from None
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


def _check_count(number: int, place: _Place) -> None:
    _check_integer(number, place)
    if number < 0:
        raise InvalidEvent(f"{_show(place)} is {number}; it must be 0 or more")


def _check_expiry(event: SessionExpirySet) -> None:
    if event.ttl_seconds is not None and not 1 <= event.ttl_seconds <= TTL_SECONDS_MAX:
        raise InvalidEvent(
            f"session.expiry_set.ttl_seconds is {event.ttl_seconds}; it must be 1 to "
            f"{TTL_SECONDS_MAX:,}, or None for a session that never expires"
        )
    if event.expires_at is not None and event.expires_at.tzinfo is None:
        raise InvalidEvent(
            "session.expiry_set.expires_at has no time zone; use datetime.now(UTC) or the like"
        )
    if event.ttl_seconds is not None and event.expires_at is not None:
        raise InvalidEvent("session.expiry_set has both ttl_seconds and expires_at; give one")


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
                _check_count(number, (tag_of(event), name))
            case list() as numbers:
                for number in numbers:
                    _check_count(number, (tag_of(event), name))
            case Usage() as usage:
                for part in Usage.__struct_fields__:
                    _check_count(getattr(usage, part), ((tag_of(event), name), part))
    if isinstance(read, SessionExpirySet):
        _check_expiry(read)
    if isinstance(read, CompactionPolicySet) and read.policy is not None:
        try:
            check_policy(read.policy)
        except InvalidRequest as error:
            raise InvalidEvent(f"compaction.policy_set: {error}") from None
    if read == event:
        return
    for name in kind.__struct_fields__:
        given, back = getattr(event, name), getattr(read, name)
        if name in _FREE_FORM[kind] or given == back:
            continue  # free-form fields were checked: a tuple or a Raw may differ, its JSON doesn't
        if not isinstance(given, tuple) or list(given) != back:
            raise InvalidEvent(
                f"{tag_of(event)}.{name} is a {type(given).__name__} that would read back as "
                f"{back!r:.80}; convert it before"
            )


def _place_of(text: str, event: StoredEvent) -> str:
    """Where in an event a text stands: a value, or a key of an object."""
    tag = tag_of(event)
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
