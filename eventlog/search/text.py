"""What of a message is searched: its words, not its data.

Content, or the text parts of content; names and arguments of tool calls; the message's own name.
JSON that a model wrote for a tool, or that a tool answered with, is read first, so that `\\n` and
`\\u00fc` in it are what they stand for, and is searched by its keys and values.

Not searched: reasoning, which nobody said to anyone; ids, metadata and the provider's native item;
images, audio and files, also where they are inside a part as base64.

    searchable_text(message) ─ search_terms.tsvector_text ─ Postgres
                             └ search_query.Query.matches, .snippet
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from eventlog.entries import Message
from eventlog.search.terms import SEPARATOR, TEXT_LENGTH_MAX

PART_TEXTS: Final = ("title", "filename", "name", "text", "refusal", "transcript", "value")
"""Fields of a content part that are for reading, in this order."""
PART_INSIDES: Final = ("content", "text", "file", "input")
"""Fields of a content part that may have further parts, or a tool's arguments."""
DEPTH_MAX: Final = 16
"""Levels of parts and of JSON that are read; what is deeper is not searched."""
BETWEEN: Final = f"\n{SEPARATOR}\n"
"""Between two texts of a message: no phrase spans them, a snippet shows a blank."""
DATA_FACTOR: Final = 8
"""Characters that are looked at for one that is searched: the rest may be base64."""
_DATA: Final = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{256,}={0,2}")
"""Base64 is this long without anything that separates words."""


def searchable_text(message: Message) -> str:
    """The text under which a message is found and from which its snippets are cut.

    At most about `search_terms.TEXT_LENGTH_MAX` characters: what is behind isn't searched anyway.
    """
    taken: list[str] = []
    room = TEXT_LENGTH_MAX
    for text in _texts(message):
        if text and not text.isspace():
            taken.append(_DATA.sub("", text[: DATA_FACTOR * room])[:room])
            room -= len(taken[-1]) + len(BETWEEN)
            if room <= 0:
                break
    return BETWEEN.join(taken)


def _texts(message: Message) -> Iterator[str]:
    content = message.content
    if message.name:
        yield message.name
    if isinstance(content, str):
        yield (_json_text(content) or content) if message.role == "tool" else content
    else:
        yield from _part_texts(content, DEPTH_MAX)
    for call in message.tool_calls:
        yield call.name
        yield _json_text(call.arguments) or call.arguments


def _part_texts(part: Any, depth: int) -> Iterator[str]:
    match part:
        case str():
            yield part
        case list() if depth:
            for each in part:
                yield from _part_texts(each, depth - 1)
        case dict() if depth and part.get("type") not in ("thinking", "reasoning"):
            for field in PART_TEXTS:
                if isinstance(part.get(field), str):
                    yield part[field]
            for field in PART_INSIDES:
                inside = part.get(field)
                if field == "input" and isinstance(inside, dict):
                    yield "\n".join(_value_texts(inside, depth - 1))
                elif field == "content" or not isinstance(inside, str):
                    yield from _part_texts(inside, depth - 1)


def _json_text(text: str) -> str:
    """Keys and values of a JSON object or list, a line each; empty if it isn't one."""
    if text.lstrip()[:1] not in ("{", "[") or len(text) > TEXT_LENGTH_MAX:
        return ""
    try:
        return "\n".join(_value_texts(msgspec.json.decode(text), DEPTH_MAX))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ""


def _value_texts(value: Any, depth: int) -> Iterator[str]:
    match value:
        case str():
            yield value
        case bool() | int() | float():
            yield str(value)
        case list() if depth:
            for each in value:
                yield from _value_texts(each, depth - 1)
        case dict() if depth:
            for key, each in value.items():
                lines = list(_value_texts(each, depth - 1))
                yield f"{key}: {lines[0]}" if lines else str(key)
                yield from lines[1:]
