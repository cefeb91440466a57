"""Reading what a coding agent left on disk as events, ready to be appended to a session.

    transcript = read_transcript(path)                # Claude Code, Codex, or our own export
    events = resolve(transcript, first_seq=2)         # behind session.created
    ids = [event_id_of(session_id, each.source_id) for each in transcript.events]

Nothing of the file is dropped silently. Messages, reasoning, tool calls and their results, and
compactions become the events of the same name; every other record becomes a `custom` event that
holds it verbatim; and `report` says for each line of the file what became of it and what was wrong
with it. Reading decides nothing about the log: no session is made and nothing is appended here.

A compaction covers events, by seq, and seqs are known only when events are appended. Until then it
is an `ImportedCompaction`, whose numbers are indexes into `Transcript.events`; `resolve` turns them
into seqs. Each imported event takes exactly one seq.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, assert_never
from uuid import UUID

import msgspec

from eventlog.errors import InvalidRequest
from eventlog.events import (
    CompactionCompleted,
    CompactionReverted,
    SessionRewound,
    StoredEvent,
)
from eventlog.integrations.jsonl import Progress, dict_of, read_lines, text_of

Format = Literal["claude-code", "codex", "eventlog"]

DETECT_LINES_MAX: Final = 200
"""Lines that are looked at to tell the format; a file that says nothing until then is refused."""
_CODEX_ITEMS: Final = {"message", "reasoning", "function_call", "function_call_output"}
_COMPRESSED: Final = {b"\x28\xb5\x2f\xfd": "zstd -d", b"\x1f\x8b": "gunzip"}


class ImportedCompaction(msgspec.Struct, frozen=True, kw_only=True):
    """A compaction whose range is not known as seqs yet: those in `event` mean nothing.

    `covers_from`, `covers_to` (both included) and `kept` are indexes into `Transcript.events`;
    `covers_to` is -1 when the file begins with the compaction.
    """

    event: CompactionCompleted
    covers_from: int
    covers_to: int
    kept: list[int] = []

    def placed(self, *, from_seq: int, to_seq: int, kept: list[int]) -> CompactionCompleted:
        """The event, with seqs where this has indexes."""
        return msgspec.structs.replace(self.event, from_seq=from_seq, to_seq=to_seq, kept=kept)


class ImportedRewind(msgspec.Struct, frozen=True, kw_only=True):
    """A rewind to just after the event with index `to`.

    -1: to just after the event before the first, which made the session; -2: to before that.
    """

    to: int
    reason: str | None = None


class ImportedReversal(msgspec.Struct, frozen=True, kw_only=True):
    """The compaction with index `compaction` was undone."""

    compaction: int


Imported = StoredEvent | ImportedCompaction | ImportedRewind | ImportedReversal


class ImportedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event, and where in the file it comes from."""

    event: Imported
    at: datetime | None
    """Time in the transcript (UTC), when it states one that can be read."""
    line: int
    """First line it was made from, from 1."""
    source_id: str
    """The same at every reading of the file, and unique in it."""


class Problem(msgspec.Struct, frozen=True):
    """Something in the file that isn't as it should be; reading went on."""

    line: int
    what: str


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the file: the counts of `became` add up to `lines`."""

    lines: int
    became: dict[str, dict[str, int]]
    """Record type, then what lines of that type became, then how many lines."""
    problems: list[Problem]


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """A file as a session to be."""

    format: Format
    key: str
    """The session's id in the file."""
    title: str | None
    user_id: str | None = None
    user_metadata: dict[str, Any]
    """What the file says about the session: working directory, git branch, versions, model, …"""
    events: list[ImportedEvent]
    report: ImportReport


def detect_format(path: Path) -> Format | None:
    """Which program wrote the file, by the first line that tells; None when none does."""
    for line in itertools.islice(read_lines(path), DETECT_LINES_MAX):
        if line.record is not None and (found := _format_of(line.record)):
            return found
    return None


def read_transcript(path: Path, *, progress: Progress | None = None) -> Transcript:
    """The file as events. Raises `InvalidRequest` for a file that is no transcript.

    `progress` is called with the bytes read so far and the size of the file.
    """
    if not path.is_file():
        raise InvalidRequest(f"{path} is not a file")
    return _reader_for(path)(path, progress)


def resolve(transcript: Transcript, first_seq: int) -> list[StoredEvent]:
    """The final events, given that the first will have `first_seq` and the rest follow directly.

    `first_seq` is usually 2: the first event behind `session.created`.
    """
    return list(_resolved(transcript.events, first_seq))


def event_id_of(session_id: UUID, source_id: str) -> UUID:
    """Id for an imported event in a session: the same file imported twice gives the same ids."""
    return uuid.uuid5(session_id, f"import:{source_id}")


def _resolved(imported: list[ImportedEvent], first_seq: int) -> Iterator[StoredEvent]:
    for each in imported:
        match each.event:
            case ImportedCompaction() as event:
                to_seq = max(0, first_seq + event.covers_to)
                yield event.placed(
                    from_seq=min(first_seq + event.covers_from, to_seq),
                    to_seq=to_seq,
                    kept=[first_seq + index for index in event.kept],
                )
            case ImportedRewind() as event:
                to_seq = max(0, first_seq + event.to)
                yield SessionRewound(to_seq=to_seq, reason=event.reason)
            case ImportedReversal() as event:
                yield CompactionReverted(compaction_seq=first_seq + event.compaction)
            case event:
                yield event


def _reader_for(path: Path) -> Callable[[Path, Progress | None], Transcript]:
    from eventlog.integrations.claude_code import read_claude_code
    from eventlog.integrations.codex import read_codex
    from eventlog.integrations.export import read_export

    match detect_format(path):
        case "claude-code":
            return read_claude_code
        case "codex":
            return read_codex
        case "eventlog":
            return read_export
        case None:
            raise InvalidRequest(_refusal(path))
        case found:
            assert_never(found)


def _format_of(record: dict[str, Any]) -> Format | None:
    kind = text_of(record.get("type"))
    if "seq" in record and "event_id" in record and dict_of(record.get("event")):
        return "eventlog"
    if (kind and "payload" in record) or "record_type" in record:
        return "codex"
    if "sessionId" in record or "leafUuid" in record or "parentUuid" in record:
        return "claude-code"
    if kind and ("snapshot" in record or ("uuid" in record and "message" in record)):
        return "claude-code"
    if kind in _CODEX_ITEMS or ("id" in record and "instructions" in record):
        return "codex"
    return None


def _refusal(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(200)
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            return f"{path} is compressed; unpack it first, with `{command}`"
    if not start.strip():
        return f"{path} is empty"
    return (
        f"{path} is neither a Claude Code transcript nor a Codex rollout nor an export of this log "
        f"(JSON Lines); it begins with {start[:60]!r}"
    )
