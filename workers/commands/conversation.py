"""A folded conversation on the terminal: who said what, calls folded, what was left out named."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.text import Text

from eventlog import Message, SessionState
from eventlog.state import Compaction
from workers.commands import look
from workers.terminal import safe_line

REASONING_LINES: Final = 3
OUTPUT_LINES: Final = 4
SUMMARY_LINES: Final = 4
WHOLE: Final = 10**9


def print_conversation(console: Console, state: SessionState, *, full: bool = False) -> None:
    """All messages of the state, with a divider where a compaction was appended."""
    calls: dict[str, str] = {}
    dividers = iter(state.compactions)
    upcoming = next(dividers, None)
    for message in state.messages:
        while upcoming is not None and upcoming.seq < message.seq:
            print_compaction(console, upcoming, full=full)
            upcoming = next(dividers, None)
        pinned = message.message_id in state.pinned
        print_message(console, message, calls, full=full, pinned=pinned)
    for last in itertools.chain([upcoming] if upcoming else [], dividers):
        print_compaction(console, last, full=full)


def print_message(
    console: Console,
    message: Message,
    calls: dict[str, str],
    *,
    full: bool = False,
    pinned: bool = False,
) -> None:
    """One message. `calls` remembers the names of tools by call id, for their outputs."""
    for call in message.tool_calls:
        calls[call.id] = call.name
    console.print()
    names = [message.agent, message.name]
    if message.role == "tool":
        names = [calls.get(message.tool_call_id or "") or message.name]
    if pinned:
        names.append("pinned")
    console.print(look.heading(message.role, *names, seq=message.seq, at=message.recorded_at))
    if message.reasoning:
        lines = WHOLE if full else REASONING_LINES
        look.print_wrapped(console, message.reasoning, look.REASONING, lines=lines)
    if text := look.plain_text(message.content):
        if message.role == "tool":
            look.print_cut(console, text, lines=WHOLE if full else OUTPUT_LINES)
        else:
            look.print_prose(console, text)
    for call in message.tool_calls:
        if full:
            console.print(Text(f"  → {safe_line(call.name)}", look.CALL))
            look.print_prose(console, call.arguments, look.QUIET)
        else:
            console.print(look.call_line(call, console.width), soft_wrap=True)
    if message.status == "interrupted":
        why = safe_line(message.interrupt_reason or "no reason given")
        console.print(Text(f"  ⨯ interrupted: {why}", look.WRONG))
    elif message.status == "open":
        console.print(Text("  … still streaming", look.UNDER_WAY))


def print_compaction(console: Console, compaction: Compaction, *, full: bool = False) -> None:
    """Where a summary took the place of older messages in the context."""
    title = f"compaction #{compaction.seq}: events {compaction.from_seq} to {compaction.to_seq}"
    if compaction.to_seq < compaction.from_seq:
        title = f"compaction #{compaction.seq}: of what came before the first event"
    sizes = {"before": compaction.tokens_before, "after": compaction.tokens_after}
    facts = [f"{count:,} tokens {when}" for when, count in sizes.items() if count is not None]
    if compaction.method == "extractive":
        facts.append("without a model")
    elif compaction.model:
        facts.append(f"by {safe_line(compaction.model, 40)}")
    if compaction.reverted_seq:
        facts.append(f"taken back at #{compaction.reverted_seq}")
    console.print()
    console.print(look.divider(", ".join([title, *facts])))
    lines = WHOLE if full else SUMMARY_LINES
    look.print_wrapped(console, compaction.summary, look.QUIET, lines=lines)


def print_context(
    console: Console, messages: Iterable[dict[str, object]], *, full: bool = False
) -> None:
    """What a model sees next, message by message."""
    for number, message in enumerate(messages, 1):
        print_context_message(console, message, f"{number}", full=full)


def print_context_message(
    console: Console, message: dict[str, object], *names: str | None, full: bool = False
) -> None:
    """One message as a model sees it. `names` stand behind its role."""
    console.print()
    console.print(look.heading(str(message["role"]), *names))
    content = message.get("content")
    if isinstance(content, str | list) and content:
        text = look.plain_text(content)
        if full:
            look.print_prose(console, text)
        else:
            look.print_cut(console, text, "", lines=2 * OUTPUT_LINES)
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        console.print(Text(f"  → {safe_line(str(call['function']['name']))}", look.CALL))
