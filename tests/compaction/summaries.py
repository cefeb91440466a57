"""Summarisers for tests: one that answers at once, and one that waits until it is let go."""

from __future__ import annotations

import asyncio

from eventlog import Material, Session, Summary
from eventlog.compaction.selection import NothingToDo, Plan
from eventlog.testing import message


class Brief:
    """Summarises in a few words, each time other ones, and remembers what it was given."""

    def __init__(self, name: str = "brief") -> None:
        self.name = name
        self.materials: list[Material] = []

    async def summarize(self, material: Material) -> Summary:
        """A few words."""
        self.materials.append(material)
        return Summary(text=f"{self.name} {len(self.materials)}: {len(material.messages)}")


class Gated(Brief):
    """The same, when it is let go."""

    def __init__(self, name: str = "gated") -> None:
        super().__init__(name)
        self.reached = asyncio.Event()
        """Somebody waits for a summary."""
        self.open = asyncio.Event()

    async def summarize(self, material: Material) -> Summary:
        """A few words, once the gate is open."""
        self.reached.set()
        await self.open.wait()
        return await super().summarize(material)


async def talk(session: Session, turns: int, *, begin: int = 0) -> None:
    """So many questions and answers, each of some 20 tokens, with ids `q0`, `a0`, `q1`, …"""
    for number in range(begin, begin + turns):
        words = " ".join(f"word{number}" for _ in range(8))
        await session.append(
            [
                message(f"question {number}: {words}", message_id=f"q{number}"),
                message(f"answer {number}: {words}", "assistant", message_id=f"a{number}"),
            ]
        )


async def planned(session: Session) -> Plan:
    """What a compaction would do now; there must be something to do."""
    found = await session.plan_compaction()
    assert not isinstance(found, NothingToDo), found.reason
    return found
