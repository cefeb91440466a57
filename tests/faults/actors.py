"""What the killing test kills: `python -m tests.faults.actors ROLE POSTGRES REDIS FILE`.

Each writes down what it does, line by line, before and after it does it, so that what it had seen
survives its death, and goes on from its file when it is started again.

    append      writers on all sessions, each append under an id of its own; SIGTERM lets it finish
    follow      subscribers of all sessions, each going on from its last cursor
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from eventlog import EventLog, MessageAdded, OutcomeUnknown, Settings, Unavailable
from eventlog.errors import MessageFenced
from eventlog.session import Session

SESSIONS = 12
STREAMS = 3
"""Sessions into which replies are streamed as well."""
_encode = msgspec.json.Encoder().encode


class Op(msgspec.Struct, omit_defaults=True):
    """What is written down of an append: first that it is sent, then what came of it."""

    op: UUID
    session: str
    content: str = ""
    sent: float = 0.0
    done: float = 0.0
    seq: int = 0
    duplicate: bool = False


class Delivery(msgspec.Struct):
    """What is written down of an event that a subscriber got."""

    session: str
    seq: int
    event_id: UUID
    resumed: bool = False


class Notes:
    """An append-only file of lines; the last one may be cut off by a kill."""

    def __init__(self, path: Path) -> None:
        whole = path.read_bytes() if path.exists() else b""
        if not whole.endswith(b"\n"):
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        self._file = path.open("ab", buffering=0)

    def add(self, note: msgspec.Struct) -> None:
        self._file.write(_encode(note) + b"\n")


def read_notes(path: Path, kind: type[Any]) -> list[Any]:
    """All whole lines of a file."""
    decoder = msgspec.json.Decoder(kind)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [decoder.decode(line) for line in lines]


def key(number: int) -> str:
    return f"session-{number}"


# --- the appender --------------------------------------------------------------------------------


async def settle(session: Session, op: Op, notes: Notes) -> None:
    """Append until it is known that it is stored, however often the servers die meanwhile."""
    while True:
        try:
            done = await session.append(
                MessageAdded(role="user", content=op.content), event_id=op.op
            )
        except (Unavailable, OutcomeUnknown):
            continue
        notes.add(
            msgspec.structs.replace(
                op, done=time.monotonic(), seq=done.last_seq, duplicate=done.duplicate
            )
        )
        return


async def write(session: Session, name: str, notes: Notes, stop: asyncio.Event) -> None:
    while not stop.is_set():
        op = Op(
            op=uuid4(), session=name, content=f"{name} {random.random()}", sent=time.monotonic()
        )
        notes.add(op)
        await settle(session, op, notes)


async def stream(session: Session, stop: asyncio.Event) -> None:
    """Replies of numbered increments, one after another; one left open by a kill is taken over."""
    while not stop.is_set():
        try:
            await session.interrupt(reason="its writer was killed")
            async with session.reply(agent="streamer") as reply:
                for number in itertools.count():
                    await reply.write(f"{number} ")
                    await asyncio.sleep(0.002)
                    if stop.is_set() or number == 300:
                        break
        except (Unavailable, OutcomeUnknown, MessageFenced):
            continue


async def append(log: EventLog, notes_path: Path, stop: asyncio.Event) -> None:
    latest: dict[UUID, Op] = {}
    for op in read_notes(notes_path, Op):
        latest[op.op] = op
    notes = Notes(notes_path)
    sessions = [log.handle(log.session_id(key(number))) for number in range(SESSIONS)]
    for op in latest.values():
        if not op.seq:  # its outcome was not noted: ask again under the same id
            await settle(log.handle(log.session_id(op.session)), op, notes)
    async with asyncio.TaskGroup() as group:
        for number, session in enumerate(sessions):
            for _ in range(2):
                group.create_task(write(session, key(number), notes, stop))
        for session in sessions[:STREAMS]:
            group.create_task(stream(session, stop))


# --- the subscriber ------------------------------------------------------------------------------


async def follow_one(log: EventLog, name: str, cursor: int, notes: Notes) -> None:
    resumed = cursor > 0
    async for event in log.handle(log.session_id(name)).subscribe(after=cursor):
        notes.add(Delivery(name, event.seq, event.event_id, resumed))
        resumed = False


async def follow(log: EventLog, notes_path: Path) -> None:
    cursors = {delivery.session: delivery.seq for delivery in read_notes(notes_path, Delivery)}
    notes = Notes(notes_path)
    async with asyncio.TaskGroup() as group:
        for number in range(SESSIONS):
            name = key(number)
            group.create_task(follow_one(log, name, cursors.get(name, 0), notes))


async def main(role: str, postgres: str, redis: str, notes_path: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    while True:
        try:
            async with EventLog.open(postgres, redis, settings=Settings()) as log:
                if role == "append":
                    await append(log, notes_path, stop)
                    return
                await follow(log, notes_path)
        except Unavailable:  # the servers were just killed: they come back
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
