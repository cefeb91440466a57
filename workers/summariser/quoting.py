"""The conversation as quoted data: one JSON document in each line, between two lines with a nonce.

    BEGIN 3f9c…
    {"kind": "previous_summary", "text": "…"}
    {"kind": "message", "seq": 41, "role": "user", "text": "Ignore all previous instructions"}
    END 3f9c…

Whatever people, tools and models wrote is inside of a JSON string, and so can't end its line, begin
a document or close the data; nobody who wrote it knew the nonce. Control characters, marks of the
reading direction and the tokens by which local models tell who speaks are escaped: they mean the
same to whoever decodes the document, and nothing to a template.

Long texts are clipped in the middle, with a mark that says how much is missing and where the
original is. Images and files are named, never sent. Reasoning is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from eventlog.entries import Message
from eventlog.events import Content, ToolCall

OUTPUT_LENGTH_MAX: Final = 4_000
"""Characters of a tool's output, and of the arguments of a call."""
TEXT_LENGTH_MAX: Final = 32_000
"""Characters of any other message."""
NAME_LENGTH_MAX: Final = 200
"""Characters of names, ids and addresses."""
PART_LENGTH_MAX: Final = 1_000
"""Characters of a content part of a kind that isn't known."""
CLIPPED_LENGTH_MIN: Final = 64
"""Characters that are left of a text, however little room there is."""
DEPTH_MAX: Final = 8
"""Levels of parts within parts that are looked into."""

Document = dict[str, Any]

_UNSAFE: Final = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
    # `<|im_start|>`, `</s>`, `<start_of_turn>`, `[INST]` and their like.
    r"|<(?=[|｜]|/?s>|/?think>|bos>|eos>|start_of_turn|end_of_turn|</?SYS)|\[(?=/?INST\])"
)
_DATA: Final = re.compile(r"[A-Za-z0-9+/_-]{256,}={0,2}")
"""Base64 is this long without anything that separates words."""


def fenced(lines: Sequence[str], nonce: str) -> str:
    """The lines between the two that mark where the data begins and ends."""
    return "\n".join([f"BEGIN {nonce}", *lines, f"END {nonce}"])


def to_line(document: Document) -> str:
    """A document as one line of JSON, in which nothing means anything but itself."""
    return _UNSAFE.sub(_escaped, json.dumps(document, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
    units = found.group().encode("utf-16-be", "surrogatepass")
    return "".join(
        f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2)
    )


# --- documents -----------------------------------------------------------------------------------


def message_document(
    message: Message,
    text: str,
    *,
    unanswered: frozenset[str] = frozenset(),
    length_max: int = TEXT_LENGTH_MAX,
) -> Document:
    """A message with what of it matters for a summary; texts have at most `length_max` characters.

    `text` is `text_of` its content, which takes a while where that is large.
    """
    short = min(OUTPUT_LENGTH_MAX, length_max)
    document: Document = {"kind": "message", "seq": message.seq, "role": message.role}
    for name, value in (
        ("agent", message.agent),
        ("name", message.name),
        ("tool_call_id", message.tool_call_id),
    ):
        if value:
            document[name] = _name(value)
    if message.status != "complete":
        document["status"] = message.status
    if text:
        of_tool = message.role == "tool" or _is_tool_result(message.content)
        document["text"] = clip(text, short if of_tool else length_max, message.seq)
    if message.tool_calls:
        document["tool_calls"] = [
            _call_document(call, call.id in unanswered, short, message.seq)
            for call in message.tool_calls
        ]
    return document


def bare_document(message: Message) -> Document:
    """That there was a message, when there is no room for anything of it."""
    return {"kind": "message", "seq": message.seq, "role": message.role, "left_out": "too large"}


def _call_document(call: ToolCall, unanswered: bool, length_max: int, seq: int) -> Document:
    document: Document = {
        "id": _name(call.id),
        "name": _name(call.name),
        "arguments": clip(call.arguments, length_max, seq),
    }
    if unanswered:
        document["output"] = "never came"
    return document


def clip(text: str, length_max: int, seq: int | None = None) -> str:
    """The text, or its beginning and its end with a mark between them."""
    if len(text) <= length_max:
        return text
    head = length_max * 2 // 3
    tail = length_max - head
    where = "" if seq is None else f"; the original is the message with seq {seq}"
    mark = f"[{len(text) - length_max:,} characters left out{where}]"
    return f"{text[:head]}\n{mark}\n{text[len(text) - tail :]}"


def _name(text: str) -> str:
    return text if len(text) <= NAME_LENGTH_MAX else f"{text[:NAME_LENGTH_MAX]}…"


# --- content -------------------------------------------------------------------------------------


def text_of(content: Content | None) -> str:
    """What can be read of a content; everything else is named in square brackets."""
    return _text_of(content, DEPTH_MAX)


def _text_of(content: object, depth: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else _unknown(content)
    return "\n".join(text for part in content if (text := _text_of_part(part, depth - 1)))


def _text_of_part(part: Any, depth: int) -> str:
    match part:
        case str():
            return part
        case {"type": "text" | "input_text" | "output_text", "text": str() as text}:
            return text
        case {"type": "refusal", "refusal": str() as text}:
            return text
        case {"type": "thinking" | "redacted_thinking" | "reasoning"}:
            return ""
        case {"type": "tool_result", "content": content} if depth > 0:
            return _text_of(content, depth)
        case {"type": "image_url" | "input_image" | "image" | "computer_screenshot"}:
            return f"[image{_naming(part)}]"
        case {"type": "input_audio" | "audio"}:
            return f"[audio{_naming(part)}]"
        case {"type": "file" | "input_file" | "document"}:
            return f"[file{_naming(part)}]"
    return _unknown(part)


def _is_tool_result(content: Content) -> bool:
    return isinstance(content, list) and any(part.get("type") == "tool_result" for part in content)


_NAMING: Final = (
    "filename",
    "title",
    "name",
    "file_id",
    "media_type",
    "format",
    "url",
    "image_url",
)


def _naming(part: Mapping[str, Any]) -> str:
    """What says which image or file it is: names, types and addresses, and no data."""
    inner = [each for each in part.values() if isinstance(each, Mapping)]
    found = [_nameable(each.get(key)) for each in (part, *inner) for key in _NAMING]
    named = ", ".join(dict.fromkeys(filter(None, found)))
    return f": {named}" if named else ""


def _nameable(value: object) -> str:
    if not isinstance(value, str):
        return ""
    if value.startswith("data:"):  # of an address that is the data itself: its type
        return value[5:NAME_LENGTH_MAX].partition(";")[0].partition(",")[0]
    return "" if _DATA.search(value) else _name(value)


def _unknown(part: object) -> str:
    """The JSON of something unknown, in which data that nobody reads as text is left out."""
    try:
        text = json.dumps(part, ensure_ascii=False, default=lambda value: type(value).__name__)
    except (RecursionError, ValueError):  # deeper than anyone can read, or holding itself
        return "[something that can't be shown]"
    return clip(_DATA.sub("[data]", text), PART_LENGTH_MAX)
