"""How parts of a conversation look on a terminal: headings, prose, output cut to a few lines.

Everything that comes from a session is made safe here, before it becomes rich text.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from eventlog.events import Content, ToolCall
from workers.terminal import clip, safe, safe_json, safe_line

INDENT: Final = 2
ROLE_STYLES: Final = {
    "user": "bold green",
    "assistant": "bold cyan",
    "system": "bold magenta",
    "developer": "bold magenta",
    "tool": "bold blue",
}
QUIET: Final = "dim"
REASONING: Final = "dim italic"
CALL: Final = "cyan"
WRONG: Final = "red"
RIGHT: Final = "green"
UNDER_WAY: Final = "yellow"


def heading(
    role: str, *names: str | None, seq: int | None = None, at: datetime | None = None
) -> Text:
    """`assistant · planner   #12 14:03:11`."""
    text = Text(role, ROLE_STYLES.get(role, "bold"))
    for name in names:
        if name:
            text.append(f" · {safe_line(name, 40)}", "default")
    where = [f"#{seq}"] if seq is not None else []
    if at is not None:
        where.append(at.astimezone().strftime("%H:%M:%S"))
    if where:
        text.append("  " + " ".join(where), QUIET)
    return text


def print_prose(console: Console, text: str, style: str = "") -> None:
    """Text in full, indented; wrapped on terminals only, so that it can be searched in files."""
    shown = safe(text).expandtabs(4)
    if console.is_terminal:
        console.print(Padding(Text(shown, style, overflow="fold"), (0, 0, 0, INDENT)))
        return
    for line in shown.split("\n"):
        console.print(Text(" " * INDENT + line, style), soft_wrap=True)


def print_cut(
    console: Console, text: str, style: str = QUIET, *, lines: int, mark: str = ""
) -> None:
    """The first lines of output or code, each cut to the width; then how many more there are."""
    columns = console.width - INDENT - len(mark)
    rows = [row.rstrip() for row in text.strip("\n").split("\n")]
    for number, row in enumerate(rows[:lines]):
        lead = " " * INDENT + (mark if number == 0 else " " * len(mark))
        shown = safe(row[: 4 * columns]).expandtabs(4)
        line = Text(lead, style)
        line.append(clip(shown, columns))
        console.print(line, soft_wrap=True)
    if len(rows) > lines:
        more = f"{' ' * INDENT}… {plural(len(rows) - lines, 'more line')}"
        console.print(Text(more, style), soft_wrap=True)


def print_wrapped(console: Console, text: str, style: str, *, lines: int) -> None:
    """The first lines of prose, wrapped to the width."""
    columns = max(20, console.width - INDENT)
    head = safe(text[: lines * columns * 2].strip()).expandtabs(4)
    rows = Text(head, style).wrap(console, columns)
    for row in rows[:lines]:
        row.rstrip()
        console.print(Text(" " * INDENT).append_text(row), soft_wrap=True)
    if len(rows) > lines or len(text) > lines * columns * 2:
        console.print(Text(" " * INDENT + "…", style))


def plain_text(content: Content) -> str:
    """Content as text; parts that aren't text are named."""
    if isinstance(content, str):
        return content
    return "\n".join(_part(each) for each in content)


def _part(part: dict[str, Any]) -> str:
    for name in ("text", "refusal"):
        if isinstance(part.get(name), str):
            return str(part[name])
    kind = part.get("type", "part")
    return f"[{kind}] {safe_line(safe_json(part), 100)}"


def call_line(call: ToolCall, columns: int) -> Text:
    """`→ Read {"file_path": …}`."""
    text = Text(" " * INDENT + "→ ", CALL)
    text.append(safe_line(call.name, 60) or "(call)", CALL)
    left = columns - text.cell_len - 1
    if call.arguments and left > 10:
        text.append(" " + safe_line(call.arguments[: 4 * left], left), QUIET)
    return text


def divider(title: str, style: str = UNDER_WAY) -> Text:
    """A line of its own, for what happened to the conversation."""
    return Text(f"── {safe_line(title)} ──", style)


def plural(count: int, noun: str) -> str:
    """`1 event`, `2 events`, with thousands marked."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
