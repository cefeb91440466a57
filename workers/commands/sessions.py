"""`eventlog sessions`: the list of sessions, from the view that the projector keeps."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog import EventLog
from eventlog.views import SessionPage, SessionView
from workers.commands import look
from workers.commands.arguments import AsJson
from workers.commands.opening import open_log, waiting
from workers.projector import lag, run_projector
from workers.terminal import make_console, print_line, safe_json, safe_line

CATCH_UP_SECONDS_MAX: Final = 30.0
"""How long a list on embedded servers waits for its own projector; then it says it is behind."""
CATCH_UP_POLL_SECONDS: Final = 0.05
KEY_COLUMNS: Final = 36


async def list_sessions(
    *,
    user: str | None = None,
    status: Literal["open", "closed"] | None = None,
    agent: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    as_json: AsJson = False,
) -> int:
    """List sessions, newest activity first.

    The list is a view that a projector keeps (`eventlog up`, `eventlog project`).
    On embedded servers this command brings it up to date itself.

        eventlog sessions --user ada
        eventlog sessions --status open --limit 10
        eventlog sessions --json | jq -r .sessions[].key

    Parameters
    ----------
    user
        Only sessions of this user.
    status
        Only open, or only closed ones.
    agent
        Only sessions in which this agent spoke or was active.
    limit
        At most so many; 50 unless said otherwise.
    cursor
        Go on where an earlier list ended.
    """
    async with open_log() as log:
        behind = await _catch_up(log)
        page = await log.sessions(
            user_id=user, status=status, agent=agent, limit=limit, cursor=cursor
        )
    if behind:
        make_console(stderr=True).print(
            f"the list is {look.plural(behind, 'event')} behind the log; does a projector run? "
            "Start one with: eventlog project",
            style="yellow",
        )
    if as_json:
        print_json(page)
    else:
        print_table(make_console(), page)
    return 0


async def _catch_up(log: EventLog) -> int:
    """Events that the view lacks, after a projector of our own ran if the servers are embedded."""
    behind = await rows_behind(log)
    if not behind or log.servers is None or not log.servers.postgres_embedded:
        return behind
    stop = asyncio.Event()
    with waiting("bringing the list up to date …"):
        async with asyncio.TaskGroup() as group:
            group.create_task(run_projector(log, stop))
            try:
                async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
                    while behind := await rows_behind(log):
                        await asyncio.sleep(CATCH_UP_POLL_SECONDS)
            except TimeoutError:
                pass  # what is missing is said below
            finally:
                stop.set()
    return behind


async def rows_behind(log: EventLog) -> int:
    """Rows of the log that the views don't show yet, all shards together."""
    return sum((await lag(log)).values())


def print_json(page: SessionPage) -> None:
    """The page as JSON: its sessions, and the cursor for the next."""
    print_line(safe_json({"sessions": page.items, "cursor": page.cursor}))


def print_table(console: Console, page: SessionPage) -> None:
    """The page as a table that fits the width."""
    if not page.items:
        console.print("no sessions; try: eventlog demo, or eventlog append --create hello 'Hi'")
        return
    wide = console.width >= 100
    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=False)
    table.add_column("session", no_wrap=True, max_width=KEY_COLUMNS, overflow="ellipsis")
    if wide:
        table.add_column("user", no_wrap=True, max_width=16, overflow="ellipsis")
    table.add_column("title", no_wrap=True, ratio=1, min_width=12, overflow="ellipsis")
    table.add_column("msgs", justify="right", no_wrap=True)
    if wide:
        table.add_column("tokens", justify="right", no_wrap=True)
        table.add_column("agent", no_wrap=True, max_width=16, overflow="ellipsis")
    table.add_column("seq", justify="right", no_wrap=True)
    table.add_column("active", no_wrap=True)
    now = datetime.now(UTC)
    for each in page.items:
        table.add_row(*_row(each, now, wide=wide))
    console.print(table)
    if page.cursor:
        console.print(f"more: --cursor {page.cursor}", style="dim", soft_wrap=True)


def _row(each: SessionView, now: datetime, *, wide: bool) -> list[Text | str]:
    name = Text(safe_line(each.key or str(each.session_id)))
    if each.status != "open":
        name.append(f" {each.status}", look.UNDER_WAY)
    row: list[Text | str] = [name]
    if wide:
        row.append(Text(safe_line(each.user_id or "")))
    row += [Text(safe_line(each.title or "")), f"{each.message_count:,}"]
    if wide:
        row += [f"{each.token_count:,}", Text(safe_line(each.current_agent or ""))]
    row += [f"{each.seq:,}", ago(each.updated_at, now)]
    return row


def ago(then: datetime, now: datetime) -> str:
    """How long ago, in the largest unit: `12 s`, `3 min`, `5 h`, else the day."""
    seconds = max(0, int((now - then).total_seconds()))
    if seconds < 60:
        return f"{seconds} s ago"
    if seconds < 3600:
        return f"{seconds // 60} min ago"
    if seconds < 86_400:
        return f"{seconds // 3600} h ago"
    return then.astimezone().strftime("%Y-%m-%d")
