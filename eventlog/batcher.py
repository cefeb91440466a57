"""Group commit: many callers, one transaction at a time on each lane.

While one commit is in flight everything else queues; when it returns, all that waits goes into the
next call. There is no linger: an idle log commits at once, a busy one in ever larger batches.

A lane is one connection and the shards whose number is `lane` modulo the number of lanes, so a
session always uses the same lane and its order is the order of `submit`.
"""

from __future__ import annotations

import asyncio

from eventlog.envelope import Row
from eventlog.lane import QUEUE_BYTES_MAX, Lane, Published
from eventlog.store import Answer, Command, Store


class Batcher:
    """Lanes over one store. `start()` before the first `submit`, `aclose()` at the end."""

    def __init__(
        self, store: Store, *, lanes: int, timeout_seconds: float, on_commit: Published
    ) -> None:
        self._lanes = [
            Lane(store, number, timeout_seconds, on_commit) for number in range(max(1, lanes))
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to commit."""
        self._tasks = [
            asyncio.create_task(lane.run(), name=f"eventlog-lane-{lane.number}")
            for lane in self._lanes
        ]

    def submit(self, command: Command) -> asyncio.Future[Answer | Row]:
        """Queue a command; the future gets its `Answer`, or the `Row` an earlier call stored."""
        return self._lanes[command.shard % len(self._lanes)].submit(command)

    def has_room(self, shard: int) -> bool:
        """Whether a caller may submit without waiting."""
        return self._lanes[shard % len(self._lanes)].queued_bytes < QUEUE_BYTES_MAX

    async def room(self, shard: int) -> None:
        """Wait until the lane's queue is below its bound."""
        await self._lanes[shard % len(self._lanes)].room()

    def withdraw(self, command: Command) -> bool:
        """Take back a command that was not sent yet; False when it is too late for that."""
        return self._lanes[command.shard % len(self._lanes)].withdraw(command)

    async def aclose(self) -> None:
        """Commit what is queued, then stop. What can't be committed ends as refused or unknown."""
        for lane in self._lanes:
            lane.closing = True
            lane.wake()
        if self._tasks:
            await asyncio.gather(*self._tasks)
        self._tasks = []
