"""A second, naive rendering of a context: the oracle that `eventlog.rendering` is tested against.

It looks at every message for every other one. Slow, and obvious.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from eventlog import events as ev
from eventlog.rendering import FACTS_PREFIX, LATE_OUTPUT, NO_OUTPUT, SUMMARY_PREFIX

INSTRUCTING: Final = ("system", "developer")


class Shown(msgspec.Struct, frozen=True):
    """One message as the model that is asked next sees it."""

    role: str
    content: Any
    calls: tuple[str, ...] = ()
    """Ids of the calls that it makes."""
    answers: str | None = None
    """Id of the call that it answers."""


class Spoken(Protocol):
    """A message that may be shown."""

    @property
    def seq(self) -> int: ...
    @property
    def role(self) -> str: ...
    @property
    def content(self) -> Any: ...
    @property
    def status(self) -> str: ...
    @property
    def tool_calls(self) -> Sequence[ev.ToolCall]: ...
    @property
    def tool_call_id(self) -> str | None: ...


def shown_of(context: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """A context as the code under test gives it out."""
    return [
        Shown(
            role=each["role"],
            content=each["content"],
            calls=tuple(call["id"] for call in each.get("tool_calls", ())),
            answers=each.get("tool_call_id"),
        )
        for each in context
    ]


def render(
    said: Sequence[Spoken],
    *,
    summary: tuple[int, str] | None,
    facts: Mapping[str, str],
    closings: Sequence[tuple[int, str]],
) -> list[Shown]:
    """What a model sees of these messages, given the end and the text of a summary."""
    answer_of = _pairs(said)
    blocks: list[tuple[int, list[Shown]]] = []
    for place, each in enumerate(said):
        if place in answer_of.values():
            continue
        goes_on = (summary is not None and each.seq <= summary[0]) or any(
            later.role != "tool" or number not in answer_of.values()
            for number, later in enumerate(said)
            if number > place
        )
        closed = {call_id for seq, call_id in closings if seq > each.seq}
        answered = {call_id for number, call_id in answer_of if number == place}
        calls = tuple(
            call.id
            for call in each.tool_calls
            if each.status != "interrupted" or call.id in answered
        )
        if not (each.content or calls or each.role != "assistant"):
            continue
        block = [Shown(each.role, each.content, calls, each.tool_call_id)]
        if each.role == "tool":
            block = [Shown("user", f"{LATE_OUTPUT}\n\n{each.content}")]
        for call_id in dict.fromkeys(calls):
            if call_id in answered:
                output = said[answer_of[place, call_id]]
                block.append(Shown("tool", output.content, (), call_id))
            elif goes_on or call_id in closed:
                block.append(Shown("tool", NO_OUTPUT, (), call_id))
        blocks.append((each.seq, block))
    if summary is not None:
        behind = len([seq for seq, _ in blocks if seq <= summary[0]])
        blocks.insert(behind, (summary[0], [Shown("user", SUMMARY_PREFIX + summary[1])]))
    if facts:
        lines = "\n".join(f"- {name}: {text}" for name, text in facts.items())
        place = 0
        while place < len(blocks) and _instructs(blocks[place][1]):
            place += 1
        blocks.insert(place, (0, [Shown("user", FACTS_PREFIX + lines)]))
    return [each for _, block in blocks for each in block]


def _instructs(block: list[Shown]) -> bool:
    return block[0].role in INSTRUCTING


def _pairs(said: Sequence[Spoken]) -> dict[tuple[int, str], int]:
    """Places of the outputs, by the place of the calling message and the id of the call."""
    found: dict[tuple[int, str], int] = {}
    for place, output in enumerate(said):
        if output.role != "tool" or output.tool_call_id is None:
            continue
        for earlier, caller in enumerate(said[:place]):
            key = (earlier, output.tool_call_id)
            if key not in found and any(call.id == key[1] for call in caller.tool_calls):
                found[key] = place
                break
    return found
