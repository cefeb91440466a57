"""`eventlog demo --compact`: a context that has grown too long, before, while and after.

    feed a transcript until it is due ──> what is in the context now
    compact, as a compact-worker does ──> what is in it then
      │ meanwhile: read the context, over and over; say something
    take the compaction back ──> is all as it was?

Only the demo's own session is touched, whatever else is due in the log. The exit code is 1 if a
check failed.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from eventlog import (
    CompactionPolicy,
    EventLog,
    Material,
    MessageAdded,
    Plan,
    RecordedEvent,
    Session,
    Summarizer,
    Summary,
    SummaryFailed,
)
from eventlog.compaction.measure import ContextTokens, context_tokens
from eventlog.errors import InvalidRequest
from eventlog.integrations.transcripts import read_transcript
from eventlog.state import Compaction, SessionState
from workers.commands.opening import open_log, prepare
from workers.compactor.work import SessionWork
from workers.demo import compaction_report as report
from workers.demo.authors import Author, author_of
from workers.demo.checks import Check, Then
from workers.demo.compaction_checks import (
    Context,
    Reads,
    check_paired,
    check_past,
    check_restored,
    check_said,
    check_smaller,
    check_untouched,
    check_whole,
)
from workers.demo.feeding import Script, feed, script_of
from workers.demo.report import print_checks, print_past, print_rule
from workers.summariser.extractive import ExtractiveSummarizer
from workers.terminal import make_console

READ_SECONDS_MIN: Final = 0.005
READ_SECONDS_MAX: Final = 0.2
"""Pauses between two reads of the context while it is compacted: short at first."""
WORTH_SHARE: Final = 0.6
"""Of the context: so much is to be replaced, or the conversation goes on before that."""
KEEP_MESSAGES: Final = 6
KEEP_USER_TOKENS: Final = 120
MEANWHILE: Final = "One more thing, while you are at it: tell me when all of it is done."
"""What the user says while the summary is being written."""
PAST_SHARES: Final = (0.3, 0.6, 1.0)
"""Where in the conversation the points of the past are."""


class _Before(msgspec.Struct, frozen=True, kw_only=True):
    """All that is compared afterwards, as it was before the compaction."""

    events: list[RecordedEvent]
    states: list[SessionState]
    context: Context
    size: ContextTokens
    plan: Plan
    seq: int


class _Course(msgspec.Struct, kw_only=True):
    """What happened to the context, in order."""

    reads: Reads
    compacted: Context = []
    restored: Context = []
    said: Context = []
    size: ContextTokens


async def run_compaction_demo(
    file: Path | None, *, examples: Path, model: str | None, lose_one: bool
) -> int:
    """Run it on the servers of the settings; the exit code. `file`: None: one of the examples."""
    settings = prepare(quiet="error")
    console = make_console()
    async with author_of(model, settings) as author, open_log(settings) as log:
        path = file or examples / author.transcript
        transcript = read_transcript(path)
        script = script_of(transcript, author.threshold)
        key = f"demo-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"  # noqa: DTZ005
        session = await log.create_session(key=key, user_id="demo", title=transcript.title)
        report.print_opening(
            console,
            log,
            name=path.name,
            key=key,
            author=author.words,
            threshold=script.threshold,
        )
        before = await _grow(console, session, script)
        course = await _compact(console, log, session, before, author)
        checks, past = await _check(session, before, course, lose_one=lose_one)
        print_past(console, past)
        passed = print_checks(console, checks)
        report.print_compaction_steps(console, key, before.seq)
    return 0 if passed else 1


# --- before --------------------------------------------------------------------------------------


def _policy(threshold: int) -> CompactionPolicy:
    return CompactionPolicy(
        name="demo",
        threshold_tokens=threshold,
        threshold_share=None,
        keep_messages=KEEP_MESSAGES,
        keep_tokens=threshold // 4,
        keep_user_tokens=KEEP_USER_TOKENS,
        summary_tokens_max=max(256, threshold // 8),
    )


async def _grow(console: Console, session: Session, script: Script) -> _Before:
    """Let the conversation happen, and look at everything that must not change."""
    policy = _policy(script.threshold)
    for step in script.steps:
        await feed(session, step)
        plan = await session.plan_compaction(policy)
        if isinstance(plan, Plan) and plan.tokens.tokens > plan.context.tokens * WORTH_SHARE:
            break
    if not isinstance(plan, Plan):
        raise InvalidRequest(f"there is nothing in this transcript to summarise: {plan.reason}")
    events = [recorded async for recorded in session.read()]
    state = await session.context_state()
    size = context_tokens(state)
    report.print_before(console, state, size, policy, plan)
    # Not before: a compact-worker that runs beside this would do it first.
    await session.set_compaction_policy(policy)
    return _Before(
        events=events,
        states=[await session.replay(max(1, int(len(events) * share))) for share in PAST_SHARES],
        context=await session.context(),
        size=size,
        plan=plan,
        seq=len(events),
    )


# --- while it is compacted -----------------------------------------------------------------------


class _Meanwhile:
    """A summariser that lets the conversation go on first."""

    def __init__(self, inner: Summarizer, session: Session) -> None:
        self.said = False
        self._inner = inner
        self._session = session

    async def summarize(self, material: Material) -> Summary:
        """Summarise. Raises `SummaryFailed`."""
        if not self.said:
            await self._session.append(MessageAdded(role="user", content=MEANWHILE))
            self.said = True
        return await self._inner.summarize(material)


async def _compact(
    console: Console, log: EventLog, session: Session, before: _Before, author: Author
) -> _Course:
    print_rule(console, "compaction")
    reads = Reads()
    summarizer = _Meanwhile(author.summarizer, session)
    work = SessionWork(log, summarizer, fallback=ExtractiveSummarizer())
    with _under_way(f"the summary is written {author.words}", reads) as show:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(_keep_reading(session, reads, show))
            await work.compact_if_due(session.id)
            made = await _made(console, session)
            reads.add(await session.context())
            reader.cancel()
    state = await session.context_state()
    size = context_tokens(state)
    report.print_made(console, made, before.size, size, reads.count)
    report.print_after(console, state, size)
    course = _Course(reads=reads, compacted=await session.context(), size=size)
    await session.uncompact(made.seq)
    await session.set_compaction_policy(None)
    state = await session.context_state()
    report.print_taken_back(console, state, context_tokens(state))
    course.restored = await session.context()
    course.said = [{"role": "user", "content": MEANWHILE}]
    return course


async def _made(console: Console, session: Session) -> Compaction:
    """The compaction that was made; when the model's failed, one that needs no model."""
    state = await session.context_state()
    if state.compaction is None:
        missed = state.compaction_missed
        if missed is None:
            raise SummaryFailed("nothing_to_do", "the compact-worker found nothing to do")
        report.print_missed(console, missed)
        await session.compact(summarizer=ExtractiveSummarizer())
    return next(each for each in await session.compactions() if not each.reverted_seq)


async def _keep_reading(session: Session, reads: Reads, show: Callable[[], None]) -> None:
    seconds = READ_SECONDS_MIN
    while True:
        reads.add(await session.context())
        show()
        await asyncio.sleep(seconds)
        seconds = min(seconds * 1.1, READ_SECONDS_MAX)


@contextmanager
def _under_way(what: str, reads: Reads) -> Iterator[Callable[[], None]]:
    """Show on a terminal what is going on, and how often the context was read meanwhile."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[reads]}", markup=False, style="dim"),
        console=make_console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task(what, total=None, reads="")

        def show() -> None:
            progress.update(task, reads=f"the context was read {reads.count:,} times meanwhile")

        yield show


# --- afterwards ----------------------------------------------------------------------------------


async def _check(
    session: Session, before: _Before, course: _Course, *, lose_one: bool
) -> tuple[list[Check], list[Then]]:
    events = [recorded async for recorded in session.read()]
    if lose_one:
        del events[len(before.events) // 2]
    past = [
        Then(
            title=f"at seq {expected.seq:,}",
            state=await session.replay(expected.seq),
            expected=expected,
        )
        for expected in before.states
    ]
    checks = [
        check_smaller(before.size.counted, course.size.counted),
        check_paired(course.compacted),
        check_said(course.compacted, course.said),
        check_whole(course.reads, before.context, course.compacted, course.said),
        check_untouched(before.events, events),
        check_past(past),
        check_restored(before.context, course.said, course.restored),
    ]
    return checks, past
