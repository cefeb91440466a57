"""Bringing a transcript into a session, so that doing it again adds only what is new.

Each imported event has an id made from the session and its place in the transcript. What a session
holds of a transcript is a run of these ids, right behind its first event; the rest is appended
behind that run, in batches, each only if the session is still where we believe it is. So an import
that was killed goes on where it was, and of two at once one waits for the other.

A file that was written a moment ago may go on, and its last message with it: agents write a message
in several lines. What was imported can't grow, so such a message is left for the next import.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from eventlog import EventLog, Session, WrongExpectedSeq
from eventlog.envelope import Draft
from eventlog.errors import InvalidRequest
from eventlog.events import Custom, MessageAdded, SessionClosed, StoredEvent
from eventlog.integrations.transcripts import Transcript, event_id_of, resolve

BATCH_EVENTS_MAX: Final = 200
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
TRIES_MAX: Final = 20
"""So often another import of the same file may get ahead of us."""
FIRST_SEQ: Final = 2
"""Behind `session.created`."""


SETTLED_SECONDS: Final = 30.0
"""A file that nobody has written to for so long is taken to be finished."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did."""

    key: str
    added: int
    known: int
    """Events that were there before."""
    changed: int
    """Events that the file now tells otherwise; the log keeps what was imported first."""


async def import_transcript(
    log: EventLog,
    transcript: Transcript,
    *,
    key: str | None,
    user_id: str | None,
    leave_last: bool,
    progress: Callable[[int], object],
) -> Outcome:
    """Append what the session lacks; with `leave_last` not the last event.

    Raises `InvalidRequest` if the session holds other events in between.
    """
    name = key or transcript.key
    session = await log.create_session(
        key=name,
        user_id=user_id or transcript.user_id,
        title=transcript.title,
        metadata=transcript.user_metadata,
    )
    drafts = list(drafts_of(session, transcript))
    if leave_last:
        drafts.pop()
    first_known: int | None = None
    for _ in range(TRIES_MAX):
        known, changed = await _known(session, name, drafts)
        first_known = known if first_known is None else first_known
        progress(known)
        try:
            for start, batch in batches(drafts, known):
                await session.append_drafts(batch, expected_seq=FIRST_SEQ - 1 + start)
                progress(start + len(batch))
        except WrongExpectedSeq:
            continue
        added = len(drafts) - first_known
        return Outcome(key=name, added=added, known=first_known, changed=changed)
    raise InvalidRequest(f"session {name!r} changes all the time; import it when that is over")


def may_go_on(path: Path, transcript: Transcript) -> bool:
    """Whether the last event may become another when the file is written on."""
    if transcript.format == "eventlog" or not transcript.events:
        return False
    if time.time() - path.stat().st_mtime > SETTLED_SECONDS:
        return False
    last = transcript.events[-1].event
    if isinstance(last, MessageAdded) and last.role == "assistant":
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"  # a line that is still being written


def drafts_of(session: Session, transcript: Transcript) -> Iterator[Draft]:
    """The transcript's events, ready to be appended behind the session's first event."""
    events = resolve(transcript, FIRST_SEQ)
    last = len(events) - 1
    for index, (event, imported) in enumerate(zip(events, transcript.events, strict=True)):
        kept: StoredEvent = event
        if isinstance(event, SessionClosed) and index < last:
            # A fork's history: its parent was closed, it was not.
            kept = Custom(name="eventlog.session.closed", data={"reason": event.reason})
        yield session.draft(kept, event_id_of(session.id, imported.source_id))


async def _known(session: Session, name: str, drafts: list[Draft]) -> tuple[int, int]:
    """How many of the drafts the session has, and in how many of those the content differs."""
    index = changed = others = 0
    async for recorded in session.read(after=FIRST_SEQ - 1, frames=True):
        if index < len(drafts) and not others and recorded.event_id == drafts[index].event_id:
            stored = session.draft(recorded.event, recorded.event_id)  # type: ignore[arg-type]
            changed += stored.data != drafts[index].data
            index += 1
        else:
            others += 1
    if others and index < len(drafts):
        raise InvalidRequest(
            f"session {name!r} holds {others:,} events that are not from this file, and "
            f"{len(drafts) - index:,} of the file's events are missing; "
            "import it into a session of its own, with --key"
        )
    return index, changed


def batches(drafts: list[Draft], start: int) -> Iterator[tuple[int, list[Draft]]]:
    """The drafts from an index on, cut into batches; each with the index of its first."""
    batch: list[Draft] = []
    size = 0
    for index in range(start, len(drafts)):
        draft = drafts[index]
        full = len(batch) == BATCH_EVENTS_MAX or size + len(draft.data) > BATCH_BYTES_MAX
        if batch and full:
            yield index - len(batch), batch
            batch, size = [], 0
        batch.append(draft)
        size += len(draft.data)
    if batch:
        yield len(drafts) - len(batch), batch
