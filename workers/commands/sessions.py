"""`eventlog sessions`: the list of sessions, from the view that the projector keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final, Literal
from uuid import UUID

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog.views import SessionPage, SessionView
from workers.commands import look
from workers.commands.arguments import AsJson, parse_time
from workers.commands.freshness import catch_up
from workers.commands.opening import open_log
from workers.terminal import clip, make_console, print_line, safe_json, safe_line

WIDE_COLUMNS: Final = 100
"""From here on there is room for everything."""
TITLE_COLUMNS_MIN: Final = 8


async def list_sessions(
    *,
    user: str | None = None,
    status: Literal["open", "closed"] | None = None,
    agent: str | None = None,
    text: str | None = None,
    updated_after: str | None = None,
    tree: bool = False,
    limit: int = 50,
    cursor: str | None = None,
    as_json: AsJson = False,
) -> int:
    """List sessions, newest activity first.

    The list is a view that a projector keeps (`eventlog up`, `eventlog project`).
    On embedded servers this command brings it up to date itself.

        eventlog sessions --user ada
        eventlog sessions --status open --limit 10
        eventlog sessions --text 'rate limit' --updated-after 2026-01-31
        eventlog sessions --tree
        eventlog sessions --json | jq -r .sessions[].key

    Parameters
    ----------
    user
        Only sessions of this user.
    status
        Only open, or only closed ones.
    agent
        Only sessions in which this agent spoke or was active.
    text
        Only sessions with these words in title or key.
    updated_after
        Only sessions that were active after this time; ISO 8601, local time without a zone.
    tree
        Show forks under the sessions that they were made of, whenever they were active.
    limit
        At most so many; 50 unless said otherwise.
    cursor
        Go on where an earlier list ended.
    """
    after = parse_time(updated_after, "--updated-after")
    async with open_log() as log:
        await catch_up(log)
        page = await log.sessions(
            user_id=user,
            status=status,
            agent=agent,
            text=text,
            updated_after=after,
            forks="nested" if tree else "flat",
            limit=limit,
            cursor=cursor,
        )
    if as_json:
        print_json(page)
    else:
        print_table(make_console(), page)
    return 0


def print_json(page: SessionPage) -> None:
    """The page as JSON: its sessions, their forks if there are any, the cursor for the next."""
    forks = {"forks": page.forks, "more_forks": page.more_forks} if page.forks else {}
    print_line(safe_json({"sessions": page.items, "cursor": page.cursor, **forks}))


def print_table(console: Console, page: SessionPage) -> None:
    """The page as a table that fits the width: titles give way first."""
    if not page.items:
        console.print("no sessions; try: eventlog demo, or eventlog append --create hello 'Hi'")
        return
    now = datetime.now(UTC)
    columns = _columns_for(page, console.width, now)
    cells = [
        [f"{lead}{columns[0].cell(view, now)}", *(column.cell(view, now) for column in columns[1:])]
        for lead, view in _lines(page)
    ]
    widths = [
        min(column.columns_max, max(cell_len(cell) for cell in (column.title, *those)))
        for column, those in zip(columns, zip(*cells, strict=True), strict=True)
    ]
    title = next(at for at, column in enumerate(columns) if column.title == "title")
    left = console.width - sum(widths) + widths[title] - 2 * (len(columns) - 1)
    widths[title] = min(widths[title], max(TITLE_COLUMNS_MIN, left))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(column.title, no_wrap=True, width=width, justify=justify)
    for row in cells:
        table.add_row(*(Text(clip(cell, width)) for cell, width in zip(row, widths, strict=True)))
    console.print(table)
    if page.more_forks:
        count = look.plural(len(page.more_forks), "session")
        console.print(f"{count} with more forks than are shown", style=look.QUIET)
    if page.cursor:
        console.print(f"more: --cursor {page.cursor}", style=look.QUIET, soft_wrap=True)


def _columns_for(page: SessionPage, width: int, now: datetime) -> list[_Column]:
    """The columns that have something to show and fit; where they don't, the last give way."""
    views = [view for _, view in _lines(page)]
    columns = [
        column
        for column in _COLUMNS
        if not column.only_wide
        or (width >= WIDE_COLUMNS and any(column.cell(view, now) for view in views))
    ]

    def needed() -> int:
        longest = (max(cell_len(each.cell(view, now)) for view in views) for each in columns)
        return sum(
            TITLE_COLUMNS_MIN
            if each.title == "title"
            else min(each.columns_max, max(count, cell_len(each.title))) + 2
            for each, count in zip(columns, longest, strict=True)
        )

    optional = [column for column in columns if column.only_wide]
    while optional and needed() > width:
        columns.remove(optional.pop())
    return columns


def _lines(page: SessionPage) -> Iterator[tuple[str, SessionView]]:
    """The page's sessions with their forks below them, and the branches in front of those."""
    for view in page.items:
        yield "", view
        yield from _branches(page, view.session_id, "")


def _branches(page: SessionPage, parent: UUID, lead: str) -> Iterator[tuple[str, SessionView]]:
    forks = page.forks.get(parent, [])
    cut = parent in page.more_forks
    for place, view in enumerate(forks):
        last = place == len(forks) - 1 and not cut
        yield f"{lead}{'└ ' if last else '├ '}", view
        yield from _branches(page, view.session_id, lead + ("  " if last else "│ "))


class _Column(msgspec.Struct, frozen=True):
    title: str
    columns_max: int
    cell: Callable[[SessionView, datetime], str]
    is_number: bool = False
    only_wide: bool = False


def left(then: datetime | None, now: datetime) -> str:
    """How long it is until then, in the largest unit: `in 12 s`, `in 3 min`, else the day."""
    if then is None:
        return ""
    seconds = int((then - now).total_seconds())
    if seconds <= 0:
        return "now"
    if seconds < 60:
        return f"in {seconds} s"
    if seconds < 3600:
        return f"in {seconds // 60} min"
    if seconds < 86_400:
        return f"in {seconds // 3600} h"
    return then.astimezone().strftime("%Y-%m-%d")


_COLUMNS: Final = (
    _Column("session", 40, lambda view, _: safe_line(view.key or str(view.session_id))),
    _Column("user", 16, lambda view, _: safe_line(view.user_id or ""), only_wide=True),
    _Column("title", 80, lambda view, _: safe_line(view.title or "")),
    _Column("agent", 16, lambda view, _: safe_line(view.current_agent or ""), only_wide=True),
    _Column("msgs", 9, lambda view, _: f"{view.message_count:,}", is_number=True),
    _Column("tokens", 13, lambda view, _: f"{view.token_count:,}", is_number=True, only_wide=True),
    _Column("seq", 11, lambda view, _: f"{view.seq:,}", is_number=True),
    _Column("status", 7, lambda view, _: view.status, only_wide=True),
    _Column("active", 10, lambda view, now: ago(view.updated_at, now)),
    _Column("expires", 10, lambda view, now: left(view.expires_at, now), only_wide=True),
)


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
