"""`eventlog show`: a conversation as it is, or as it was at any seq or time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from eventlog import SessionState
from eventlog.views import view_of
from workers.commands import look
from workers.commands.arguments import AsJson, At, SessionName, parse_at
from workers.commands.compaction_text import missed_words
from workers.commands.conversation import print_context, print_conversation
from workers.commands.opening import open_log
from workers.terminal import make_console, print_line, safe_json, safe_line


async def show(
    session: SessionName,
    /,
    *,
    at: At = None,
    context: Annotated[bool, Parameter(help="Show what a model sees next instead.")] = False,
    full: Annotated[bool, Parameter(help="Cut nothing short.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show a conversation, now or as it was.

    Tool calls, their outputs, reasoning and summaries are cut to a few lines.
    The numbers behind a name are the seq and the time of the message.

        eventlog show chat-42
        eventlog show chat-42 --at 120                  as it was at seq 120
        eventlog show chat-42 --at 2026-01-31T14:05Z    as it was then
        eventlog show chat-42 --context                 what a model sees next
    """
    point = parse_at(at)
    async with open_log() as log:
        handle = await log.session(session)
        state = await handle.replay(point)
        head = await handle.head()
    if as_json:
        print_line(safe_json(state.context() if context else state_as_dict(state)))
        return 0
    console = make_console()
    if not state.seq:
        console.print("the session did not exist yet")
        return 0
    print_title(console, state, head)
    if context:
        print_context(console, state.context(), full=full)
    else:
        print_conversation(console, state, full=full)
    return 0


def state_as_dict(state: SessionState) -> dict[str, Any]:
    """A state for programs: its view, and its messages."""
    view = msgspec.structs.asdict(view_of(state)) if state.seq else {"seq": 0}
    return {
        **view,
        "compactions": state.compactions,
        "compaction_missed": state.compaction_missed,
        "compaction_policy": state.compaction_policy,
        "facts": state.facts,
        "pinned": state.pinned,
        "messages": list(state.messages),
    }


def print_title(console: Console, state: SessionState, head: int) -> None:
    """Which session this is, how large, and where in it we stand."""
    title = Text(safe_line(state.key or str(state.session_id)), "bold")
    for more in (state.user_id, state.title):
        if more:
            title.append(f" · {safe_line(more)}", "default")
    title.truncate(console.width, overflow="ellipsis")
    console.print(title)
    facts = [f"seq {state.seq:,}" + (f" of {head:,}" if head > state.seq else "")]
    facts.append(look.plural(state.message_count, "message"))
    if state.token_count:
        facts.append(f"{state.token_count:,} tokens, {state.context_token_count:,} in the context")
    if state.compaction_count:
        facts.append(look.plural(state.compaction_count, "compaction"))
    if state.pinned:
        facts.append(look.plural(len(state.pinned), "pinned message"))
    if state.current_agent:
        facts.append(f"agent {safe_line(state.current_agent, 40)}")
    if state.status != "open":
        facts.append(state.status)
    if state.expires_at is not None:
        facts.append(f"expires {state.expires_at:%Y-%m-%d %H:%M}Z")
    if state.parent_session_id:
        facts.append(f"fork of {state.parent_session_id} at {state.parent_seq:,}")
    console.print(Text(" · ".join(facts), look.QUIET))
    print_kept(console, state)


def print_kept(console: Console, state: SessionState) -> None:
    """What stands in every context, and what kept the last compaction from happening."""
    for name, text in state.facts.items():
        line = Text(f"fact {safe_line(name, 40)}: ", look.QUIET)
        line.append(safe_line(text[: 4 * console.width]), "default")
        line.truncate(console.width, overflow="ellipsis")
        console.print(line, soft_wrap=True)
    if state.compaction_asked is not None:
        said = f"a compaction was asked for at #{state.compaction_asked.seq}"
        console.print(Text(said, look.UNDER_WAY))
    if state.compaction_missed is not None and state.status == "open":
        said = missed_words(state.compaction_missed, datetime.now(UTC))
        console.print(Text(said, look.WRONG))
