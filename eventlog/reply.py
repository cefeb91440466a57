"""Streaming a reply: token increments that are durable soon, without waiting for each one.

    started ──> write, write, …  ──> completed      the block ended
                     │          └──> interrupted    an exception, or the task was cancelled
                     └─────────────> fenced         another writer closed the message

`write` puts an increment into a buffer and returns. A frame of what gathered leaves on the first
increment, after `flush_seconds`, at `FRAME_INCREMENTS` or `FRAME_BYTES`, when the channel changes,
and before any other event of the session. Text is held until it is acknowledged, and the end of the
message carries all of it, so what a user saw is what is stored.

The message can end only once: completion, interruption and a fence by another writer are appended
under one and the same event id, and every frame is refused once that id is in the log.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self, get_args

from eventlog.codec import check_text, encode_frame
from eventlog.envelope import FRAME, Draft, closing_id_of, new_id
from eventlog.errors import (
    EventIdReused,
    EventLogError,
    InvalidEvent,
    InvalidRequest,
    MessageFenced,
)
from eventlog.events import (
    TYPE_CODES,
    Channel,
    Content,
    MessageCompleted,
    MessageInterrupted,
    MessageStarted,
    Role,
    TokensAppended,
    ToolCall,
    Usage,
)
from eventlog.store import Answer, Command
from eventlog.telemetry import get_logger

if TYPE_CHECKING:
    from eventlog.session import Session

FRAME_INCREMENTS: Final = 32
"""Increments in a frame at most."""
FRAME_BYTES: Final = 8 * 1024
"""Bytes of text, as JSON, after which a frame leaves; a single longer increment goes alone."""
UNACKED_INCREMENTS_MAX: Final = 4_096
"""Increments that are not acknowledged yet; beyond this `write` waits."""
UNACKED_BYTES_MAX: Final = 1024 * 1024
ENDING_BYTES: Final = 8 * 1024
"""What the end of a message needs beside the text; the text may have what an event has but this."""
_FRAME_TYPE: Final = TYPE_CODES["tokens.appended"]

log = get_logger()


class Reply:
    """A message that is being generated. Made by `session.reply()`; use it with `async with`."""

    def __init__(
        self,
        session: Session,
        *,
        message_id: str,
        role: Role,
        agent: str | None,
        model: str | None,
        name: str | None,
        metadata: dict[str, Any],
        flush_seconds: float,
        bytes_max: int,
    ) -> None:
        self.message_id = message_id
        self.last_seq = 0
        """Last acknowledged seq of this reply; 0 before it started."""
        self.status = "new"
        """new, open, complete, interrupted or fenced."""
        self._session = session
        self._started = MessageStarted(
            message_id=message_id, role=role, agent=agent, model=model, name=name, metadata=metadata
        )
        self._flush_seconds = flush_seconds
        self._closing_id = closing_id_of(session.id, message_id)
        self._loop = asyncio.get_running_loop()
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._arguments: dict[str, list[str]] = {}
        self._end: dict[str, Any] = {}
        self._bytes_left = max(bytes_max - ENDING_BYTES, bytes_max // 2)
        # The frame that gathers now:
        self._frame: list[str] = []
        self._frame_ms: list[int] = []
        self._frame_bytes = 0
        self._frame_key: tuple[Channel, str | None] = ("text", None)
        self._last_write = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # Frames on their way:
        self._in_flight = 0
        self._unacked = 0
        self._unacked_bytes = 0
        self._due = False
        self._first = True
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    # --- writing ---

    async def write(
        self, text: str, *, channel: Channel = "text", tool_call_id: str | None = None
    ) -> None:
        """Add a token increment. Waits only while too much is unacknowledged.

        Raises `MessageFenced` when another writer closed the message, `InvalidEvent` for text that
        has no UTF-8 form and for a message that gets too long, and whatever ended an earlier frame
        (`Unavailable`, `OutcomeUnknown`).
        """
        if self._error is not None or self.status != "open":
            self._raise()
        size = check_text(text)
        if not size:
            return
        key = (channel, tool_call_id)
        if key != self._frame_key:
            _check_place(channel, tool_call_id)
            self.flush()
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise InvalidEvent(
                f"message {self.message_id!r} would be longer than one event may be "
                "(EVENTLOG_EVENT_BYTES_MAX); end it and start another"
            )
        if channel == "text":
            self._texts.append(text)
        elif channel == "reasoning":
            self._reasoning.append(text)
        else:
            self._arguments.setdefault(tool_call_id or "", []).append(text)
        now = self._loop.time()
        self._frame_key = key
        self._frame.append(text)
        self._frame_ms.append(int((now - self._last_write) * 1000))
        self._frame_bytes += size
        self._last_write = now
        if self._first or len(self._frame) >= FRAME_INCREMENTS or self._frame_bytes >= FRAME_BYTES:
            self.flush()
            if self._unacked > UNACKED_INCREMENTS_MAX or self._unacked_bytes > UNACKED_BYTES_MAX:
                await self._below_limits()
        elif self._timer is None:
            if self._flush_seconds > 0:
                self._timer = self._loop.call_later(self._flush_seconds, self._on_time)
            elif not self._in_flight:
                self.flush()
            else:
                self._due = True

    def finish(
        self,
        *,
        content: Content | None = None,
        tool_calls: list[ToolCall] | None = None,
        finish_reason: str | None = None,
        usage: Usage | None = None,
        token_count: int | None = None,
        metadata: dict[str, Any] | None = None,
        native: Any = None,
    ) -> None:
        """Say what the end of the message shall state; the block's end appends it.

        Without `content` it is the text written; without `tool_calls` those whose arguments were
        written; without `token_count` the usage's output tokens.
        """
        given = {
            "content": content,
            "tool_calls": tool_calls,
            "finish_reason": finish_reason,
            "usage": usage,
            "token_count": token_count,
            "metadata": metadata,
            "native": native,
        }
        self._end |= {name: value for name, value in given.items() if value is not None}

    def flush(self) -> None:
        """Send what gathered, without waiting for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = False
        if not self._frame or self._error is not None:
            return
        self._first = False
        channel, tool_call_id = self._frame_key
        texts, self._frame = self._frame, []
        ms, self._frame_ms = self._frame_ms, []
        size, self._frame_bytes = self._frame_bytes, 0
        data = encode_frame(
            TokensAppended(
                message_id=self.message_id,
                texts=texts,
                ms=ms,
                channel=channel,
                tool_call_id=tool_call_id,
            )
        )
        command = Command(
            self._session.id,
            self._session.shard,
            [Draft(new_id(), _FRAME_TYPE, FRAME, len(texts), data)],
            unless=self._closing_id,
            message_id=self.message_id,
        )
        count = len(texts)
        self._in_flight += 1
        self._unacked += count
        self._unacked_bytes += size
        future = self._session.submit(command)
        future.add_done_callback(lambda done: self._acknowledged(done, count, size))

    def _on_time(self) -> None:
        self._timer = None
        if self._in_flight:
            self._due = True  # the log is busy: a larger frame when the last one is back
        else:
            self.flush()

    def _acknowledged(self, done: asyncio.Future[Any], count: int, size: int) -> None:
        self._in_flight -= 1
        self._unacked -= count
        self._unacked_bytes -= size
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            self._error = self._error or error
        else:
            answer = done.result()
            self.last_seq = getattr(answer, "seq", 0) or answer.before_seq + count
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None
        if self._due and not self._in_flight:
            self.flush()

    async def _below_limits(self) -> None:
        while self._error is None and (
            self._unacked > UNACKED_INCREMENTS_MAX or self._unacked_bytes > UNACKED_BYTES_MAX
        ):
            await self._acknowledgement()
        if self._error is not None:
            self._raise()

    async def drain(self) -> None:
        """Send what gathered and wait until all of it is acknowledged. Raises like `write`."""
        self.flush()
        while self._in_flight:
            await self._acknowledgement()
            self.flush()
        if self._error is not None:
            self._raise()

    async def _acknowledgement(self) -> None:
        """Wait for the next one; several tasks may, so none of them may cancel it."""
        if self._waiter is None:
            self._waiter = self._loop.create_future()
        await asyncio.shield(self._waiter)

    def _raise(self) -> None:
        if isinstance(self._error, MessageFenced):
            self.status = "fenced"
        if self._error is not None:
            raise self._error
        raise InvalidRequest(
            f"this reply is {self.status}; write inside `async with session.reply() as reply:`"
        )

    # --- beginning and end ---

    async def __aenter__(self) -> Self:
        session = self._session
        command = Command(session.id, session.shard, [session.draft(self._started)])
        session.flush_replies()
        try:
            started = await session.settle(command)
        except asyncio.CancelledError:
            if isinstance(command.outcome, Answer):
                session.keep(asyncio.ensure_future(self._interrupt("cancelled")))
            raise
        if started.duplicate and not command.sent:  # not our own retry: a rival, just like us
            raise EventIdReused(session.id, started.event_id)
        self.last_seq = started.last_seq
        self.status = "open"
        self._last_write = self._loop.time()
        self._session.add_reply(self)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            try:
                await self._complete()
            except BaseException as failure:  # whatever it is, the message must not stay open
                await self._end_early(failure)
                raise
        else:
            await self._end_early(error)

    async def _complete(self) -> None:
        await self.drain()
        end = dict(self._end)
        usage = end.get("usage")
        if "token_count" not in end and usage is not None:
            end["token_count"] = usage.output_tokens
        end.setdefault("content", "".join(self._texts))
        end.setdefault("tool_calls", self._tool_calls())
        await self._close(
            MessageCompleted(message_id=self.message_id, reasoning="".join(self._reasoning), **end),
            "complete",
        )

    async def _end_early(self, error: BaseException) -> None:
        ending = asyncio.ensure_future(self._interrupt(_reason_of(error)))
        self._session.keep(ending)
        # A cancelled task may be cancelled again while it waits; the append goes on all the same,
        # and closing the log waits for it.
        await asyncio.shield(ending)

    async def _interrupt(self, reason: str) -> None:
        """Keep what was seen. Never raises for a log that can't take it: it is on its way out."""
        if isinstance(self._error, MessageFenced):
            self.status = "fenced"
            self._session.drop_reply(self)
            return
        self.flush()
        event = MessageInterrupted(
            message_id=self.message_id,
            content="".join(self._texts),
            reasoning="".join(self._reasoning),
            tool_calls=self._tool_calls(),
            reason=reason,
        )
        where = {"session_id": str(self._session.id), "message_id": self.message_id}
        try:
            await self._close(event, "interrupted")
            log.info("reply.interrupted", reason=reason, **where)
        except MessageFenced:
            log.info("reply.fenced", **where)
        except EventLogError as failure:
            # The exception that ended the block goes on; the reaper closes the message later.
            log.warning("reply.interrupted", reason=reason, not_stored=str(failure), **where)

    async def _close(self, event: MessageCompleted | MessageInterrupted, status: str) -> None:
        self._session.drop_reply(self)
        try:
            done = await self._session.append_drafts(
                [self._session.draft(event, self._closing_id)], message_id=self.message_id
            )
        except EventIdReused:
            self.status = "fenced"
            self._error = MessageFenced(self._session.id, self.message_id)
            raise self._error from None
        self.last_seq = done.last_seq
        self.status = status

    def _tool_calls(self) -> list[ToolCall]:
        return [
            ToolCall(id=call, name="", arguments="".join(parts))
            for call, parts in self._arguments.items()
        ]


def _check_place(channel: object, tool_call_id: object) -> None:
    """Refuse what would be stored and then could not be read."""
    if channel not in get_args(Channel):
        raise InvalidEvent(f"channel {channel!a:.80} is none of {', '.join(get_args(Channel))}")
    if tool_call_id is not None:
        if type(tool_call_id) is not str:
            raise InvalidEvent(f"tool_call_id must be a str, not {type(tool_call_id).__name__}")
        check_text(tool_call_id)


def _reason_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    reason = f"{type(error).__name__}: {error}"[:500]
    return reason.encode("utf-8", "backslashreplace").decode()
