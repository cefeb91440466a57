"""`eventlog import` and `eventlog export`: transcripts in, JSON Lines out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from eventlog import EventLog, EventLogError, Session
from eventlog.errors import InvalidRequest
from eventlog.integrations.export import export_line
from eventlog.integrations.transcripts import Problem, Transcript, read_transcript
from workers.commands import look
from workers.commands.arguments import SessionName
from workers.commands.importing import Outcome, import_transcript, may_go_on
from workers.commands.opening import open_log
from workers.terminal import escape_json, make_console, safe, safe_line

PROBLEMS_SHOWN_MAX: Final = 8
_FORMATS: Final = {
    "claude-code": "a Claude Code transcript",
    "codex": "a Codex rollout",
    "eventlog": "an export of an event log",
}


async def import_files(
    *files: Path,
    user: Annotated[str | None, Parameter(help="Whose sessions they become.")] = None,
    key: Annotated[
        str | None, Parameter(help="Name of the session; else the session's id in the file.")
    ] = None,
) -> int:
    """Import transcripts of coding agents.

    Claude Code, Codex, or our own export. Each file becomes a session.
    Importing a file again adds only what is new in it. What is no message is
    kept word for word, as an event of its own.

        eventlog import ~/.claude/projects/*/*.jsonl --user ada
        eventlog import ~/.codex/sessions/*/*/*/rollout-*.jsonl
        eventlog import chat-42.jsonl --key chat-42-again

    Parameters
    ----------
    files
        JSON Lines files.
    """
    if not files:
        raise InvalidRequest("name one or more files: eventlog import FILE ...")
    if key is not None and len(files) > 1:
        raise InvalidRequest("--key names one session; import one file with it")
    console = make_console()
    failed: EventLogError | None = None
    async with open_log() as log:
        for path in files:
            try:
                await _import_one(log, console, path, user=user, key=key)
            except EventLogError as error:
                if len(files) == 1:
                    raise
                failed = error
                console.print(Text(f"✗ {safe_line(str(path))}: {safe(str(error))}", look.WRONG))
    return 1 if failed else 0


async def _import_one(
    log: EventLog, console: Console, path: Path, *, user: str | None, key: str | None
) -> None:
    progress = _progress(f"{safe_line(path.name, 30)}")
    with progress:
        reading = progress.add_task("read", total=None)
        transcript = read_transcript(path, progress=_mover(progress, reading))
        storing = progress.add_task("stored", total=len(transcript.events))
        leave_last = may_go_on(path, transcript)
        outcome = await import_transcript(
            log,
            transcript,
            key=key,
            user_id=user,
            leave_last=leave_last,
            progress=lambda done: progress.update(storing, completed=done),
        )
    print_report(console, path, transcript, outcome)
    if leave_last:
        console.print(
            "  the last message was left out: the file was written to just now, and may go on; "
            "import it again later",
            style=look.UNDER_WAY,
            soft_wrap=True,
        )


def _progress(title: str) -> Progress:
    return Progress(
        TextColumn(title, markup=False),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=make_console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _mover(progress: Progress, task: object) -> Callable[[int, int], None]:
    def move(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

    return move


def print_report(console: Console, path: Path, transcript: Transcript, outcome: Outcome) -> None:
    """What the file is, what became of each kind of record, and what was odd about it."""
    report = transcript.report
    kind = _FORMATS[transcript.format]
    lines = look.plural(report.lines, "line")
    console.print(Text(f"{safe_line(str(path))}: {kind}, {lines}", "bold"), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("records", overflow="fold")
    table.add_column("became", overflow="fold")
    table.add_column("lines", justify="right")
    for record, became in sorted(report.became.items()):
        for what, count in sorted(became.items()):
            table.add_row(Text(safe_line(record)), Text(safe_line(what)), f"{count:,}")
    console.print(table)
    _print_problems(console, report.problems)
    if outcome.changed:
        console.print(
            f"  {look.plural(outcome.changed, 'event')} changed in the file since; "
            "the log keeps what was imported first",
            style=look.UNDER_WAY,
        )
    name = safe_line(outcome.key)
    if outcome.added:
        before = f" ({outcome.known:,} were there)" if outcome.known else ""
        said = f"{look.plural(outcome.added, 'event')} imported into session {name}{before}"
        console.print(Text(f"✓ {said}", look.RIGHT), soft_wrap=True)
        console.print(f"  look at it with: eventlog show {name}", style=look.QUIET, soft_wrap=True)
    else:
        said = f"nothing new: all {outcome.known:,} events are in session {name}"
        console.print(Text(f"✓ {said}", look.RIGHT), soft_wrap=True)


def _print_problems(console: Console, problems: list[Problem]) -> None:
    for problem in problems[:PROBLEMS_SHOWN_MAX]:
        text = f"  line {problem.line}: {safe_line(problem.what)}"
        console.print(Text(text, look.UNDER_WAY), soft_wrap=True)
    if len(problems) > PROBLEMS_SHOWN_MAX:
        more = look.plural(len(problems) - PROBLEMS_SHOWN_MAX, "more line")
        console.print(Text(f"  … {more} with something odd", look.UNDER_WAY))


async def export(
    session: SessionName,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File to write; else stdout.")
    ] = None,
    frames: Annotated[
        bool, Parameter(help="Token increments as they are stored, many to a line.")
    ] = False,
) -> int:
    """Write a session as JSON Lines, one event a line.

    `eventlog import` reads it again, here or elsewhere.

        eventlog export chat-42 -o chat-42.jsonl
        eventlog export chat-42 --frames | gzip > chat-42.jsonl.gz
    """
    async with open_log() as log:
        handle = await log.session(session)
        if output is None:
            await _to_stdout(handle, frames=frames)
            return 0
        count = await _to_file(handle, output, frames=frames)
    console = make_console(stderr=True)
    what = look.plural(count, "line")
    console.print(Text(f"✓ {what} in {safe_line(str(output))}", look.RIGHT), soft_wrap=True)
    return 0


async def _to_stdout(session: Session, *, frames: bool) -> None:
    shown = sys.stdout.isatty()
    async for recorded in session.read(frames=frames):
        line = export_line(recorded)
        sys.stdout.buffer.write(escape_json(line.decode()).encode() if shown else line)
    sys.stdout.buffer.flush()


async def _to_file(session: Session, output: Path, *, frames: bool) -> int:
    """Write beside the file first: it is there whole, or as it was before."""
    count = 0
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            async for recorded in session.read(frames=frames):
                file.write(export_line(recorded))
                count += 1
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return count
