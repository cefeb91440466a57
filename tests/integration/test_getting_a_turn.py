"""Revisions in a session where others append without pause get their turn."""

from __future__ import annotations

import asyncio

import pytest

from eventlog import EventLog, Session, revisions
from eventlog.testing import message
from tests.conftest import OpenLog


async def without_pause(session: Session, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await session.append(message("busy"))


@pytest.mark.parametrize("tries", [revisions.CONTENDED_TRIES_MAX, 0])
async def test_revisions_when_others_append_without_pause_get_their_turn(
    log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    """Take-over, undo, rewind and close against four writers in two processes."""
    monkeypatch.setattr(revisions, "CONTENDED_TRIES_MAX", tries)
    other = await open_log()
    session = await log.create_session("k")
    reply = session.reply(agent="dead")
    await reply.__aenter__()
    await reply.write("half")
    await reply.drain()
    stop = asyncio.Event()
    writers = [
        asyncio.create_task(without_pause(each.handle(session.id), stop))
        for each in (log, log, other, other)
    ]

    async with asyncio.timeout(30):
        assert await session.interrupt(reply.message_id) == [reply.message_id]
        assert len(await session.undo(3)) == 3
        await session.rewind(to=2)
    stop.set()
    await asyncio.gather(*writers)
    await session.close()

    seqs = [event.seq async for event in session.read()]
    assert seqs == list(range(1, len(seqs) + 1))
    got = [event.seq async for event in session.subscribe()]
    assert got == seqs
