"""Sessions that are too long, summarizers that tests hold in their hands, and workers as tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest

from eventlog import EventLog, Session
from eventlog.compaction.policy import CompactionPolicy
from eventlog.compaction.summarizer import Material, Summary, SummaryFailed
from eventlog.embedded.temporary import ValkeyServer, temporary_valkey
from eventlog.events import CompactionCompleted, CompactionFailed, Usage
from eventlog.testing import message, read_all
from tests.conftest import OpenLog
from workers.compactor.work import SessionWork
from workers.compactor.worker import Compactor

POLICY: Final = CompactionPolicy(
    threshold_tokens=400, window_tokens=100_000, keep_messages=2, keep_user_tokens=0
)
WORDS: Final = "one message says a few words about what is to be done next, and why it matters "
CLAIM_SECONDS: Final = 0.9
LEASE_SECONDS: Final = 0.9
SECONDS_MAX: Final = 30.0


class Hands:
    """A `Summarizer` that answers at once, when it is let, or fails as it is told."""

    def __init__(self) -> None:
        self.asked: list[Material] = []
        self.failure: SummaryFailed | None = None
        self.text = "what was said before, in short"
        self.let = asyncio.Event()
        self.let.set()

    async def summarize(self, material: Material) -> Summary:
        """Note what was asked, wait to be let, and answer."""
        self.asked.append(material)
        await self.let.wait()
        if self.failure is not None:
            raise self.failure
        usage = Usage(input_tokens=100, output_tokens=20)
        return Summary(text=self.text, method="custom", model="m", usage=usage, calls=1)


async def grow(session: Session, count: int = 30) -> None:
    """Add messages: 30 of them are over the threshold, with `POLICY`."""
    for number in range(count):
        role = "user" if number % 2 == 0 else "assistant"
        await session.append(message(f"{number}: {WORDS}", role))  # type: ignore[arg-type]


async def long_session(log: EventLog, key: str | None = None, **created: Any) -> Session:
    """A session over its threshold."""
    session = await log.create_session(key, **created)
    await session.set_compaction_policy(POLICY)
    await grow(session)
    return session


async def summaries(session: Session) -> list[CompactionCompleted]:
    """All summaries that were ever appended to it."""
    events = [each.event for each in await read_all(session)]
    return [each for each in events if isinstance(each, CompactionCompleted)]


async def failures(session: Session) -> list[CompactionFailed]:
    """All failures that were ever appended to it."""
    events = [each.event for each in await read_all(session)]
    return [each for each in events if isinstance(each, CompactionFailed)]


class ContextRow(msgspec.Struct, frozen=True):
    """What the table says of a session."""

    seq: int
    tokens: int
    why: str
    due: bool
    due_at_us: int | None


async def row_of(log: EventLog, session_id: UUID) -> ContextRow | None:
    """The session's row."""
    async with log.store.connection() as connection:  # type: ignore[attr-defined]
        record = await connection.fetchrow(
            "select seq, tokens, why, coalesce(due_at <= now(), false), due_at"
            " from eventlog.context_views where session_id = $1",
            session_id,
        )
    return None if record is None else ContextRow(*record)


class Worker:
    """A compact-worker as a task."""

    def __init__(self, log: EventLog, hands: Hands, fallback: Hands, **changes: Any) -> None:
        self.hands = hands
        self.fallback = fallback
        self.stop = asyncio.Event()
        settings = {"claim_seconds": CLAIM_SECONDS, "lease_seconds": LEASE_SECONDS, **changes}
        work = SessionWork(log, hands, fallback=fallback)
        self.compactor = Compactor(log, work, **settings)
        self.task = asyncio.create_task(self.compactor.run(self.stop))

    async def end(self) -> None:
        """Stop it as a signal does."""
        self.stop.set()
        await self.task


Start = Callable[..., Worker]


@pytest.fixture
async def hands() -> Hands:
    """The summarizer of all workers of a test."""
    return Hands()


@pytest.fixture
async def fallback() -> Hands:
    """What they fall back to."""
    return Hands()


@pytest.fixture
async def start(hands: Hands, fallback: Hands) -> AsyncIterator[Start]:
    """Starts workers that end with the test."""
    started: list[Worker] = []

    def begin(log: EventLog, **changes: Any) -> Worker:
        started.append(Worker(log, hands, fallback, **changes))
        return started[-1]

    yield begin
    hands.let.set()
    for each in started:
        if not each.task.done():
            await each.end()


@pytest.fixture
def valkey(tmp_path: Any) -> Any:
    """A Valkey that the test may flush, stop and start again."""
    with temporary_valkey(tmp_path) as server:
        yield server


@pytest.fixture
async def own_log(open_log: OpenLog, valkey: ValkeyServer) -> EventLog:
    """A log on that Valkey."""
    return await open_log(redis=valkey.url)


async def settled(log: EventLog, session: Session) -> bool:
    """Whether nothing is due in the session, by its row."""
    row = await row_of(log, session.id)
    return row is None or not row.due
