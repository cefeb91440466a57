"""Snapshots are never trusted: whatever is wrong with them, the log is read instead.

Each damage is done to the rows of a long session's snapshots, then the session is read by a process
that knows nothing of it. The controls do the same while nobody compares checksums.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from eventlog import EventLog, Session, fold, initial
from eventlog.replay import Replayer
from eventlog.state import FOLD_VERSION
from eventlog.store import Snapshot
from eventlog.testing import message, read_all, shown
from tests.conftest import Backend
from tests.contract.test_snapshots import COUNT, long_session
from tests.support.servers import connected

CROSSWISE = """
    update eventlog.{table} a set {columns}
    from eventlog.{table} b where a.session_id <> b.session_id and {matching}
"""
DAMAGE = {
    "a byte of the header": "update eventlog.snapshots set header = set_byte(header, 7, 255)",
    "a byte of the tail": (
        "update eventlog.snapshots set tail = set_byte(tail, length(tail) / 2, 255)"
        " where length(tail) > 0"
    ),
    "the end of the header": (
        "update eventlog.snapshots set header = substr(header, 1, length(header) - 5)"
    ),
    "the end of the tail": "update eventlog.snapshots set tail = ''  where length(tail) > 0",
    "a byte of each chunk": (
        "update eventlog.snapshot_chunks set messages = set_byte(messages, 99, 255)"
    ),
    "the end of each chunk": (
        "update eventlog.snapshot_chunks set messages = substr(messages, 1, length(messages) / 2)"
    ),
    "chunks are gone": "delete from eventlog.snapshot_chunks",
    "some chunks are gone": "delete from eventlog.snapshot_chunks where key % 2 = 0",
    "the last chunk's key is gone": (
        "update eventlog.snapshots set chunks = trim_array(chunks, 1),"
        " first_seqs = trim_array(first_seqs, 1) where cardinality(chunks) > 0"
    ),
    "keys are in another order": (
        "update eventlog.snapshots set chunks = array(select unnest(chunks) order by 1)"
        " where cardinality(chunks) > 3"
    ),
    "snapshots are gone": "delete from eventlog.snapshots",
    "another fold version": "update eventlog.snapshots set fold_version = fold_version + 1",
    "made by another fold": (
        "update eventlog.snapshots set fold_version = {version} where fold_version <> {version}"
    ),
    "another seq": "update eventlog.snapshots set seq = seq + 1000000, header = header",
    "the snapshot of another session": CROSSWISE.format(
        table="snapshots",
        columns="header = b.header, tail = b.tail, chunks = b.chunks,"
        " first_seqs = b.first_seqs, checksum = b.checksum",
        matching="b.seq >= a.seq",
    ),
    "chunks of another session under the keys": CROSSWISE.format(
        table="snapshot_chunks",
        columns="messages = b.messages, checksum = b.checksum",
        matching="a.messages <> b.messages",
    ),
}
NEEDED_BEFORE = {
    "made by another fold": "update eventlog.snapshots set fold_version = 1000, header = tail"
}
"""What must have happened, for the damage to be one."""


async def damage(backend: Backend, name: str) -> None:
    """Do it to all snapshots that there are."""
    async with connected(str(backend.postgres_url)) as connection:
        if name in NEEDED_BEFORE:
            await connection.execute(NEEDED_BEFORE[name])
        changed = await connection.execute(DAMAGE[name].format(version=FOLD_VERSION))
    assert not changed.endswith(" 0"), "nothing was damaged"


async def test_replay_when_snapshots_are_damaged_reads_the_log(
    backend: Backend, log: EventLog, subtests: pytest.Subtests
) -> None:
    """A flipped byte, a cut end, a missing chunk: the snapshot is ignored, and made anew."""
    session = await long_session(log)
    expected = shown(fold(initial(session.id), await read_all(session)))
    context = (await session.replay()).context()
    await log.replayer.aclose()
    other = await another_session(log)

    for name in DAMAGE:
        with subtests.test(damage=name):
            undamaged = Replayer(log.store)
            await undamaged.replay(other.id, None)
            await undamaged.aclose()
            await damage(backend, name)
            reader = Replayer(log.store)
            assert (await reader.context_state(session.id, None)).context() == context
            assert shown(await reader.replay(session.id, None)) == expected
            await reader.aclose()
            fresh = Replayer(log.store)
            assert shown(await fresh.replay(session.id, None)) == expected
            await fresh.aclose()


async def another_session(log: EventLog) -> Session:
    """One with snapshots at the same seqs, of as many messages, that say something else."""
    session = await log.create_session(user_id="bob")
    for start in range(0, COUNT, 500):
        await session.append([message(f"other {n}") for n in range(start, start + 500)])
    await session.replay()
    await log.replayer.aclose()
    return session


async def test_replay_when_the_content_is_no_state_reads_the_log(
    backend: Backend, log: EventLog
) -> None:
    """The checksum is right, and what it is of can't be read."""
    session = await long_session(log)
    expected = shown(await session.replay())
    await log.replayer.aclose()
    async with connected(str(backend.postgres_url)) as connection:
        for seq in await seqs_of(connection, session.id):
            broken = Snapshot(
                seq=seq, fold_version=FOLD_VERSION, header=b"\0", tail=b"", chunks=[], first_seqs=[]
            )
            await connection.execute(
                "update eventlog.snapshots set header = $3, tail = '', chunks = '{}',"
                " first_seqs = '{}', checksum = $4 where session_id = $1 and seq = $2",
                session.id,
                seq,
                broken.header,
                broken.checksum(session.id),
            )

    assert shown(await Replayer(log.store).replay(session.id, None)) == expected


async def seqs_of(connection: asyncpg.Connection[Any], session_id: UUID) -> list[int]:
    """Seqs of the session's snapshots."""
    query = "select seq from eventlog.snapshots where session_id = $1"
    return [record[0] for record in await connection.fetch(query, session_id)]


# --- controls ------------------------------------------------------------------------------------


class AnyNumber(int):
    """Equal to every other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody compares checksums."""
    monkeypatch.setattr(Snapshot, "checksum", lambda *_: AnyNumber())
    monkeypatch.setattr("eventlog.postgres.chunk_checksum", lambda *_: AnyNumber())


async def change_a_letter(log: EventLog, url: str, session: Session) -> None:
    """In the title, in the header."""
    async with connected(url) as connection:
        await replace_bytes(connection, "snapshots", "header", (b"title one", b"title two"))


async def change_the_tail(log: EventLog, url: str, session: Session) -> None:
    """In the messages of the tail."""
    async with connected(url) as connection:
        await replace_bytes(connection, "snapshots", "tail", (b"said 24", b"said 34"))


async def change_the_chunks(log: EventLog, url: str, session: Session) -> None:
    """In the messages of the chunks."""
    async with connected(url) as connection:
        await replace_bytes(connection, "snapshot_chunks", "messages", (b"said 1", b"said 2"))


async def exchange_chunks(log: EventLog, url: str, session: Session) -> None:
    """Those of another session under the keys."""
    await another_session(log)
    async with connected(url) as connection:
        await connection.execute(DAMAGE["chunks of another session under the keys"])


async def exchange_keys(log: EventLog, url: str, session: Session) -> None:
    """Chunks in another order."""
    async with connected(url) as connection:
        await connection.execute(
            "update eventlog.snapshots set chunks = chunks[2:2] || chunks[1:1] || chunks[3:]"
        )


async def exchange_snapshots(log: EventLog, url: str, session: Session) -> None:
    """Those of another session."""
    await another_session(log)
    async with connected(url) as connection:
        await connection.execute(DAMAGE["the snapshot of another session"])


async def replace_bytes(
    connection: asyncpg.Connection[Any], table: str, column: str, change: tuple[bytes, bytes]
) -> None:
    """Other bytes in a column, as many."""
    old, new = change
    query = f"select ctid, {column} from eventlog.{table}"
    for ctid, data in await connection.fetch(query):
        await connection.execute(
            f"update eventlog.{table} set {column} = $2 where ctid = $1",
            ctid,
            data.replace(old, new),
        )


Harm = Callable[[EventLog, str, Session], Awaitable[None]]
HARMS: list[Harm] = [
    *(change_a_letter, change_the_tail, change_the_chunks),
    *(exchange_chunks, exchange_keys, exchange_snapshots),
]


async def is_right_after(harm: Harm, backend: Backend, log: EventLog) -> bool:
    """Whether the session is read as it is after that."""
    session = await log.create_session(user_id="ada", title="title one")
    for start in range(0, COUNT, 500):
        await session.append([message(f"said {n}") for n in range(start, start + 500)])
    expected = shown(await session.replay())
    await log.replayer.aclose()
    await harm(log, str(backend.postgres_url), session)
    try:
        found = shown(await Replayer(log.store).replay(session.id, None))
    except (msgspec.MsgspecError, ValueError, IndexError):
        return False
    return found == expected


@pytest.mark.parametrize("harm", HARMS)
async def test_replay_when_a_snapshot_is_plausible_but_wrong_reads_the_log(
    backend: Backend, log: EventLog, harm: Harm
) -> None:
    """It reads well and says something else: only its checksum tells."""
    assert await is_right_after(harm, backend, log)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("harm", HARMS)
async def test_replay_when_checksums_are_not_compared_is_wrong(
    backend: Backend, log: EventLog, harm: Harm
) -> None:
    """The control: each of these harms is one."""
    assert not await is_right_after(harm, backend, log)
