"""Tenants on one database: the same key is another session, and a guessed id finds nothing."""

from __future__ import annotations

from eventlog import EventLog, SessionCreated, SessionNotFound
from eventlog.testing import message, read_all, refused
from tests.conftest import OpenLog


async def test_session_when_it_is_another_tenants_is_not_found(
    log: EventLog, open_log: OpenLog
) -> None:
    """By key it is a session of one's own, by id it is as if it were not there."""
    other = await open_log(tenant_id=7)
    session = await log.create_session("k", user_id="ada")
    await session.append(message("secret"))

    with refused(SessionNotFound):
        await other.session("k")
    with refused(SessionNotFound):
        await other.session(session.id)
    with refused(SessionNotFound):
        await other.session(str(session.id))
    assert (await other.create_session("k", user_id="ada")).id != session.id
    assert (await log.session(session.id)).id == session.id


async def test_fork_when_its_parent_is_another_tenants_is_refused(
    log: EventLog, open_log: OpenLog
) -> None:
    """Nobody reads another tenant's history by continuing it."""
    other = await open_log(tenant_id=7)
    session = await log.create_session("k")
    done = await session.append(message("secret"))
    created = SessionCreated(parent_session_id=session.id, parent_seq=done.last_seq)

    with refused(SessionNotFound):
        await other.create(created)

    assert (await read_all(await log.create(created)))[1].event == message("secret")
