"""`eventlog sessions`: the list of sessions, from the view that the projector keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog import EventLog
from eventlog.views import SessionPage, SessionView
from projections.checkpoint import checkpoints, postgres_of
from workers.commands import look
from workers.commands.arguments import AsJson
from workers.commands.opening import open_log, waiting
from workers.projector import run_projector
from workers.terminal import clip, make_console, print_line, safe_json, safe_line

CATCH_UP_SECONDS_MAX: Final = 30.0
"""How long a list on embedded servers waits for its own projector; then it says it is behind."""
PATIENCE_SECONDS: Final = 0.3
"""How long it waits for the projector of someone else."""
POLL_SECONDS: Final = 0.03
WIDE_COLUMNS: Final = 100
"""From here on there is room for everything."""
TITLE_COLUMNS_MIN: Final = 8


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
            f"the list is {look.plural(behind, 'row')} behind the log; does a projector run? "
            "Start one with: eventlog project",
            style="yellow",
        )
    if as_json:
        print_json(page)
    else:
        print_table(make_console(), page)
    return 0


async def _catch_up(log: EventLog) -> int:
    """Rows that the views still lack of what the log holds now; 0 is the usual answer.

    A projector that runs somewhere gets a moment to bring them. On embedded servers, where often
    none does, one of our own is run.
    """
    heads = await log.store.feed_heads()
    behind = await _wait_for(log, heads, seconds=PATIENCE_SECONDS)
    if not behind or log.servers is None or not log.servers.postgres_embedded:
        return behind
    stop = asyncio.Event()
    with waiting("bringing the list up to date …"):
        async with asyncio.TaskGroup() as group:
            group.create_task(run_projector(log, stop))
            behind = await _wait_for(log, heads, seconds=CATCH_UP_SECONDS_MAX)
            stop.set()
    return behind


async def _wait_for(log: EventLog, heads: list[int], *, seconds: float) -> int:
    """Wait until the views are as far as `heads`; how many rows they lack when time is up."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        done = await checkpoints(postgres_of(log))
        behind = sum(max(0, head - at) for head, at in zip(heads, done, strict=True))
        if not behind or loop.time() > until:
            return behind
        await asyncio.sleep(POLL_SECONDS)


def print_json(page: SessionPage) -> None:
    """The page as JSON: its sessions, and the cursor for the next."""
    print_line(safe_json({"sessions": page.items, "cursor": page.cursor}))


def print_table(console: Console, page: SessionPage) -> None:
    """The page as a table that fits the width: titles give way first."""
    if not page.items:
        console.print("no sessions; try: eventlog demo, or eventlog append --create hello 'Hi'")
        return
    wide = console.width >= WIDE_COLUMNS
    now = datetime.now(UTC)
    columns = [column for column in _COLUMNS if wide or not column.only_wide]
    cells = [[column.cell(view, now) for column in columns] for view in page.items]
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
    if page.cursor:
        console.print(f"more: --cursor {page.cursor}", style=look.QUIET, soft_wrap=True)


class _Column(msgspec.Struct, frozen=True):
    title: str
    columns_max: int
    cell: Callable[[SessionView, datetime], str]
    is_number: bool = False
    only_wide: bool = False


_COLUMNS: Final = (
    _Column("session", 36, lambda view, _: safe_line(view.key or str(view.session_id))),
    _Column("user", 16, lambda view, _: safe_line(view.user_id or ""), only_wide=True),
    _Column("title", 80, lambda view, _: safe_line(view.title or "")),
    _Column("agent", 16, lambda view, _: safe_line(view.current_agent or ""), only_wide=True),
    _Column("msgs", 9, lambda view, _: f"{view.message_count:,}", is_number=True),
    _Column("tokens", 13, lambda view, _: f"{view.token_count:,}", is_number=True, only_wide=True),
    _Column("seq", 11, lambda view, _: f"{view.seq:,}", is_number=True),
    _Column("status", 7, lambda view, _: view.status, only_wide=True),
    _Column("active", 10, lambda view, now: ago(view.updated_at, now)),
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
