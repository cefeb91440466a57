"""The handle of one session: append, stream a reply, read, replay, subscribe, fork, rewind.

A handle holds no state of the session; any number of them, in any number of processes, may be used
at once. Get one from `EventLog.session` or `EventLog.create_session`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from eventlog import events as ev
from eventlog import forking, revisions
from eventlog.append_call import appended, wait_for_outcome
from eventlog.compaction.session_part import SessionCompaction
from eventlog.drafts import (
    BATCH_EVENTS_MAX,
    check_batch,
    check_seq,
    make_batch,
    make_draft,
    parse_event_id,
)
from eventlog.entries import Message
from eventlog.envelope import (
    ANY,
    Appended,
    Draft,
    Expected,
    RecordedEvent,
    Row,
    is_unnamed,
)
from eventlog.erasing import erasure
from eventlog.erasing.record import Erasure
from eventlog.errors import (
    InvalidRequest,
    OutcomeUnknown,
    SessionNotFound,
)
from eventlog.reading.session_reads import SessionReads
from eventlog.reply import Reply
from eventlog.state import SessionState
from eventlog.store import Answer, Command, ConnectionLost, Status
from eventlog.subscription import SessionSubscription
from eventlog.telemetry import get_logger
from eventlog.views import SessionView

if TYPE_CHECKING:
    from eventlog.log import EventLog

log = get_logger()

BATCH_BYTES_MAX: Final = 64 * 1024 * 1024
"""Payload of one atomic batch (more, when a single event may have more)."""


class Session(SessionReads, SessionCompaction):
    """One session of a log. `id` is its UUID, `shard` the shard it lives in."""

    def __init__(self, log: EventLog, session_id: UUID, shard: int) -> None:
        self.id = session_id
        self.shard = shard
        self._log = log

    def __repr__(self) -> str:
        return f"Session({self.id})"

    @property
    def log(self) -> EventLog:
        """The log it belongs to."""
        return self._log

    # --- appending ---

    async def append(
        self,
        events: ev.StoredEvent | Sequence[ev.StoredEvent],
        *,
        expected_seq: Expected = ANY,
        event_id: UUID | str | None = None,
    ) -> Appended:
        """Append one event, or several as one atomic batch. Returning means committed and flushed.

        `expected_seq`: the last seq you believe the session has; `WrongExpectedSeq` if it isn't.
        `event_id`: name of this append, for retries: the same id and events again return the first
        answer with `duplicate=True`, the same id with other events raises `EventIdReused`.

        Raises `Refused` errors (nothing stored), `Unavailable` (nothing stored, try later) or
        `OutcomeUnknown` (append again with the same `event_id`). If the calling task is cancelled,
        what was not sent is withdrawn, and what was sent is waited for first.
        """
        bytes_max = self._log.settings.event_bytes_max
        if event_id is None and type(events) is ev.MessageAdded:  # what nearly all appends are
            drafts = [make_draft(events, None, self.id, bytes_max=bytes_max)]
            return await self.append_drafts(drafts, expected_seq=expected_seq)
        many = events if isinstance(events, Sequence) else (events,)
        if not 0 < len(many) <= BATCH_EVENTS_MAX:
            raise InvalidRequest(
                f"a batch has 1 to {BATCH_EVENTS_MAX} events, this one {len(many)}; "
                "leave empty ones out and split longer ones"
            )
        if event_id is not None and not isinstance(event_id, UUID):
            event_id = parse_event_id(event_id)
        drafts = make_batch(many, event_id, self.id, bytes_max=bytes_max)
        asked_before = event_id is not None and is_unnamed(event_id)
        return await self.append_drafts(
            drafts, expected_seq=expected_seq, asked_before=asked_before
        )

    def draft(self, event: ev.StoredEvent, event_id: UUID | None = None) -> Draft:
        """An event with its id and bytes, ready to be appended. Raises `InvalidEvent`."""
        return make_draft(event, event_id, self.id, bytes_max=self._log.settings.event_bytes_max)

    async def append_drafts(
        self,
        drafts: list[Draft],
        *,
        expected_seq: Expected = ANY,
        message_id: str = "",
        asked_before: bool = False,
    ) -> Appended:
        """Append prepared events as one batch; see `append`.

        `asked_before`: the outcome of the same append is unknown, and it had no id by a caller.
        """
        expected = None if expected_seq is ANY else check_seq(expected_seq, "expected_seq")
        if len(drafts) > 1:
            check_batch(drafts, bytes_max=max(BATCH_BYTES_MAX, self._log.settings.event_bytes_max))
        self.flush_replies()
        command = Command(self.id, self.shard, drafts, expected=expected, message_id=message_id)
        if asked_before:
            command.sent, command.retry_after = True, expected or 0
        return await self.settle(command)

    async def decide_alone(
        self,
        choose: Callable[[SessionState], list[Draft]],
        read: Callable[[], Awaitable[SessionState]],
    ) -> tuple[SessionState, Appended | None]:
        """Read, decide and append while nobody else can append to the shard."""
        try:
            async with self._log.store.exclusively(self.shard) as commit:
                state = await read()
                drafts = choose(state)
                if not drafts:
                    return state, None
                command = Command(self.id, self.shard, drafts, expected=state.seq)
                answer = await commit(command)
        except ConnectionLost:
            raise OutcomeUnknown(self.id, drafts[0].event_id) from None
        if answer.status != Status.OK:  # ask in the ordinary way: it has the words for it
            return state, await self.append_drafts(drafts, expected_seq=state.seq)
        self._log.committed([command], [answer])
        return state, appended(self.id, command, answer)

    def submit(self, command: Command) -> asyncio.Future[Answer | Row]:
        """Queue a command, without waiting for room."""
        return self._log.batcher.submit(command)

    async def settle(self, command: Command) -> Appended:
        """Submit a command and see it through to its end, also when the caller is cancelled."""
        batcher = self._log.batcher
        if not batcher.has_room(command.shard):
            await batcher.room(command.shard)
        future = batcher.submit(command)
        try:
            answer = await future
        except asyncio.CancelledError as cancelled:
            if not batcher.withdraw(command):
                await wait_for_outcome(command)
                if isinstance(command.outcome, OutcomeUnknown):
                    log.warning("append.outcome_unknown", error=str(command.outcome))
                    raise cancelled from command.outcome
            raise
        return appended(self.id, command, answer)

    def flush_replies(self) -> None:
        """Send what replies into this session have gathered: it comes before what comes now."""
        if self.id in self._log.open_replies:
            for reply in tuple(self._log.open_replies[self.id]):
                reply.flush()

    def add_reply(self, reply: Reply) -> None:
        """From now on other events of the session push the reply's increments ahead of them."""
        self._log.open_replies.setdefault(self.id, set()).add(reply)

    def drop_reply(self, reply: Reply) -> None:
        """The reply has ended."""
        replies = self._log.open_replies.get(self.id, set())
        replies.discard(reply)
        if not replies:
            self._log.open_replies.pop(self.id, None)

    def keep(self, task: asyncio.Future[None]) -> None:
        """Let a task finish before the log closes."""
        self._log.keep(task)

    # --- streaming a reply ---

    def reply(
        self,
        *,
        agent: str | None = None,
        model: str | None = None,
        role: ev.Role = "assistant",
        name: str | None = None,
        message_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        flush_seconds: float | None = None,
    ) -> Reply:
        """Stream a message: `async with session.reply(agent=…) as reply: await reply.write(text)`.

        `flush_seconds`: longest time an increment waits for others before it is sent; 0: as soon as
        the one before is committed. Leaving the block appends `message.completed`; leaving it by an
        exception or cancellation `message.interrupted` with what was written.
        """
        if flush_seconds is None:
            flush_seconds = self._log.settings.flush_seconds
        if not 0 <= flush_seconds <= 60:
            raise InvalidRequest(f"flush_seconds is {flush_seconds}; it must be 0 to 60")
        return Reply(
            self,
            message_id=message_id or secrets.token_urlsafe(6),
            role=role,
            agent=agent,
            model=model,
            name=name,
            metadata=metadata or {},
            flush_seconds=flush_seconds,
            bytes_max=self._log.settings.event_bytes_max,
        )

    async def interrupt(
        self, message_id: str | None = None, *, reason: str = "taken over", idle_seconds: float = 0
    ) -> list[str]:
        """Close replies that were left open, and fence off their writers.

        All of them, or one; with `idle_seconds` only those of which nothing was stored for so
        long. What had arrived is kept. Returns the ids of the messages closed. A writer that was
        only slow gets `MessageFenced` on its next write.
        """
        return await revisions.interrupt(self, message_id, reason, idle_seconds)

    # --- reading ---

    async def read(
        self, *, after: int = 0, until: int | None = None, frames: bool = False
    ) -> AsyncIterator[RecordedEvent]:
        """Events with `after < seq <= until` in order, one for each seq.

        With `frames=True` token increments come as they are stored, one `TokensAppended` for each
        row, uncut, under the seq of its last increment.
        """
        check_seq(after, "after")
        if until is not None:
            check_seq(until, "until")
        async for event in self._log.replayer.read(
            self.id, after=after, until=until, frames=frames
        ):
            yield event

    async def head(self) -> int:
        """The session's last seq."""
        head = await self._log.replayer.head(self.id)
        if head is None:
            raise SessionNotFound(self.id)
        return head.seq

    async def replay(self, at: int | datetime | None = None) -> SessionState:
        """The session's state at a seq or an aware datetime, mid-reply included; None: now."""
        return await self._log.replayer.replay(self.id, at)

    async def view(self, min_seq: int | None = None) -> SessionView:
        """Everything but the messages (title, counts, agents, …), from the cheapest place with it.

        That is the cache, else the projector's row, else the log itself. It may be a moment behind;
        `min_seq` demands a seq that you know of (your last append's `last_seq`: you read what you
        wrote), and raises `InvalidRequest` when the session isn't there yet.
        """
        return await self._log.views.view(self.id, min_seq)

    async def metadata(
        self, min_seq: int | None = None, *, names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The metadata, or the entries of it with these names; as new as `view` is."""
        return await self._log.parts.metadata(self.id, min_seq, names)

    async def scratchpad(
        self, min_seq: int | None = None, *, names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The scratchpad, or the entries of it with these names; as new as `view` is."""
        return await self._log.parts.scratchpad(self.id, min_seq, names)

    async def invalidate(self) -> bool:
        """Drop what is cached of the session; nothing older is cached after. False: Redis is away.

        For repairs: no cache needs it to be right.
        """
        return await self._log.parts.invalidate(self.id)

    async def context(
        self, *, at: int | datetime | None = None, min_seq: int | None = None
    ) -> list[dict[str, Any]]:
        """What a model sees next: provider-ready dicts, newest summary first, then what followed.

        It contains everything acknowledged before. With `min_seq` everything up to that seq is
        enough, which is cheaper; `InvalidRequest` when the session isn't there yet.
        """
        return await self._log.parts.context(self.id, at=at, min_seq=min_seq)

    def subscribe(self, *, after: int = 0) -> SessionSubscription:
        """Events after a seq, history first, then live, for ever; ends after `session.closed`.

        `after` is the seq of the last event you have, over reconnects too. Raises `InvalidRequest`
        (from the iterator) for a cursor beyond the session's end.
        """
        check_seq(after, "after")
        return SessionSubscription(self._log.replayer, self._log.hub, self.id, after=after)

    # --- changing the conversation, by appending ---

    async def update(
        self, *, title: str | None = None, metadata: dict[str, Any] | None = None
    ) -> Appended:
        """Change title or metadata (a patch: keys with None are removed)."""
        return await self.append(ev.SessionUpdated(title=title, metadata=metadata or {}))

    async def fork(
        self,
        *,
        at: int | None = None,
        key: str | None = None,
        title: str | None = None,
        user_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Session:
        """A new session that continues this one after seq `at` (None: now). Copies no event.

        Its own first event has seq `at + 1`. Replies that were open at that point are closed in the
        fork with what they had; here they go on.
        """
        wanted = ev.SessionCreated(key=key, user_id=user_id, title=title, metadata=metadata or {})
        return await forking.fork(self, at, wanted)

    async def rewind(self, *, to: int, reason: str | None = None) -> Appended:
        """Make the conversation what it was at seq `to`; what followed stays in the log.

        Replies that are open now are closed and their writers fenced; replies that were open at
        `to` are shown with what they had then. `InvalidRequest` for a seq that an earlier rewind
        left behind: fork there instead.
        """
        check_seq(to, "to")
        return await revisions.rewind(self, to, reason)

    async def undo(self, count: int = 1, *, reason: str | None = None) -> list[Message]:
        """Take back the newest messages, oldest first in the answer; fewer if there are fewer."""
        if count < 1:
            raise InvalidRequest(f"undo takes back 1 or more messages, not {count}")
        return await revisions.undo(self, count, reason)

    async def clear(self, *, reason: str | None = None) -> Appended:
        """Start the conversation over; earlier messages stay in the log, open replies end."""
        return await revisions.end(self, ev.SessionCleared(reason=reason), "cleared")

    async def close(self, *, reason: str | None = None) -> Appended:
        """Take no more events: open replies and subscriptions end; reading and forking go on."""
        return await revisions.end(self, ev.SessionClosed(reason=reason), "closed")

    async def delete(self, *, reason: str | None = None) -> Appended:
        """Append a tombstone: the session leaves every list and takes no more events."""
        return await self.append(ev.SessionDeleted(reason=reason))

    async def expire(
        self, *, after_seconds: int | None = None, at: datetime | None = None
    ) -> Appended:
        """Say when the session is to be deleted: after so many seconds of silence, or at a time.

        With neither: never, whatever the log's policy says. The newest word counts. An expirer must
        run (`eventlog expire-worker`, or `up`); it deletes no session that goes on just then.
        """
        return await self.append(ev.SessionExpirySet(ttl_seconds=after_seconds, expires_at=at))

    async def erase(self, *, reason: str | None = None, forks: bool = False) -> Erasure:
        """Delete the session, and remove the content of its events everywhere, for good.

        Its events keep their seqs, times and kinds, and say `Erased`. What forks inherited of it is
        erased in them, too, and what they copied is theirs; `forks` erases them altogether.
        Raises `Unavailable`: call it again. Replicas, backups, and Postgres' files until they are
        vacuumed may have it for longer: see docs/operations.md.
        """
        return (await erasure.erase(self._log, self.id, reason=reason, forks=forks))[0]
