"""Our own export: a session as JSON Lines, one event a line, and the way back.

    {"seq": 7, "event_id": "…", "recorded_at": "…", "session_id": "…", "event": {"type": …}}

`event` is the event as it is stored. `export_jsonl` writes what `session.read()` yields: increments
one by one, or as frames with `frames=True`. There are two ways back:

- `read_recorded` gives exactly the recorded events again: the same fold, seq by seq;
- `read_export` (or `read_transcript`) gives a transcript to import into a session of its own. Token
  increments are left out, as the end of each message carries its text; a message that had not ended
  is ended as interrupted. Seqs that events mention become indexes, for `resolve`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog import events as ev
from eventlog.codec import decode_event
from eventlog.envelope import RecordedEvent
from eventlog.errors import CorruptEvent, InvalidRequest
from eventlog.integrations.assembly import Assembly
from eventlog.integrations.jsonl import Line, Progress, read_lines
from eventlog.integrations.transcripts import (
    Imported,
    ImportedCompaction,
    ImportedReversal,
    ImportedRewind,
    Transcript,
)

LEFT_OUT: Final = "nothing (the end of its message has the text)"
OPEN_AT_EXPORT: Final = "still open when it was exported"
"""Reason of the interruption of messages that had not ended."""


class ExportedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an export."""

    seq: int
    event_id: UUID
    recorded_at: datetime
    session_id: UUID
    event: msgspec.Raw


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(ExportedEvent)
_READ_ONLY: Final[dict[str, msgspec.json.Decoder[ev.TokenAppended | ev.Erased]]] = {
    "token.appended": msgspec.json.Decoder(ev.TokenAppended),
    "erased": msgspec.json.Decoder(ev.Erased),
}
"""Events that readers see, and that are never stored like that."""


def export_line(recorded: RecordedEvent) -> bytes:
    """One event as a line, with its line end."""
    event = recorded.event
    raw = event.data if isinstance(event, ev.Unrecognized) else _encoder.encode(event)
    line = ExportedEvent(
        seq=recorded.seq,
        event_id=recorded.event_id,
        recorded_at=recorded.recorded_at,
        session_id=recorded.session_id,
        event=msgspec.Raw(raw),
    )
    return _encoder.encode(line) + b"\n"


def export_jsonl(events: Iterable[RecordedEvent]) -> Iterator[bytes]:
    """A line for each event."""
    return map(export_line, events)


async def export_jsonl_stream(events: AsyncIterable[RecordedEvent]) -> AsyncIterator[bytes]:
    """The same from an asynchronous source such as `session.read()`."""
    async for recorded in events:
        yield export_line(recorded)


def read_recorded(path: Path) -> Iterator[RecordedEvent]:
    """The recorded events of an export, as they were. Raises `InvalidRequest` for a bad line."""
    for line in read_lines(path):
        if line.raw.strip():
            recorded = _recorded(line)
            if recorded is None:
                raise InvalidRequest(f"{path}, line {line.number}: not an exported event")
            yield recorded


def read_export(path: Path, progress: Progress | None = None) -> Transcript:
    """The file as a transcript; `transcripts.read_transcript` is the way to call it."""
    reader = _Reader(path)
    for line in read_lines(path, progress=progress):
        reader.read(line)
    return reader.finish()


def _recorded(line: Line) -> RecordedEvent | None:
    try:
        found = _decoder.decode(line.raw)
        event: ev.Event = decode_event(found.event)
        if isinstance(event, ev.Unrecognized) and event.tag in _READ_ONLY:
            event = _READ_ONLY[event.tag].decode(found.event)
    except (msgspec.MsgspecError, CorruptEvent, UnicodeDecodeError, RecursionError):
        return None
    return RecordedEvent(found.session_id, found.seq, found.event_id, found.recorded_at, event)


class _Open(msgspec.Struct):
    """What was received of a message that has not ended."""

    line: Line
    texts: dict[ev.Channel, list[str]] = {}
    arguments: dict[str, str] = {}

    def take(self, text: str, channel: ev.Channel, tool_call_id: str | None) -> None:
        if channel == "tool-arguments":
            known = self.arguments.get(tool_call_id or "", "")
            self.arguments[tool_call_id or ""] = known + text
        else:
            self.texts.setdefault(channel, []).append(text)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.assembly = Assembly("eventlog", "eventlog")
        self.key = path.stem
        self.user_id: str | None = None
        self.title: str | None = None
        self.metadata: dict[str, Any] = {}
        self.seqs: list[int] = []  # of the entries, ascending
        self.first_seq = 0  # of the event that made the session, once it was read
        self.open: dict[str, _Open] = {}

    def read(self, line: Line) -> None:
        if not self.assembly.begin(line):
            self._placed(0)
            return
        recorded = _recorded(line)
        if recorded is None:
            self.assembly.note(line.number, "not an exported event")
            self.assembly.keep(line, "record")
            self.assembly.count("(no event)", "custom")
            self._placed(0)
            return
        tag = ev.tag_of(recorded.event)
        imported = self._imported(line, recorded)
        if imported is None:
            created = isinstance(recorded.event, ev.SessionCreated)
            self.assembly.count(tag, "session" if created else LEFT_OUT)
            return
        source_id = self.assembly.source_id(line, str(recorded.event_id))
        self.assembly.add(imported, line, source_id, stated=recorded.recorded_at.isoformat())
        self.assembly.count(tag, "custom" if isinstance(imported, ev.Custom) else tag)
        self._placed(recorded.seq)

    def _placed(self, seq: int) -> None:
        last = self.seqs[-1] if self.seqs else 0
        missing = len(self.assembly.entries) - len(self.seqs)
        self.seqs.extend([max(seq, last)] * missing)

    def _imported(self, line: Line, recorded: RecordedEvent) -> Imported | None:
        """What the event is imported as; None for what leaves no event."""
        match recorded.event:
            case ev.TokenAppended() as event:
                if opened := self.open.get(event.message_id):
                    opened.take(event.text, event.channel, event.tool_call_id)
                return None
            case ev.TokensAppended() as event:
                if opened := self.open.get(event.message_id):
                    opened.take("".join(event.texts), event.channel, event.tool_call_id)
                return None
            case ev.SessionCreated() as event:
                return self._created(recorded, event)
            case ev.Erased():
                return None
            case ev.Unrecognized() as event:
                data = msgspec.json.decode(event.data)
                return ev.Custom(name="eventlog.unrecognized", data=data)
            case ev.SessionDeleted() as event:
                return ev.Custom(name="eventlog.session.deleted", data={"reason": event.reason})
            case ev.MessageAdded() as event:
                # Without a message id the event's id names the message; here it gets another.
                message_id = event.message_id or str(recorded.event_id)
                return msgspec.structs.replace(event, message_id=message_id)
            case ev.CompactionCompleted() as event:
                return self._compacted(event)
            case ev.SessionRewound() as event:
                return ImportedRewind(to=self._index_at(event.to_seq), reason=event.reason)
            case ev.CompactionReverted() as event:
                return ImportedReversal(compaction=self._index_at(event.compaction_seq))
            case event:
                self._follow(line, event)
                return event

    def _follow(self, line: Line, event: ev.StoredEvent) -> None:
        """Which messages are open."""
        match event:
            case ev.MessageStarted():
                self.open.setdefault(event.message_id, _Open(line))
            case ev.MessageCompleted() | ev.MessageInterrupted() | ev.MessageRetracted():
                self.open.pop(event.message_id, None)
            case ev.SessionCleared():
                self.open.clear()

    def _created(self, recorded: RecordedEvent, event: ev.SessionCreated) -> Imported | None:
        """The first one makes the session; a later one is a fork's, and updates title and so on."""
        self.key = event.key or str(recorded.session_id)
        self.user_id = event.user_id or self.user_id
        if self.first_seq:
            return ev.SessionUpdated(title=event.title, metadata=event.metadata)
        self.first_seq = recorded.seq
        self.title, self.metadata = event.title, event.metadata
        return None

    def _compacted(self, event: ev.CompactionCompleted) -> ImportedCompaction:
        return ImportedCompaction(
            event=event,
            covers_from=self._index_at(event.from_seq - 1) + 1,
            covers_to=self._index_at(event.to_seq),
            kept=[self._index_at(seq) for seq in event.kept if self._is_placed(seq)],
        )

    def _index_at(self, seq: int) -> int:
        """Index of the last entry at or before a seq.

        -1 stands for the event that made the session, and -2 for before it.
        """
        return -2 if seq < self.first_seq else bisect_right(self.seqs, seq) - 1

    def _is_placed(self, seq: int) -> bool:
        index = self._index_at(seq)
        return index >= 0 and self.seqs[index] == seq

    def finish(self) -> Transcript:
        for message_id, opened in self.open.items():
            source_id = self.assembly.source_id(opened.line, f"{message_id}:open")
            event = ev.MessageInterrupted(
                message_id=message_id,
                content="".join(opened.texts.get("text", [])),
                reasoning="".join(opened.texts.get("reasoning", [])),
                tool_calls=[
                    ev.ToolCall(id=call_id, name="", arguments=arguments)
                    for call_id, arguments in opened.arguments.items()
                ],
                reason=OPEN_AT_EXPORT,
            )
            self.assembly.add(event, opened.line, source_id)
            self.assembly.note(opened.line.number, f"message {message_id} was {OPEN_AT_EXPORT}")
        return self.assembly.finish(
            key=self.key, title=self.title, metadata=self.metadata, user_id=self.user_id
        )
