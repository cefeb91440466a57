"""A cache can be wrong in no way: everybody at once, and every answer compared with the log.

For some seconds one task appends, two projectors write what they know into the cache (one of them a
zombie, far behind, that writes what it saw long ago), and readers in several processes ask for
views, metadata, scratchpads and contexts, with and without `min_seq`. Meanwhile, by case, entries
live for a second, keys are deleted at random, everything is flushed, or Redis stands still.

Afterwards each answer is judged by a fold of the log: it must be the fold at the seq it states (or
at some seq, where it states none), at least of the seq that was demanded, and for a context without
demand of all that was acknowledged before the question. Where nothing was lost in between, no
reader may have seen an entry go backwards. The controls take one rule away each, and must be
found out.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
import redis.asyncio

from eventlog import EventLog, Session
from eventlog import events as ev
from eventlog import folding as fold
from eventlog.cache import layout as cache_layout
from eventlog.cache.session_cache import SessionCache
from eventlog.embedded.temporary import ValkeyServer
from eventlog.reading.session_reader import SessionReader
from eventlog.state import SessionState
from eventlog.testing import message
from eventlog.views import view_of
from projections.cache import CacheWriter
from projections.folding import Change
from tests.conftest import OpenLog

APPENDS: Final = 120
ANSWERS_PER_APPEND: Final = 6
"""The appends wait for the readers, whatever holds these up."""
SESSIONS: Final = 3
SEED: Final = 20_261_122

Fold = dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """What a reader was told."""

    session_id: UUID
    part: str
    value: Any
    seq: int | None
    """The seq it states."""
    least: int
    """The seq that was demanded, or acknowledged before the question."""
    reader: str
    losses: int
    """How often something had been lost when the question was asked, and when it was answered."""
    losses_after: int


class Race:
    """One race: the logs, what was acknowledged, and the answers."""

    def __init__(self, logs: list[EventLog], sessions: list[Session]) -> None:
        self.logs = logs
        self.sessions = sessions
        self.acknowledged: dict[UUID, int] = {each.id: 1 for each in sessions}
        self.answers: list[Answer] = []
        self.losses = 0
        self.expiring = False
        """Anything may be lost between two answers."""
        self.done = asyncio.Event()
        self._answered = asyncio.Event()

    # --- those who write ---

    async def append(self) -> None:
        """Events that change every part at once; each content names its place."""
        for number in range(APPENDS):
            session = self.sessions[number % SESSIONS]
            done = await session.append(
                [
                    ev.ScratchpadWritten(name="n", value=number),
                    ev.SessionUpdated(metadata={"n": number, "half": number / 2}),
                    message(str(number)),
                ]
            )
            self.acknowledged[session.id] = done.last_seq
            await self.answered(ANSWERS_PER_APPEND * number)
        self.done.set()
        self._answered.set()

    async def answered(self, count: int) -> None:
        """Wait until readers were told so much, or the race is over."""
        while len(self.answers) < count and not self.done.is_set():
            self._answered.clear()
            await self._answered.wait()

    async def project(self, log: EventLog, *, behind: int) -> None:
        """Write, over and over, the newest fold; or one from `behind` turns ago."""
        writer = CacheWriter(log)
        seen: defaultdict[UUID, list[SessionState]] = defaultdict(list)
        while not self.done.is_set():
            changes = []
            for session in self.sessions:
                seq = self.acknowledged[session.id]
                known = seen[session.id]
                known.append(await log.replayer.structure(session.id, seq))
                del known[: -behind - 1]
                changes.append(_change(session, known[0]))
            for each in changes:
                await writer.write([each])

    # --- those who read ---

    async def read(self, log: EventLog, name: str, *, cold: bool) -> None:
        """Ask for everything, in turns, until the appends are done."""
        chance = random.Random(f"{SEED} {name}")
        while not self.done.is_set():
            session = log.handle(chance.choice(self.sessions).id)
            acknowledged = self.acknowledged[session.id]
            demanded = chance.choice([None, None, acknowledged, max(1, acknowledged - 5)])
            if cold:
                log.replayer.forget()
            part = chance.choice(["view", "metadata", "scratchpad", "context", "cached"])
            if part == "cached":
                await self._read_cache(log, session.id, name)
                continue
            losses = self.losses
            ask: Callable[..., Awaitable[Any]] = getattr(session, part)
            value = await ask(min_seq=demanded)
            least = demanded or (acknowledged if part == "context" else 0)
            seq = value.seq if part == "view" else None
            self._note(session.id, part, value, seq=seq, least=least, reader="", losses=losses)

    async def _read_cache(self, log: EventLog, session_id: UUID, name: str) -> None:
        """What the cache itself says, and of which seq."""
        cache = log.views.cache
        assert cache is not None
        for part in ("view", "metadata", "scratchpad", "context"):
            losses = self.losses
            found = await getattr(cache, part)(session_id)
            if found is not None:
                self._note(
                    session_id,
                    part,
                    found.value,
                    seq=found.seq,
                    least=0,
                    reader=name,
                    losses=losses,
                )

    def _note(
        self,
        session_id: UUID,
        part: str,
        value: Any,
        *,
        seq: int | None,
        least: int,
        reader: str,
        losses: int,
    ) -> None:
        self.answers.append(
            Answer(session_id, part, value, seq, least, reader, losses, self.losses)
        )
        self._answered.set()


def _change(session: Session, state: SessionState) -> Change:
    return Change(
        session_id=session.id,
        shard=session.shard,
        tenant_id=0,
        before=None,
        after=state,
        position=0,
        events=[],
    )


# --- the judge -----------------------------------------------------------------------------------


async def folds_of(session: Session) -> dict[int, Fold]:
    """Every part of the session at every seq, by a fold that knows no cache and no snapshot."""
    state = fold.initial(session.id)
    found: dict[int, Fold] = {}
    async for recorded in session.read():
        state = fold.evolve(state, recorded)
        found[state.seq] = {
            "view": view_of(state),
            "metadata": state.metadata,
            "scratchpad": state.scratchpad,
            "context": state.context(),
        }
    return found


async def faults_of(race: Race, truth: EventLog) -> list[str]:
    """What is wrong with the answers; empty: nothing."""
    faults: list[str] = []
    newest: dict[tuple[UUID, str, str], Answer] = {}
    folds = {each.id: await folds_of(truth.handle(each.id)) for each in race.sessions}
    for each in race.answers:
        of_session = folds[each.session_id]
        candidates = range(1, max(of_session) + 1) if each.seq is None else [each.seq]
        fitting = [seq for seq in candidates if same(of_session[seq][each.part], each.value)]
        if not fitting:
            faults.append(f"{each.part} is not the fold at {each.seq}: {each.value!r:.200}")
        elif max(fitting) < each.least:
            faults.append(f"{each.part} is of {max(fitting)}, before {each.least}")
        if not each.reader or each.seq is None:
            continue
        place = (each.session_id, each.part, each.reader)
        before = newest.get(place)
        if before is not None and before.losses == each.losses_after and not race.expiring:
            assert before.seq is not None
            if each.seq < before.seq:
                faults.append(f"{each.part} went from {before.seq} back to {each.seq}")
        newest[place] = each
    return faults


def same(one: Any, other: Any) -> bool:
    """Equal down to types and order."""
    return bool(one == other) and repr(one) == repr(other)


# --- the trouble ---------------------------------------------------------------------------------

Trouble = Callable[[Race, ValkeyServer], Coroutine[Any, Any, None]]


async def no_trouble(race: Race, server: ValkeyServer) -> None:
    """Nothing is lost."""


async def eviction(race: Race, server: ValkeyServer) -> None:
    """Caches are deleted one by one, as Redis does when it is full."""
    chance = random.Random(SEED)
    async with redis.asyncio.from_url(server.url, socket_timeout=60) as client:
        while not race.done.is_set():
            names = [name async for name in client.scan_iter() if b":feed" not in name]
            race.losses += 1
            if names:
                await client.delete(chance.choice(names))
            race.losses += 1
            await race.answered(len(race.answers) + 3)


async def flushing(race: Race, server: ValkeyServer) -> None:
    """FLUSHALL, again and again, feeds and all."""
    async with redis.asyncio.from_url(server.url, socket_timeout=60) as client:
        while not race.done.is_set():
            race.losses += 1
            await client.flushall()
            race.losses += 1
            await race.answered(len(race.answers) + 20)


async def standstill(race: Race, server: ValkeyServer) -> None:
    """Redis hangs until readers have noticed, then goes on with what it was told meanwhile."""
    for _ in range(2):
        await race.answered(len(race.answers) + 50)
        await asyncio.to_thread(server.pause)
        try:
            await race.answered(len(race.answers) + 50)
        finally:
            await asyncio.to_thread(server.resume)


@asynccontextmanager
async def racing(
    open_log: OpenLog, server: ValkeyServer, *, ttl_seconds: int = 3_600
) -> AsyncIterator[tuple[Race, EventLog]]:
    """Sessions, and logs as if in four processes; and a log without Redis, to tell the truth."""
    logs = [await open_log(redis=server.url, cache_ttl_seconds=ttl_seconds) for _ in range(4)]
    truth = await open_log(redis="none")
    sessions = [await truth.create_session(metadata={"n": -1}) for _ in range(SESSIONS)]
    yield Race(logs, sessions), truth


async def run(race: Race, server: ValkeyServer, trouble: Trouble) -> None:
    """The race, to its end."""
    one, two, three, four = race.logs
    async with asyncio.TaskGroup() as group:
        group.create_task(trouble(race, server))
        group.create_task(race.project(one, behind=0))
        group.create_task(race.project(two, behind=8))
        for name, log in (("a", three), ("b", four)):
            group.create_task(race.read(log, name, cold=name == "a"))
            group.create_task(race.read(log, name + "'", cold=False))
        group.create_task(race.append())


@pytest.mark.faults
@pytest.mark.parametrize("trouble", [no_trouble, eviction, flushing, standstill])
async def test_answers_when_everybody_races_are_folds_of_the_log(
    open_log: OpenLog, cache_server: ValkeyServer, trouble: Trouble
) -> None:
    """Late writers, readers of all kinds, and a Redis that loses things: no answer is wrong."""
    async with racing(open_log, cache_server) as (race, truth):
        await run(race, cache_server, trouble)

        assert await faults_of(race, truth) == []
        parts = {each.part for each in race.answers if each.reader}
        assert len(parts) == 4


@pytest.mark.faults
async def test_answers_when_entries_live_for_a_second_are_folds_of_the_log(
    open_log: OpenLog, cache_server: ValkeyServer
) -> None:
    """Entries expire while they are written and read."""
    async with racing(open_log, cache_server, ttl_seconds=1) as (race, truth):
        race.expiring = True
        await run(race, cache_server, no_trouble)

        assert await faults_of(race, truth) == []


# --- controls ------------------------------------------------------------------------------------

ALWAYS: Final = "version > known_version or (version == known_version and seq > known_seq)"


def no_comparison(monkeypatch: pytest.MonkeyPatch) -> str:
    """Whoever writes last wins."""
    for layout in (cache_layout.HASH, cache_layout.JSON, cache_layout.CONTEXT):
        assert ALWAYS in layout.script
        monkeypatch.setattr(layout, "script", layout.script.replace(ALWAYS, "true"))
    return "back to"


def parts_of_any_seq(monkeypatch: pytest.MonkeyPatch) -> str:
    """A newer write leaves parts standing that are older than it says."""
    for layout in (cache_layout.HASH, cache_layout.JSON):
        script = layout.script
        script = script.replace("redis.call('DEL', key)", "")
        script = script.replace("write = 'HSET'", "write = 'HSETNX'")
        if layout is cache_layout.JSON:
            whole = script[script.index("redis.call('JSON.SET', key, '$', ") :]
            whole = whole[: whole.index("'}')") + 4]
            script = script.replace(
                whole,
                f"if known_seq >= 0 then redis.call('JSON.SET', key, '$.seq', ARGV[place + 2])"
                f" else {whole} end",
            )
        monkeypatch.setattr(layout, "script", script)
    return "is not the fold"


def any_context(monkeypatch: pytest.MonkeyPatch) -> str:
    """A cached context is taken as it is, whatever its seq."""
    read = SessionReader._read_through

    async def trusting(
        self: SessionReader,
        cache: SessionCache,
        session_id: UUID,
        min_seq: int | None,
        **keys: Any,
    ) -> list[dict[str, Any]]:
        found = await cache.context(session_id)
        return await read(self, cache, session_id, min_seq, **keys) if not found else found.value

    monkeypatch.setattr(SessionReader, "_read_through", trusting)
    return "before"


@pytest.mark.faults
@pytest.mark.parametrize("remove", [no_comparison, parts_of_any_seq, any_context])
async def test_answers_when_a_rule_is_missing_are_found_out(
    open_log: OpenLog,
    cache_server: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
    remove: Callable[[pytest.MonkeyPatch], str],
) -> None:
    """Control: without one of the rules the same race has wrong answers, and the judge says so."""
    expected = remove(monkeypatch)
    async with racing(open_log, cache_server) as (race, truth):
        await run(race, cache_server, no_trouble)

        assert any(expected in each for each in await faults_of(race, truth))
