"""Erasing a conversation: from then on everybody reads bare events, and forks lose what it said.

Its forks keep what is their own. What was stored keeps its seqs, ids and times.
"""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from eventlog import Erasure
from eventlog.testing import shown
from projections.heirs import settle_forks
from tests.model.conversations import Conversation
from tests.model.processes import Process
from tests.model.world import World, action, pick

ERASED_MAX: Final = 2
"""So many conversations of an example are erased, at most, and forks with them."""


class Erasing(World):
    """Sessions are erased in one process, as `eventlog erase` does it; all others notice."""

    @precondition(lambda self: sum(each.erased for each in self.chats) < ERASED_MAX)
    @precondition(lambda self: len(self.chats) > 1)
    @action(where=pick, who=pick, forks=st.booleans())
    async def erase(self, where: int, who: int, forks: bool) -> None:
        """Erase a conversation, perhaps with its forks."""
        chat, process = self.chat(where), self.process(who)
        erased = self._descent(chat) if forks else [chat]
        gone = {each.id for each in erased}
        family = [each for each in self.chats if each.id in gone or each.holds(chat)]
        record = await chat.both(process, lambda session: session.erase(forks=forks))
        assert isinstance(record, Erasure)
        for each in erased:
            records = await process.store.erasures_of([each.id])
            await process.run(settle_forks(process.log, records[each.id]))
        for each in family:
            each.forget_what_was_said(gone)
            for everyone in self.processes:
                await self._check_bare(everyone, each)
        self.lab.seen["erased"] += len(erased)
        self.lab.seen["heir of an erased session"] += len(family) - len(erased)

    def _descent(self, chat: Conversation) -> list[Conversation]:
        """A conversation, its forks, and theirs, also where they inherit nothing of it."""
        found = [chat]
        for each in self.chats:  # forks come after what they continue
            if each.parent_id in {one.id for one in found}:
                found.append(each)
        return found

    async def _check_bare(self, process: Process, chat: Conversation) -> None:
        """Nobody gives out, from wherever it has it, what was erased."""
        await chat.refresh(process)
        session, expected = chat.on(process), chat.folded(chat.head)
        assert shown(await process.run(session.replay())) == shown(expected)
        assert await process.run(session.context()) == expected.context()
        if chat.erased:
            view = await process.run(session.view(min_seq=chat.head))
            assert expected.status == view.status == "erased"
            assert not expected.entries
            assert (view.title, view.user_id, view.agents) == (None, None, [])
