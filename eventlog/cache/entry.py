"""What is cached of a session: the parts of an entry, their bytes, and which of them are exact.

All parts of an entry are as of its seq, and a part at a seq is a fact. What it takes to say so is
the version: two releases of which one folds otherwise, or puts more into a view, don't read each
other's entries.

RedisJSON reads numbers in a way of its own: 2.1137251835197114e-11 comes back as another number,
1e400 and deep nesting are refused. `is_exact` knows what it gives back exactly.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.state import FOLD_VERSION
from eventlog.views import SessionView

FORM_VERSION: Final = 1
"""Raise this when a part's form changes, or what `context()` makes of the same state."""
VERSION: Final = (FOLD_VERSION * 1_000 + len(SessionView.__struct_fields__)) * 100 + FORM_VERSION
"""Of what is cached: processes of two releases that differ in it don't believe each other."""
PARTS: Final = ("view", "metadata", "scratchpad")
"""Of the session's entry; the view is without its metadata, which are a part of their own."""
CONTEXT_PARTS: Final = ("context",)
PART_BYTES_MAX: Final = 1_000_000
"""A part whose JSON is larger is not cached: Redis does nothing else while it moves one."""
DEPTH_MAX: Final = 64
"""Deepest nesting that is left to RedisJSON, which refuses more than 128."""
FLOAT_DIGITS_MAX: Final = 15
FLOAT_EXPONENT_MAX: Final = 22
"""A number of so few digits and of so small a power of ten is read exactly by the simplest reader:
both are exact as doubles, so there is one rounding."""

ABSENT: Final = b""
"""A part that is not to be cached."""

_encode: Final = msgspec.json.Encoder().encode
_NUMBER: Final = re.compile(r"-?(\d+)(?:\.(\d+))?(?:e([-+]?\d+))?\Z")


class Entry(msgspec.Struct, frozen=True):
    """What is known of a session at a seq: the JSON of some parts, by name."""

    session_id: UUID
    seq: int
    parts: dict[str, bytes]
    opaque: frozenset[str] = frozenset()
    """Parts that RedisJSON would not give back as they are."""


def entry_of(view: SessionView, scratchpad: dict[str, Any] | None = None) -> Entry:
    """The entry of a session, with or without its scratchpad; all of it as of the view's seq."""
    values: dict[str, Any] = {
        "view": msgspec.structs.replace(view, metadata={}),
        "metadata": view.metadata,
    }
    opaque = {"metadata"} if not is_exact(view.metadata) else set()
    if view.handoff is not None and not is_exact(view.handoff.context):
        opaque.add("view")
    if scratchpad is not None:
        values["scratchpad"] = by_name(scratchpad)
        if not is_exact(scratchpad):
            opaque.add("scratchpad")
    parts = {name: encode_part(value) for name, value in values.items()}
    return Entry(view.session_id, view.seq, parts, frozenset(opaque))


def by_name(scratchpad: dict[str, Any]) -> dict[str, Any]:
    """A scratchpad in the order of its names: that in which they were written, not all know."""
    return dict(sorted(scratchpad.items()))


def context_entry_of(session_id: UUID, seq: int, messages: list[dict[str, Any]]) -> Entry:
    """The entry of a session's context."""
    texts: list[bytes] = []
    byte_count = 1
    for each in messages:  # not all at once: nobody needs the JSON of a huge one
        texts.append(encode_part(each))
        byte_count += len(texts[-1]) + 1
        if not texts[-1] or byte_count > PART_BYTES_MAX:
            return Entry(session_id, seq, {"context": ABSENT})
    return Entry(session_id, seq, {"context": b"[%b]" % b",".join(texts)})


def encode_part(value: Any) -> bytes:
    """The JSON of a part; empty when it is not to be cached."""
    try:
        data = _encode(value)
    except (OverflowError, UnicodeEncodeError):  # out of rows that no writer of ours made
        return ABSENT
    return data if len(data) <= PART_BYTES_MAX else ABSENT


def is_exact(value: Any) -> bool:
    """Whether RedisJSON gives the value back as it is: same types, same numbers."""
    stack: list[tuple[Any, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > DEPTH_MAX:
            return False
        match item:
            case bool() | None | str():
                pass
            case int():
                if not -(2**63) <= item < 2**63:
                    return False
            case float():
                if not _is_simple(item):
                    return False
            case dict():
                stack.extend((inner, depth + 1) for inner in item.values())
            case list():
                stack.extend((inner, depth + 1) for inner in item)
            case _:
                return False
    return True


def _is_simple(number: float) -> bool:
    if number == 0:
        return math.copysign(1, number) > 0
    found = _NUMBER.match(repr(number))
    if found is None:
        return False
    whole, fraction, power = found[1], found[2] or "", int(found[3] or 0)
    digits = (whole + fraction).lstrip("0")
    exponent = power - len(fraction)
    return len(digits) <= FLOAT_DIGITS_MAX and abs(exponent) <= FLOAT_EXPONENT_MAX
