"""Forking: a new session that continues another one from a seq, by reference.

What a fork says of itself (title, metadata, the ends of replies that were open) is copied from the
session as it was there. That one may be erased meanwhile: whoever erases it looks for forks after
it is done, and whoever forks looks whether it is done after the fork is there. One of them sees
the other, so no copy of what was erased stays behind unseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from eventlog import revisions
from eventlog.erasing import erasure
from eventlog.errors import InvalidRequest, SessionErased
from eventlog.events import SessionCreated

if TYPE_CHECKING:
    from eventlog.session import Session


async def fork(session: Session, at: int | None, wanted: SessionCreated) -> Session:
    """See `Session.fork`."""
    log = session.log
    erased = await log.replayer.erased_in(session.id)
    if session.id in erased:
        raise SessionErased(session.id, await erasure.erased_at(log.store, session.id))
    state = await session.replay(at)
    if state.seq == 0:
        raise InvalidRequest("fork at seq 1 or later: before that there is nothing")
    created = msgspec.structs.replace(
        wanted,
        user_id=wanted.user_id if wanted.user_id is not None else state.user_id,
        title=wanted.title if wanted.title is not None else state.title,
        metadata={**state.metadata, **wanted.metadata},
        parent_session_id=session.id,
        parent_seq=state.seq,
    )
    ends = [revisions.interruption(each, "forked") for each in state.open_messages]
    made = await log.create(created, ends)
    if await log.replayer.erased_in(made.id) - erased:
        await erasure.erase(log, made.id, reason="forked from what was being erased", forks=True)
        raise SessionErased(session.id, await erasure.erased_at(log.store, session.id))
    return made
