"""Compactions in a Claude Code transcript: a boundary, and the summary that follows it.

The boundary is a `system` record with subtype `compact_boundary`, which states why and how many
tokens there were; the summary is the next `user` record marked `isCompactSummary`. Both become one
compaction in the place of the boundary, over everything before it. Newer versions leave some
messages in the context beside the summary and list them by uuid, or name the ends of their chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from eventlog.events import CompactionCompleted, Custom, MessageAdded
from eventlog.integrations.assembly import Assembly
from eventlog.integrations.claude_session import metadata_of
from eventlog.integrations.jsonl import Line, count_of, dict_of, id_of
from eventlog.integrations.transcripts import ImportedCompaction


class _Boundary(msgspec.Struct):
    """A compaction whose summary has not come yet; `index` is the event that keeps its record."""

    index: int
    line: Line
    record: dict[str, Any]


class ClaudeCompactions:
    """Turns boundaries and summaries into compactions of the assembly.

    `indexes` gives the event of each line by uuid, `parents` its line number and `parentUuid`; both
    grow while the file is read.
    """

    def __init__(
        self,
        assembly: Assembly,
        indexes: Mapping[str, int],
        parents: Mapping[str, tuple[int, str]],
    ) -> None:
        self.assembly = assembly
        self._indexes = indexes
        self._parents = parents
        self._boundary: _Boundary | None = None

    def begin(self, index: int, line: Line, record: dict[str, Any]) -> None:
        """A boundary, kept as the event with this index for now. Counts nothing yet."""
        self.close()
        self._boundary = _Boundary(index, line, record)

    def close(self) -> None:
        """A boundary that no summary followed stays a custom event: it changes no context."""
        if self._boundary is not None:
            self.assembly.note(self._boundary.line.number, "a compaction without its summary")
            self.assembly.count("system/compact_boundary", "custom")
        self._boundary = None

    def complete(self, line: Line, record: dict[str, Any], summary: str) -> int:
        """A summary; returns the index of the compaction. Without a boundary it stands alone."""
        records = [self.assembly.verbatim(line)]
        self.assembly.count("user/compact_summary", "compaction.completed")
        boundary, self._boundary = self._boundary, None
        if boundary is None:
            self.assembly.note(line.number, "a summary without a compaction boundary before it")
            event = self._compaction(len(self.assembly.entries), summary, record, records=records)
            source_id = self.assembly.source_id(line, record.get("uuid"))
            return self.assembly.add(event, line, source_id, stated=record.get("timestamp"))
        self.assembly.count("system/compact_boundary", "compaction.completed")
        entry = self.assembly.entries[boundary.index]
        records.insert(0, entry.event.data if isinstance(entry.event, Custom) else None)
        entry.event = self._compaction(boundary.index, summary, boundary.record, records=records)
        entry.byte_count += len(line.raw)
        return boundary.index

    def _compaction(
        self, index: int, summary: str, record: dict[str, Any], *, records: list[Any]
    ) -> ImportedCompaction:
        stated = dict_of(record.get("compactMetadata"))
        event = CompactionCompleted(
            summary=summary,
            from_seq=0,
            to_seq=0,
            tokens_before=count_of(stated.get("preTokens")),
            tokens_after=count_of(stated.get("postTokens")) or None,
            metadata={**metadata_of(record), "records": records},
        )
        kept = self._kept(stated, index)
        return ImportedCompaction(event=event, covers_from=0, covers_to=index - 1, kept=kept)

    def _kept(self, stated: dict[str, Any], before: int) -> list[int]:
        """Indexes of the messages that stay in the context beside the summary."""
        listed = dict_of(stated.get("preservedMessages")).get("uuids")
        if isinstance(listed, list):
            uuids = [uuid for each in listed if (uuid := id_of(each))]
        else:
            uuids = self._chain(dict_of(stated.get("preservedSegment")))
        if missing := sum(1 for each in uuids if each not in self._indexes):
            line = self.assembly.line_count
            self.assembly.note(line, f"{missing} messages that it kept are not in the file")
        found = {self._indexes[each] for each in uuids if each in self._indexes}
        entries = self.assembly.entries
        return sorted(
            each
            for each in found
            if each < before and isinstance(entries[each].event, MessageAdded)
        )

    def _chain(self, segment: dict[str, Any]) -> list[str]:
        """Uuids from the tail of a segment back to its head."""
        uuid, head = id_of(segment.get("tailUuid")), id_of(segment.get("headUuid"))
        chain: list[str] = []
        seen: set[str] = set()
        while uuid and uuid not in seen:
            seen.add(uuid)
            chain.append(uuid)
            uuid = "" if uuid == head else self._parents.get(uuid, (0, ""))[1]
        return chain
