"""A lane: commits what callers queue, batch after batch, and brings every command to an end.

Every command ends in one of three ways: its future gets the answer, an error that says refused,
or `OutcomeUnknown`. After a lost connection the whole batch is sent again as a retry, which first
looks for its ids; this goes on until a command's deadline. What is wrong with one command hits only
that command: a call that fails as a whole is bisected.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

from eventlog.envelope import Draft, Row, derived_id
from eventlog.errors import OutcomeUnknown, Refused, Unavailable
from eventlog.refusals import refusal_of, refusal_of_ids
from eventlog.store import (
    NOTHING_SEEN,
    Answer,
    Busy,
    Command,
    ConnectionLost,
    IdTaken,
    Seen,
    Status,
    Store,
)
from eventlog.telemetry import get_logger, metrics

BATCH_ROWS_MAX: Final = 2_000
"""Rows in one call; what is more waits for the next."""
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""Payload bytes in one call; a single larger command goes alone."""
QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Payload bytes waiting in one lane; beyond this `room` makes callers wait."""
BACKOFF_SECONDS_MAX: Final = 2.0
"""Longest pause between tries while Postgres is away (jittered)."""
SEEN_SESSIONS_MAX: Final = 10_000
"""Sessions of a shard whose last seq is remembered, so that Postgres need not look it up."""

log = get_logger()

Published = Callable[[list[Command], list[Answer]], None]


class Lane:
    """One connection's worth of appends, one commit at a time. Made and run by `Batcher`."""

    def __init__(
        self, store: Store, number: int, timeout_seconds: float, on_commit: Published
    ) -> None:
        self.number = number
        self.closing = False
        self.queued_bytes = 0
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._on_commit = on_commit
        self._pending: deque[Command] = deque()
        self._in_hand: list[Command] = []
        self._calling = False
        """Whether what is in hand may be on its way to Postgres just now."""
        self._loop = asyncio.get_running_loop()
        self._sleeper: asyncio.Future[None] | None = None
        self._room: list[asyncio.Future[None]] = []
        self._seen: dict[int, Seen] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._broken: set[UUID] = set()
        """Replies (their `unless`) of which a frame was given up: later ones would leave a hole."""

    # --- callers' side ---

    def submit(self, command: Command) -> asyncio.Future[Answer | Row]:
        loop = self._loop
        command.future = loop.create_future()
        command.deadline = loop.time() + self._timeout_seconds
        if self.closing:
            _fail(command, Unavailable("this EventLog is closed; open another"))
            return command.future
        self._pending.append(command)
        self.queued_bytes += command.byte_count
        if self._alarm is None:
            self._alarm = loop.call_at(command.deadline, self._tell_the_late)
        if self._sleeper is not None:
            self.wake()
        return command.future

    def withdraw(self, command: Command) -> bool:
        try:
            self._pending.remove(command)
        except ValueError:
            if self._calling or command.sent or command not in self._in_hand:
                return False
            _fail(command, Unavailable("its caller took it back before it was sent"))
            return True
        self._leave(command)
        return True

    async def room(self) -> None:
        while self.queued_bytes >= QUEUE_BYTES_MAX:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room.append(waiter)
            await waiter

    def wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def _leave(self, command: Command) -> None:
        self.queued_bytes -= command.byte_count
        if self._room and self.queued_bytes < QUEUE_BYTES_MAX:
            waiting, self._room = self._room, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    # --- the loop ---

    async def run(self) -> None:
        try:
            await self._run()
        finally:  # only a bug, or the end of the loop, finds commands here: nobody waits for ever
            self.closing = True
            if self._alarm is not None:
                self._alarm.cancel()
            for command in self._in_hand:
                _give_up(command)
            while self._pending:
                _fail(self._pending.popleft(), Unavailable("the batcher stopped; see the log"))

    async def _run(self) -> None:
        while True:
            if not self._pending:
                if self.closing:
                    break
                self._broken.clear()  # their writers hear of it before they can send more
                self._sleeper = self._loop.create_future()
                await self._sleeper
                self._sleeper = None
                # Callers that were woken together are about to submit: let them, so that one
                # commit takes them all.
                await asyncio.sleep(0)
                continue
            self._in_hand = self._take()
            await self._commit(self._in_hand)
        if self._settling:
            await asyncio.gather(*self._settling)

    def _take(self) -> list[Command]:
        """The next batch: as much as the caps and the three rules of eventlog.append() allow."""
        batch: list[Command] = []
        deferred: list[Command] = []
        rows = size = 0
        seen: set[UUID] = set()
        blocked: set[UUID] = set()
        ids: set[UUID] = set()
        pending = self._pending
        while pending and rows < BATCH_ROWS_MAX and (not batch or size < BATCH_BYTES_MAX):
            command = pending.popleft()
            session_id = command.session_id
            if command.unless in self._broken:
                self._leave(command)
                self._expired(command)
                continue
            if (
                session_id in blocked
                or (command.expected is not None and session_id in seen)
                or command.unless in ids
                or not ids.isdisjoint(command.ids)
                or (batch and size + command.byte_count > BATCH_BYTES_MAX)
            ):
                blocked.add(session_id)
                deferred.append(command)
                continue
            seen.add(session_id)
            if command.exclusive:
                blocked.add(session_id)
            ids.update(command.ids)
            batch.append(command)
            rows += len(command.drafts)
            size += command.byte_count
            self._leave(command)
        pending.extendleft(reversed(deferred))
        return batch

    async def _commit(self, batch: list[Command]) -> None:
        """Bring a batch to its end, whatever that takes."""
        pause = 0.02
        while batch := self._still_due(batch):
            for command in batch:  # at every try: a try before, or a half of this batch, moved on
                command.seen = self._seen.get(command.shard, NOTHING_SEEN)
                command.seen_seq = command.seen.seqs.get(command.session_id, 0)
            self._calling = True
            try:
                answers = await self._store.commit(self.number, batch)
            except (ConnectionLost, Busy, Unavailable) as error:
                if isinstance(error, ConnectionLost):
                    self._mark_sent(batch)
                # What comes back may be a standby that lacks the end of the log: assume nothing.
                self._seen.clear()
                metrics.append_retries += 1
                self._calling = False
                log.warning("append.will_retry", lane=self.number, error=str(error))
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, BACKOFF_SECONDS_MAX)
                self._expire_pending()
                # Without those whose callers took them back, or were told that their time is over.
                batch = [each for each in batch if each.outcome is None]
            except Exception as error:
                self._seen.clear()
                await self._bisect(batch, error)
                return
            else:
                self._answer(batch, answers)
                return

    async def _bisect(self, batch: list[Command], error: Exception) -> None:
        if len(batch) == 1:
            command = batch[0]
            if isinstance(error, IdTaken):
                self._look_up(command)
                return
            log.warning("append.refused", session_id=str(command.session_id), error=str(error))
            refusal = (
                OutcomeUnknown(command.session_id, command.drafts[0].event_id)
                if command.sent  # what was refused is the retry; the first try may be stored
                else Refused(f"Postgres refused the append: {error}")
            )
            refusal.__cause__ = error
            _fail(command, refusal)
            return
        half = len(batch) // 2
        await self._commit(batch[:half])
        await self._commit(batch[half:])

    def _answer(self, batch: list[Command], answers: list[Answer]) -> None:
        refused: list[tuple[Command, Answer]] = []
        for command, answer in zip(batch, answers, strict=True):
            if answer.status != Status.OK:
                refused.append((command, answer))
                continue
            self._learn(command, answer)
            _succeed(command, answer)
        metrics.commits += 1
        metrics.commands += len(batch)
        self._on_commit(batch, answers)
        for command, answer in refused:
            self._refuse(command, answer)

    def _learn(self, command: Command, answer: Answer) -> None:
        """Remember where the shard and the session stand after this command."""
        seen = self._seen.get(command.shard)
        if seen is None:
            seen = self._seen[command.shard] = Seen()
        if answer.first_position != seen.position + 1 or len(seen.seqs) > SEEN_SESSIONS_MAX:
            seen.seqs.clear()  # somebody else appended in between, perhaps to these sessions
        seen.position = answer.first_position + len(command.drafts) - 1
        seen.recorded_us = max(seen.recorded_us, answer.recorded_us)
        if command.exclusive:
            seen.seqs.pop(command.session_id, None)
        else:
            seen.seqs[command.session_id] = answer.before_seq + command.span

    def _mark_sent(self, batch: list[Command]) -> None:
        """These may be stored; if so, behind the last seq that was acknowledged before."""
        for command in batch:
            if not command.sent:
                command.sent = True
                command.retry_after = (
                    command.expected
                    if command.expected is not None
                    else command.base or command.seen_seq
                )

    def _refuse(self, command: Command, answer: Answer) -> None:
        if answer.status == Status.KNOWN:
            self._look_up(command)
        else:
            _fail(command, refusal_of(command, answer))

    # --- an id that is in the log already ---

    def _look_up(self, command: Command) -> None:
        task = asyncio.create_task(self._settle(command))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        task.add_done_callback(lambda _: _give_up(command))

    async def _settle(self, command: Command) -> None:
        """Duplicate, or the id of something else? Rows never change, so looking later is safe."""
        pause = 0.02
        while True:
            try:
                found = await self._find(command)
            except Unavailable:
                if self._loop.time() >= command.deadline:
                    _give_up(command)
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_SECONDS_MAX)
                continue
            if isinstance(found, Refused):
                _fail(command, found)
                return
            metrics.duplicates += 1
            _succeed(command, found)
            return

    async def _find(self, command: Command) -> Row | Refused:
        """First row of the command as an earlier call stored it, if that was exactly the same."""
        drafts = command.drafts
        ids = [draft.event_id for draft in drafts]
        beyond = derived_id(ids[0], len(ids))  # of a longer batch under the same id
        after = command.retry_after if command.sent else None
        rows = await self._store.read_ids(command.session_id, [*ids, beyond], after=after)
        found = {row.event_id: row for row in rows}
        first = found.get(ids[0])
        if first is not None and beyond not in found and _stored_as(drafts, first, found):
            return first
        return refusal_of_ids(command, rows)

    # --- deadlines ---

    def _still_due(self, batch: list[Command]) -> list[Command]:
        if not batch or (not self._broken and self._loop.time() < batch[0].deadline):
            return batch  # the oldest comes first
        return [each for each in batch if not self._expired(each)]

    def _expired(self, command: Command) -> bool:
        if self._loop.time() < command.deadline and command.unless not in self._broken:
            return False
        if command.unless is not None:
            self._broken.add(command.unless)
        if command.sent:
            _fail(command, OutcomeUnknown(command.session_id, command.drafts[0].event_id))
        else:
            _fail(
                command,
                Unavailable(
                    f"Postgres did not take the append within {self._timeout_seconds:g} s "
                    "(EVENTLOG_APPEND_TIMEOUT_SECONDS); nothing was stored"
                ),
            )
        return True

    def _tell_the_late(self) -> None:
        """End the wait of callers whose time is over, while the call itself may take longer."""
        now = self._loop.time()
        for command in self._in_hand:
            if command.deadline <= now and command.outcome is None:
                _give_up(command) if self._calling else self._expired(command)
        self._expire_pending()
        waiting = [each for each in (*self._in_hand, *self._pending) if each.outcome is None]
        self._alarm = None
        if waiting:
            earliest = min(each.deadline for each in waiting)
            self._alarm = self._loop.call_at(earliest, self._tell_the_late)

    def _expire_pending(self) -> None:
        now = self._loop.time()
        while self._pending and self._pending[0].deadline <= now:
            command = self._pending.popleft()
            self._leave(command)
            self._expired(command)


def _stored_as(drafts: list[Draft], first: Row, found: dict[UUID, Row]) -> bool:
    """Whether exactly these drafts are stored, one after the other, from `first` on."""
    seq = first.first_seq - 1
    for draft in drafts:
        seq += draft.span
        row = found.get(draft.event_id)
        if row is None or (row.seq, row.type, row.data) != (seq, draft.type, draft.data):
            return False
    return True


def _succeed(command: Command, outcome: Answer | Row) -> None:
    command.outcome = outcome
    if not command.future.done():
        command.future.set_result(outcome)


def _fail(command: Command, error: BaseException) -> None:
    command.outcome = error
    if not command.future.done():
        command.future.set_exception(error)


def _give_up(command: Command) -> None:
    """Nobody goes on with it. Does nothing for a command that came to its end."""
    if command.outcome is None:
        _fail(command, OutcomeUnknown(command.session_id, command.drafts[0].event_id))
