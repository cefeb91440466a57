"""`eventlog context`: what a model sees next, and how much of its window that is."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from eventlog import SessionState
from eventlog.compaction.measure import ContextTokens, context_tokens
from eventlog.compaction.tokens import count_each
from eventlog.rendering import facts_dict, summary_dict
from workers.commands import look
from workers.commands.arguments import AsJson, At, SessionName, parse_at
from workers.commands.compaction_plan import context_as_dict
from workers.commands.compaction_text import print_pairs, size_words, tokens_word
from workers.commands.conversation import print_context_message
from workers.commands.opening import open_log
from workers.terminal import make_console, print_line, safe_json, safe_line

BAR_COLUMNS: Final = 30
ROLE_COLUMNS: Final = 12


async def context(
    session: SessionName,
    /,
    *,
    at: At = None,
    model: Annotated[
        str | None, Parameter(help="Count for this model; else for the one that spoke last.")
    ] = None,
    tokens: Annotated[bool, Parameter(help="Only the sizes.")] = False,
    full: Annotated[bool, Parameter(help="Cut nothing short.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show what a model sees next: messages, pinned facts, the summary, and their sizes.

    As JSON it is one array, in the form of the chat completions API. ~ marks estimates.

        eventlog context chat-42
        eventlog context chat-42 --at 120               as it was at seq 120
        eventlog context chat-42 --tokens               only the sizes
        eventlog context chat-42 --tokens --model gpt-5-mini --json
        eventlog context chat-42 --json | jq -c .[]
    """
    point = parse_at(at)
    async with open_log() as log:
        handle = await log.session(session)
        state = await log.replayer.context_state(handle.id, point)
    size = context_tokens(state, model)
    if as_json:
        print_line(safe_json(context_as_dict(size) if tokens else state.context()))
        return 0
    console = make_console()
    if not state.seq:
        console.print("the session did not exist yet")
        return 0
    name = safe_line(state.key or str(state.session_id))
    console.print(Text(f"{name} at seq {state.seq:,}", "bold"), soft_wrap=True)
    print_pairs(console, [("context", size_words(size))])
    print_roles(console, size)
    if not tokens:
        print_messages(console, state, size.model, full=full)
    return 0


def print_roles(console: Console, size: ContextTokens) -> None:
    """Our own count by role, the summary apart from the rest of what the user says."""
    shown = dict(size.by_role)
    if size.summary:
        shown["user"] = shown.get("user", 0) - size.summary
        shown["summary"] = size.summary
    most = max(shown.values(), default=0)
    width = len(f"{most:,}")
    for role, count in sorted(shown.items(), key=lambda each: -each[1]):
        if count <= 0:
            continue
        line = Text(f"{safe_line(role, ROLE_COLUMNS).ljust(ROLE_COLUMNS)}{count:>{width},}  ")
        bar = max(1, round(count / most * BAR_COLUMNS))
        line.append("█" * bar, look.ROLE_STYLES.get(role, look.QUIET))
        line.append(f" {count / max(1, size.counted):.0%}", look.QUIET)
        console.print(line)


def print_messages(
    console: Console, state: SessionState, model: str | None, *, full: bool = False
) -> None:
    """The messages as a model reads them; facts and the summary are marked as what they are."""
    messages = state.context()
    standing = state.compaction
    ours = {"pinned facts": facts_dict(state.facts)} if state.facts else {}
    if standing is not None:
        ours[f"summary #{standing.seq}"] = summary_dict(standing.summary)
    counts = count_each(messages, model)
    for number, (message, count) in enumerate(zip(messages, counts, strict=True), 1):
        mark = next((name for name, each in ours.items() if each == message), None)
        said = f"{tokens_word(count)} tokens"
        print_context_message(console, message, str(number), mark, said, full=full)
