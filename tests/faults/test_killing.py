"""Everything is killed at random moments for a while; afterwards nothing may be wrong.

Postgres as a whole or one of its backends, Valkey, the relay, the projector, the process that
appends and the one that subscribes get SIGKILL, one after another, and are started again. Then the
log is compared with what the processes wrote down before and after each thing they did.

`EVENTLOG_TEST_FAULT_SECONDS` (60) says for how long, `EVENTLOG_TEST_FAULT_SEED` repeats a run's
choices.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from eventlog import EventLog, MessageAdded, Unavailable
from eventlog.embedded.temporary import (
    PostgresServer,
    ValkeyServer,
    temporary_postgres,
    temporary_valkey,
)
from eventlog.events import TokenAppended
from eventlog.schema import migrate
from tests.faults.actors import SESSIONS, STREAMS, Delivery, Op, key, read_notes
from tests.faults.checker import (
    Stored,
    badly_delivered,
    gaps,
    lost_or_doubled,
    out_of_order,
)
from tests.projections.checks import differences
from workers.projector import lag

SECONDS = float(os.environ.get("EVENTLOG_TEST_FAULT_SECONDS", "60"))
HEALED_SECONDS_MAX = 60.0
ACKS_AFTER_THE_LAST_FAULT = 1_000
ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("postgres", "backend", "valkey", "relay", "project", "append", "follow")


class Lab:
    """The servers and the processes, and the means to kill them."""

    def __init__(self, postgres: PostgresServer, valkey: ValkeyServer, folder: Path) -> None:
        self.postgres = postgres
        self.valkey = valkey
        self.folder = folder
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.kills: Counter[str] = Counter()

    async def start(self, role: str) -> None:
        """Start a process in its role, with its notes."""
        postgres, redis = self.postgres.url, self.valkey.url
        arguments = (
            ["-m", "tests.faults.actors", role, postgres, redis, str(self.notes(role))]
            if role in ("append", "follow")
            else ["-m", "workers.cli", role]
        )
        with (self.folder / f"{role}.log").open("ab") as output:
            self.processes[role] = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "EVENTLOG_POSTGRES_URL": postgres,
                    "EVENTLOG_REDIS_URL": redis,
                },
            )

    def notes(self, role: str) -> Path:
        return self.folder / f"{role}.jsonl"

    async def kill(self, target: str) -> None:
        """SIGKILL one of them, and start it again."""
        self.kills[target] += 1
        if target == "postgres":
            await asyncio.to_thread(self.postgres.kill)
            await asyncio.to_thread(self.postgres.start)
        elif target == "valkey":
            await asyncio.to_thread(self.valkey.kill)
            await asyncio.to_thread(self.valkey.start)
        elif target == "backend":
            await self._kill_backend()
        else:
            process = self.processes[target]
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await self.start(target)

    async def _kill_backend(self) -> None:
        try:
            connection = await asyncpg.connect(self.postgres.url, timeout=5)
            pids = await connection.fetch(
                "select pid from pg_stat_activity where application_name = 'eventlog'"
            )
            await connection.close()
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return  # it is just recovering from the last kill
        if pids:
            with suppress(ProcessLookupError):
                os.kill(random.choice(pids)[0], signal.SIGKILL)

    async def stop(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Servers of the test's own, the schema, the sessions, and all processes running."""
    folder = tmp_path / "lab"
    folder.mkdir()
    with (
        temporary_postgres(tmp_path / "postgres") as postgres,
        temporary_valkey(tmp_path / "valkey", appendonly=True) as valkey,
    ):
        await migrate(postgres.url)
        async with EventLog.open(postgres.url, valkey.url) as log:
            for number in range(SESSIONS):
                await log.create_session(key(number))
        made = Lab(postgres, valkey, folder)
        try:
            for role in ("relay", "project", "append", "follow"):
                await made.start(role)
            yield made
        finally:
            await made.stop()


async def contents(log: EventLog) -> Stored:
    """All events, by session."""
    stored: Stored = {}
    for number in range(SESSIONS):
        session = log.handle(log.session_id(key(number)))
        stored[key(number)] = [
            (
                event.seq,
                event.event_id,
                str(event.event.content) if isinstance(event.event, MessageAdded) else "",
            )
            async for event in session.read()
        ]
    return stored


async def replies_are_what_was_streamed(log: EventLog) -> list[str]:
    """Each reply's increments count 0, 1, 2, … and its end says the same."""
    found: list[str] = []
    for number in range(STREAMS):
        session = log.handle(log.session_id(key(number)))
        texts: dict[str, str] = {}
        async for recorded in session.read():
            if isinstance(recorded.event, TokenAppended):
                name = recorded.event.message_id
                texts[name] = texts.get(name, "") + recorded.event.text
        state = await session.replay()
        ended = {each.message_id: each.content for each in state.messages if each.agent}
        for name, text in texts.items():
            count = text.count(" ")
            if text != "".join(f"{each} " for each in range(count)):
                found.append(f"{name}: increments are not contiguous: {text[-60:]!r}")
            if ended.get(name) != text:
                found.append(f"{name}: ended as {str(ended.get(name))[-40:]!r}, not {text[-40:]!r}")
    return found


@pytest.mark.faults
@pytest.mark.timeout(SECONDS + 4 * HEALED_SECONDS_MAX)
async def test_everything_when_killed_at_random_loses_and_doubles_nothing(lab: Lab) -> None:
    """Acknowledged events are there once, subscribers contiguous, views equal to the fold."""
    seed = int(os.environ.get("EVENTLOG_TEST_FAULT_SEED", random.randrange(10**6)))
    choices = random.Random(seed)
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    order = list(TARGETS)
    while loop.time() < end:
        choices.shuffle(order)
        for target in order:
            await asyncio.sleep(choices.uniform(0.1, 1.5))
            await lab.kill(target)
    faults_end = len(lab.notes("append").read_bytes())

    async with asyncio.timeout(HEALED_SECONDS_MAX):
        while acks(lab.notes("append"), after=faults_end) < ACKS_AFTER_THE_LAST_FAULT:
            assert lab.processes["append"].returncode is None, "the appender gave up: see its log"
            await asyncio.sleep(0.2)
    lab.processes["append"].send_signal(signal.SIGTERM)
    async with asyncio.timeout(HEALED_SECONDS_MAX):
        assert await lab.processes["append"].wait() == 0

    async with EventLog.open(lab.postgres.url, lab.valkey.url) as log:
        stored = await contents(log)
        total = sum(map(len, stored.values()))
        await caught_up(log, lab, total)
        ops = read_notes(lab.notes("append"), Op)
        deliveries = read_notes(lab.notes("follow"), Delivery)
        acked = sum(1 for op in ops if op.seq)
        sys.stdout.write(
            f"\nseed {seed}: {sum(lab.kills.values())} kills {dict(lab.kills)}, "
            f"{acked} appends acknowledged, {total} events, "
            f"{sum(op.duplicate for op in ops)} retries that were duplicates, "
            f"{sum(each.resumed for each in deliveries)} subscriptions resumed\n"
        )
        assert lost_or_doubled(ops, stored) == []
        assert gaps(stored) == []
        assert out_of_order(ops) == []
        assert badly_delivered(deliveries, stored) == []
        assert await replies_are_what_was_streamed(log) == []
        assert await differences(log) == []
    # A run in which these never happened has shown nothing.
    assert all(lab.kills[target] for target in TARGETS)
    assert any(op.duplicate for op in ops)
    assert any(each.resumed for each in deliveries)


def acks(path: Path, *, after: int) -> int:
    """Acknowledged appends noted behind a byte of the file."""
    return path.read_bytes()[after:].count(b'"seq":')


async def caught_up(log: EventLog, lab: Lab, total: int) -> None:
    """Wait until subscribers and views are at the end of the log."""
    async with asyncio.timeout(HEALED_SECONDS_MAX):
        while lab.notes("follow").read_bytes().count(b"\n") < total:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        while True:
            with suppress(Unavailable):
                if not any((await lag(log)).values()):
                    return
            await asyncio.sleep(0.2)
