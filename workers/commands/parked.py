"""`eventlog parked` and `retry`: sessions that a projection set aside, and taking them back in."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from eventlog import EventLog
from eventlog.errors import EventLogError, InvalidRequest, Unavailable
from eventlog.views import unescape_text
from projections.checkpoint import PROJECTION, postgres_of
from projections.contexts import CONTEXTS, ContextViews
from projections.parking import retry_parked
from projections.projection import VIEWS
from workers.commands import look
from workers.commands.arguments import AsJson
from workers.commands.opening import open_log
from workers.terminal import make_console, print_line, safe, safe_json, safe_line

WIDE_COLUMNS: Final = 132
"""From here on the position and the whole UUID have room."""
ERROR_COLUMNS_MIN: Final = 20


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """A session that a projection passes over from the row at `position` on."""

    session_id: UUID
    key: str | None
    """Where the views know it."""
    projection: str
    shard: int
    seq: int
    position: int
    since: datetime
    error: str

    @property
    def name(self) -> str:
        """What people call it."""
        return self.key or str(self.session_id)


async def parked(*, as_json: AsJson = False) -> int:
    """List the sessions that a projection set aside.

    Their events could not be projected. The log is whole; only the views of
    these sessions stand still. Exit code 1 if there are any.

        eventlog parked
        eventlog parked --json | jq -r .[].session_id
        eventlog retry --all                    once the cause is gone
    """
    async with open_log() as log:
        found = await all_parked(log)
    if as_json:
        print_line(safe_json(found))
    else:
        print_table(make_console(), found)
    return 1 if found else 0


async def retry(
    *sessions: str,
    every: Annotated[bool, Parameter(name="--all", help="All that are parked.")] = False,
) -> int:
    """Take parked sessions back into the views.

    Their views are made anew from the log; the projector goes on from there.
    Exit code 1 if any of them is still parked.

        eventlog retry chat-42 chat-43
        eventlog retry --all

    Parameters
    ----------
    sessions
        Sessions, by key or UUID.
    """
    if bool(sessions) == every:
        raise InvalidRequest("name sessions, or say --all; eventlog parked lists them")
    console = make_console()
    async with open_log() as log:
        found = await all_parked(log)
        if not every:
            wanted = {log.session_id(name): name for name in sessions}
            for session_id in wanted.keys() - {each.session_id for each in found}:
                _say(console, "·", f"{safe_line(wanted[session_id])} is not parked", look.QUIET)
            found = [each for each in found if each.session_id in wanted]
        elif not found:
            console.print("no session is parked")
        still = await _retry_each(log, console, found)
    if still:
        _say(console, "✗", f"{look.plural(still, 'session')} still parked", look.WRONG)
    return 1 if still else 0


async def all_parked(log: EventLog) -> list[Parked]:
    """What all projections set aside, oldest first."""
    return [_parked(*record) for record in await postgres_of(log).fetch("parked_everywhere")]


async def _retry_each(log: EventLog, console: Console, found: list[Parked]) -> int:
    """Try each of them; how many are still parked then. Raises `Unavailable`."""
    still = 0
    with _progress(show=len(found) > 1) as progress:
        # On the same terminal lines go above the bar; into a file they go past it.
        beside = progress.console if console.is_terminal and not progress.disable else console
        for each in progress.track(found, description="retried"):
            mark, said, style = await _retry(log, each)
            still += mark != "✓"
            _say(beside, mark, said, style)
    return still


async def _retry(log: EventLog, each: Parked) -> tuple[str, str, str]:
    """Mark, words and style of what came of it."""
    name = safe_line(each.name)
    if each.projection not in (PROJECTION, CONTEXTS):
        said = f"{name} is parked by {each.projection}, which meets it again when it runs again"
        return "!", said, look.UNDER_WAY
    try:
        views = VIEWS if each.projection == PROJECTION else (ContextViews(log),)
        seq = await retry_parked(log, each.session_id, name=each.projection, views=views)
    except Unavailable:
        raise
    except InvalidRequest:
        return "✓", f"{name} is in the views again; somebody else took it in", look.RIGHT
    except EventLogError as error:
        return "✗", safe(str(error)).replace(str(each.session_id), name, 1), look.WRONG
    return "✓", f"{name} is in the views again, up to seq {seq:,}", look.RIGHT


def print_table(console: Console, found: list[Parked]) -> None:
    """What is parked; errors are wrapped, everything else stays on one line."""
    if not found:
        console.print(Text("✓ no session is parked: the views pass over nothing", look.RIGHT))
        return
    wide = console.width >= WIDE_COLUMNS
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("session", overflow="fold", max_width=36 if wide else 24)
    shows_projection = wide or any(each.projection != PROJECTION for each in found)
    if shows_projection:
        table.add_column("projection", no_wrap=True)
    numbers = ("shard", "seq", "position") if wide else ("shard", "seq")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("since", no_wrap=True)
    table.add_column("error", overflow="fold", min_width=ERROR_COLUMNS_MIN, ratio=1)
    for each in found:
        cells = [safe_line(each.name)]
        if shows_projection:
            cells.append(safe_line(each.projection))
        cells += [f"{getattr(each, title):,}" for title in numbers]
        cells += [each.since.strftime("%Y-%m-%d %H:%M"), safe_line(each.error)]
        table.add_row(*map(Text, cells))
    console.print(table)
    count = look.plural(len(found), "session")
    console.print(
        f"{count} parked; times are UTC. Once the cause is gone: eventlog retry --all",
        style=look.UNDER_WAY,
        soft_wrap=True,
    )


def _parked(projection: str, session_id: UUID, key: str | None, *rest: Any) -> Parked:
    shard, position, seq, error, parked_us = rest
    return Parked(
        session_id=session_id,
        key=None if key is None else unescape_text(key),
        projection=projection,
        shard=shard,
        seq=seq,
        position=position,
        since=datetime.fromtimestamp(parked_us / 1_000_000, UTC),
        error=unescape_text(error),
    )


def _progress(*, show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=make_console(stderr=True),
        transient=True,
        disable=not show or not sys.stderr.isatty(),
    )


def _say(console: Console, mark: str, said: str, style: str) -> None:
    console.print(Text(f"{mark} {said}", style), soft_wrap=True)
