"""`eventlog doctor`: is everything as it should be, and what to do where it isn't.

What is looked at is in `commands/examining.py`; here is how it is told.
"""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workers.commands import look
from workers.commands.arguments import AsJson
from workers.commands.examining import examine
from workers.commands.finding import Finding, State
from workers.commands.opening import prepare, waiting
from workers.terminal import make_console, print_line, safe, safe_json

_MARKS: Final[dict[State, tuple[str, str]]] = {
    "ok": ("✓", look.RIGHT),
    "warn": ("!", look.UNDER_WAY),
    "fail": ("✗", look.WRONG),
}


async def doctor(*, as_json: AsJson = False) -> int:
    """Look whether everything is as it should be.

    Servers, durability, schema, privileges, Redis, feeds, views, the data folder:
    each line says what was found, and where something is wrong, what to do.
    On your servers nothing is changed.

        eventlog doctor
        eventlog doctor --json | jq '.[] | select(.state != "ok")'

    Exit code 1 if anything failed; warnings don't count.
    """
    settings = prepare(quiet="error")
    with waiting("looking …"):
        findings = await examine(settings)
    if as_json:
        print_line(safe_json(findings))
    else:
        print_findings(make_console(), findings)
    return 1 if any(each.state == "fail" for each in findings) else 0


def print_findings(console: Console, findings: list[Finding]) -> None:
    """The report as a list, advice below what it is for."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        mark, style = _MARKS[each.state]
        text = Text(safe(each.found))
        if each.advice:
            text.append(f"\n→ {safe(each.advice)}", style)
        table.add_row(Text(mark, style), Text(each.what, "bold"), text)
    console.print(table)
    count = {state: sum(1 for each in findings if each.state == state) for state in _MARKS}
    console.print()
    if count["fail"]:
        console.print(Text(f"{look.plural(count['fail'], 'failure')}", f"bold {look.WRONG}"))
    elif count["warn"]:
        console.print(Text(f"works, with {look.plural(count['warn'], 'warning')}", look.UNDER_WAY))
    else:
        console.print(Text("all is well", f"bold {look.RIGHT}"))
