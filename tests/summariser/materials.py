"""Conversations to be summarised, and a reader of what a model was given of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from eventlog.compaction.summarizer import Material
from eventlog.entries import Message
from eventlog.events import Role, ToolCall

SESSION: UUID = UUID(int=7)
AT = datetime(2026, 11, 1, tzinfo=UTC)
SECRET = "the safe's number is 4711"
"""Stands in every conversation: no error may repeat it."""
KEY = "sk-test-key-that-nobody-may-see"


def said(seq: int, role: Role = "user", content: Any = "", **fields: Any) -> Message:
    """A message of a conversation."""
    return Message(
        message_id=f"m{seq}", seq=seq, role=role, content=content, recorded_at=AT, **fields
    )


def called(seq: int, *calls: str, arguments: str = "{}") -> Message:
    """An assistant's message with tool calls of these ids."""
    return said(
        seq,
        "assistant",
        tool_calls=[ToolCall(id=each, name="search", arguments=arguments) for each in calls],
    )


def output(seq: int, call: str, content: str = "found it") -> Message:
    """The output of a tool call."""
    return said(seq, "tool", content, tool_call_id=call)


def material_of(messages: list[Message] | None = None, **fields: Any) -> Material:
    """Material of these messages, or of a short conversation."""
    if messages is None:
        messages = [said(1, "user", f"Remember: {SECRET}."), said(2, "assistant", "I will.")]
    given: dict[str, Any] = {
        "session_id": SESSION,
        "from_seq": messages[0].seq if messages else 1,
        "to_seq": messages[-1].seq if messages else 1,
        "messages": messages,
        "tokens": 1_000,
        "tokens_max": 200,
    }
    return Material(**(given | fields))


def documents_of(user: str) -> list[dict[str, Any]]:
    """The documents in a user message, read as strictly as its fence promises.

    Fails if anything but the reminder stands outside of the fence, or if a line inside of it is
    anything but one object.
    """
    data, _, last_word = user.rpartition("\n\n")
    assert last_word.startswith("The data ends here.") and "\n" not in last_word
    lines = data.split("\n")
    begin, nonce = lines[0].split(" ")
    assert begin == "BEGIN" and len(nonce) == 16
    assert lines[-1] == f"END {nonce}"
    assert user.count(nonce) == 2, "the fence stands somewhere else, too"
    documents = [json.loads(line) for line in lines[1:-1]]
    assert all(isinstance(each, dict) and "kind" in each for each in documents)
    return documents
