"""Putting a transcript together: what the readers of foreign formats share.

A reader walks the lines once and, for each, adds events at the end (`add`), or keeps the whole
record as a `custom` event (`keep`), and counts what the line became. Indexes of events are final
once they are given out, so that a compaction can refer to them: what is learnt later (the rest of
a reply, the summary behind a boundary) replaces an event in its place.

What an event can't hold goes into events of its own: the exact text of a line that had to be
repaired or is larger than `LINE_BYTES_MAX` becomes `….raw_line` events, in pieces, and where its
record would stand in a `native`, `metadata` or `data` stands `{"raw_line": <source id>}`.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any, Final

import msgspec

from eventlog.codec import encode_event
from eventlog.errors import InvalidEvent
from eventlog.events import Custom, MessageAdded, ToolCall
from eventlog.integrations.jsonl import Line, id_of, text_in, time_of
from eventlog.integrations.transcripts import (
    Format,
    Imported,
    ImportedCompaction,
    ImportedEvent,
    ImportReport,
    Problem,
    Transcript,
)

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""No event is larger: text beyond that is cut, and stays whole in `raw_line` events."""
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Most bytes of lines that one event holds verbatim; the rest goes into `raw_line` events."""
PIECE_CHARS_MAX: Final = 2_000_000
"""Characters (or bytes, where the line isn't UTF-8) in one `raw_line` event."""
CUT_CHARS: Final = 1_500_000
"""What stays of the texts of a message that doesn't fit into an event, all together."""
LABEL_CHARS_MAX: Final = 100
PROBLEM_CHARS_MAX: Final = 400
TITLE_CHARS_MAX: Final = 120


class Entry(msgspec.Struct):
    """One event of the transcript; `event` may still be replaced."""

    event: Imported
    at: datetime | None
    line: int
    source_id: str
    byte_count: int


class Assembly:
    """The transcript so far. `prefix` begins the names of custom events."""

    def __init__(self, source: Format, prefix: str) -> None:
        self.source: Final = source
        self.prefix: Final = prefix
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self.line_count = 0
        self._became: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._source_ids: Counter[str] = Counter()
        self._calls: dict[str, tuple[int, str]] = {}
        self._results: dict[str, int] = {}
        self._unread_times: set[int] = set()

    # Events.

    def begin(self, line: Line) -> bool:
        """Note a line and its faults; False when there is no record in it to read."""
        self.line_count += 1
        for fault in line.faults:
            self.note(line.number, fault)
        if line.record is not None:
            return True
        if line.raw.strip():
            self._add_raw(line)
            self.count("(no record)", "custom")
        else:
            self.count("(blank)", "nothing")
        return False

    def add(self, event: Imported, line: Line, source_id: str, *, stated: object = None) -> int:
        """Add an event made from a line; returns its index. `stated` is the time it states."""
        at = time_of(stated)
        if stated is not None and at is None and line.number not in self._unread_times:
            self._unread_times.add(line.number)
            self.note(line.number, f"the timestamp {str(stated)[:40]!r} can't be read")
        self.entries.append(Entry(event, at, line.number, source_id, len(line.raw)))
        return len(self.entries) - 1

    def keep(self, line: Line, label: str, *, source: object = "", stated: object = None) -> int:
        """Add a custom event that holds the record; returns its index. Counts nothing."""
        event = Custom(name=f"{self.prefix}.{label.replace('/', '.')}", data=self.verbatim(line))
        return self.add(event, line, self.source_id(line, source), stated=stated)

    def verbatim(self, line: Line, item: Any = None, *, room: int = LINE_BYTES_MAX) -> Any:
        """The record (or `item` of it), or a pointer to the events that hold the line's text."""
        if line.exact and len(line.raw) <= room:
            return line.record if item is None else item
        return {"raw_line": self._add_raw(line)}

    def source_id(self, line: Line, source: object = "") -> str:
        """An id from the file, the line's digest if it is none; numbered when it came before."""
        base = id_of(source) or f"line-{line.digest}"
        self._source_ids[base] += 1
        count = self._source_ids[base]
        return base if count == 1 else f"{base}#{count}"

    def _add_raw(self, line: Line) -> str:
        """Add the line's text in pieces; returns the source id of the first."""
        pieces = _pieces(line.raw)
        first = len(self.entries)
        for part, piece in enumerate(pieces, start=1):
            data = {"line": line.number, "part": part, "parts": len(pieces), **piece}
            raw = Custom(name=f"{self.prefix}.raw_line", data=data)
            self.add(raw, line, self.source_id(line, f"raw-{line.digest}"))
        return self.entries[first].source_id

    # The report.

    def count(self, label: str, became: str) -> None:
        """A line with a record of this type became this. Exactly once for each line."""
        self._became[label][became] += 1

    def note(self, line: int, what: str) -> None:
        """Record a problem."""
        self.problems.append(Problem(line, what[:PROBLEM_CHARS_MAX]))

    def called(self, line: Line, call: ToolCall) -> None:
        """A tool was called."""
        self._calls.setdefault(call.id, (line.number, call.name))

    def answered(self, line: Line, call_id: str | None) -> str | None:
        """A tool answered; returns its name when the call came before."""
        if call_id is None:
            self.note(line.number, "a tool result names no call")
            return None
        self._results.setdefault(call_id, line.number)
        return self._calls[call_id][1] if call_id in self._calls else None

    def finish(
        self,
        *,
        key: str,
        title: str | None,
        metadata: dict[str, Any],
        user_id: str | None = None,
    ) -> Transcript:
        """The whole. The reader has replaced what there was to replace."""
        for call_id, (line, name) in self._calls.items():
            if call_id not in self._results:
                self.note(line, f"the call {call_id} of tool {name!r} has no result")
        for call_id, line in self._results.items():
            if call_id not in self._calls:
                self.note(line, f"a result for the call {call_id}, which is not in the file")
        for entry in self.entries:
            if 2 * entry.byte_count + LINE_BYTES_MAX > EVENT_BYTES_MAX:
                self._fit(entry)
        return Transcript(
            format=self.source,
            key=key,
            title=one_line(title) if title else None,
            user_id=user_id,
            user_metadata=metadata,
            events=[
                ImportedEvent(event=e.event, at=e.at, line=e.line, source_id=e.source_id)
                for e in self.entries
            ],
            report=ImportReport(
                lines=self.line_count,
                became={label: dict(counts) for label, counts in self._became.items()},
                problems=sorted(self.problems, key=lambda each: each.line),
            ),
        )

    def _fit(self, entry: Entry) -> None:
        """Cut what is larger than an event may be. Its lines are kept whole already."""
        event = entry.event
        if isinstance(event, ImportedCompaction) and len(event.event.summary) > CUT_CHARS:
            short = _cut(event.event.summary, CUT_CHARS)
            told = msgspec.structs.replace(event.event, summary=short)
            entry.event = msgspec.structs.replace(event, event=told)
        elif isinstance(event, MessageAdded) and not _fits(event):
            entry.event = _shortened(event)
        else:
            return
        self.note(entry.line, "too large for one event: cut; it is whole in raw_line events")


def label_of(kind: object, detail: object = None) -> str:
    """Record type for the report and for names of custom events: `type` or `type/subtype`."""
    names = [each for each in (kind, detail) if isinstance(each, str) and each]
    return "/".join(names)[:LABEL_CHARS_MAX] or "(no type)"


def one_line(text: str) -> str:
    """A text as a title: its beginning, on one line."""
    flat = " ".join(text[: 4 * TITLE_CHARS_MAX].split())
    return flat if len(flat) <= TITLE_CHARS_MAX else flat[: TITLE_CHARS_MAX - 1] + "…"


def _pieces(raw: bytes) -> list[dict[str, str]]:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        cuts = range(0, len(raw), PIECE_CHARS_MAX)
        blocks = [raw[start : start + PIECE_CHARS_MAX] for start in cuts]
        return [
            {"text": each.decode(errors="replace"), "base64": base64.b64encode(each).decode()}
            for each in blocks
        ]
    cuts = range(0, len(text), PIECE_CHARS_MAX)
    return [{"text": text[start : start + PIECE_CHARS_MAX]} for start in cuts]


def _fits(event: MessageAdded) -> bool:
    try:
        encode_event(event, bytes_max=EVENT_BYTES_MAX)
    except InvalidEvent:
        return False
    return True


def _shortened(event: MessageAdded) -> MessageAdded:
    content = event.content if isinstance(event.content, str) else text_in(event.content)
    share = CUT_CHARS // (2 + len(event.tool_calls))
    return msgspec.structs.replace(
        event,
        content=_cut(content, share),
        reasoning=_cut(event.reasoning, share),
        tool_calls=[
            msgspec.structs.replace(each, arguments=_cut(each.arguments, share))
            for each in event.tool_calls
        ],
    )


def _cut(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    return f"{text[:chars]}\n[… cut here: {len(text) - chars:,} more characters …]"
