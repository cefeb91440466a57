"""`eventlog compact`, `uncompact` and `compactions`: summaries in the place of older messages.

By default a summary is made here and now, by the model of the settings; without one it is made of
sentences of the conversation, and that is said. With --worker a compact-worker is asked instead.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from eventlog import Session
from eventlog.compaction.compaction import SUPERSEDED_MAX, Outcome
from eventlog.compaction.compaction import compact as compact_once
from eventlog.compaction.due import next_attempt
from eventlog.compaction.measure import ContextTokens
from eventlog.compaction.policy import CompactionPolicy, policy_of
from eventlog.compaction.session_part import WAIT_SECONDS
from eventlog.compaction.summarizer import Summarizer, SummaryFailed
from eventlog.errors import InvalidRequest, SessionClosed
from eventlog.settings import Settings, read_model_key
from eventlog.state import Compaction, SessionState
from workers.commands import look
from workers.commands.arguments import AsJson, SessionName
from workers.commands.compaction_plan import context_as_dict, preview, preview_as_dict
from workers.commands.compaction_table import print_compactions
from workers.commands.compaction_text import (
    change_words,
    missed_words,
    print_compaction_facts,
    print_pairs,
    print_preview,
    range_words,
)
from workers.commands.opening import open_log, prepare
from workers.summariser.extractive import ExtractiveSummarizer
from workers.summariser.guarded import NO_MODEL, summarizer_of
from workers.terminal import make_console, print_line, safe_json, safe_line

SUMMARY_LINES: Final = 8
WAIT_SECONDS_MAX: Final = 86_400.0


async def compact(
    session: SessionName,
    /,
    *,
    dry_run: bool = False,
    policy: str | None = None,
    instructions: str | None = None,
    extractive: bool = False,
    worker: bool = False,
    wait: float = WAIT_SECONDS,
    as_json: AsJson = False,
) -> int:
    """Let a summary stand for the older part of a context, now.

    The events stay as they are, and `eventlog uncompact` takes the summary back. What stays
    word for word is for the policy to say; its threshold doesn't matter here.

        eventlog compact chat-42 --dry-run              what would be summarised, what kept
        eventlog compact chat-42
        eventlog compact chat-42 --instructions 'keep all prices'
        eventlog compact chat-42 --policy module-9 --dry-run
        eventlog compact chat-42 --extractive           without a model
        eventlog compact chat-42 --worker               by a compact-worker

    The model is that of EVENTLOG_COMPACTION_MODEL at EVENTLOG_COMPACTION_BASE_URL, its key
    EVENTLOG_COMPACTION_API_KEY or OPENAI_API_KEY. Without an endpoint or a key the summary is
    made of sentences of the conversation.

    Parameters
    ----------
    dry_run
        Change nothing: show each message of the context, and what would become of it.
    policy
        By this policy instead of the session's: a preset's name, or JSON; see `eventlog policy`.
    instructions
        What the summary should keep in mind.
    extractive
        Ask no model.
    worker
        Ask a compact-worker (`eventlog compact-worker`, or `up`), and wait for it.
    wait
        With --worker: for so many seconds; 300 unless said otherwise.
    """
    if worker and (policy is not None or extractive):
        raise InvalidRequest(
            "--policy and --extractive are for compacting here; a worker goes by the session's "
            "policy and by its own settings"
        )
    if not 0 < wait <= WAIT_SECONDS_MAX:
        raise InvalidRequest(f"--wait is {wait:g}; it must be above 0, up to {WAIT_SECONDS_MAX:g}")
    given = None if policy is None else policy_of(policy)
    settings = prepare()
    async with open_log(settings) as log:
        handle = await log.session(session)
        state = await handle.context_state()
        chosen = given or await log.compaction.of(state)
        if dry_run:
            _tell_plan(session, state, chosen, as_json=as_json)
            return 0
        if state.status == "closed":
            raise SessionClosed(handle.id)
        before = await handle.context_tokens()
        if worker:
            outcome = await _by_worker(handle, state, chosen, instructions, wait)
        else:
            outcome = await _here(handle, chosen, settings, instructions, extractive=extractive)
        made = next((each for each in await handle.compactions() if each.seq == outcome.seq), None)
        after = await handle.context_tokens()
    if as_json:
        print_line(safe_json(_outcome_as_dict(outcome, made, before, after)))
    else:
        _tell_outcome(make_console(), session, outcome, made, (before, after))
    return 0


def _tell_plan(
    session: str, state: SessionState, policy: CompactionPolicy, *, as_json: bool
) -> None:
    found = preview(state, policy, now=datetime.now(UTC))
    if as_json:
        print_line(safe_json(preview_as_dict(found)))
        return
    console = make_console()
    by = f" by the policy {safe_line(policy.name, 30)}" if policy.name else ""
    said = f"what compacting {safe_line(session)}{by} would do; nothing is changed"
    console.print(Text(said, "bold"), soft_wrap=True)
    print_preview(console, found, state)


# --- doing it ------------------------------------------------------------------------------------


async def _here(
    session: Session,
    policy: CompactionPolicy,
    settings: Settings,
    instructions: str | None,
    *,
    extractive: bool,
) -> Outcome:
    """Summarise in this process. Interrupted, nothing of it is in the log."""
    async with _summarizer(settings, extractive=extractive) as (summarizer, by):
        for _ in range(SUPERSEDED_MAX):
            with _under_way(f"summarising {by} …"):
                outcome = await compact_once(session, summarizer, policy, instructions=instructions)
            if outcome.failure is not None:
                raise _told(outcome.failure, extractive=extractive)
            if outcome.status != "superseded":
                break
        else:
            raise SummaryFailed("superseded", "the context was changed while it was summarised")
    written = outcome.summary
    if written is not None and written.method == "extractive" and not extractive:
        _say_why_without(settings)
    return outcome


@asynccontextmanager
async def _summarizer(
    settings: Settings, *, extractive: bool
) -> AsyncIterator[tuple[Summarizer, str]]:
    """Who writes the summary, and how to call that while it is under way."""
    model = None if extractive else summarizer_of(settings, read_model_key())
    if model is None:
        yield ExtractiveSummarizer(), "without a model"
    else:
        async with aclosing(model):
            yield model, f"with {safe_line(settings.compaction_model, 40)}"


def _say_why_without(settings: Settings) -> None:
    why = "there is no key for a model (EVENTLOG_COMPACTION_API_KEY or OPENAI_API_KEY)"
    if settings.compaction_model == NO_MODEL:
        why = f"EVENTLOG_COMPACTION_MODEL is {NO_MODEL}"
    make_console(stderr=True).print(
        f"{why}: the summary is made of sentences of the conversation",
        style=look.UNDER_WAY,
    )


def _told(failure: SummaryFailed, *, extractive: bool) -> SummaryFailed:
    """The failure with what it means for whoever reads it."""
    hint = "" if extractive else "; --extractive needs no model"
    return SummaryFailed(failure.kind, f"{failure.reason}; the context is as it was{hint}")


async def _by_worker(
    session: Session,
    state: SessionState,
    policy: CompactionPolicy,
    instructions: str | None,
    seconds: float,
) -> Outcome:
    """Ask a compact-worker, and wait for it; it isn't asked for nothing."""
    found = preview(state, policy, now=datetime.now(UTC))
    if found.nothing_to_do is not None:
        return Outcome(status="nothing_to_do", reason=found.nothing_to_do)
    try:
        with _under_way("waiting for a compact-worker …"):
            made = await session.compact(instructions=instructions, wait_seconds=seconds)
    except asyncio.CancelledError:
        make_console(stderr=True).print(
            "it stays asked for: the next compact-worker does it", style=look.UNDER_WAY
        )
        raise
    if made is None:
        missed = (await session.context_state()).compaction_missed
        reason = "the worker found nothing to do" if missed is None else missed.reason
        return Outcome(status="nothing_to_do", reason=reason)
    return Outcome(status="compacted", seq=made.seq)


@contextmanager
def _under_way(what: str) -> Iterator[None]:
    """Say on a terminal what is going on, and for how long; wiped when it is over."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
    console = make_console(stderr=True)
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        progress.add_task(what, total=None)
        yield


# --- telling it ----------------------------------------------------------------------------------


def _outcome_as_dict(
    outcome: Outcome, made: Compaction | None, before: ContextTokens, after: ContextTokens
) -> dict[str, Any]:
    return {
        "status": outcome.status,
        "reason": outcome.reason or None,
        "compaction": None if made is None else compaction_as_dict(made),
        "context": {"before": context_as_dict(before), "after": context_as_dict(after)},
    }


def compaction_as_dict(made: Compaction) -> dict[str, Any]:
    """All fields of a compaction, also those that are empty."""
    return msgspec.structs.asdict(made)


def _tell_outcome(
    console: Console,
    session: str,
    outcome: Outcome,
    made: Compaction | None,
    sizes: tuple[ContextTokens, ContextTokens],
) -> None:
    if made is None:
        console.print(Text(f"nothing to do: {safe_line(outcome.reason)}"))
        return
    console.print(Text(f"✓ {safe_line(session)} is compacted at seq {made.seq}", look.RIGHT))
    print_compaction_facts(console, made, *sizes)
    console.print(Text("summary", look.QUIET))
    look.print_wrapped(console, made.summary, look.QUIET, lines=SUMMARY_LINES)
    name = safe_line(session)
    hint = f"all of it: eventlog context {name} --full; take it back: eventlog uncompact {name}"
    console.print(Text(hint, look.QUIET), soft_wrap=True)


# --- undoing and listing -------------------------------------------------------------------------


async def uncompact(
    session: SessionName,
    /,
    *,
    seq: Annotated[
        int | None, Parameter(help="The compaction at this seq; else the newest that stands.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Take a compaction back: the context is again made of what the summary stood for.

    It is not compacted again by itself before it has grown.

        eventlog uncompact chat-42
        eventlog uncompact chat-42 --seq 310
    """
    async with open_log() as log:
        handle = await log.session(session)
        before = await handle.context_tokens()
        undone = await handle.uncompact(seq)
        after = await handle.context_tokens()
    if as_json:
        context = {"before": context_as_dict(before), "after": context_as_dict(after)}
        print_line(safe_json({"compaction": compaction_as_dict(undone), "context": context}))
        return 0
    console = make_console()
    said = f"✓ the compaction #{undone.seq} of {safe_line(session)} is taken back"
    console.print(Text(said, look.RIGHT), soft_wrap=True)
    pairs = [("it stood for", range_words(undone.from_seq, undone.to_seq))]
    print_pairs(console, [*pairs, ("context", change_words(before, after))])
    return 0


async def compactions(session: SessionName, /, *, as_json: AsJson = False) -> int:
    """List the compactions of a session, and the last attempt if that failed.

    Range: the events that the summary stands for. Kept: messages among them that stay word
    for word beside it. Tokens: of what it replaced, and of the summary. ~ marks estimates.

        eventlog compactions chat-42
        eventlog compactions chat-42 --json | jq -r .compactions[-1].summary
    """
    async with open_log() as log:
        handle = await log.session(session)
        found = await handle.compactions()
        state = await handle.context_state()
    now = datetime.now(UTC)
    missed = state.compaction_missed
    if as_json:
        failure = None if missed is None else msgspec.structs.asdict(missed)
        if missed is not None and failure is not None:
            failure["next_attempt_at"] = next_attempt(missed)
        rows = [compaction_as_dict(each) for each in found]
        asked = state.compaction_asked
        print_line(safe_json({"compactions": rows, "failure": failure, "asked": asked}))
        return 0
    console = make_console()
    if found:
        print_compactions(console, found, now)
    else:
        console.print("no compactions")
    if state.compaction_asked is not None:
        said = f"asked for at #{state.compaction_asked.seq}, and not answered yet"
        console.print(Text(said, look.UNDER_WAY))
    if missed is not None:
        console.print(Text(missed_words(missed, now), look.WRONG))
    return 0
