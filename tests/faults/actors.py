"""What the killing test kills: `python -m tests.faults.actors ROLE POSTGRES REDIS JOURNAL`.

Each writes down what it does, before and after it does it, so that what it had seen survives its
death, and goes on from its journal when it is started again.

    append      writers of every kind on all sessions, and replies; SIGTERM lets it finish
    follow      subscribers of all sessions, each going on from its last cursor, and a reader

An operation's name says what it was: its first letter is its kind, the rest the event id, and its
events follow from it. So whoever comes back can send it again as it was.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
import time
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from eventlog import (
    ANY,
    EventLog,
    MessageAdded,
    MessageFenced,
    OutcomeUnknown,
    Session,
    Settings,
    Unavailable,
    WrongExpectedSeq,
)
from eventlog.envelope import Expected
from tests.support.checker import (
    Connected,
    Delivered,
    Done,
    Journal,
    Read,
    Sent,
    mark_of,
    read_journal,
)

SESSIONS: Final = 12
STREAMS: Final = 3
"""Sessions into which replies are streamed as well."""
INCREMENTS: Final = 300
BATCH_EVENTS: Final = (1, 1, 1, 3)
NAMED, EXACT, UNNAMED = "n", "e", "u"
"""Appends with an id; the same with an expected seq; appends without an id."""
PATIENCE_SECONDS: Final = 0.4
"""Of an append: shorter than an outage, so that some outcomes are unknown."""
READ_SECONDS: Final = 0.5
READ_EVENTS: Final = 50
DUPLICATE, UNKNOWN = "duplicate", "unknown"
"""What an appender says when an answer says so."""


def key(number: int) -> str:
    """Name of a session."""
    return f"session-{number}"


def say(what: str) -> None:
    """A line in the process' log."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def reopened(path: Path) -> Journal:
    """The journal of the life before; a line that a kill cut off is removed."""
    whole = path.read_bytes() if path.exists() else b""
    if not whole.endswith(b"\n"):
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    return Journal(path)


# --- the appender --------------------------------------------------------------------------------


def events_of(op: str, count: int) -> list[MessageAdded]:
    """The events of an operation."""
    return [MessageAdded(role="user", content=f"{op} {number}") for number in range(count)]


async def append(
    session: Session, op: str, count: int, journal: Journal, *, expected: Expected = ANY
) -> None:
    """Append until it is known what became of it, however often the servers die meanwhile."""
    events = events_of(op, count)
    event_id = None if op.startswith(UNNAMED) else UUID(op[1:])
    while True:
        journal.sending(session.id, events, op)
        try:
            done = await session.append(events, event_id=event_id, expected_seq=expected)
        except OutcomeUnknown as error:
            journal.done(op, "unknown")
            event_id = error.event_id
            say(UNKNOWN)
        except Unavailable:
            continue  # nothing of it is stored
        except WrongExpectedSeq:
            journal.done(op, "refused")
            return
        else:
            journal.done(op, "stored", done.first_seq)
            if done.duplicate:
                say(DUPLICATE)
            return


async def head_of(session: Session) -> int:
    """The session's last seq, as soon as Postgres tells it."""
    while True:
        try:
            return await session.head()
        except Unavailable:
            continue


async def write(session: Session, kind: str, journal: Journal, stop: asyncio.Event) -> None:
    """Appends of one kind, one after another."""
    while not stop.is_set():
        expected = await head_of(session) if kind == EXACT else ANY
        op, count = kind + uuid4().hex, random.choice(BATCH_EVENTS)
        await append(session, op, count, journal, expected=expected)


async def stream(session: Session, stop: asyncio.Event) -> None:
    """Replies of numbered increments, one after another; one left open by a kill is taken over."""
    while not stop.is_set():
        try:
            await session.interrupt(reason="its writer was killed")
            async with session.reply(agent="streamer") as reply:
                for number in itertools.count():
                    await reply.write(f"{number} ")
                    await asyncio.sleep(0.002)
                    if stop.is_set() or number == INCREMENTS:
                        break
        except (Unavailable, OutcomeUnknown, MessageFenced):
            continue


def unsettled(path: Path) -> list[Sent]:
    """Operations of earlier lives whose outcome is not noted, and that can be sent again."""
    sent: dict[str, Sent] = {}
    for record in read_journal(path) if path.exists() else []:
        match record:
            case Sent():
                sent[record.op] = record
            case Done(outcome="stored" | "refused"):
                sent.pop(record.op, None)
            case _:
                pass
    return [each for each in sent.values() if not each.op.startswith(UNNAMED)]


async def append_all(log: EventLog, path: Path, stop: asyncio.Event) -> None:
    """Settle what an earlier life left unsettled, then write until told to stop."""
    journal = reopened(path)
    for sent in unsettled(path):  # whatever it expected then: an id counts wherever it is stored
        await append(log.handle(UUID(sent.session)), sent.op, len(sent.marks), journal)
    sessions = [log.handle(log.session_id(key(number))) for number in range(SESSIONS)]
    async with asyncio.TaskGroup() as group:
        for session in sessions:
            for kind in (NAMED, EXACT, UNNAMED):
                group.create_task(write(session, kind, journal, stop))
        for session in sessions[:STREAMS]:
            group.create_task(stream(session, stop))
    journal.close()


# --- the subscriber ------------------------------------------------------------------------------


async def follow(session: Session, cursor: int, journal: Journal) -> None:
    """Write down everything that one subscription delivers."""
    name = str(session.id)
    journal.write(Connected("follower", name, cursor, time.monotonic()))
    async for event in session.subscribe(after=cursor):
        mark = mark_of(event.event)
        journal.write(Delivered("follower", name, event.seq, mark, time.monotonic()))


async def look(sessions: list[Session], journal: Journal) -> None:
    """Read the end of some session, now and then."""
    while True:
        await asyncio.sleep(READ_SECONDS)
        session = random.choice(sessions)
        try:
            after = max(0, await session.head() - READ_EVENTS)
            sent_at = time.monotonic()
            marks = [mark_of(each.event) async for each in session.read(after=after)]
        except Unavailable:
            continue
        journal.write(Read(str(session.id), after, marks, sent_at, time.monotonic()))


async def follow_all(log: EventLog, path: Path) -> None:
    """Go on where an earlier life ended."""
    journal = reopened(path)
    cursors = {
        record.session: record.seq for record in read_journal(path) if isinstance(record, Delivered)
    }
    sessions = [log.handle(log.session_id(key(number))) for number in range(SESSIONS)]
    async with asyncio.TaskGroup() as group:
        for session in sessions:
            group.create_task(follow(session, cursors.get(str(session.id), 0), journal))
        group.create_task(look(sessions, journal))


async def main(role: str, postgres: str, redis: str, path: Path) -> None:
    """Do one's work, through all outages."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings(append_timeout_seconds=PATIENCE_SECONDS)
    while True:
        try:
            async with EventLog.open(postgres, redis, settings=settings) as log:
                if role == "append":
                    await append_all(log, path, stop)
                    return
                await follow_all(log, path)
        except Unavailable:  # the servers were just killed: they come back
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
