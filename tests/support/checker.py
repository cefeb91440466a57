"""The checker: what clients were told, against what the log holds.

Clients write a journal, before and after each call, in as many processes as they like: every append
and its outcome, every read, every delivery of a subscription, every checkpoint. At the end the log
is read once, and `check` compares. Events are known by a mark, a digest of their content, which the
test keeps unique within a session; so the checker needs no knowledge of the log's insides.

    durable      what was acknowledged is there, at its seq, unchanged       lost moved
    once         no event is there twice, none that nobody sent              twice phantom
    atomic       of a batch all events are there, together, or none          torn
    honest       what was refused is not there                               refused
    contiguous   seqs are 1, 2, 3, …                                         gap
    real time    acknowledged before another was sent: lower seq             reordered
    reads        a slice of the log, with all that was acknowledged before   read stale
    subscribers  consecutive from their cursor, over reconnects too, and     skipped repeated wrong
                 (when that is asked for) up to the end                      late
    checkpoints  never go back, nor does an old epoch go on                  back

An append without an outcome (its process died, its answer was lost) may be stored or not, but not
twice and not in part. Times are of the machine's monotonic clock, which processes share.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import msgspec

from eventlog import Event, EventLog
from eventlog.testing import read_all

# --- the journal ---------------------------------------------------------------------------------


class Sent(msgspec.Struct, frozen=True, tag=True):
    """An append is about to be called; the same operation may be sent again."""

    op: str
    session: str
    marks: list[str]
    at: float


class Done(msgspec.Struct, frozen=True, tag=True):
    """It returned: stored from `first_seq` on, refused, or it is not known."""

    op: str
    outcome: Literal["stored", "refused", "unknown"]
    first_seq: int
    at: float


class Read(msgspec.Struct, frozen=True, tag=True):
    """A read to the end of the session, after a seq."""

    session: str
    after: int
    marks: list[str]
    sent_at: float
    at: float


class Connected(msgspec.Struct, frozen=True, tag=True):
    """A subscriber begins, or goes on, after a seq."""

    subscriber: str
    session: str
    after: int
    at: float


class Delivered(msgspec.Struct, frozen=True, tag=True):
    """A subscriber got an event."""

    subscriber: str
    session: str
    seq: int
    mark: str
    at: float


class Checkpoint(msgspec.Struct, frozen=True, tag=True):
    """A projection committed up to a position of a shard."""

    projection: str
    shard: int
    epoch: int
    position: int
    at: float


class Fault(msgspec.Struct, frozen=True, tag=True):
    """Something was broken on purpose."""

    kind: str
    at: float


Record = Sent | Done | Read | Connected | Delivered | Checkpoint | Fault
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def mark_of(event: Event) -> str:
    """A short digest of an event's content."""
    return blake2b(msgspec.json.encode(event), digest_size=8).hexdigest()


class Journal:
    """Records appended to a file, each in one write: a killed process loses none it has written."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, record: Record) -> None:
        """Add one record."""
        os.write(self._file, _encoder.encode(record) + b"\n")

    def sending(self, session: object, events: Sequence[Event], op: str | None = None) -> str:
        """An append is about to be called; returns the operation's name, to be given to `done`."""
        name = op or uuid.uuid4().hex
        marks = [mark_of(event) for event in events]
        self.write(Sent(name, str(session), marks, time.monotonic()))
        return name

    def done(
        self, op: str, outcome: Literal["stored", "refused", "unknown"], first_seq: int = 0
    ) -> None:
        """It returned, or raised."""
        self.write(Done(op, outcome, first_seq, time.monotonic()))

    def fault(self, kind: str) -> None:
        """Something is broken now."""
        self.write(Fault(kind, time.monotonic()))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_journal(*paths: Path) -> list[Record]:
    """All records of some journals, by time. A line that a kill cut off at the end is left out."""
    records: list[Record] = []
    for path in paths:
        lines = path.read_bytes().split(b"\n")
        records += [_decoder.decode(line) for line in lines[:-1]]
    return sorted(records, key=lambda record: record.at)


# --- the check -----------------------------------------------------------------------------------

History = dict[str, list[tuple[int, str]]]
"""Of each session, seq and mark of every event, in the order in which they were read."""


class Violation(msgspec.Struct, frozen=True):
    """A promise that was not kept."""

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.what}"


class Report(msgspec.Struct):
    """What was found, and how much there was to find it in."""

    violations: list[Violation] = []
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    """stored, refused, unknown, sent_again, events, reads, delivered, reconnects, faults, …"""

    def add(self, kind: str, where: str, what: str) -> None:
        """One more violation."""
        self.violations.append(Violation(kind, where, what))

    @property
    def kinds(self) -> set[str]:
        """Kinds of the violations."""
        return {each.kind for each in self.violations}

    def __str__(self) -> str:
        lines = [str(each) for each in self.violations[:20]]
        return "\n".join([f"{len(self.violations)} violations, {dict(self.counts)}", *lines])


async def history_of(log: EventLog, session_ids: Iterable[str]) -> History:
    """The log's events, read once through the API. Sessions that don't exist are left out."""
    found: History = {}
    for session_id in session_ids:
        session = log.handle(uuid.UUID(session_id))
        if await log.replayer.head(session.id) is not None:
            found[session_id] = [
                (each.seq, mark_of(each.event)) for each in await read_all(session)
            ]
    return found


class Operation:
    """One append: everything its callers wrote about it."""

    def __init__(self, session: str, marks: list[str], sent_at: float) -> None:
        self.session = session
        self.marks = marks
        self.sent_at = sent_at
        """When it was sent first."""
        self.first_seq = 0
        self.stored_at: float | None = None
        self.refused = False


def check(records: Sequence[Record], history: History, *, complete: bool = False) -> Report:
    """Compare a journal with the log. `complete`: every subscriber must have got everything.

    Every event of the log must have been journalled, a session's first one too.
    """
    report = Report()
    operations = _operations(records, report)
    for session in sorted({*history, *(each.session for each in operations)}):
        mine = [each for each in operations if each.session == session]
        events = history.get(session, [])
        report.counts["events"] += len(events)
        _check_contiguous(session, events, report)
        _check_stored(session, mine, events, report)
        _check_real_time(session, mine, report)
    _check_reads(records, operations, history, report)
    _check_subscribers(records, history, report, complete=complete)
    _check_checkpoints(records, report)
    return report


def _operations(records: Sequence[Record], report: Report) -> list[Operation]:
    found: dict[str, Operation] = {}
    last_fault = max((each.at for each in records if isinstance(each, Fault)), default=0.0)
    for record in records:
        match record:
            case Sent():
                if record.op in found:
                    report.counts["sent_again"] += 1
                else:
                    found[record.op] = Operation(record.session, record.marks, record.at)
            case Done(outcome="stored"):
                operation = found[record.op]
                if operation.stored_at is None:
                    operation.stored_at, operation.first_seq = record.at, record.first_seq
                    report.counts["stored_after_faults"] += record.at > last_fault
                elif operation.first_seq != record.first_seq:
                    what = f"{operation.first_seq} at first, then {record.first_seq}"
                    report.add("moved", operation.session, f"answers differ: {what}")
            case Done(outcome="refused"):
                found[record.op].refused = True
            case Fault():
                report.counts["faults"] += 1
            case _:
                pass
    for operation in found.values():
        known = "stored" if operation.stored_at is not None else "unknown"
        report.counts["refused" if operation.refused else known] += 1
    return list(found.values())


def _check_contiguous(session: str, events: list[tuple[int, str]], report: Report) -> None:
    for expected, (seq, _) in enumerate(events, 1):
        if seq != expected:
            report.add("gap", session, f"seq {seq} where {expected} is due")
            return


def _check_stored(
    session: str, operations: list[Operation], events: list[tuple[int, str]], report: Report
) -> None:
    places: dict[str, list[int]] = defaultdict(list)
    for seq, mark in events:
        places[mark].append(seq)
    for mark, seqs in places.items():
        if len(seqs) > 1:
            report.add("twice", session, f"the event {mark} is at {seqs}")
    sent = {mark for operation in operations for mark in operation.marks}
    for mark in places.keys() - sent:
        report.add("phantom", session, f"nobody sent what is at {places[mark]}")
    by_seq = dict(events)
    for operation in operations:
        there = [mark in places for mark in operation.marks]
        if operation.stored_at is not None:
            for seq, mark in enumerate(operation.marks, operation.first_seq):
                if mark not in places:
                    report.add("lost", session, f"seq {seq} was acknowledged")
                elif by_seq.get(seq) != mark:
                    report.add("moved", session, f"seq {seq} is now at {places[mark]}")
        elif operation.refused and any(there):
            report.add("refused", session, "an append that was refused is stored")
        elif any(there):
            first = places[operation.marks[0]][0] if there[0] else 0
            expected = list(range(first, first + len(there)))
            if not all(there) or [places[mark][0] for mark in operation.marks] != expected:
                report.add("torn", session, f"{sum(there)} of {len(there)} events, or apart")


def _check_real_time(session: str, operations: list[Operation], report: Report) -> None:
    acknowledged = sorted(
        (each.stored_at, each.first_seq + len(each.marks) - 1)
        for each in operations
        if each.stored_at is not None
    )
    highest, done = 0, 0
    for operation in sorted(operations, key=lambda each: each.sent_at):
        while done < len(acknowledged) and acknowledged[done][0] < operation.sent_at:
            highest = max(highest, acknowledged[done][1])
            done += 1
        if operation.stored_at is not None and operation.first_seq <= highest:
            what = f"{operation.first_seq} was sent after {highest} was acknowledged"
            report.add("reordered", session, what)


def _check_reads(
    records: Sequence[Record], operations: list[Operation], history: History, report: Report
) -> None:
    for read in records:
        if not isinstance(read, Read):
            continue
        report.counts["reads"] += 1
        marks = [mark for _, mark in history.get(read.session, [])]
        until = read.after + len(read.marks)
        if read.marks != marks[read.after : until]:
            report.add("read", read.session, f"after {read.after}: not what the log holds there")
        due = max(
            (
                each.first_seq + len(each.marks) - 1
                for each in operations
                if each.session == read.session
                and each.stored_at is not None
                and each.stored_at < read.sent_at
            ),
            default=0,
        )
        if until < due:
            report.add("stale", read.session, f"ends at {until}, {due} was acknowledged before")


def _check_subscribers(
    records: Sequence[Record], history: History, report: Report, *, complete: bool
) -> None:
    cursors: dict[tuple[str, str], int] = {}
    for record in records:
        if isinstance(record, Connected):
            key = (record.subscriber, record.session)
            if key in cursors:
                report.counts["reconnects"] += 1
            due = cursors.get(key, record.after)
            if record.after != due:
                kind = "skipped" if record.after > due else "repeated"
                report.add(kind, record.session, f"goes on after {record.after}, had {due}")
            cursors[key] = record.after
        elif isinstance(record, Delivered):
            key = (record.subscriber, record.session)
            report.counts["delivered"] += 1
            due = cursors.get(key, 0) + 1
            who = f"{record.subscriber}: {record.seq}"
            if record.seq != due:
                kind = "skipped" if record.seq > due else "repeated"
                report.add(kind, record.session, f"{who} after {due - 1}")
            marks = history.get(record.session, [])
            if record.seq > len(marks) or marks[record.seq - 1][1] != record.mark:
                report.add("wrong", record.session, f"{who} is another event")
            cursors[key] = record.seq
    if complete:
        for (subscriber, session), seq in cursors.items():
            if seq < len(history.get(session, [])):
                what = f"{subscriber} ends at {seq} of {len(history[session])}"
                report.add("late", session, what)


def _check_checkpoints(records: Sequence[Record], report: Report) -> None:
    last: dict[tuple[str, int], tuple[int, int]] = {}
    for record in records:
        if isinstance(record, Checkpoint):
            key = (record.projection, record.shard)
            before = last.get(key, (0, 0))
            if (record.epoch, record.position) < before or record.position < before[1]:
                what = f"{record.position} in epoch {record.epoch} after {before}"
                report.add("back", f"{record.projection}/{record.shard}", what)
            last[key] = (record.epoch, record.position)
