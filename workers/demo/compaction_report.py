"""What `eventlog demo --compact` prints."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog import CompactionPolicy, EventLog, Message, Plan
from eventlog.compaction.measure import ContextTokens
from eventlog.state import Compaction, CompactionMissed, SessionState
from workers.commands import look
from workers.commands.compaction_text import print_compaction_facts, print_pairs, size_words
from workers.commands.context import print_roles
from workers.demo.report import print_rule
from workers.terminal import safe, safe_line

SUMMARY_LINES: Final = 12
KEPT_SHOWN_MAX: Final = 8
"""Messages of the new context that are shown, the newest."""


def print_opening(
    console: Console, log: EventLog, *, name: str, key: str, author: str, threshold: int
) -> None:
    """What is going to happen, on which servers, and who writes the summary."""
    console.print(Text("eventlog demo --compact", "bold"))
    console.print(
        Text(
            f"A recorded conversation ({safe_line(name)}) grows until a model should not be sent "
            "all of it any more. A summary then takes the place of its older part in the context. "
            "The events stay, the past stays, and the summary can be taken back."
        )
    )
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    origin = log.servers.origin if log.servers is not None else ()
    for title, where in zip(("Postgres", "Redis"), origin, strict=False):
        table.add_row(title, Text(safe(where), look.QUIET))
    table.add_row("summary", Text(author, look.QUIET))
    table.add_row("threshold", Text(f"{threshold:,} tokens", look.QUIET))
    table.add_row("session", Text(key, look.QUIET))
    console.print(table)


def print_before(
    console: Console, state: SessionState, size: ContextTokens, policy: CompactionPolicy, plan: Plan
) -> None:
    """The context as it is, and what a compaction is going to do."""
    print_rule(console, "the context before")
    _print_size(console, state, size)
    over = f"{size.tokens - policy.threshold(size.window):,} tokens over the threshold"
    stay = len(plan.newest) + len(plan.kept)
    console.print()
    print_pairs(
        console,
        [
            ("due", over),
            (
                "to be done",
                f"a summary for {look.plural(len(plan.material), 'message')} of events "
                f"{plan.from_seq:,} to {plan.to_seq:,}, {plan.tokens.tokens:,} tokens; "
                f"{look.plural(stay, 'message')} stay as they are",
            ),
        ],
    )


def print_missed(console: Console, missed: CompactionMissed) -> None:
    """The model's summary that could not be used, and what happens instead."""
    console.print(
        Text(
            f"the model's summary was not taken: {safe_line(missed.kind)}, "
            f"{safe_line(missed.reason)}. The log says so (compaction.failed, #{missed.seq}), and "
            "the context is as it was. So the summary is made of sentences of the conversation.",
            look.UNDER_WAY,
        )
    )


def print_made(
    console: Console, made: Compaction, before: ContextTokens, after: ContextTokens, reads: int
) -> None:
    """The compaction that was made, in figures."""
    print_compaction_facts(console, made, before, after)
    share = after.counted / max(1, before.counted)
    went_on = f"the context was read {look.plural(reads, 'time')}, and the conversation went on"
    print_pairs(
        console,
        [("ratio", f"{share:.0%} of the tokens are left"), ("meanwhile", went_on)],
    )


def print_after(console: Console, state: SessionState, size: ContextTokens) -> None:
    """The context as it is now: its sizes, the beginning of the summary, and what was kept."""
    print_rule(console, "the context after")
    _print_size(console, state, size)
    standing = state.compaction
    if standing is not None:
        console.print()
        console.print(Text(f"summary  #{standing.seq}", "bold"))
        look.print_wrapped(console, standing.summary, "default", lines=SUMMARY_LINES)
    messages = state.context_messages()
    console.print()
    console.print(Text(f"and word for word {look.plural(len(messages), 'message')}", "bold"))
    if len(messages) > KEPT_SHOWN_MAX:
        console.print(Text("  …", look.QUIET))
    for message in messages[-KEPT_SHOWN_MAX:]:
        _print_message(console, message)


def print_taken_back(console: Console, state: SessionState, size: ContextTokens) -> None:
    """The context after the compaction was undone."""
    print_rule(console, "taken back")
    _print_size(console, state, size)


def print_compaction_steps(console: Console, key: str, seq: int) -> None:
    """What to try with what is in the log now."""
    console.print()
    console.print(Text("The session stays. Try:", look.QUIET))
    for command in (
        f"eventlog compact {key} --dry-run",
        f"eventlog compactions {key}",
        f"eventlog context {key} --at {seq}",
        f"eventlog policy --session {key} --set module-9",
    ):
        console.print(Text(f"  {command}", look.QUIET), soft_wrap=True)


def _print_size(console: Console, state: SessionState, size: ContextTokens) -> None:
    line = Text(f"{look.plural(len(state.context()), 'message')}, ", "bold")
    console.print(line.append_text(size_words(size)))
    print_roles(console, size)


def _print_message(console: Console, message: Message) -> None:
    line = Text("  ")
    line.append(f"#{message.seq:<5}", look.QUIET)
    line.append(f"{message.role:<10}", look.ROLE_STYLES.get(message.role, "bold"))
    words = look.plain_text(message.content) or _calls(message)
    line.append(safe_line(words[: 4 * console.width], max(10, console.width - line.cell_len)))
    console.print(line, soft_wrap=True)


def _calls(message: Message) -> str:
    return ", ".join(f"→ {call.name}" for call in message.tool_calls)
