"""`eventlog usage`: tokens spent, added up, as a table with totals and bars."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Final, Literal, cast

from cyclopts import Parameter
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog import UsageRow
from eventlog.errors import InvalidRequest
from eventlog.reading.spending import By, totals
from workers.commands import look
from workers.commands.arguments import AsJson
from workers.commands.freshness import catch_up
from workers.commands.opening import open_log
from workers.terminal import clip, make_console, print_line, safe_json, safe_line

BAR_COLUMNS_MAX: Final = 20
BAR_COLUMNS_MIN: Final = 4
"""With less room there is none."""
KEY_COLUMNS_MAX: Final = 36
KEY_COLUMNS_MIN: Final = 8
EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_NUMBERS: Final = {
    "replies": "generations",
    "input": "input_tokens",
    "output": "output_tokens",
    "cached": "cached_tokens",
    "reasoning": "reasoning_tokens",
}
_KEYS: Final = {
    "day": "day",
    "user": "user_id",
    "agent": "agent",
    "model": "model",
    "session": "session_id",
}


async def usage(
    *,
    by: Annotated[str, Parameter(name="--by")] = "day",
    user: str | None = None,
    session: str | None = None,
    since: str | None = None,
    until: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Add up the tokens that were spent.

    Deleted sessions count. A fork counts what it spent itself.
    Days are those of UTC. Bars show input and output together.

        eventlog usage
        eventlog usage --by day,model --since 2026-01-01
        eventlog usage --by user,agent
        eventlog usage --by session --user ada --json

    Parameters
    ----------
    by
        One or some of day, user, agent, model, session, with commas; day unless said otherwise.
    user
        Only sessions of this user.
    session
        Only this session: its key or UUID.
    since
        From this day on, like 2026-01-31.
    until
        Up to this day.
    """
    names = [name for name in re.split(r"[,\s]+", by) if name]
    if not names or set(names) - set(_KEYS):
        raise InvalidRequest(f"--by {by!r:.60} must be one or some of: {', '.join(_KEYS)}")
    first, last = _day(since, "--since"), _day(until, "--until")
    async with open_log() as log:
        await catch_up(log)
        rows = await log.usage(
            by=cast("list[By]", names), user_id=user, session=session, since=first, until=last
        )
    if as_json:
        print_line(safe_json({"usage": rows}))
    else:
        print_usage(make_console(), rows, [name for name in _KEYS if name in names])
    return 0


def _day(text: str | None, flag: str) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text.strip())
    except ValueError:
        raise InvalidRequest(
            f"{flag} {text!r:.60} is not a day; write it like 2026-01-31"
        ) from None


def print_usage(console: Console, rows: list[UsageRow], keys: list[str]) -> None:
    """The sums as a table that fits the width: bars give way first, then names."""
    if not rows:
        console.print("no usage; models' replies report it: reply.finish(usage=…)")
        return
    (total,) = totals(rows, ())
    numbers = {
        title: name
        for title, name in _NUMBERS.items()
        if getattr(total, name) or name == "generations"
    }
    shown = [*rows, total] if len(rows) > 1 else rows
    named = [[_key(getattr(row, _KEYS[key])) for key in keys] for row in shown]
    if len(rows) > 1 and keys:
        named[-1] = ["total", *[""] * (len(keys) - 1)]
    figures = [[f"{getattr(row, name):,}" for name in numbers.values()] for row in shown]
    widths = _widths(console.width, [keys, *named], [list(numbers), *figures])
    bar_columns = widths.pop()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title, width in zip([*keys, *numbers], widths, strict=True):
        justify: Literal["left", "right"] = "left" if title in keys else "right"
        table.add_column(title, no_wrap=True, width=width, justify=justify)
    if bar_columns:
        table.add_column("", no_wrap=True, width=bar_columns)
    most = max(_spent(row) for row in rows) or 1
    for place, row in enumerate(shown):
        is_total = place == len(rows)
        cells = [clip(cell, width) for cell, width in zip(named[place], widths, strict=False)]
        line = [Text(cell, "bold" if is_total else "") for cell in [*cells, *figures[place]]]
        if bar_columns:
            line.append(Text("" if is_total else bar(_spent(row) / most, bar_columns), look.CALL))
        table.add_row(*line)
    console.print(table)


def _widths(width: int, named: list[list[str]], figures: list[list[str]]) -> list[int]:
    """Columns of each key and figure, and of the bars (0: there are none)."""
    keys = [min(KEY_COLUMNS_MAX, max(map(cell_len, column))) for column in zip(*named, strict=True)]
    numbers = [max(map(cell_len, column)) for column in zip(*figures, strict=True)]
    left = width - sum(keys) - sum(numbers) - 2 * (len(keys) + len(numbers))
    while left < 0 and any(key > KEY_COLUMNS_MIN for key in keys):
        widest = keys.index(max(keys))
        keys[widest] -= 1
        left += 1
    bars = min(BAR_COLUMNS_MAX, left)
    return [*keys, *numbers, bars if bars >= BAR_COLUMNS_MIN else 0]


def _spent(row: UsageRow) -> int:
    return row.input_tokens + row.output_tokens


def _key(value: object) -> str:
    return "–" if value is None else safe_line(str(value))


def bar(share: float, columns: int) -> str:
    """A bar of so many columns at most, in eighths; whatever is more than nothing shows."""
    eighths = round(share * columns * 8)
    if share > 0:
        eighths = max(1, eighths)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()
