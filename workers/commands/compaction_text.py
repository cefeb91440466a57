"""How compactions are told people: what one would do, what it did, how large a context is.

Everything that comes from a session is made safe here, before it becomes rich text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from rich.cells import set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog import SessionState
from eventlog.compaction.due import Due, next_attempt
from eventlog.compaction.measure import ContextTokens
from eventlog.compaction.selection import Plan
from eventlog.compaction.tokens import TokenCount
from eventlog.rendering import INSTRUCTING
from eventlog.state import Compaction, CompactionMissed
from workers.commands import look
from workers.commands.compaction_plan import Line, Preview, Why
from workers.commands.sessions import ago, left
from workers.commands.top_text import duration, gauge
from workers.terminal import clip, safe_line

ROLE_COLUMNS: Final = 9
AGENT_COLUMNS_MAX: Final = 16
FATE_COLUMNS: Final = 23
TOKENS_COLUMNS_MIN: Final = 6
PAIR_COLUMNS: Final = 10
WIDE_COLUMNS: Final = 100
"""From here on there is room for agents."""
WHY_WORDS: Final[dict[Why, str]] = {
    "newest": "stays: newest",
    "instructions": "stays: instructions",
    "pinned": "stays: pinned",
    "user_budget": "stays: user budget",
    "waiting_call": "stays: waiting call",
    "with_its_call": "stays: with its call",
    "nothing_to_do": "stays",
}
"""What becomes of a message, by why it stays."""

Cells = tuple[str, str, str, str, str, str]
_TITLES: Final[Cells] = ("seq", "role", "agent", "tokens", "what happens", "message")


# --- what a compaction would do ------------------------------------------------------------------


def print_preview(console: Console, found: Preview, state: SessionState) -> None:
    """The table of all messages, what it adds up to, and whether it is due."""
    _print_table(console, list(_rows(found)))
    console.print()
    if found.plan is None:
        console.print(Text(f"nothing to do: {found.nothing_to_do}", look.UNDER_WAY))
    else:
        print_pairs(console, _totals(found, found.plan))
    print_pairs(console, [("context", size_words(found.context))])
    due = "due" if found.due.due else "not due"
    print_pairs(console, [(due, due_words(found.due, found.context, state))])


def _rows(found: Preview) -> Iterator[tuple[Cells, str]]:
    """The messages in order, with the facts and the summary where a model reads them."""
    facts_due, summary_due = found.facts.tokens > 0, found.summary_seq is not None
    for each in found.lines:
        if facts_due and each.role not in INSTRUCTING:
            yield _facts_row(found.facts), look.QUIET
            facts_due = False
        if summary_due and each.seq > found.summary_to_seq:
            yield _summary_row(found), look.QUIET
            summary_due = False
        yield _message_row(each), "" if each.fate == "stays" else look.UNDER_WAY
    if facts_due:
        yield _facts_row(found.facts), look.QUIET
    if summary_due:
        yield _summary_row(found), look.QUIET


def _message_row(line: Line) -> Cells:
    fate = "summarised" if line.why is None else WHY_WORDS[line.why]
    if line.closes_calls:
        fate += ", closed" if line.why is None else ", call closed"
    agent = safe_line(line.agent or "", AGENT_COLUMNS_MAX)
    count = TokenCount(line.tokens, line.exact)
    return f"#{line.seq}", line.role, agent, tokens_word(count), fate, safe_line(line.text)


def _facts_row(count: TokenCount) -> Cells:
    return "", "facts", "", tokens_word(count), "stays: pinned facts", ""


def _summary_row(found: Preview) -> Cells:
    fate = "stays" if found.plan is None else "summarised again"
    said = "the summary that stands now"
    return f"#{found.summary_seq}", "summary", "", tokens_word(found.summary), fate, said


def _print_table(console: Console, rows: list[tuple[Cells, str]]) -> None:
    wide = console.width >= WIDE_COLUMNS and any(cells[2] for cells, _ in rows)
    widths = (
        max(len(cells[0]) for cells in (_TITLES, *(cells for cells, _ in rows))),
        ROLE_COLUMNS,
        AGENT_COLUMNS_MAX if wide else 0,
        max(TOKENS_COLUMNS_MIN, *(len(cells[3]) for cells, _ in rows), 0),
        FATE_COLUMNS,
    )
    _print_row(console, _TITLES, widths, "bold")
    for cells, style in rows:
        _print_row(console, cells, widths, style)


def _print_row(
    console: Console, cells: Cells, widths: tuple[int, int, int, int, int], style: str
) -> None:
    seq, role, agent, tokens, fate, words = cells
    line = f"{set_cell_size(seq, widths[0])}  {set_cell_size(role, widths[1])}  "
    if widths[2]:
        line += f"{set_cell_size(agent, widths[2])}  "
    text = Text(f"{line}{tokens.rjust(widths[3])}  ")
    text.append(f"{set_cell_size(fate, widths[4])}  ", style)
    text.append(clip(words, max(0, console.width - text.cell_len)))
    text.rstrip()
    if style == "bold":
        text.stylize(style)
    console.print(text, soft_wrap=True)


def _totals(found: Preview, chosen: Plan) -> Iterator[tuple[str, str]]:
    bound = min(chosen.tokens_max, chosen.tokens.tokens - 1)  # it must be smaller
    messages = look.plural(len(chosen.material), "message")
    also = " and the summary before" if chosen.previous_summary is not None else ""
    yield (
        "summarised",
        f"{range_words(chosen.from_seq, chosen.to_seq)}: {messages}{also}, "
        f"{tokens_word(chosen.tokens)} tokens, in a summary of at most {bound:,}",
    )
    kept = sum(1 for each in found.lines if each.why not in (None, "newest"))
    newest = look.plural(len(chosen.newest), "newest message")
    yield "stays", f"{look.plural(kept, 'older message')} and {newest}"
    if chosen.closing:
        yield "closed", f"{look.plural(len(chosen.closing), 'tool call')} that nobody waits for"
    after = found.context.tokens - chosen.tokens.tokens + bound
    yield "afterwards", f"at most about {after:,} tokens in the context"


def due_words(due: Due, size: ContextTokens, state: SessionState) -> Text:
    """Whether a compact-worker would do it by itself, and why."""
    threshold = f"the threshold is {due.threshold:,}"
    match due.why:
        case "asked":
            why = "somebody asked for it"
        case "over_threshold" | "under_threshold":
            why = f"{size.tokens:,} tokens, {threshold}"
        case "off":
            why = "the policy is off"
        case "ended":
            why = f"the session is {state.status}"
        case "backing_off":
            why = f"the last attempt failed, the next comes {left(due.at, datetime.now(UTC))}"
        case "reverted":
            why = "a compaction was taken back, and the context has hardly grown since"
        case "gave_up":
            why = "it failed too often, and the context has hardly grown since"
    said = Text(why)
    if due.full:
        said.append("; the context is full", look.WRONG)
    return said


# --- what it did ---------------------------------------------------------------------------------


def print_compaction_facts(
    console: Console, made: Compaction, before: ContextTokens, after: ContextTokens
) -> None:
    """One compaction that was just made: range, sizes, by what."""
    pairs = [("summarised", range_words(made.from_seq, made.to_seq))]
    if made.kept:
        kept = look.plural(len(made.kept), "message")
        pairs.append(("kept", f"{kept} of these, word for word"))
    pairs.append(("replaced", sizes_word(made)))
    pairs.append(("context", change_words(before, after)))
    pairs.append(("written", by_words(made)))
    print_pairs(console, pairs)


def range_words(from_seq: int, to_seq: int) -> str:
    """`events 3 to 280`; a compaction may have none of its own."""
    if to_seq < from_seq:
        return "what came before"
    return f"events {from_seq:,} to {to_seq:,}"


def sizes_word(made: Compaction) -> str:
    """`~100,000 → 3,400 tokens`, as far as it is known."""
    if made.tokens_before is None or made.tokens_after is None:
        return "sizes were not recorded"
    about = "~" if made.estimated else ""
    return f"{about}{made.tokens_before:,} → {about}{made.tokens_after:,} tokens"


def by_words(made: Compaction) -> str:
    """By whom it was written, how, and how long that took."""
    if made.method == "extractive":
        parts = ["without a model: sentences of the conversation"]
    else:
        parts = [f"by {safe_line(made.model, 60)}" if made.model else made.method or "not recorded"]
    if made.prompt_version:
        parts.append(f"prompt {safe_line(made.prompt_version, 30)}")
    if made.calls:
        parts.append(look.plural(made.calls, "call"))
    if made.usage is not None:
        parts.append(f"{made.usage.input_tokens + made.usage.output_tokens:,} tokens spent")
    if made.duration_ms is not None:
        parts.append(duration(made.duration_ms / 1000))
    return ", ".join(parts)


def missed_words(missed: CompactionMissed, now: datetime) -> str:
    """The last attempt that failed: when, what kind, why, and when the next may come."""
    when = f"{ago(missed.recorded_at, now)} (#{missed.seq})"
    if missed.kind == "nothing_to_do":
        return f"a compaction was asked for {when}, with nothing to do: {safe_line(missed.reason)}"
    kind = safe_line(missed.kind, 30) or "failed"
    again = left(next_attempt(missed), now)
    return (
        f"the last attempt failed {when}: {kind}, attempt {missed.attempts}; "
        f"the next is due {again} at the earliest: {safe_line(missed.reason)}"
    )


# --- sizes ---------------------------------------------------------------------------------------


def tokens_word(count: TokenCount) -> str:
    """`1,234`; an estimate is marked, `~1,234`."""
    return f"{'' if count.exact else '~'}{count.tokens:,}"


def change_words(before: ContextTokens, after: ContextTokens) -> str:
    """The context before and after, both as we count them: providers count tools and more."""
    about = "~" if "estimated" in (before.source, after.source) else ""
    return f"{about}{before.counted:,} → {about}{after.counted:,} tokens"


def size_words(size: ContextTokens) -> Text:
    """How large the context is, and how much of the window that is."""
    line = Text(f"{'~' if size.source == 'estimated' else ''}{size.tokens:,} tokens")
    if size.window and size.share is not None:
        line.append(f" of {size.window:,} ")
        line.append_text(gauge(min(1.0, size.share)))
        line.append(f" {size.share:.1%}")
    source = "as the provider reported" if size.source == "reported" else size.source
    model = f" for {safe_line(size.model, 40)}" if size.model else ""
    return line.append(f" ({source}{model})", look.QUIET)


def print_pairs(console: Console, pairs: Iterable[tuple[str, str | Text]]) -> None:
    """Names and what is said of them, which is wrapped beside the name."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=PAIR_COLUMNS)
    table.add_column(overflow="fold")
    for name, said in pairs:
        table.add_row(Text(name, look.QUIET), Text(said) if isinstance(said, str) else said)
    console.print(table)
