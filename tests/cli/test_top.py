"""`eventlog top`: on a terminal, as text, as JSON; small and wide; with servers that are down."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from eventlog import EventLog, MessageAdded
from eventlog.testing import message
from projections.lag import ShardLag
from projections.watching import ActiveSession, Look, PostgresFacts, RedisFacts
from tests.cli.command import MODULE, WAIT_SECONDS_MAX, CommandLine
from tests.projections.checks import project_all, session_in_shard, take_shards
from tests.support.proxy import Proxy, proxy
from workers.commands.top_frame import Frame, History, Identity
from workers.commands.top_lag import heat
from workers.commands.top_screen import screen
from workers.commands.top_text import duration, rate, short, sparkline

ALTERNATE_SCREEN = b"\x1b[?1049h"
MAIN_SCREEN = b"\x1b[?1049l"
HOSTILE = "over\rwritten \x1b]0;title\x07 \x1b[2J[bold]a\u202eb"
IDENTITY = Identity(
    log_id="5067e5b0" * 4,
    shards=16,
    tenant_id=0,
    postgres_origin="Postgres from EVENTLOG_POSTGRES_URL (db:5432/log)",
    redis_origin="Redis from EVENTLOG_REDIS_URL (cache:6379/0)",
    feed_rows_max=10_000,
)


# --- the screen ----------------------------------------------------------------------------------


def facts(*, shards: int = 16, rows: int = 100, behind: int = 0, **changes: Any) -> PostgresFacts:
    """What Postgres may say: every shard `rows` long, shard n behind by n times `behind`."""
    lags = [
        ShardLag(shard, rows, rows - shard * behind, shard * behind * 0.5, f"host:1:{shard % 3}")
        for shard in range(shards)
    ]
    found = PostgresFacts(
        epoch="1-1",
        uptime_seconds=7300.0,
        lags={"views": lags},
        parked={},
        active_soon=3,
        active_recently=12,
        open_replies=1,
        newest=[session("chat-42", title="Deploy to production")],
    )
    return msgspec.structs.replace(found, **changes)


def session(key: str, *, title: str = "", seq: int = 7) -> ActiveSession:
    """A session that was active just now."""
    made = uuid.uuid5(uuid.NAMESPACE_URL, key)
    return ActiveSession(made, key, "ada", title, "planner", seq, datetime.now(UTC))


def redis_facts(*, shards: int = 16, end: int = 100) -> RedisFacts:
    """What Redis may say."""
    return RedisFacts(
        version="9.1",
        uptime_seconds=50.0,
        used_bytes=75_000_000,
        max_bytes=100_000_000,
        clients=5,
        feed_lengths=[end] * shards,
        feed_ends=[end] * shards,
    )


def seen(
    at_seconds: float, postgres: PostgresFacts | None, redis: RedisFacts | None, **changes: Any
) -> Look:
    """A look."""
    look = Look(
        at_seconds=at_seconds,
        postgres=postgres,
        postgres_error="" if postgres else "Postgres: ConnectionRefusedError: no\x1b[2Jbody",
        redis=redis,
        redis_error="" if redis else "Redis: gone",
        has_redis=True,
    )
    return msgspec.structs.replace(look, **changes)


def shown(frame: Frame, columns: int = 80, lines: int = 24) -> str:
    """The screen as text."""
    file = io.StringIO()
    console = Console(file=file, width=columns, markup=False, highlight=False, emoji=False)
    console.print(screen(frame, columns, lines))
    return file.getvalue()


def two_frames(**changes: Any) -> Frame:
    """A frame with rates: 100 rows in 16 shards each, 2 s after 50."""
    history = History(IDENTITY)
    before = facts(rows=50, newest=[session("chat-42", seq=3)])
    history.frame(seen(10.0, before, redis_facts(end=50)))
    return history.frame(seen(12.0, facts(**changes), redis_facts()), 2.5)


def test_screen_when_all_is_well_shows_rates_lag_and_sessions() -> None:
    """Rates are differences between two looks; the events in them are estimated."""
    text = shown(two_frames())

    assert "appended        400 rows/s  ≈   1,000 events/s" in text
    assert "projected       400 rows/s" in text
    assert "caught up" in text
    assert re.search(r"host:1 +6 shards  0 3 6 9 12 15", text)
    assert "75.0 MB of 100.0 MB" in text
    assert "at most 100 of about 10,000 · at the end of the log" in text
    assert "3 active in 1 min · 12 in 5 min · 1 reply open · 0 parked" in text
    assert re.search(r"2\.0 +7  0 s ago +chat-42 +Deploy", text)


def test_screen_when_shards_are_behind_has_the_worst_first() -> None:
    """Also who should know: how far the feeds are, what is parked, which shards nobody holds."""
    free = [ShardLag(0, 100, 40, 9.0, None), ShardLag(1, 100, 90, 2.0, "w:1:a")]
    text = shown(two_frames(rows=200, lags={"views": free}, parked={"views": 2}))
    many = shown(two_frames(behind=2))

    assert "70 rows and 9.0 s behind · nobody holds 0 · 2 sessions parked" in text
    assert text.index("#0 60 rows 9.0 s") < text.index("#1 10 rows 2.0 s")
    assert many.index("#15 30 rows 15.0 s") < many.index("#14 28 rows 14.0 s")
    assert "more shards" in many
    late = History(IDENTITY).frame(seen(1.0, facts(rows=110), redis_facts(end=100)))
    assert "160 rows behind the log" in shown(late)


@pytest.mark.parametrize("columns", [1, 7, 20, 40, 80, 129, 130, 200, 400])
@pytest.mark.parametrize("shards", [1, 16, 4096])
def test_screen_when_of_any_size_fits(columns: int, shards: int) -> None:
    """No line is wider than the terminal, and there are no more lines than it has."""
    identity = msgspec.structs.replace(IDENTITY, shards=shards)
    newest = [session(f"漢字-{number}", title="漢" * 300) for number in range(100)]
    workers = [
        ShardLag(shard, 10**9, 10**9 - shard, shard * 0.1, f"host-{shard}:1:a")
        for shard in range(shards)
    ]
    for lines in (1, 5, 24, 60):
        history = History(identity)
        now = facts(lags={"views": workers, "rebuild:views": workers}, newest=newest)
        frame = history.frame(seen(1.0, now, redis_facts(shards=shards)))
        text = shown(frame, columns, lines).rstrip("\n").split("\n")

        assert len(text) <= lines
        assert all(cell_len(line) <= columns for line in text)


def test_screen_when_names_are_hostile_obeys_none() -> None:
    """Titles and keys of sessions, names of workers, errors: shown, never obeyed."""
    lags = [ShardLag(0, 1, 1, 0.0, f"{HOSTILE}:1:a")]
    evil = facts(newest=[session(HOSTILE, title=HOSTILE)], lags={"views": lags, HOSTILE: lags})
    for columns in (80, 200):
        for look in (seen(1.0, evil, redis_facts(shards=1)), seen(1.0, None, None)):
            text = shown(History(IDENTITY).frame(look), columns, 60)
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "⟨U+202E⟩" in shown(History(IDENTITY).frame(seen(1.0, evil, redis_facts())), 200)


def test_screen_when_servers_are_down_says_so_and_goes_on() -> None:
    """What isn't known is named; what is known stays."""
    history = History(IDENTITY)
    history.frame(seen(1.0, facts(rows=10), redis_facts(end=10)))
    no_postgres = history.frame(seen(2.0, None, redis_facts(end=10)))
    back = history.frame(seen(3.0, facts(rows=20), None))
    no_redis = msgspec.structs.replace(IDENTITY, redis_origin="no Redis: subscriptions poll")
    without = History(no_redis).frame(seen(1.0, facts(), None, has_redis=False, redis_error=""))

    assert "✗ Postgres  down: ConnectionRefusedError" in shown(no_postgres)
    assert "not known while Postgres is down" in shown(no_postgres)
    assert "the log is not known" in shown(no_postgres)
    assert (no_postgres.appended, back.appended) == (None, 80.0)
    assert "✗ Redis     down: gone" in shown(back)
    assert "appends go on" in shown(back)
    assert "○ Redis     no Redis: subscriptions poll" in shown(without)
    assert "none, on purpose" in shown(without)


def test_numbers_when_shown_stay_short() -> None:
    """A few characters whatever their size."""

    assert [rate(None), rate(0.0), rate(0.25), rate(12.6), rate(12_345.0)] == [
        *("–", "0", "0.2", "13", "12,345"),
    ]
    assert [short(940), short(12_300), short(45_000_000)] == ["940", "12.3k", "45.0M"]
    assert [duration(each) for each in (0.04, 1.25, 119, 200, 9_000, 200_000)] == [
        *("40 ms", "1.2 s", "119.0 s", "3 min", "2 h", "2 d"),
    ]
    assert sparkline([None, 0.0, 5.0, 10.0], 6) == "   ▁▅█"
    assert sparkline([0.0], 1) == "▁"
    assert heat([ShardLag(n, 9, 9 - n % 2, n * 1.0, "w") for n in range(8)], 4).plain == "▅▅▆▆"


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
async def watched(log: EventLog, postgres_url: str, redis_url: str) -> AsyncIterator[CommandLine]:
    """The command, on a log with a session whose title is hostile, and two rows behind."""
    made = await session_in_shard(log, 3, key="chat-42", title=HOSTILE, user_id="ada")
    await project_all(log)
    await made.append([message("one"), message("two")])
    await take_shards(log, owner="host:1:a")
    yield CommandLine({"data": "/nowhere", "postgres_url": postgres_url, "redis_url": redis_url})


async def test_top_when_there_is_no_terminal_prints_one_frame(watched: CommandLine) -> None:
    """As with --once; plain text, nothing that a terminal would obey."""
    for arguments in (("top",), ("top", "--once")):
        done = await asyncio.to_thread(watched.run, *arguments)

        assert "\x1b" not in done.stdout
        assert "views     2 rows" in done.stdout
        assert re.search(r"#3 2 rows \d", done.stdout)
        assert re.search(r"host:1 +16 shards  0-15", done.stdout)
        assert re.search(r"chat-42 +ada|chat-42 +over", done.stdout)
        assert "[bold]a⟨U+202E⟩b" in done.stdout
        assert done.stderr == ""


async def test_top_when_asked_for_json_prints_objects(watched: CommandLine, log: EventLog) -> None:
    """One with --once; else one after the other, until it is told to stop."""
    once = json.loads((await asyncio.to_thread(watched.run, "top", "--json", "--once")).stdout)
    async with await watched.start("top", "--json", "--interval", "0.2") as running:
        await running.until("\n{")
        await running.interrupt(signal.SIGTERM)
    lines = [json.loads(line) for line in running.output.splitlines()]

    assert running.process.returncode == 0
    assert len(lines) >= 2
    for found in (once, *lines):
        views = found["projections"]["views"]
        assert (views["rows_behind"], views["shards"][0]["shard"]) == (2, 3)
        assert views["seconds_behind"] > 0
        assert views["held_by"] == {"host:1": list(range(log.store.shards))}
        assert found["postgres"]["up"]
        assert found["redis"]["up"]
        assert found["redis"]["feeds_behind_rows"] == 0
        assert found["rows_per_second"] == 0
        assert found["busiest"][0]["key"] == "chat-42"


async def test_top_when_redis_is_absent_or_down_says_which(
    log: EventLog, postgres_url: str, redis_url: str
) -> None:
    """It works without; the log is all there."""
    without = CommandLine({"data": "/no", "postgres_url": postgres_url, "redis_url": "none"})
    down = CommandLine(
        {"data": "/no", "postgres_url": postgres_url, "redis_url": "redis://u:secret@127.0.0.1:1/0"}
    )

    said = await asyncio.to_thread(without.run, "top")
    found = json.loads((await asyncio.to_thread(down.run, "top", "--once", "--json")).stdout)
    text = (await asyncio.to_thread(down.run, "top")).stdout

    assert "none, on purpose" in said.stdout
    assert "✗ Redis     down" in text
    assert "secret" not in text
    assert found["redis"]["up"] is False
    assert found["postgres"]["up"] is True


@pytest.mark.parametrize("interval", ["0", "0.1", "nan", "1e9"])
def test_top_when_the_interval_makes_no_sense_refuses(eventlog: CommandLine, interval: str) -> None:
    """Looking without pause would be work for the servers."""

    assert "--interval is" in eventlog.run("top", "--interval", interval, code=2).stderr


async def test_top_when_postgres_goes_and_comes_back_stays(
    log: EventLog, postgres_url: str, redis_url: str
) -> None:
    """A screen that is there when things go wrong is what it is for."""
    async with proxy(postgres_url) as postgres:
        command = CommandLine({"data": "/no", "postgres_url": postgres.url, "redis_url": redis_url})
        async with await command.start("top", "--json", "--interval", "0.2") as running:
            await running.until('"up":true')
            await _away(postgres)
            await running.until('"postgres":{"up":false')
            postgres.refuse(False)
            running.output = ""
            await running.until('"postgres":{"up":true')
            await running.interrupt()

    assert running.process.returncode == 0


async def _away(postgres: Proxy) -> None:
    postgres.refuse()
    postgres.cut()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
@pytest.mark.parametrize("how", ["q", "ctrl-c", "term"])
async def test_top_when_on_a_terminal_is_live_and_restores_it(
    watched: CommandLine, log: EventLog, how: str, columns: int, lines: int
) -> None:
    """Alternate screen, new frames by themselves, keys; in the end all is as it was before."""
    made = log.handle((await log.sessions()).items[0].session_id)
    with terminal(watched, "top", "--interval", "0.2", columns=columns, lines=lines) as screen_of:
        await screen_of.until(lambda: b"2 rows" in screen_of.output)
        await made.append(MessageAdded(role="user", content="three"))
        await screen_of.until(lambda: b"3 rows" in screen_of.output)
        if how == "term":
            screen_of.process.terminate()
        else:
            os.write(screen_of.master, b"q" if how == "q" else b"\x03")
        await screen_of.until(lambda: screen_of.process.poll() is not None)

        assert screen_of.process.returncode == 0
        assert screen_of.modes() == screen_of.modes_before
    output = screen_of.output
    assert output.count(ALTERNATE_SCREEN) == output.count(MAIN_SCREEN) == 1
    assert output.index(ALTERNATE_SCREEN) < output.index(b"rates") < output.index(MAIN_SCREEN)
    assert output.rindex(b"\x1b[?25h") > output.rindex(b"\x1b[?25l"), "the cursor is hidden"
    assert b"\x1b]0;" not in output
    assert b"q ends" in output


class Terminal:
    """A command on a terminal of its own, with a keyboard."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, slave: int) -> None:
        self.process = process
        self.master = master
        self.output = b""
        self.modes_before = termios.tcgetattr(slave)
        self._slave = slave

    def modes(self) -> list[Any]:
        """How the terminal is set up now."""
        return termios.tcgetattr(self._slave)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Read what it shows until something is true."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not fact():
            assert time.monotonic() < deadline, self.output.decode()
            await asyncio.sleep(0.02)
            self.read()
        self.read()

    def read(self) -> None:
        """What it has shown by now."""
        while True:
            try:
                piece = os.read(self.master, 65536)
            except BlockingIOError:
                return
            self.output += piece


@contextmanager
def terminal(command: CommandLine, *arguments: str, columns: int, lines: int) -> Iterator[Terminal]:
    """Start a command on a terminal of this size."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    os.set_blocking(master, False)
    # Ctrl-C reaches the processes whose terminal it is: the command gets a session of its own.
    leader = (
        "import fcntl,os,sys,termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [MODULE[0], "-c", leader, *MODULE, *arguments],
        env=command.environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    try:
        yield Terminal(process, master, slave)
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)
