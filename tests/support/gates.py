"""Holding a log's commits, to see what happens while one is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eventlog import EventLog
from eventlog.store import Answer, Command


class Gate:
    """Commits wait until `open` is set."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        """A commit is waiting, or was."""
        self.open = asyncio.Event()
        self.calls: list[list[Command]] = []
        """The commands of each call, in order."""


@contextmanager
def held(log: EventLog) -> Iterator[Gate]:
    """Within the block, commits of this log wait for the gate; what they do is the store's own."""
    gate, commit, store = Gate(), log.store.commit, log.store

    async def commit_later(lane: int, commands: list[Command]) -> list[Answer]:
        gate.calls.append(list(commands))
        gate.reached.set()
        await gate.open.wait()
        return await commit(lane, commands)

    vars_of: Any = store
    vars_of.commit = commit_later
    try:
        yield gate
    finally:
        gate.open.set()
        del vars_of.commit
