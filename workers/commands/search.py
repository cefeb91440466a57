"""`eventlog search`: messages by their words, with what was searched highlighted."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from eventlog import EventLog, Hit, SearchPage, Session, Snippet
from eventlog.errors import InvalidRequest
from workers.commands import look
from workers.commands.arguments import AsJson, parse_time
from workers.commands.freshness import catch_up
from workers.commands.opening import open_log
from workers.terminal import make_console, print_line, safe, safe_json, safe_line

FOUND: Final = "bold yellow"
"""How words that were searched look."""


async def search(
    *words: Annotated[str, Parameter(name="WORDS", allow_leading_hyphen=True)],
    user: str | None = None,
    session: str | None = None,
    role: list[str] | None = None,
    agent: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int = 20,
    cursor: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Find messages by their words, newest first.

    Words match as beginnings. Quotes find words exactly and in order; a minus excludes.
    The number behind a session is the seq of the message.

        eventlog search rate limit
        eventlog search '"rate limit" -draft' --user ada
        eventlog search get_user_name --role assistant --role tool
        eventlog search plan -draft --limit 5

    Parameters
    ----------
    words
        What to search for.
    user
        Only in sessions of this user.
    session
        Only in this session: its key or UUID.
    role
        Only messages of this role: user, assistant, system, developer or tool. May be repeated.
    agent
        Only messages of this agent.
    since
        Only messages from this time on; ISO 8601, local time without a zone.
    until
        Only messages before this time.
    limit
        At most so many; 20 unless said otherwise.
    cursor
        Go on where an earlier search ended.
    """
    if flags := [word for word in words if word.startswith("--")]:
        raise InvalidRequest(
            f"there is no option {flags[0]}; to search for it write it in two kinds of quotes: "
            f"'\"{flags[0]}\"'"
        )
    since_at, until_at = parse_time(since, "--since"), parse_time(until, "--until")
    async with open_log() as log:
        await catch_up(log)
        page = await log.search(
            " ".join(words),
            user_id=user,
            session=await _session(log, session),
            role=role or None,
            agent=agent,
            since=since_at,
            until=until_at,
            limit=limit,
            cursor=cursor,
        )
    if as_json:
        print_line(safe_json({"hits": page.items, "cursor": page.cursor}))
    else:
        print_hits(make_console(), page)
    return 0


async def _session(log: EventLog, name: str | None) -> Session | None:
    return None if name is None else await log.session(name)


def print_hits(console: Console, page: SearchPage) -> None:
    """Each hit as two lines or three: who and where, and what was said."""
    if not page.items:
        console.print("nothing found; words match as beginnings, and all of them must be there")
        return
    for number, hit in enumerate(page.items):
        if number:
            console.print()
        title = _title(hit)
        title.truncate(console.width, overflow="ellipsis")
        console.print(title)
        line = Text(" " * look.INDENT).append_text(highlighted(hit.snippet))
        if console.is_terminal:
            for row in line.wrap(console, max(20, console.width - look.INDENT)):
                row.rstrip()
                lead = "" if row.plain.startswith(" " * look.INDENT) else " " * look.INDENT
                console.print(Text(lead).append_text(row), soft_wrap=True)
        else:
            console.print(line, soft_wrap=True)
    if page.cursor:
        console.print(f"\nmore: --cursor {page.cursor}", style=look.QUIET, soft_wrap=True)


def _title(hit: Hit) -> Text:
    """`assistant · planner  chat-42 #12  2026-01-31 14:05  Weather`."""
    text = look.heading(hit.role, hit.agent)
    text.append(f"  {safe_line(hit.session_key or str(hit.session_id), 40)} #{hit.seq}")
    text.append(hit.recorded_at.astimezone().strftime("  %Y-%m-%d %H:%M"), look.QUIET)
    if hit.session_title:
        text.append(f"  {safe_line(hit.session_title)}", look.QUIET)
    return text


def highlighted(snippet: Snippet) -> Text:
    """The snippet as rich text; each piece is made safe on its own, so that places stay true."""
    text = Text()
    at = 0
    for start, end in snippet.highlights:
        text.append(safe(snippet.text[at:start]))
        text.append(safe(snippet.text[start:end]), FOUND)
        at = end
    return text.append(safe(snippet.text[at:]))
