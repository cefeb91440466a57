"""Damaged and hostile transcripts: nothing is dropped, nothing is raised, and it is said."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from eventlog.codec import encode_event
from eventlog.errors import InvalidRequest
from eventlog.events import Custom, MessageAdded
from eventlog.integrations.assembly import LINE_BYTES_MAX
from eventlog.integrations.jsonl import count_of, id_of, time_of
from eventlog.integrations.transcripts import Transcript, read_transcript, resolve
from tests.integrations.conftest import Write, counted, every_sample

EVENT_BYTES_MAX = 16 * 1024 * 1024
GOOD = {"type": "user", "uuid": "u0", "sessionId": "s", "message": {"content": "fine"}}
SEED = 20260105


def user(content: str) -> bytes:
    """A `user` line around a content that is JSON text already."""
    return (
        b'{"type":"user","uuid":"u1","sessionId":"s","message":{"content":%s}}' % content.encode()
    )


def raw_lines(transcript: Transcript) -> list[str]:
    """The texts of the lines that could not be held as they are, put together again."""
    texts: dict[int, str] = {}
    for each in transcript.events:
        if isinstance(each.event, Custom) and each.event.name.endswith(".raw_line"):
            data = each.event.data
            texts[data["line"]] = texts.get(data["line"], "") + data["text"]
    return list(texts.values())


@pytest.mark.parametrize(
    ("line", "problem", "content"),
    [
        (user('"cut \\ud83d"'), "a lone surrogate", "cut \ufffd"),
        (user('"cut \\ude00 too"'), "a lone surrogate", "cut \ufffd too"),
        (user('"a\\u0000b"'), None, "a\x00b"),
        (user('"pair \\ud83d\\ude00"'), None, "pair 😀"),
        (user("[NaN]"), "a number that is not finite", ""),
        (user("[1e999]"), "a number that is not finite", ""),
        (user('[{"type":"x","n":123456789012345678901}]'), "an integer beyond 64 bits", None),
        (user("[" * 200 + "]" * 200), "nested deeper than 112 levels", None),
        (user('"raw tab \there"'), "odd JSON", "raw tab \there"),
    ],
)
def test_line_when_it_cannot_be_stored_exactly_is_repaired_and_kept(
    line: bytes, problem: str | None, content: str | None, write: Write
) -> None:
    """The message is there with what could be repaired, and the line's exact text beside it."""
    transcript = read_transcript(write(GOOD, line + b"\n"))
    found = [each.what for each in transcript.report.problems]

    (_, message) = (e.event for e in transcript.events if isinstance(e.event, MessageAdded))
    assert content is None or message.content == content
    assert found == ([f"can't be stored exactly: {problem}"] if problem else [])
    assert raw_lines(transcript) == ([line.decode()] if problem else [])
    if problem:
        assert message.native == [{"raw_line": transcript.events[1].source_id}]
    check(transcript)


def test_line_when_not_utf8_is_kept_to_the_byte(write: Write) -> None:
    """What has no text form is kept as replaced text, and exactly as base64."""
    line = b'{"type":"user","uuid":"u1","message":{"content":"caf\xe9"}}'
    transcript = read_transcript(write(GOOD, line + b"\n"))

    assert [each.what for each in transcript.report.problems] == [
        "can't be stored exactly: bytes that are not UTF-8"
    ]
    kept = transcript.events[1].event
    assert isinstance(kept, Custom)
    assert base64.b64decode(kept.data["base64"]) == line
    message = transcript.events[2].event
    assert isinstance(message, MessageAdded) and message.content == "caf\ufffd"
    check(transcript)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"type":"user","uuid":"u9","mess', "broken JSON"),
        (b"\x00\x00\x00\x00\x00\x00", "broken JSON"),
        (b"hello", "broken JSON"),
        (b"42\n", "a JSON int where an object is expected"),
        (b"[]\n", "a JSON list where an object is expected"),
        (b'"text"\n', "a JSON str where an object is expected"),
        (b"[" * 100_000, "broken JSON"),
        (b'{"n":' + b"9" * 5_000 + b"}\n", "broken JSON"),
    ],
)
def test_line_when_it_is_no_record_is_kept_as_text(line: bytes, problem: str, write: Write) -> None:
    """A line cut by a crash, a block of NULs, a number: kept, counted and reported."""
    transcript = read_transcript(write(GOOD, line))

    (found,) = transcript.report.problems
    assert found.line == 2 and found.what.startswith(problem)
    assert raw_lines(transcript) == [line.decode().rstrip("\n")]
    assert transcript.report.became["(no record)"] == {"custom": 1}
    check(transcript)


def test_file_when_from_windows_is_read(write: Write) -> None:
    """A byte order mark, CR LF and blank lines are skipped, and said once each."""
    line = json.dumps(GOOD).encode()
    other = line.replace(b"u0", b"u1")
    transcript = read_transcript(write(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + other + b"\r\n"))

    assert len([e for e in transcript.events if isinstance(e.event, MessageAdded)]) == 2
    assert transcript.report.became["(blank)"] == {"nothing": 1}
    assert [each.what for each in transcript.report.problems] == [
        "the file begins with a byte order mark; it was skipped",
        "lines end in CR LF; the CR was skipped here and below",
    ]
    check(transcript)


def test_line_when_very_large_is_kept_in_pieces(write: Write) -> None:
    """A result of 9 million characters: the message is whole, its line stands in pieces beside."""
    text = 'ab\n"é' * 1_800_000
    block = {"type": "tool_result", "tool_use_id": "t", "content": text}
    record = {"type": "user", "uuid": "u1", "sessionId": "s", "message": {"content": [block]}}
    transcript = read_transcript(write(GOOD, record))

    message = transcript.events[-1].event
    assert isinstance(message, MessageAdded) and message.content == text
    assert message.native == [{"raw_line": transcript.events[1].source_id}]
    assert [json.loads(each) for each in raw_lines(transcript)] == [record]
    check(transcript)


def test_message_when_larger_than_an_event_is_cut_and_kept_in_pieces(write: Write) -> None:
    """No event may be larger than the log takes: the text is cut, its line is whole beside it."""
    text = "\x00" * 4_000_000
    record = {"type": "user", "uuid": "u1", "sessionId": "s", "message": {"content": text}}
    transcript = read_transcript(write(GOOD, record))

    message = transcript.events[-1].event
    assert isinstance(message, MessageAdded) and "cut here: 3,250,000 more" in message.content
    assert [each.what for each in transcript.report.problems] == [
        "too large for one event: cut; it is whole in raw_line events"
    ]
    assert [json.loads(each) for each in raw_lines(transcript)] == [record]
    check(transcript)


def test_reply_when_its_lines_add_up_keeps_what_fits(write: Write) -> None:
    """Lines small alone and large together: `native` holds the first, the rest stands beside."""
    lines = [
        {
            "type": "assistant",
            "uuid": f"a{number}",
            "sessionId": "s",
            "message": {"id": "m", "content": [{"type": "text", "text": "x" * 1_500_000}]},
        }
        for number in range(4)
    ]
    transcript = read_transcript(write(*lines))

    reply = transcript.events[0].event
    assert isinstance(reply, MessageAdded) and len(reply.content) == 6_000_006
    assert reply.native[:2] == lines[:2]
    assert [set(each) for each in reply.native[2:]] == [{"raw_line"}, {"raw_line"}]
    assert [json.loads(each) for each in raw_lines(transcript)] == lines[2:]
    assert LINE_BYTES_MAX < 6_000_000
    check(transcript)


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
def test_fields_when_they_hold_anything_are_read(path: Path, write: Write) -> None:
    """Each record with any of its values replaced by any other is read; every line is counted."""
    draw = random.Random(SEED)
    records = [json.loads(line) for line in path.read_text().splitlines()][:60]
    for _ in range(8):
        spoiled = write(*(changed(draw, record) for record in records))
        try:
            transcript = read_transcript(spoiled)
        except InvalidRequest:
            continue  # nothing is left that tells the format
        check(transcript)


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
def test_bytes_when_they_are_damaged_are_read(path: Path, write: Write) -> None:
    """A file cut anywhere, with bytes overwritten anywhere, is read up to what is left of it."""
    draw = random.Random(SEED)
    whole = path.read_bytes()[:40_000]
    for _ in range(8):
        damaged = bytearray(whole[: draw.randrange(len(whole) // 2, len(whole))])
        for _ in range(20):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            transcript = read_transcript(write(bytes(damaged)))
        except InvalidRequest:
            continue
        check(transcript)


@pytest.mark.parametrize(
    ("value", "count"),
    [(5, 5), ("5", 5), (5.0, 5), (True, None), (-1, None), (2.5, None), ("x", None), (2**70, None)],
)
def test_count_when_written_in_any_way_is_read(value: object, count: int | None) -> None:
    """Counts come as numbers, as strings, and as nonsense."""

    assert count_of(value) == count


@pytest.mark.parametrize(
    ("value", "iso"),
    [
        ("2026-01-05T12:00:00.500Z", "2026-01-05T12:00:00.500000+00:00"),
        ("2026-01-05T14:00:00+02:00", "2026-01-05T12:00:00+00:00"),
        ("2026-01-05T12:00:00", "2026-01-05T12:00:00+00:00"),
        (1767614400, "2026-01-05T12:00:00+00:00"),
        ("1767614400000", "2026-01-05T12:00:00+00:00"),
        (1767614400.5, "2026-01-05T12:00:00.500000+00:00"),
        ("[trimmed for fixture]", None),
        ("0001-01-01T00:00:00+05:00", None),
        ("", None),
        ({}, None),
        (10**15, "33658-09-27"),
    ],
)
def test_time_when_written_in_any_way_is_read(value: object, iso: str | None) -> None:
    """Times come in several forms; what can't be read is no time."""
    time = time_of(value)

    assert (time.isoformat() if time else None) == (None if value == 10**15 else iso)


@pytest.mark.parametrize("value", ["a sentence", "", "x" * 201, 5, None, ["u"]])
def test_id_when_it_cannot_be_one_is_none(value: object) -> None:
    """Scrubbed fixtures have sentences where ids were: nothing may be joined by them."""

    assert id_of(value) == ""


def changed(draw: random.Random, record: Any) -> Any:
    """The record with about one value in eight replaced."""
    junk: list[Any] = [
        None,
        "",
        "text",
        0,
        -1,
        2.5,
        2**70,
        True,
        [],
        {},
        [1, "a", None],
        {"type": 1},
    ]
    if draw.random() < 0.12:
        return draw.choice(junk)
    if isinstance(record, dict):
        return {key: changed(draw, value) for key, value in record.items()}
    if isinstance(record, list):
        return [changed(draw, value) for value in record]
    return record


def check(transcript: Transcript) -> None:
    """Every line is counted, every event can be stored, no source id is there twice."""
    assert counted(transcript) == transcript.report.lines
    for event in resolve(transcript, first_seq=2):
        encode_event(event, bytes_max=EVENT_BYTES_MAX)
    ids = [each.source_id for each in transcript.events]
    assert len(set(ids)) == len(ids)
