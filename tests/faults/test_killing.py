"""Everything is killed at random moments for a while; afterwards nothing may be wrong.

Postgres as a whole or one of its backends, Valkey, the relay, the projector, the process that
appends and the one that subscribes get SIGKILL, one after another, and are started again. Then the
log is compared with the journals that the processes wrote before and after each thing they did.

`EVENTLOG_TEST_FAULT_SECONDS` (60) says for how long, `EVENTLOG_TEST_FAULT_SEED` repeats a run's
choices.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from eventlog import (
    EventLog,
    MessageAdded,
    MessageCompleted,
    MessageInterrupted,
    RecordedEvent,
    TokenAppended,
    Unavailable,
)
from eventlog.embedded.temporary import (
    PostgresServer,
    ValkeyServer,
    temporary_postgres,
    temporary_valkey,
)
from eventlog.schema import migrate
from eventlog.testing import read_all, until
from projections.checkpoint import PROJECTION
from tests.faults.actors import DUPLICATE, SESSIONS, UNKNOWN, UNNAMED, key
from tests.faults.children import end, start_python
from tests.projections.checks import differences
from tests.support.checker import (
    Checkpoint,
    Done,
    History,
    Journal,
    Record,
    Report,
    Sent,
    check,
    mark_of,
    read_journal,
)
from tests.support.servers import connected
from workers.projector import lag

SECONDS = float(os.environ.get("EVENTLOG_TEST_FAULT_SECONDS", "60"))
HEALED_SECONDS_MAX = 60.0
STORED_AFTER_FAULTS = 1_000
"""Appends that must be acknowledged after the last fault."""
LOOK_SECONDS = 0.25
"""Pause between two looks at checkpoints and processes."""
TARGETS = ("postgres", "backend", "valkey", "relay", "project", "append", "follow")

Events = dict[str, list[RecordedEvent]]
"""By session id."""


class Lab:
    """The servers and the processes, and the means to kill them."""

    def __init__(self, postgres: PostgresServer, valkey: ValkeyServer, folder: Path) -> None:
        self.postgres = postgres
        self.valkey = valkey
        self.folder = folder
        self.faults = Journal(self.journal("faults"))
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.kills: Counter[str] = Counter()

    def journal(self, role: str) -> Path:
        """What a role wrote down, over all its lives."""
        return self.folder / f"{role}.journal"

    def log(self, role: str) -> Path:
        """What a role said."""
        return self.folder / f"{role}.log"

    async def start(self, role: str) -> None:
        """Start a process in its role."""
        postgres, redis = self.postgres.url, self.valkey.url
        arguments = (
            ["-m", "tests.faults.actors", role, postgres, redis, str(self.journal(role))]
            if role in ("append", "follow")
            else ["-m", "workers.cli", role]
        )
        self.processes[role] = await start_python(
            *arguments,
            output=self.log(role),
            EVENTLOG_POSTGRES_URL=postgres,
            EVENTLOG_REDIS_URL=redis,
        )

    async def supervise(self) -> None:
        """Start a worker again that gave up, as happens while Postgres recovers."""
        while True:
            for role in ("relay", "project"):
                process = self.processes.get(role)
                if process is not None and process.returncode is not None:
                    await self.start(role)
            await asyncio.sleep(LOOK_SECONDS)

    async def kill(self, target: str) -> None:
        """SIGKILL one of them, and start it again."""
        self.kills[target] += 1
        self.faults.fault(target)
        if target == "postgres":
            await asyncio.to_thread(self.postgres.kill)
            await asyncio.to_thread(self.postgres.start)
        elif target == "valkey":
            await asyncio.to_thread(self.valkey.kill)
            await asyncio.to_thread(self.valkey.start)
        elif target == "backend":
            await self._kill_backend()
        else:
            await end(self.processes[target])
            await self.start(target)
        self.faults.fault(f"{target}, started again")

    async def _kill_backend(self) -> None:
        try:
            async with connected(self.postgres.url) as connection:
                pids = await connection.fetch(
                    "select pid from pg_stat_activity where application_name = 'eventlog'"
                )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return  # it is just recovering from the last kill
        if pids:
            with suppress(ProcessLookupError):
                os.kill(random.choice(pids)[0], signal.SIGKILL)

    async def watch_checkpoints(self) -> None:
        """Note where the projection stands, again and again."""
        while True:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with connected(self.postgres.url) as connection:
                    records = await connection.fetch(
                        "select shard, epoch, position from eventlog.checkpoints"
                        " where projection = $1",
                        PROJECTION,
                    )
                for shard, epoch, position in records:
                    self.faults.write(
                        Checkpoint(PROJECTION, shard, epoch, position, time.monotonic())
                    )
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            await end(process)
        self.faults.close()


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
        watching = asyncio.gather(made.watch_checkpoints(), made.supervise())
        try:
            for role in ("relay", "project", "append", "follow"):
                await made.start(role)
            yield made
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await made.stop()


@pytest.mark.faults
@pytest.mark.timeout(SECONDS + 4 * HEALED_SECONDS_MAX)
async def test_everything_when_killed_at_random_loses_and_doubles_nothing(lab: Lab) -> None:
    """Acknowledged events are there once, subscribers contiguous, views equal to the fold.

    In the end an event is deleted behind the log's back: the check must find that.
    """
    seed = int(os.environ.get("EVENTLOG_TEST_FAULT_SEED", random.randrange(10**6)))
    sys.stdout.write(f"\nseed {seed}\n")
    await kill_at_random(lab, random.Random(seed))
    await write_on(lab)

    async with EventLog.open(lab.postgres.url, lab.valkey.url) as log:
        sessions = [log.handle(log.session_id(key(number))) for number in range(SESSIONS)]
        events = {str(each.id): await read_all(each) for each in sessions}
        await catch_up(log, lab, sum(map(len, events.values())))
        records = read_journal(*map(lab.journal, ("append", "follow", "faults")))
        report = checked(records, events)
        said = Counter(lab.log("append").read_text(errors="replace").split("\n"))
        sys.stdout.write(
            f"{sum(lab.kills.values())} kills {dict(lab.kills)}: {dict(report.counts)}, "
            f"{said[DUPLICATE]} duplicates recognised, {said[UNKNOWN]} outcomes unknown, "
            f"{len(report.violations)} violations\n"
        )
        assert not report.violations, str(report)
        assert [each for mine in events.values() for each in wrong_replies(mine)] == []
        assert await differences(log) == []
        assert_shown(lab, records, report, said)

        await delete_one(lab, records)
        events = {str(each.id): await read_all(each) for each in sessions}
        assert {"lost", "gap", "wrong"} <= checked(records, events).kinds


async def delete_one(lab: Lab, records: list[Record]) -> None:
    """Delete an acknowledged event behind the log's back."""
    sent = {each.op: each for each in records if isinstance(each, Sent)}
    done = next(each for each in records if isinstance(each, Done) and each.outcome == "stored")
    async with connected(lab.postgres.url) as superuser:
        await superuser.execute(
            "delete from eventlog.events where session_id = $1::text::uuid and seq = $2",
            sent[done.op].session,
            done.first_seq,
        )


async def kill_at_random(lab: Lab, choices: random.Random) -> None:
    """Each of the targets in turn, in an order that changes, for `SECONDS`."""
    order = list(TARGETS)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        choices.shuffle(order)
        for target in order:
            await asyncio.sleep(choices.uniform(0.1, 1.5))
            await lab.kill(target)


async def write_on(lab: Lab) -> None:
    """Wait until the appender has gone on for a while after the last fault, and let it finish."""
    faults_end = len(lab.journal("append").read_bytes())
    appender = lab.processes["append"]

    def has_gone_on() -> bool:
        assert appender.returncode is None, "the appender gave up: see its log"
        noted = lab.journal("append").read_bytes()[faults_end:]
        return noted.count(b'"stored"') >= STORED_AFTER_FAULTS

    await until(has_gone_on, seconds=HEALED_SECONDS_MAX)
    appender.send_signal(signal.SIGTERM)
    async with asyncio.timeout(HEALED_SECONDS_MAX):
        assert await appender.wait() == 0


async def catch_up(log: EventLog, lab: Lab, total: int) -> None:
    """Wait until subscribers and views are at the end of the log."""
    await until(lambda: delivered_in(lab.journal("follow")) >= total, seconds=HEALED_SECONDS_MAX)
    await until(lambda: has_no_lag(log), seconds=HEALED_SECONDS_MAX)


def delivered_in(journal: Path) -> int:
    """Deliveries that were noted."""
    return journal.read_bytes().count(b'"Delivered"')


async def has_no_lag(log: EventLog) -> bool:
    """Whether the views show all there is."""
    try:
        return not any((await lag(log)).values())
    except Unavailable:
        return False


def checked(records: list[Record], events: Events) -> Report:
    """The journals against the log; in them are no replies, and no first events of sessions."""
    history: History = {
        session: [(each.seq, mark_of(each.event)) for each in mine]
        for session, mine in events.items()
    }
    others: list[Record] = [
        Sent(f"{session} {each.seq}", session, [mark_of(each.event)], 0.0)
        for session, mine in events.items()
        for each in mine
        if not isinstance(each.event, MessageAdded)
    ]
    return check([*others, *records], history, complete=True)


def wrong_replies(events: list[RecordedEvent]) -> list[str]:
    """Each reply's increments count 0, 1, 2, … and its end begins with them.

    A complete reply is nothing but its increments; one that was interrupted keeps what its writer
    could not store any more.
    """
    texts: dict[str, str] = {}
    ends: dict[str, MessageCompleted | MessageInterrupted] = {}
    for recorded in events:
        event = recorded.event
        if isinstance(event, TokenAppended):
            texts[event.message_id] = texts.get(event.message_id, "") + event.text
        elif isinstance(event, MessageCompleted | MessageInterrupted):
            ends[event.message_id] = event
    found: list[str] = []
    for message_id, text in texts.items():
        if text != "".join(f"{number} " for number in range(text.count(" "))):
            found.append(f"{message_id}: increments are not contiguous: {text[-60:]!r}")
        end = ends.get(message_id)
        if end is None or not str(end.content).startswith(text):
            found.append(f"{message_id}: its end is not what was stored of it before")
        elif isinstance(end, MessageCompleted) and end.content != text:
            found.append(f"{message_id}: is complete, and was not stored completely")
    return found


def assert_shown(lab: Lab, records: list[Record], report: Report, said: Counter[str]) -> None:
    """A run in which these never happened has shown nothing."""
    settled = {each.op for each in records if isinstance(each, Done) and each.outcome == "unknown"}
    settled &= {each.op for each in records if isinstance(each, Done) and each.outcome == "stored"}
    assert all(lab.kills[target] for target in TARGETS)
    assert report.counts["stored_after_faults"] >= STORED_AFTER_FAULTS
    assert report.counts["reconnects"]
    assert report.counts["reads"]
    assert said[DUPLICATE]
    assert settled
    assert any(op.startswith(UNNAMED) for op in settled)
