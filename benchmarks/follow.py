"""Subscribers: one subscription per session, counting increments or noting when each one came.

The same class follows inside the writers' process and, behind `child.Remote`, in a second process:
its public methods are coroutines with picklable answers. Clocks agree between processes because
`time.monotonic_ns` is the system's own monotonic clock on Linux.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from benchmarks.measure import resident_bytes
from benchmarks.project import open_log

if TYPE_CHECKING:
    from eventlog import EventLog, Session


class TokenFollower:
    """Follows the replies of many sessions; `noting`: keep every increment's arrival time (ns)."""

    def __init__(self, sessions: list[Session], *, noting: bool) -> None:
        self._sessions = sessions
        self._noting = noting
        self._counts = [0] * len(sessions)
        self._seen = [array("q") for _ in sessions]
        self._started = 0
        self._ended = 0
        self._last_ns = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for index, session in enumerate(self._sessions):
                tasks.create_task(self._follow(index, session))

    async def ready(self) -> None:
        """Return when every subscription has delivered the session's first event."""
        await self._until(lambda: self._started == len(self._sessions))

    async def total(self) -> int:
        """Increments seen so far, all sessions together."""
        return sum(self._counts)

    async def replies_ended(self, count: int) -> int:
        """Wait until `count` replies have ended since the start; when the last one did (ns)."""
        await self._until(lambda: self._ended >= count)
        return self._last_ns

    async def take_seen(self) -> list[array[int]]:
        """Arrival times noted since the last call, by session."""
        taken, self._seen[:] = list(self._seen), [array("q") for _ in self._sessions]
        return taken

    async def cpu_seconds(self) -> float:
        return time.process_time()

    async def _until(self, is_true: Any) -> None:
        while not is_true():
            self._changed.clear()
            await self._changed.wait()

    async def _follow(self, index: int, session: Session) -> None:
        from eventlog import MessageCompleted, TokenAppended

        counts, seen, noting = self._counts, self._seen, self._noting
        count = 0
        async for recorded in session.subscribe(after=0):
            kind = type(recorded.event)
            if kind is TokenAppended:
                count += 1
                counts[index] = count
                if noting:
                    seen[index].append(time.monotonic_ns())
            elif kind is MessageCompleted:
                self._ended += 1
                self._last_ns = time.monotonic_ns()
                self._changed.set()
            elif recorded.seq == 1:
                self._started += 1
                self._changed.set()


class CrowdFollower:
    """Many subscriptions of one session; a few of them note when each event came.

    It begins with one, which keeps what the process shares for the session filled, until
    `crowd_in` lets the others join at the same place.
    """

    NOTING_EVERY = 100
    """One subscriber in this many notes arrival times and checks that no event is missing."""

    def __init__(self, session: Session, *, after: int) -> None:
        self._session = session
        self._after = after
        self._last = [after]
        self._seen: list[tuple[int, int]] = []
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._note(0))

    async def crowd_in(self, subscribers: int) -> None:
        """Let so many follow in all, the new ones from where the first one is."""
        assert self._tasks is not None
        self._after = self._last[0]
        self._last += [self._after] * (subscribers - 1)
        for index in range(1, subscribers):
            noting = index % self.NOTING_EVERY == 0
            self._tasks.create_task(self._note(index) if noting else self._count(index))

    async def deliveries(self) -> int:
        """Events delivered since the crowd came in, summed over the subscribers."""
        return sum(self._last) - self._after * len(self._last)

    async def slowest(self) -> int:
        """Seq up to which every subscriber has come."""
        return min(self._last)

    async def take_seen(self) -> list[tuple[int, int]]:
        """(seq, monotonic ns) noted since the last call."""
        taken, self._seen = self._seen, []
        return taken

    async def cpu_seconds(self) -> float:
        return time.process_time()

    async def memory_bytes(self) -> int | None:
        return resident_bytes()

    async def _count(self, index: int) -> None:
        last = self._last
        async for recorded in self._session.subscribe(after=self._after):
            last[index] = recorded.seq

    async def _note(self, index: int) -> None:
        last = self._last
        async for recorded in self._session.subscribe(after=self._after):
            if recorded.seq != last[index] + 1:
                raise AssertionError(f"seq {recorded.seq} came after {last[index]}")
            last[index] = recorded.seq
            self._seen.append((recorded.seq, time.monotonic_ns()))


# --- opened in either process --------------------------------------------------------------------


@asynccontextmanager
async def following_tokens(
    postgres_url: str, redis_url: str, session_ids: list[UUID], *, noting: bool
) -> AsyncIterator[TokenFollower]:
    """A log of its own and a TokenFollower at work on it."""
    async with open_log(postgres_url, redis_url) as log:
        sessions = await _sessions(log, session_ids)
        follower = TokenFollower(sessions, noting=noting)
        async with _at_work(follower):
            yield follower


@asynccontextmanager
async def following_crowd(
    postgres_url: str, redis_url: str, session_id: UUID, *, after: int
) -> AsyncIterator[CrowdFollower]:
    """A log of its own and a CrowdFollower at work on it."""
    async with open_log(postgres_url, redis_url) as log:
        follower = CrowdFollower(await log.session(session_id), after=after)
        async with _at_work(follower):
            yield follower


async def _sessions(log: EventLog, session_ids: list[UUID]) -> list[Session]:
    return [await log.session(session_id) for session_id in session_ids]


@asynccontextmanager
async def _at_work(follower: TokenFollower | CrowdFollower) -> AsyncIterator[None]:
    """Run the follower beside the block; a follower that fails ends the block with its error."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follower.run())
        yield
        task.cancel()
