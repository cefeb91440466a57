"""`eventlog demo`: a recorded conversation, lived through again, with Redis taken away.

With `--compact` it is another demo, which is about summaries: see `compacting`.

    player     an agent: appends what users and tools said, streams what the assistant said
    watcher    a live subscriber: prints what it gets, and keeps it
    outage     flushes, stops and starts Redis, each in the middle of a reply
    checks     looks afterwards whether everything promised was kept
    report     what is printed around it

Relay and projector run in this process, as in `eventlog up`. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

import eventlog
from eventlog import EventLog, Session
from eventlog.errors import InvalidRequest
from eventlog.integrations.transcripts import Transcript, read_transcript
from workers.commands.live import LiveView
from workers.commands.opening import open_log, prepare
from workers.demo.checks import run_checks
from workers.demo.compacting import run_compaction_demo
from workers.demo.outage import Outage
from workers.demo.player import Player
from workers.demo.report import (
    Figures,
    count_increments,
    print_beginning,
    print_checks,
    print_figures,
    print_next_steps,
    print_past,
)
from workers.demo.watcher import Watcher
from workers.projector import run_projector
from workers.relay import run_relay
from workers.terminal import make_console

SECONDS: Final = 20.0
"""How long the conversation is played, unless said otherwise."""
SECONDS_MAX: Final = 3_600.0
TRANSCRIPT: Final = "claude_compacted.jsonl"
LOST: Final = 100
"""Which event the subscriber loses when it is told to."""


async def demo(
    file: Annotated[Path | None, Parameter(name="FILE")] = None,
    /,
    *,
    seconds: float = SECONDS,
    fast: bool = False,
    compact: bool = False,
    model: str | None = None,
    lose_one: Annotated[bool, Parameter(show=False)] = False,
) -> int:
    """See it work: a conversation, live, while Redis is taken away.

    An agent plays the conversation, streaming its replies token by token, and
    a subscriber shows what it gets. On the way Redis is flushed and stopped.
    Then it is checked that nothing was lost, and shown how things were before.

        eventlog demo
        eventlog demo --seconds 40
        eventlog demo ~/.claude/projects/*/8b418ea5*.jsonl --fast

    With --compact it shows instead how a summary takes the place of the older
    part of a long context, that history is as it was, and how to take it back.

        eventlog demo --compact
        eventlog demo --compact --model local       a small model, on this machine
        eventlog demo --compact --model gpt-5-mini

    Exit code 1 if a check failed.

    Parameters
    ----------
    file
        Transcript to play; else one that came with this program.
    seconds
        How long to take for it; 20 unless said otherwise.
    fast
        As fast as it goes.
    compact
        Show a compaction.
    model
        Who writes its summary: `local` (SmolLM2; says what to install), a file.gguf,
        `none` (sentences of the conversation), or a model of the settings' endpoint.
        Not given: the model of the settings, or none without a key.
    """
    if compact:
        if seconds != SECONDS:
            raise InvalidRequest("--seconds is for the demo without --compact")
        return await run_compaction_demo(
            file, examples=examples_folder(), model=model, lose_one=lose_one
        )
    if model is not None:
        raise InvalidRequest("--model is for --compact: it writes the summary")
    if not 0 <= seconds <= SECONDS_MAX:
        raise InvalidRequest(f"--seconds is {seconds:g}; it must be 0 to {SECONDS_MAX:,.0f}")
    path = file or examples_folder() / TRANSCRIPT
    transcript = read_transcript(path)
    settings = prepare(quiet="error")
    async with open_log(settings) as log:
        return await _run(
            log,
            transcript,
            name=path.name,
            seconds=0.0 if fast else seconds,
            lose=LOST if lose_one else None,
        )


def examples_folder() -> Path:
    """Where the recorded conversations are: inside the installed package, or in a checkout."""
    package = Path(eventlog.__file__).parent
    installed = package / "_examples"
    return installed if installed.is_dir() else package.parent / "examples" / "transcripts"


async def _run(
    log: EventLog, transcript: Transcript, *, name: str, seconds: float, lose: int | None
) -> int:
    console = make_console()
    view = LiveView(console, brief=True)
    key = f"demo-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"  # noqa: DTZ005
    session = await log.create_session(key=key, user_id="demo", title=transcript.title)
    watcher = Watcher(session, view, lose=lose)
    outage = Outage(log, view, watcher)
    player = Player(session, transcript, seconds=seconds, moments=outage.moments())
    watcher.player = player
    print_beginning(
        console,
        log,
        transcript,
        name=name,
        key=key,
        explanation=outage.explanation(),
        seconds=seconds,
    )
    stop = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(run_projector(log, stop))]
            if log.fanout is not None:
                workers.append(group.create_task(run_relay(log, stop)))
            watching = group.create_task(watcher.watch())
            begin = time.monotonic()
            await player.play()
            took = time.monotonic() - begin
            checks, past = await run_checks(log, session, watcher, player)
            watching.cancel()
            stop.set()
    finally:
        await outage.undo()
    view.pause()
    print_past(console, past)
    print_figures(console, await _figures(session, watcher, took))
    passed = print_checks(console, checks)
    print_next_steps(console, key, len(watcher.received) // 2)
    return 0 if passed else 1


async def _figures(session: Session, watcher: Watcher, seconds: float) -> Figures:
    rows = 0
    async for _ in session.read(frames=True):
        rows += 1
    return Figures(
        events=len(watcher.received),
        increments=count_increments(watcher.received),
        rows=rows,
        seconds=seconds,
        latencies=watcher.latencies,
    )
