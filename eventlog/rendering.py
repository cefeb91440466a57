"""The context as a model reads it: messages, facts and a summary as dicts of the chat API.

    instructions ──> pinned facts ──> messages that a compaction kept ──> its summary ──> the rest

Providers refuse a conversation in which a tool call isn't followed by its output at once. Logs
hold such: somebody spoke while the tool ran, or the tool died. So each output is put behind its
call, and where there is none though the conversation went on, or the call was closed, a word says
so. A call at the very end is left as it is: its tool is yet to run. And an output whose call isn't
there any more, for it came when that was summarised already, is told by the user.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from eventlog.entries import Message

SUMMARY_PREFIX: Final = (
    "The earlier part of this conversation was summarised to save space. The summary:\n\n"
)
"""What a model reads before a summary in its context."""
FACTS_PREFIX: Final = "To be kept in mind throughout this conversation:\n\n"
"""What it reads before the pinned facts."""
NO_OUTPUT: Final = "(No output of this call was recorded.)"
"""What stands in the place of an output that there is none of."""
LATE_OUTPUT: Final = "(Output of an earlier tool call, which is not in this context any more.)"
"""What stands before an output whose call isn't in the context."""
INSTRUCTING: Final = ("system", "developer")
"""Roles of messages that say how to behave."""


class Standing(Protocol):
    """A compaction whose summary is in the context."""

    @property
    def to_seq(self) -> int: ...
    @property
    def summary(self) -> str: ...


def provider_dicts(
    messages: Sequence[Message],
    *,
    compaction: Standing | None = None,
    facts: Mapping[str, str],
    closed_calls: Mapping[str, int],
) -> list[dict[str, Any]]:
    """The context that these messages make, in order of seq."""
    result: list[dict[str, Any]] = []
    facts_due, summary_due = bool(facts), compaction is not None
    covered_seq = 0 if compaction is None else compaction.to_seq
    for message, leads in _paired(messages, closed_calls, covered_seq):
        is_newer = summary_due and leads and message.seq > covered_seq
        if facts_due and leads and (is_newer or message.role not in INSTRUCTING):
            result.append(facts_dict(facts))
            facts_due = False
        if compaction is not None and is_newer:
            result.append(summary_dict(compaction.summary))
            summary_due = False
        is_late = leads and message.role == "tool"
        result.append(_late_output_dict(message) if is_late else message_dict(message))
    if facts_due:
        result.append(facts_dict(facts))
    if compaction is not None and summary_due:
        result.append(summary_dict(compaction.summary))
    return result


def summary_dict(summary: str) -> dict[str, Any]:
    """A summary as the model reads it: said by the user, for it has no more authority than that."""
    return {"role": "user", "content": SUMMARY_PREFIX + summary}


def facts_dict(facts: Mapping[str, str]) -> dict[str, Any]:
    """Pinned facts as the model reads them, by the user as well."""
    lines = "\n".join(f"- {name}: {text}" for name, text in facts.items())
    return {"role": "user", "content": FACTS_PREFIX + lines}


def _late_output_dict(message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, str):
        return {"role": "user", "content": f"{LATE_OUTPUT}\n\n{content}"}
    return {"role": "user", "content": [{"type": "text", "text": LATE_OUTPUT}, *content]}


def message_dict(message: Message) -> dict[str, Any]:
    """One message in the form of the chat completions API."""
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
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    return result


def as_shown(messages: Sequence[Message]) -> list[Message]:
    """What a context has for messages that aren't its end; see the top of this module."""
    end = max((each.seq for each in messages), default=0)
    return [each for each, _ in _paired(messages, {}, end)]


def outputs_of(messages: Sequence[Message]) -> dict[tuple[int, str], Message]:
    """The output of each tool call that has one, by the seq of the calling message and the id.

    Ids may come again: each call gets the first output behind it that no earlier call has.
    """
    waiting: defaultdict[str, deque[int]] = defaultdict(deque)
    found: dict[tuple[int, str], Message] = {}
    for each in messages:
        for call_id in dict.fromkeys(call.id for call in each.tool_calls):
            waiting[call_id].append(each.seq)
        if each.role == "tool" and each.tool_call_id is not None and waiting[each.tool_call_id]:
            found[waiting[each.tool_call_id].popleft(), each.tool_call_id] = each
    return found


def _paired(
    messages: Sequence[Message], closed_calls: Mapping[str, int], covered_seq: int
) -> Iterator[tuple[Message, bool]]:
    """The messages that say anything, each output behind its call, and whether it stood there.

    What a summary covers isn't at the end, for the summary comes behind it.

    An interrupted message loses the calls that nobody answered: their arguments may break off.
    """
    calling = any(each.tool_calls for each in messages)
    outputs = outputs_of(messages) if calling else {}
    placed = {each.seq for each in outputs.values()}
    spoken = (each.seq for each in messages if each.role != "tool" or each.seq not in placed)
    last_seq = max((covered_seq + 1, *spoken))
    for each in messages:
        if each.seq in placed:
            continue
        if not each.tool_calls:
            if each.content or each.role != "assistant":
                yield each, True
            continue
        answered = [call for call in each.tool_calls if (each.seq, call.id) in outputs]
        calls = answered if each.status == "interrupted" else each.tool_calls
        shown = (
            each if calls is each.tool_calls else msgspec.structs.replace(each, tool_calls=calls)
        )
        if not (shown.content or calls or shown.role != "assistant"):
            continue
        yield shown, True
        for call_id, name in {call.id: call.name for call in calls}.items():
            output = outputs.get((each.seq, call_id))
            if output is not None:
                yield output, False
            elif each.seq < last_seq or closed_calls.get(call_id, 0) > each.seq:
                yield _no_output(each, call_id, name), False


def _no_output(message: Message, call_id: str, name: str) -> Message:
    return Message(
        message_id="",
        seq=message.seq,
        role="tool",
        content=NO_OUTPUT,
        name=name or None,
        tool_call_id=call_id,
        recorded_at=message.recorded_at,
    )
