"""What holds for every transcript, whichever program wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventlog.codec import encode_event
from eventlog.errors import InvalidRequest
from eventlog.events import CompactionCompleted, CompactionReverted, SessionRewound
from eventlog.integrations.transcripts import (
    ImportedCompaction,
    ImportedEvent,
    ImportedReversal,
    ImportedRewind,
    ImportReport,
    Transcript,
    detect_format,
    event_id_of,
    read_transcript,
    resolve,
)
from eventlog.log import EventLog
from tests.integrations.conftest import SESSION, Write, counted, every_sample, sample

EVENT_BYTES_MAX = 16 * 1024 * 1024
SUMMARY = CompactionCompleted(summary="s", from_seq=0, to_seq=0)


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
def test_report_when_read_accounts_for_every_line(path: Path) -> None:
    """Each line of a file became something: the counts add up to its lines."""

    transcript = read_transcript(path)

    assert counted(transcript) == transcript.report.lines == len(path.read_bytes().splitlines())


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
def test_events_when_resolved_can_all_be_stored(path: Path) -> None:
    """The log takes each event exactly as it is."""

    for event in resolve(read_transcript(path), first_seq=2):
        encode_event(event, bytes_max=EVENT_BYTES_MAX)


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
def test_source_ids_when_read_again_are_unique_and_the_same(path: Path) -> None:
    """Event ids come from source ids: no two may be alike, and a second reading gives the same."""

    ids = [each.source_id for each in read_transcript(path).events]

    assert len(set(ids)) == len(ids)
    assert ids == [each.source_id for each in read_transcript(path).events]


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
def test_records_when_imported_can_all_be_got_back(path: Path) -> None:
    """Nothing is lost: each line's record stands in some event, whole or as item and envelope."""
    transcript = read_transcript(path)
    held = {canonical(item) for each in transcript.events for item in verbatim(each)}

    for line in path.read_text().splitlines():
        assert canonical(json.loads(line)) in held


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
async def test_import_when_done_twice_adds_nothing(path: Path) -> None:
    """The ids that follow from a file are those of an append that may be repeated."""
    transcript = read_transcript(path)
    events = resolve(transcript, first_seq=2)

    async with EventLog.in_memory() as log:
        session = await log.create_session(transcript.key, title=transcript.title)
        first_id = event_id_of(session.id, transcript.events[0].source_id)
        first = await session.append(events, event_id=first_id)
        again = await session.append(events, event_id=first_id)
        head = await session.head()

    assert (first.first_seq, first.last_seq) == (2, 1 + len(events))
    assert again.duplicate and again.first_seq == 2
    assert head == 1 + len(events)


def test_event_id_when_derived_depends_on_session_and_source() -> None:
    """The same line imported into two sessions makes two events."""
    other = event_id_of(SESSION, "b")

    assert event_id_of(SESSION, "a") == event_id_of(SESSION, "a")
    assert len({event_id_of(SESSION, "a"), other, event_id_of(other, "a")}) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude_clean", "claude-code"),
        ("claude_all_record_types", "claude-code"),
        ("claude_small", "claude-code"),
        ("agent-a0ad4f44468bdf20d", "claude-code"),
        ("codex_small", "codex"),
        ("codex_rate_limit", "codex"),
        ("codex_all_record_types", "codex"),
    ],
)
def test_format_when_a_sample_is_looked_at_is_told(name: str, expected: str) -> None:
    """The first line that tells decides which program wrote a file."""

    assert detect_format(sample(name)) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"type": "session_meta", "payload": {}}, "codex"),
        ({"id": "x", "timestamp": "t", "instructions": None}, "codex"),
        ({"record_type": "state"}, "codex"),
        ({"type": "message", "role": "user", "content": []}, "codex"),
        ({"type": "summary", "summary": "s", "leafUuid": "x"}, "claude-code"),
        ({"type": "file-history-snapshot", "messageId": "x", "snapshot": {}}, "claude-code"),
        ({"type": "mode", "mode": "normal", "sessionId": "s"}, "claude-code"),
        ({"type": "user", "uuid": "u", "message": {}}, "claude-code"),
        ({"seq": 1, "event_id": "x", "event": {"type": "custom"}}, "eventlog"),
        ({"some": "thing"}, None),
        ({"type": "else"}, None),
    ],
)
def test_format_when_one_record_is_looked_at_is_told(
    record: dict[str, Any], expected: str | None, write: Write
) -> None:
    """Every shape that a file can begin with is recognised, and others are not mistaken for one."""

    assert detect_format(write(record)) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n  \n", "is empty"),
        (b"hello there\n", "neither a Claude Code transcript nor a Codex rollout"),
        (b'{"some": "thing"}\n', "neither"),
        (b"[1, 2]\n", "neither"),
        (b"\x28\xb5\x2f\xfd....", "zstd -d"),
        (b"\x1f\x8b....", "gunzip"),
        (b"PK\x03\x04", "neither"),
    ],
)
def test_file_when_it_is_no_transcript_is_refused(content: bytes, words: str, write: Write) -> None:
    """The refusal says what the file is not, and what to do where that is known."""

    with pytest.raises(InvalidRequest, match=words):
        read_transcript(write(content))


def test_file_when_there_is_none_is_refused(tmp_path: Path) -> None:
    """A missing file and a folder are refused in the same way as a wrong one."""

    for path in (tmp_path, tmp_path / "missing.jsonl"):
        with pytest.raises(InvalidRequest, match="is not a file"):
            read_transcript(path)


def test_progress_when_asked_for_ends_at_the_size_of_the_file() -> None:
    """Progress is told in bytes, never goes back, and the last call says that all is read."""
    calls: list[tuple[int, int]] = []
    path = sample("claude_compacted")

    read_transcript(path, progress=lambda done, total: calls.append((done, total)))

    size = path.stat().st_size
    assert len(calls) > 1 and calls[-1] == (size, size)
    assert calls == sorted(calls)


def test_resolve_when_given_a_seq_counts_from_it() -> None:
    """Indexes become seqs behind whatever the session holds already."""
    transcript = transcript_of(
        ImportedCompaction(event=SUMMARY, covers_from=0, covers_to=2, kept=[1]),
        ImportedReversal(compaction=0),
        ImportedRewind(to=1, reason="undo"),
    )

    assert resolve(transcript, first_seq=10) == [
        CompactionCompleted(summary="s", from_seq=10, to_seq=12, kept=[11]),
        CompactionReverted(compaction_seq=10),
        SessionRewound(to_seq=11, reason="undo"),
    ]


def test_resolve_when_a_file_begins_with_a_compaction_covers_what_was_before() -> None:
    """With nothing imported before it, a compaction covers the event before the first."""
    transcript = transcript_of(ImportedCompaction(event=SUMMARY, covers_from=0, covers_to=-1))

    (event,) = resolve(transcript, first_seq=2)

    assert isinstance(event, CompactionCompleted)
    assert (event.from_seq, event.to_seq) == (1, 1)


def transcript_of(*events: Any) -> Transcript:
    """A transcript of the events and nothing else."""
    return Transcript(
        format="codex",
        key="k",
        title=None,
        user_metadata={},
        events=[
            ImportedEvent(event=event, at=None, line=number, source_id=str(number))
            for number, event in enumerate(events, start=1)
        ],
        report=ImportReport(lines=len(events), became={}, problems=[]),
    )


def verbatim(imported: ImportedEvent) -> Iterator[Any]:
    """What an event holds of the file as it was."""
    event = imported.event
    if isinstance(event, ImportedCompaction):
        event = event.event
    yield getattr(event, "data", None)
    metadata = getattr(event, "metadata", {})
    native = getattr(event, "native", None) or []
    yield from native
    for envelope, item in zip(metadata.get("envelopes", []), native, strict=False):
        yield {**envelope, "payload": item}
    yield from metadata.get("records", [])
    yield metadata.get("title_record")


def canonical(value: Any) -> str:
    """JSON in one form."""
    return json.dumps(value, sort_keys=True)
