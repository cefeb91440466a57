"""Rebuild: how fast all views are made anew from a log that is already there.

Sessions of streamed turns: a question, a reply of 96 increments and its end. The same history is
packed in frames of 32, in frames of 4, and once it is nothing but whole messages, an event a row.
Rows go straight into the table, as the log would have stored them; `eventlog rebuild all` with two
processes then does the rest, everything from counting to the switch included.

A rebuild folds structure and skips increments, so what counts is messages; events are what people
think in.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from benchmarks import project
from benchmarks.measure import Bench, Case, Result, at_least, shown
from benchmarks.project import SHARDS
from benchmarks.servers import Ground

if TYPE_CHECKING:
    from eventlog import events as ev

CASE: Final = "rebuild"
JOBS: Final = 2
SESSIONS: Final = 1_000
REPLY_INCREMENTS: Final = 96
EVENTS_PER_TURN: Final = REPLY_INCREMENTS + 3
TURNS: Final = 15
TARGET_PER_SECOND: Final = 50_000
RECORDS_AT_ONCE: Final = 20_000
QUESTION: Final = "How do I read the log of a session from a seq on, and what does it cost? "
VOCABULARY: Final = 3_000
"""Different words of all replies together; each reply has as many words as increments."""
COLUMNS: Final = (
    *("position", "seq", "recorded_at", "session_id", "event_id", "tenant_id", "shard", "span"),
    *("type", "flags", "data"),
)


async def run(bench: Bench) -> list[Result]:
    """A fresh database for each form of the history."""
    sessions = bench.count(SESSIONS, SESSIONS // 10)
    packed = await _measure(bench, sessions=sessions, frame=32)
    loose = await _measure(bench, sessions=sessions, frame=4)
    plain = await _measure(bench, sessions=sessions, frame=0)
    return [
        at_least(
            CASE,
            "frames of 32, all views, 2 processes",
            packed["rate"],
            "events/s",
            target=TARGET_PER_SECOND,
            note=packed["note"],
        ),
        shown(CASE, "frames of 4", loose["rate"], "events/s", note=loose["note"]),
        shown(
            CASE, "whole messages, an event a row", plain["rate"], "events/s", note=plain["note"]
        ),
    ]


async def _measure(bench: Bench, *, sessions: int, frame: int) -> dict[str, Any]:
    what = f"frames of {frame}" if frame else "whole messages"
    async with bench.place.fresh() as ground, project.new_log(ground):
        await _load(ground, sessions=sessions, frame=frame)
        counted = await ground.connection.fetchrow(
            "select count(*), sum(span)::bigint from eventlog.events"
        )
        assert counted is not None
        rows, events = counted
        bench.say(f"{what}: {events:,} events in {rows:,} rows, {sessions:,} sessions")
        found = await _rebuild(ground)
        messages = await ground.connection.fetchval("select count(*) from eventlog.message_views")
        if found["events"] != events or found["sessions"] != sessions or not messages:
            raise AssertionError(f"rebuilt {found}, not {events} events of {sessions} sessions")
        phases = ", ".join(f"{name} {each} s" for name, each in found["seconds_by_phase"].items())
        bench.say(f"{found['seconds']} s ({phases}): {events / found['seconds']:,.0f} events/s")
    note = f"{events:,} events, {messages:,} messages in {found['seconds']:.1f} s"
    return {"rate": events / found["seconds"], "note": note}


async def _rebuild(ground: Ground) -> dict[str, Any]:
    """What the command says of itself."""
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            "env",
            f"EVENTLOG_POSTGRES_URL={ground.postgres_url}",
            f"EVENTLOG_REDIS_URL={ground.redis_url}",
            *(sys.executable, "-m", "workers", "rebuild", "all", "--json", "--jobs", str(JOBS)),
            cwd=Path(__file__).parents[1],
            stdout=said,
        )
        if await process.wait():
            raise AssertionError(f"eventlog rebuild ended with {process.returncode}")
        said.seek(0)
        found: dict[str, Any] = msgspec.json.decode(said.read())
        return found


# --- a history -----------------------------------------------------------------------------------


async def _load(ground: Ground, *, sessions: int, frame: int) -> None:
    """Rows as the log stores them: sessions go on side by side, turn by turn."""
    records: list[tuple[Any, ...]] = []
    for record in _records(sessions, frame):
        records.append(record)
        if len(records) == RECORDS_AT_ONCE:
            await _copy(ground, records)
            records = []
    await _copy(ground, records)
    await ground.connection.execute("vacuum analyze eventlog.events")
    await ground.connection.execute("checkpoint")


async def _copy(ground: Ground, records: list[tuple[Any, ...]]) -> None:
    await ground.connection.copy_records_to_table(
        "events", schema_name="eventlog", records=records, columns=COLUMNS
    )


def _records(sessions: int, frame: int) -> Iterator[tuple[Any, ...]]:
    from eventlog.codec import encode_frame
    from eventlog.envelope import new_id, shard_of
    from eventlog.events import TYPE_CODES, TokensAppended, tag_of

    ids = [new_id() for _ in range(sessions)]
    seqs = [0] * sessions
    positions = [0] * SHARDS
    now = datetime.now(UTC) - timedelta(hours=1)
    for turn in range(TURNS + 1):
        for number, session_id in enumerate(ids):
            shard = shard_of(session_id, SHARDS)
            for event in _turn(number, turn, frame):
                is_frame = isinstance(event, TokensAppended)
                span = len(event.texts) if isinstance(event, TokensAppended) else 1
                seqs[number] += span
                positions[shard] += 1
                yield (
                    *(positions[shard], seqs[number], now + timedelta(seconds=turn)),
                    *(session_id, new_id(), 0, shard, span, TYPE_CODES[tag_of(event)]),
                    *(int(is_frame), encode_frame(event)),  # type: ignore[arg-type]
                )


def _turn(number: int, turn: int, frame: int) -> Iterator[ev.StoredEvent]:
    """The first turn creates the session; the others are a question and its answer."""
    from eventlog import events as ev

    if turn == 0:
        yield ev.SessionCreated(user_id=f"user-{number % 50}", title=f"Conversation {number}")
        return
    yield ev.MessageAdded(role="user", content=f"{QUESTION}({number}, {turn})", token_count=20)
    words = [_word(number * 31 + turn * 7 + each * each) for each in range(REPLY_INCREMENTS)]
    answer = "".join(words)
    usage = ev.Usage(input_tokens=900, output_tokens=REPLY_INCREMENTS)
    if not frame:
        yield ev.MessageAdded(
            role="assistant", content=answer, agent="writer", model="m", usage=usage
        )
        return
    message_id = f"reply-{number}-{turn}"
    yield ev.MessageStarted(message_id=message_id, role="assistant", agent="writer", model="m")
    for start in range(0, REPLY_INCREMENTS, frame):
        texts = words[start : start + frame]
        yield ev.TokensAppended(message_id=message_id, texts=texts, ms=[33] * frame)
    yield ev.MessageCompleted(
        message_id=message_id, content=answer, usage=usage, token_count=REPLY_INCREMENTS
    )


def _word(number: int) -> str:
    """A word of two or three syllables, with a blank before it."""
    syllables = ("ka", "lo", "mi", "ren", "ta", "su", "vel", "or", "ni", "pe", "dra", "fo")
    rest, count = number % VOCABULARY, len(syllables)
    return f" {syllables[rest % count]}{syllables[rest // count % count]}{syllables[rest // 250]}"


CASES = [Case(CASE, "all views made anew from a log that is there, with two processes", run)]
